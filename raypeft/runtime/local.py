"""Slots in this process, one piece of work at a time.

What `--local` runs, and what debugs a sweep: no Ray, no other process, one traceback. It keeps
the order of submission, so a run is deterministic. What it cannot do is stop work that hangs:
a time limit needs a process that can be killed, which `raypeft.runtime.pool` has.
"""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import cast

from raypeft.core.events import SlotFailed, SlotLost, SlotPlaced, SlotReady, UnitFailed
from raypeft.core.records import EngineSpec, Failure, RequestSet, UnitAnswers
from raypeft.engines.travel import AdapterBytes
from raypeft.runtime.bringing import brought
from raypeft.runtime.failures import failure_from
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


class LocalPool:
    """A pool in this process.

    Args:
        num_slots: How many bases may be loaded at once; they take turns.
        build: Loads a base.
    """

    def __init__(self, *, num_slots: int = 1, build: Build = build_default) -> None:
        self._num_slots = num_slots
        self._build = build
        self._slots: dict[str, Slot] = {}
        self._shared: dict[str, object] = {}
        self._offered: dict[str, Callable[[], AdapterBytes]] = {}
        self._work: deque[tuple[str | None, Callable[[], list[PoolEvent]]]] = deque()

    @property
    def num_slots(self) -> int:
        """How many slots there is room for."""
        return self._num_slots

    @property
    def is_parallel(self) -> bool:
        """Never: one thing at a time, each to its end."""
        return False

    @property
    def calls_at_once(self) -> int:
        """One thing at a time."""
        return 1

    def prepare_slots(self, count: int, kind: str) -> None:
        """Do nothing: whatever is imported here first, it takes the same time."""

    def drop_spares(self) -> None:
        """Do nothing: there are none."""

    def start_slot(self, slot: str, spec: EngineSpec) -> None:
        """Start a slot and load a base in it."""
        self._slots[slot] = Slot(spec, self._build)
        self._work.append((slot, lambda: self._load(slot)))

    def stop_slot(self, slot: str) -> None:
        """Stop a slot; what it was to do is not done."""
        self._work = deque((owner, work) for owner, work in self._work if owner != slot)
        stopped = self._slots.pop(slot, None)
        if stopped is not None:
            stopped.close()

    def share(self, key: str, value: object) -> None:
        """Keep a value under a key."""
        self._shared.setdefault(key, value)

    def offer(self, key: str, load: Callable[[], AdapterBytes]) -> None:
        """Keep what loads an adapter's files."""
        self._offered.setdefault(key, load)

    def release(self, key: str) -> None:
        """Forget a value shared or offered."""
        self._shared.pop(key, None)
        self._offered.pop(key, None)

    def submit(self, slot: str, work: UnitWork, attempt: int) -> None:
        """Give a slot a unit."""
        request_set = cast(RequestSet, self._shared[work.request_set])
        self._work.append((slot, lambda: self._run(slot, work, attempt, request_set)))

    def submit_call(self, call: str, function: Callable[..., object], *args: object) -> None:
        """Run a function."""
        values = [self._shared[arg.key] if isinstance(arg, Shared) else arg for arg in args]
        self._work.append((None, lambda: [_call(call, function, values)]))

    def wait(self, timeout_seconds: float) -> list[PoolEvent]:
        """Do the oldest piece of work; with a timeout of 0 begin none, so nothing has happened."""
        if not self._work or timeout_seconds <= 0:
            return []
        _, work = self._work.popleft()
        return work()

    def close(self) -> None:
        """Stop every slot and forget everything."""
        for slot in tuple(self._slots):
            self.stop_slot(slot)
        self._work.clear()
        self._shared.clear()
        self._offered.clear()

    def _load(self, slot: str) -> list[PoolEvent]:
        loaded = self._slots[slot].ready()
        if isinstance(loaded, Failure):
            self.stop_slot(slot)
            return [SlotPlaced(slot), SlotFailed(slot, loaded)]
        return [SlotPlaced(slot), SlotReady(slot, loaded)]

    def _run(
        self, slot: str, work: UnitWork, attempt: int, request_set: RequestSet
    ) -> list[PoolEvent]:
        answers = self._answers(slot, work, request_set)
        if not isinstance(answers, Broken):
            return [UnitAnswered(slot, work.unit_id, attempt, answers)]
        if answers.is_fatal:
            self.stop_slot(slot)
            return [SlotLost(slot, answers.failure)]
        return [UnitFailed(slot, work.unit_id, attempt, answers.failure)]

    def _answers(self, slot: str, work: UnitWork, request_set: RequestSet) -> UnitAnswers | Broken:
        bring: dict[str, Bring] = {}
        while True:
            answers = self._slots[slot].run(work, lambda: request_set, bring)
            if not isinstance(answers, Wanted):
                return answers
            for key in answers.adapters:
                bring[key] = partial(brought, self._offered.get(key), key)


def _call(call: str, function: Callable[..., object], args: list[object]) -> PoolEvent:
    try:
        return CallDone(call, function(*args))
    except Exception as error:  # noqa: BLE001 - a failure becomes an event here
        return CallFailed(call, failure_from(error))
