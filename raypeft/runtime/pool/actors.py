"""Slots as Ray actors, calls as Ray tasks.

A slot is an actor from a plain class with one call under way, a call is a task; neither is run
again by Ray, since it would do so without saying (an attempt could be counted once and run
twice). Whatever Ray raises becomes an event here. What follows from it is decided elsewhere, and
what a slot asks Ray for is `raypeft.runtime.options`' business.
"""

import os
import secrets
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from typing import Any

import ray
import ray.exceptions

from raypeft.core.events import SlotFailed, SlotLost, SlotPlaced, SlotReady, UnitFailed
from raypeft.core.records import EngineSpec, Failure, FailureKind, Hardware, RequestSet, UnitAnswers
from raypeft.engines.build import import_engine
from raypeft.engines.travel import AdapterBytes, content_key
from raypeft.errors import SetupError
from raypeft.runtime.bringing import brought
from raypeft.runtime.failures import failure_from
from raypeft.runtime.options import (
    HardwareProfile,
    actor_options,
    call_options,
    inherited_switches,
    plain,
    slots_that_fit,
    with_environment,
)
from raypeft.runtime.pool.connection import RayConnection, cluster_has_gpus
from raypeft.runtime.pool.ray_failures import failure_of
from raypeft.runtime.ports import (
    Bring,
    Build,
    CallDone,
    CallFailed,
    PoolEvent,
    Shared,
    UnitAnswered,
    UnitWork,
)
from raypeft.runtime.slot import Broken, Slot, Wanted
from raypeft.runtime.work import build as build_default

FETCH_SECONDS = 300.0
"""Longest to fetch what is said to be there; then its node is taken for dead."""

CALLS_AT_ONCE = 2


class SlotActor:
    """What runs in the actor: a `Slot` that fetches request sets and adapters from Ray.

    Plain and synchronous: with any async method Ray would take the others off the main thread,
    where lm-eval's and the engines' signal handlers fail.
    """

    _slot: Slot

    def prepare(self, kind: str) -> None:
        """Import what an engine of this kind needs."""
        import_engine(kind)

    def place(self) -> None:
        """Return as soon as the actor has its hardware."""

    def ready(self, spec: EngineSpec, build: Build) -> Hardware | Failure:
        """Become the slot of a base, and load it."""
        self._slot = Slot(spec, build)
        return self._slot.ready()

    def run(
        self, work: UnitWork, request_set: list[Any], adapters: Mapping[str, list[Any]]
    ) -> UnitAnswers | Broken | Wanted:
        """Answer a unit; references stand in lists, so that Ray does not fetch them anew."""

        def fetch() -> RequestSet:
            fetched: RequestSet = ray.get(request_set[0])
            return fetched

        bring: dict[str, Bring] = {key: partial(_got, ref[0]) for key, ref in adapters.items()}
        return self._slot.run(work, fetch, bring)


def _got(reference: Any) -> AdapterBytes | Failure:
    """Return what stands for an adapter: bytes in the object store, or why there are none."""
    if isinstance(reference, Failure):
        return reference
    fetched: AdapterBytes = ray.get(reference)
    return fetched


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
        num_slots: Most slots at once. On a local Ray no more than fit are used; a cluster may
            grow, and the schedule finds out.
        build: Loads a base; sent to the slots by name.

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
    ) -> None:
        switches = {} if connection.is_local else inherited_switches(os.environ)
        self._options = with_environment(actor_options(profile), switches)
        self._actor_class = ray.remote(SlotActor)
        # Calls are few at a time by the driver's count; beside slots that hold every core they
        # would wait for the night to end, and prepared slots for them.
        options = with_environment(call_options(), switches)
        if connection.is_local and not cluster_has_gpus():
            # Nothing to hide; and without an environment of their own, slots and calls take the
            # processes that Ray has started already.
            self._options, options = plain(self._options), plain(options)
        self._task = ray.remote(_guarded).options(**options)
        self._num_slots = num_slots
        self._calls_at_once = CALLS_AT_ONCE
        if connection.is_local:
            self._num_slots = min(num_slots, self._fitting(profile))
            cpus = int(ray.cluster_resources().get("CPU", 1))
            self._calls_at_once = max(1, min(CALLS_AT_ONCE, cpus // 2 - 1))
        self._build = build
        self._run_id = secrets.token_hex(4)
        self._actors: dict[str, Any] = {}
        self._spares: deque[Any] = deque()
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
            self._spares.append(spare)

    def drop_spares(self) -> None:
        """Stop prepared actors that no slot has become."""
        while self._spares:
            ray.kill(self._spares.pop(), no_restart=True)

    def start_slot(self, slot: str, spec: EngineSpec) -> None:
        """Start an actor, or take a prepared one; its base is loaded once it has its hardware."""
        actor = self._spares.popleft() if self._spares else self._actor(slot)
        self._actors[slot] = actor
        self._pending[actor.place.remote()] = _Pending(_Step.PLACE, slot, spec=spec)

    def _actor(self, name: str) -> Any:
        # A number too: another run on this pool has slots of the same names.
        self._num_actors += 1
        options = {**self._options, "name": f"{self._run_id}/{self._num_actors}/{name}"}
        return self._actor_class.options(**options).remote()

    def stop_slot(self, slot: str) -> None:
        """Kill an actor and what it started; a call under way is not awaited."""
        actor = self._actors.pop(slot, None)
        if actor is None:
            return
        for ref, pending in tuple(self._pending.items()):
            if pending.owner == slot and pending.step is not _Step.CALL:
                del self._pending[ref]
        ray.kill(actor, no_restart=True)

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
        refs = list(self._pending)
        done, _ = ray.wait(refs, num_returns=1, timeout=timeout_seconds)
        if done:
            done, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        events: list[PoolEvent] = []
        for ref in done:
            event = self._event(self._pending.pop(ref), ref)
            if event is not None:
                events.append(event)
        return events

    def close(self) -> None:
        """Kill every actor and call, and forget everything."""
        self.drop_spares()
        for slot in tuple(self._actors):
            self.stop_slot(slot)
        for ref in self._pending:
            ray.cancel(ref, force=True)
        self._pending.clear()
        self._shared.clear()
        self._offered.clear()

    def _run(self, pending: _Pending) -> None:
        run = self._actors[pending.owner].run
        ref = run.remote(pending.work, [pending.request_set], pending.adapters)
        self._pending[ref] = pending

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

    def _event(self, pending: _Pending, ref: Any) -> PoolEvent | None:
        """Return what has happened; None if it is the pool's own business."""
        try:
            value = ray.get(ref, timeout=FETCH_SECONDS)
        except Exception as error:  # noqa: BLE001 - a failure becomes an event here
            return self._failed(pending, failure_of(error))
        slot = pending.owner
        match pending.step, value:
            case _Step.PLACE, _:
                ready = self._actors[slot].ready.remote(pending.spec, self._build)
                self._pending[ready] = _Pending(_Step.READY, slot)
                return SlotPlaced(slot)
            case _Step.READY, Hardware():
                return SlotReady(slot, value)
            case _Step.RUN, Wanted():
                self._bring(pending, value)
                return None
            case _Step.RUN, UnitAnswers():
                return UnitAnswered(slot, pending.unit_id, pending.attempt, value)
            case _Step.RUN, Broken(failure, is_fatal=False):
                return UnitFailed(slot, pending.unit_id, pending.attempt, failure)
            case _Step.CALL, (result, None):
                return CallDone(pending.owner, result)
            case (_, Failure() as failure) | (_, Broken(failure)) | (_, (_, Failure() as failure)):
                return self._failed(pending, failure)
        raise AssertionError(f"{pending} gave {value!r}")

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


def _described(nodes: list[Mapping[str, float]]) -> str:
    node = nodes[0] if nodes else {}
    gib = node.get("memory", 0.0) / 2**30
    return f"{node.get('GPU', 0):g} GPUs, {node.get('CPU', 0):g} CPUs and {gib:.0f} GiB of memory"
