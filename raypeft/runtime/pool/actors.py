"""Slots as Ray actors, calls as Ray tasks.

A slot is an actor from a plain class with one call under way, a call is a task; neither is run
again by Ray, since it would do so without saying (an attempt could be counted once and run
twice). Whatever Ray raises becomes an event here. What follows from it is decided elsewhere, and
what a slot asks Ray for is `raypeft.runtime.options`' business.
"""

import logging
import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import ray
import ray.exceptions
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raypeft.core.events import (
    NodeDraining,
    SlotFailed,
    SlotLost,
    SlotPlaced,
    SlotReady,
    UnitFailed,
)
from raypeft.core.records import EngineSpec, Failure, FailureKind, Hardware, UnitAnswers
from raypeft.engines.travel import AdapterBytes, content_key
from raypeft.errors import SetupError
from raypeft.runtime.bringing import brought
from raypeft.runtime.failures import failure_from
from raypeft.runtime.options import (
    GroupRequest,
    HardwareProfile,
    actor_options,
    avoiding,
    call_options,
    group_request,
    inherited_switches,
    monitor_options,
    plain,
    slots_that_fit,
    with_environment,
)
from raypeft.runtime.pins import Pins
from raypeft.runtime.pool.claims import Claims, room_of
from raypeft.runtime.pool.cluster import ClusterWatch, free_slots
from raypeft.runtime.pool.connection import RayConnection, cluster_has_gpus
from raypeft.runtime.pool.monitor import Ear
from raypeft.runtime.pool.ray_failures import failure_of
from raypeft.runtime.pool.slot_actor import Pulse, SlotActor
from raypeft.runtime.ports import (
    Build,
    CallDone,
    CallFailed,
    PoolEvent,
    Shared,
    UnitAnswered,
    UnitWork,
)
from raypeft.runtime.slot import Broken, Wanted
from raypeft.runtime.work import build as build_default

FETCH_SECONDS = 300.0
"""Longest to fetch what is said to be there; then its node is taken for dead."""

CALLS_AT_ONCE = 2

BEAT_SECONDS = 10.0
"""How often slots say how far they are, once an attempt takes longer than that."""

LOOK_SECONDS = 5.0
"""How often the cluster's nodes are looked at."""

_logger = logging.getLogger(__name__)


def _guarded(function: Callable[..., object], *args: object) -> tuple[object, Failure | None]:
    """Call a function; what it raises comes back as a value, since it may not pickle."""
    try:
        return function(*args), None
    except Exception as error:  # noqa: BLE001 - a failure becomes an event here
        return None, failure_from(error)


class _Step(StrEnum):
    """What a reference stands for."""

    PLACE = "place"
    READY = "ready"
    RUN = "run"
    CALL = "call"


@dataclass(frozen=True, slots=True)
class _Pending:
    step: _Step
    owner: str
    """The slot, or the call."""
    attempt: int = 0
    spec: EngineSpec | None = None
    work: UnitWork | None = None
    since_seconds: float = 0.0
    request_set: Any = None
    adapters: Mapping[str, list[Any]] = field(default_factory=dict)
    """What stands for adapters that the slot can have."""

    @property
    def unit_id(self) -> str:
        """The unit, if it stands for one."""
        return "" if self.work is None else self.work.unit_id


class RayPool:
    """Slots and calls on a Ray.

    Args:
        connection: Where.
        profile: What a slot runs on.
        num_slots: Most slots at once. On a Ray that is one node no more than fit are used; a
            cluster may grow, for which slots that wait are the sign, and the schedule finds out.
        build: Loads a base; sent to the slots by name.
        allow_mixed: Whether slots of one base may be on different hardware.
        beat_seconds: How often slots say how far they are.
        look_seconds: How often the cluster's nodes are looked at.
        claims: Of this sweep and others on the cluster; None where it is alone.

    Raises:
        SpecError: If Ray cannot give what the profile asks for.
        SetupError: If a local Ray does not have it.
    """

    def __init__(
        self,
        connection: RayConnection,
        *,
        profile: HardwareProfile,
        num_slots: int,
        build: Build = build_default,
        allow_mixed: bool = False,
        beat_seconds: float = BEAT_SECONDS,
        look_seconds: float = LOOK_SECONDS,
        claims: Claims | None = None,
    ) -> None:
        switches = {} if connection.is_local else inherited_switches(os.environ)
        self._options = with_environment(actor_options(profile), switches)
        self._group = group_request(profile)
        self._groups: dict[Any, Any] = {}
        self._actor_class = ray.remote(SlotActor)
        # Calls are few at a time by the driver's count; beside slots that hold every core they
        # would wait for the night to end, and prepared slots for them.
        options = with_environment(call_options(), switches)
        monitor = with_environment(monitor_options(), switches)
        if connection.is_local and self._group is not None:
            raise SetupError(
                f"hardware.tensor_parallel is {profile.tensor_parallel} and gpus_per_node "
                f"{profile.gpus_per_node}, and a Ray that was started here is one node",
                "give the address of a cluster (--address, or RAY_ADDRESS)",
            )
        if connection.is_local and not cluster_has_gpus():
            # Nothing to hide; and without an environment of their own, slots and calls take the
            # processes that Ray has started already.
            self._options, options = plain(self._options), plain(options)
            monitor = plain(monitor)
        self._task = ray.remote(_guarded).options(**options)
        self._num_slots = num_slots
        self._calls_at_once = CALLS_AT_ONCE
        if connection.is_local:
            fitting = self._fitting(profile)
            self._num_slots = num_slots if connection.can_grow else min(num_slots, fitting)
            cpus = int(ray.cluster_resources().get("CPU", 1))
            self._calls_at_once = max(1, min(CALLS_AT_ONCE, cpus // 2 - 1))
        self._build = build
        self._run_id = secrets.token_hex(4)
        self._actors: dict[str, Any] = {}
        self._nodes: dict[str, str] = {}
        """The node of each slot that has its hardware, by Ray's id."""
        self._names: dict[str, str] = {}
        """What nodes are called in events, by Ray's id."""
        self._told: set[str] = set()
        """Draining nodes that were told of."""
        self._pins = Pins(are_held=not allow_mixed)
        self._watch = ClusterWatch(None if self._group else self._options, look_seconds)
        self._claims = claims
        self._told_room = (self._num_slots, False)
        self._ear = Ear(f"{self._run_id}/monitor", monitor, beat_seconds)
        self._spares: deque[tuple[str, Any]] = deque()
        """Prepared actors, each with the kind of engine that it has imported."""
        self._num_actors = 0
        self._shared: dict[str, Any] = {}
        self._offered: dict[str, Callable[[], AdapterBytes]] = {}
        self._pending: dict[Any, _Pending] = {}

    @property
    def num_slots(self) -> int:
        """How many slots there is room for."""
        return self._num_slots

    @property
    def is_parallel(self) -> bool:
        """Always: every slot is a process of its own."""
        return True

    @property
    def calls_at_once(self) -> int:
        """How many calls to have under way: on a small machine each takes a slot's core."""
        return self._calls_at_once

    def prepare_slots(self, count: int, kind: str) -> None:
        """Start actors that wait for a base, the engine's packages imported."""
        for _ in range(min(count, self._num_slots) - len(self._spares)):
            spare = self._actor("spare")
            spare.prepare.remote(kind)
            self._spares.append((kind, spare))

    def drop_spares(self) -> None:
        """Stop prepared actors that no slot has become; the next run is told its room anew."""
        self._told_room = (self._num_slots, False)
        while self._spares:
            _, spare = self._spares.pop()
            self._kill(spare)

    def start_slot(self, slot: str, spec: EngineSpec) -> None:
        """Start an actor, or take a prepared one; its base is loaded once it has its hardware."""
        unlike = self._pins.unlike(spec)
        # One that has imported the other engine's packages would have their settings, too; and
        # where a prepared one is, is not known.
        fits = (one for one in self._spares if one[0] == spec.kind and not unlike)
        spare = next(fits, None)
        if spare is not None:
            self._spares.remove(spare)
        actor = self._actor(slot, unlike) if spare is None else spare[1]
        self._actors[slot] = actor
        self._pending[actor.place.remote()] = _Pending(
            _Step.PLACE, slot, spec=spec, since_seconds=time.monotonic()
        )

    def _actor(self, name: str, avoid: Collection[str] = ()) -> Any:
        # A number too: another run on this pool has slots of the same names.
        self._num_actors += 1
        options = {**self._options, "name": f"{self._run_id}/{self._num_actors}/{name}"}
        if self._group is None:
            return self._actor_class.options(**avoiding(options, avoid)).remote()
        group = _placement_group(self._group, avoid)
        within = PlacementGroupSchedulingStrategy(
            group,
            placement_group_bundle_index=0,
            # vLLM's workers find the group they belong into through their slot.
            placement_group_capture_child_tasks=True,
        )
        actor = self._actor_class.options(**options, scheduling_strategy=within).remote()
        self._groups[actor] = group
        return actor

    def _kill(self, actor: Any) -> None:
        """End an actor, and what its group holds on other nodes."""
        ray.kill(actor, no_restart=True)
        if (group := self._groups.pop(actor, None)) is not None:
            remove_placement_group(group)

    def stop_slot(self, slot: str) -> None:
        """Kill an actor and what it started; a call under way is not awaited."""
        actor = self._actors.pop(slot, None)
        self._nodes.pop(slot, None)
        if actor is None:
            return
        for ref, pending in tuple(self._pending.items()):
            if pending.owner == slot and pending.step is not _Step.CALL:
                del self._pending[ref]
        self._kill(actor)

    def share(self, key: str, value: object) -> None:
        """Put a value into the object store."""
        if key in self._shared:
            return
        try:
            self._shared[key] = ray.put(value)
        except ray.exceptions.RayError as error:
            raise SetupError(
                f"Ray's object store took no more: {error}", "make room on the disk it spills to"
            ) from error

    def offer(self, key: str, load: Callable[[], AdapterBytes]) -> None:
        """Keep what loads an adapter's files; they are put into the object store when asked for."""
        self._offered.setdefault(key, load)

    def release(self, key: str) -> None:
        """Forget a value shared or offered; Ray keeps a shared one for calls under way."""
        self._shared.pop(key, None)
        self._offered.pop(key, None)

    def submit(self, slot: str, work: UnitWork, attempt: int) -> None:
        """Give a slot a unit."""
        keys = {content_key(one.opened) for one in work.subjects if one.opened is not None}
        known = {key: [self._shared[key]] for key in keys if key in self._shared}
        request_set = self._shared[work.request_set]
        self._run(
            _Pending(_Step.RUN, slot, attempt, work=work, request_set=request_set, adapters=known)
        )

    def submit_call(self, call: str, function: Callable[..., object], *args: object) -> None:
        """Run a function in a task."""
        values = [self._shared[arg.key] if isinstance(arg, Shared) else arg for arg in args]
        self._pending[self._task.remote(function, *values)] = _Pending(_Step.CALL, call)

    def wait(self, timeout_seconds: float) -> list[PoolEvent]:
        """Return what has happened."""
        if not self._pending:
            return []
        question = self._ear.question()
        refs = [*self._pending, *(() if question is None else (question,))]
        done, _ = ray.wait(refs, num_returns=1, timeout=timeout_seconds)
        if done:
            done, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        events: list[PoolEvent] = []
        for ref in done:
            if ref == question:
                events.extend(self._ear.answer())
            else:
                events.extend(self._events(self._pending.pop(ref), ref))
        return [*events, *self._changes()]

    def _changes(self) -> list[PoolEvent]:
        """Return what has become of the cluster, and begin to listen where a unit takes long."""
        now = time.monotonic()
        if not self._ear.listens and any(
            one.step is _Step.RUN and one.since_seconds + self._ear.every_seconds <= now
            for one in self._pending.values()
        ):
            self._ear.begin()
        waiting = [one.since_seconds for one in self._pending.values() if one.step is _Step.PLACE]
        has_grown = self._watch.look(waits=bool(waiting))
        used = set(self._nodes.values()) & self._watch.draining
        told = [NodeDraining(self._names[node], _DRAINS) for node in sorted(used - self._told)]
        self._told |= used
        self._shares(waiting)
        room = room_of(self._claims, self._num_slots)
        if not has_grown and (room.slots, room.is_shared) == self._told_room:
            return list(told)
        self._told_room = (room.slots, room.is_shared)
        return [*told, room]

    def _shares(self, waiting: Collection[float]) -> None:
        """Tell other sweeps what this one has and wants, and learn its share."""
        if self._claims is None:
            return
        held = len(self._nodes) + len(self._spares)
        self._claims.look(
            held=held,
            # One that is held to its share would use more, and asks for no more.
            wanted=self._num_slots if self._claims.share else held + len(waiting),
            waiting_since=min(waiting, default=None),
            # Of a slot on several nodes it is not known what there is.
            free_slots=lambda: 0 if self._group else free_slots(self._options),
        )

    def close(self) -> None:
        """Kill every actor and call, and forget everything."""
        self.drop_spares()
        if self._claims is not None:
            self._claims.withdraw()
        for slot in tuple(self._actors):
            self.stop_slot(slot)
        self._ear.end()
        for ref in self._pending:
            ray.cancel(ref, force=True)
        self._pending.clear()
        self._shared.clear()
        self._offered.clear()

    def _run(self, pending: _Pending) -> None:
        run = self._actors[pending.owner].run
        ref = run.remote(pending.work, pending.attempt, [pending.request_set], pending.adapters)
        self._pending[ref] = replace(pending, since_seconds=time.monotonic())

    def _bring(self, pending: _Pending, wanted: Wanted) -> None:
        """Let a slot try again, with the adapters it lacks."""
        adapters = {**pending.adapters}
        for key in wanted.adapters:
            adapters[key] = [self._brought(key)]
        self._run(replace(pending, adapters=adapters))

    def _brought(self, key: str) -> Any:
        """Return a reference to an adapter's files, or the failure in its place."""
        if key not in self._shared:
            found = brought(self._offered.get(key), key)
            if isinstance(found, Failure):
                return found  # not shared: the next attempt may end differently
            try:
                self.share(key, found)
            except SetupError as error:
                return failure_from(error)
        return self._shared[key]

    def _events(self, pending: _Pending, ref: Any) -> list[PoolEvent]:
        """Return what has happened; nothing if it is the pool's own business."""
        try:
            value = ray.get(ref, timeout=FETCH_SECONDS)
        except Exception as error:  # noqa: BLE001 - a failure becomes an event here
            return [self._failed(pending, failure_of(error))]
        slot = pending.owner
        match pending.step, value:
            case _Step.PLACE, str():
                return self._placed(pending, value)
            case _Step.READY, Hardware():
                return self._ready(pending, value)
            case _Step.RUN, Wanted():
                self._bring(pending, value)
                return []
            case _Step.RUN, UnitAnswers():
                return [UnitAnswered(slot, pending.unit_id, pending.attempt, value)]
            case _Step.RUN, Broken(failure, is_fatal=False):
                return [UnitFailed(slot, pending.unit_id, pending.attempt, failure)]
            case _Step.CALL, (result, None):
                return [CallDone(pending.owner, result)]
            case (_, Failure() as failure) | (_, Broken(failure)) | (_, (_, Failure() as failure)):
                return [self._failed(pending, failure)]
        raise AssertionError(f"{pending} gave {value!r}")

    def _placed(self, pending: _Pending, node: str) -> list[PoolEvent]:
        slot = pending.owner
        self._nodes[slot] = node
        self._names.setdefault(node, node)
        pulse = Pulse(slot=slot, monitor=self._ear.name, every_seconds=self._ear.every_seconds)
        ready = self._actors[slot].ready.remote(pending.spec, self._build, pulse)
        self._pending[ready] = _Pending(_Step.READY, slot, spec=pending.spec)
        return [SlotPlaced(slot)]

    def _ready(self, pending: _Pending, hardware: Hardware) -> list[PoolEvent]:
        """Return that a slot is ready, or start another in its place on other hardware."""
        slot, spec = pending.owner, pending.spec
        assert spec is not None, f"{slot} was started without a base"
        node = self._nodes[slot]
        refusal = self._pins.refusal(spec, hardware, node)
        if refusal is None:
            self._names[node] = hardware.node
            self._told.discard(node)  # this slot was not told of
            return [SlotReady(slot, hardware)]
        if not refusal.retryable:
            return [self._failed(pending, refusal)]
        _logger.warning("%s is replaced: %s", slot, refusal.message)
        self.stop_slot(slot)
        self.start_slot(slot, spec)
        return []

    def _failed(self, pending: _Pending, failure: Failure) -> PoolEvent:
        """Return the event of a call that failed; a slot in which one failed is stopped."""
        if pending.step is _Step.CALL:
            return CallFailed(pending.owner, failure)
        self.stop_slot(pending.owner)
        if pending.step is _Step.RUN:
            return SlotLost(pending.owner, failure)
        if failure.kind is FailureKind.CRASHED:
            failure = replace(failure, kind=FailureKind.LOAD_FAILED)
        return SlotFailed(pending.owner, failure)

    def _fitting(self, profile: HardwareProfile) -> int:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        fitting = slots_that_fit(self._options, nodes)
        if fitting == 0:
            raise SetupError(
                f"no slot with {profile.gpus:g} GPUs and {profile.cpus:g} CPUs fits on this "
                f"machine, which has {_described(nodes)}",
                "ask for less under `hardware:`, or give the address of a cluster",
            )
        return fitting


_DRAINS = "Ray drains it"


def _placement_group(request: GroupRequest, avoid: Collection[str]) -> Any:
    """Ask Ray for a placement group; its actors wait until it is there."""
    labels = [dict(one) for one in request.label_selectors]
    if avoid:
        selectors = labels or [{} for _ in request.bundles]
        labels = [avoiding({"label_selector": one}, avoid)["label_selector"] for one in selectors]
    return placement_group(
        [dict(bundle) for bundle in request.bundles],
        strategy=request.strategy,
        **({"bundle_label_selector": labels} if labels else {}),
    )


def _described(nodes: list[Mapping[str, float]]) -> str:
    node = nodes[0] if nodes else {}
    gib = node.get("memory", 0.0) / 2**30
    return f"{node.get('GPU', 0):g} GPUs, {node.get('CPU', 0):g} CPUs and {gib:.0f} GiB of memory"
