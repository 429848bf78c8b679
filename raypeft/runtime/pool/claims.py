"""What the sweeps on a cluster hold and want, as they tell one another.

Each driver keeps its claim in Ray's own key-value store, which every driver of a cluster reaches
and which costs no process. A claim that its driver no longer renews is nobody's.
"""

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from ray.experimental.internal_kv import (
    _internal_kv_del,
    _internal_kv_get,
    _internal_kv_list,
    _internal_kv_put,
)

from raypeft.core.events import CapacityChanged
from raypeft.core.fair_share import (
    Claim,
    Share,
    claim_json,
    fair_share,
    read_claim,
    rivals_of,
    shared_size,
    shown_name,
)
from raypeft.runtime.options import HardwareProfile

NAMESPACE = b"raypeft"
PREFIX = b"claim/"

SILENT_SECONDS = 60.0
"""A claim that has not changed for so long, by this driver's own clock, is nobody's."""

WAIT_SECONDS = 15.0
"""A slot that has no hardware after this long waits for it; starting one takes a while as well."""

STEADY_SECONDS = 60.0
"""So long what there is to share is not taken for less: while one sweep's slot ends and another's
begins, the hardware is nobody's."""

_logger = logging.getLogger(__name__)


class Claims:
    """One sweep among those on a cluster.

    Args:
        claim: Its own, with nothing held yet.
        every_seconds: How often the others are asked.
        wait_seconds: From when on a slot counts as waiting.
    """

    def __init__(
        self, claim: Claim, *, every_seconds: float, wait_seconds: float = WAIT_SECONDS
    ) -> None:
        self._claim = claim
        self._every_seconds = every_seconds
        self._wait_seconds = wait_seconds
        self._looked_seconds = -every_seconds
        self._count = 0
        self._seen: dict[bytes, tuple[bytes, float]] = {}
        """Each other claim as it was last read, and since when it is that."""
        self._sizes: deque[tuple[float, float]] = deque()
        self.share: Share | None = None
        """What this sweep is to keep while others wait; None if it may have what it wants."""
        self.is_shared = False
        """Whether others hold hardware that this sweep could use."""

    def look(
        self,
        *,
        held: int,
        wanted: int,
        waiting_since: float | None,
        free_slots: Callable[[], int | None],
    ) -> None:
        """Tell the others and look at theirs, if it is time to.

        Args:
            held: Slots that have their hardware.
            wanted: Slots that would be used.
            waiting_since: Since when the slot that has waited longest waits for its hardware, on
                the monotonic clock; None if none does.
            free_slots: Tells how many slots the cluster has free; None if no node could hold one.
        """
        now = time.monotonic()
        if now < self._looked_seconds + self._every_seconds:
            return
        self._looked_seconds = now
        try:
            free = free_slots()
            # Who waits for what is not there cannot be helped by others.
            waits = free == 0 and waiting_since is not None
            waits = waits and now - (waiting_since or now) >= self._wait_seconds
            self._claim = replace(
                self._claim,
                held=held,
                wanted=wanted,
                waits=waits,
                is_limited=self.share is not None,
            )
            self._tell()
            rivals = rivals_of(self._claim, list(self._others(now)))
            self.share = fair_share(self._claim, rivals, self._size(rivals, free or 0, now))
            self.is_shared = any(rival.held for rival in rivals)
        except Exception as error:  # noqa: BLE001 - the head may be away for a while
            _logger.warning("other sweeps cannot be asked what they need: %s", error)

    def _size(self, rivals: Sequence[Claim], free_slots: int, now_seconds: float) -> float:
        """Return the most there was to share in the last minute."""
        self._sizes.append((now_seconds, shared_size(self._claim, rivals, free_slots)))
        while self._sizes[0][0] < now_seconds - STEADY_SECONDS:
            self._sizes.popleft()
        return max(size for _, size in self._sizes)

    def withdraw(self) -> None:
        """Claim nothing any more."""
        with suppress(Exception):  # the cluster may be gone, and a claim ends by itself
            _internal_kv_del(_key(self._claim), namespace=NAMESPACE)

    def _tell(self) -> None:
        self._count += 1
        value = {**claim_json(self._claim), "count": self._count}
        _internal_kv_put(_key(self._claim), json.dumps(value), True, namespace=NAMESPACE)

    def _others(self, now_seconds: float) -> Iterator[Claim]:
        keys = set(_internal_kv_list(PREFIX, namespace=NAMESPACE)) - {_key(self._claim)}
        for key in sorted(keys):
            value = _internal_kv_get(key, namespace=NAMESPACE)
            if value is None:
                continue
            if self._seen.get(key, (b"", 0.0))[0] != value:
                self._seen[key] = (value, now_seconds)
            elif now_seconds - self._seen[key][1] >= SILENT_SECONDS:
                # A driver that was only paused puts it there again.
                _internal_kv_del(key, namespace=NAMESPACE)
                continue
            claim = read_claim(_without_count(value))
            if claim is not None:
                yield claim
        self._seen = {key: seen for key, seen in self._seen.items() if key in keys}


def _key(claim: Claim) -> bytes:
    return PREFIX + claim.run.encode()


def _without_count(value: bytes) -> object:
    try:
        found = json.loads(value)
    except ValueError:
        return None
    if isinstance(found, dict):
        found.pop("count", None)
    return found


def claim_of(sweep: str, run: str, priority: int, profile: HardwareProfile) -> Claim:
    """Return a sweep's claim before it holds anything.

    Args:
        sweep: Its name.
        run: Its run.
        priority: Its weight.
        profile: What one slot runs on.
    """
    labels = dict(profile.labels)
    if profile.accelerator is not None:
        labels["accelerator type"] = profile.accelerator
    return Claim(
        sweep=shown_name(sweep),
        run=run,
        priority=priority,
        resource="GPU" if profile.gpus else "CPU",
        slot_size=float(profile.gpus or profile.cpus),
        labels=labels,
    )


def room_of(claims: Claims | None, num_slots: int) -> CapacityChanged:
    """Return how many slots a sweep is to use.

    Args:
        claims: Its and others'; None where it is alone.
        num_slots: As many as are wanted: what an autoscaler can still bring, nobody knows here.
    """
    if claims is None:
        return CapacityChanged(num_slots)
    if claims.share is None:
        return CapacityChanged(num_slots, is_shared=claims.is_shared)
    return CapacityChanged(claims.share.slots, claims.share.reason, claims.is_shared)
