"""Several sweeps at once on GPUs that are given out first come, first served."""

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from raypeft.core.events import (
    CapacityChanged,
    CellScored,
    Command,
    RunUnit,
    ScoreCell,
    SlotPlaced,
    SlotReady,
    StartSlot,
    StopSlot,
    Tick,
    UnitDone,
)
from raypeft.core.fair_share import Claim, Share, fair_share, rivals_of, shared_size
from raypeft.core.invariants import check
from raypeft.core.retry import Policy
from raypeft.core.schedule import initial, step
from tests.support.plans import HARDWARE, make_plan

LOAD_SECONDS = 60.0
UNIT_SECONDS = 100.0
BOOT_SECONDS = 3.0
"""Between hardware that is free and a slot that says that it has it."""

Event = Tick | SlotPlaced | SlotReady | UnitDone | CellScored


@dataclass
class Gpus:
    """A cluster: so many slots at once, and who waits for one."""

    count: int
    taken: "set[tuple[str, str]]" = field(default_factory=set)
    queue: "deque[tuple[Sweep, str]]" = field(default_factory=deque)

    def hand_out(self, now: float) -> None:
        while self.queue and len(self.taken) < self.count:
            sweep, slot = self.queue.popleft()
            self.taken.add((sweep.name, slot))
            sweep.later(now + BOOT_SECONDS, SlotPlaced(slot))


class Sweep:
    """A schedule with its slots, and its claims as the others see them."""

    def __init__(self, name: str, units: int, gpus: Gpus, *, begins: float, priority: int) -> None:
        self.name, self.gpus, self.begins = name, gpus, begins
        plan = make_plan(adapters=units - 1, load_seconds=LOAD_SECONDS)
        plan = replace(
            plan, units=tuple(replace(unit, seconds=UNIT_SECONDS) for unit in plan.units)
        )
        self.state, self.commands = initial(plan, Policy(slots=gpus.count))
        self.agenda: list[tuple[float, Event]] = []
        self.claim = Claim(sweep=name, run=name, priority=priority)
        self.share: Share | None = None
        self.sizes: deque[float] = deque(maxlen=12)
        self.waiting: dict[str, float] = {}
        self.holding: set[str] = set()
        self.changes: list[int] = []
        self.num_loads = 0
        self.ended = 0.0

    def later(self, at: float, event: Event) -> None:
        self.agenda.append((at, event))

    def live(self, now: float) -> None:
        due = [event for at, event in self.agenda if at <= now]
        self.agenda = [(at, event) for at, event in self.agenda if at > now]
        for event in (Tick(now), *due):
            self.tell(event, now)
        if self.state.finished:
            self.ended = now

    def tell(self, event: Event | CapacityChanged, now: float) -> None:
        slot = getattr(event, "slot", "")
        if slot and (self.name, slot) not in self.gpus.taken:
            return  # it was stopped
        if isinstance(event, SlotPlaced):
            del self.waiting[slot]
            self.holding.add(slot)
            self.later(now + LOAD_SECONDS, SlotReady(slot, HARDWARE))
        self.num_loads += isinstance(event, SlotReady)
        self.act([*self.commands, *step(self.state, event)], now)
        self.commands = []
        check(self.state)

    def act(self, commands: Sequence[Command], now: float) -> None:
        for command in commands:
            match command:
                case StartSlot(slot):
                    self.waiting[slot] = now
                    self.gpus.queue.append((self, slot))
                case StopSlot(slot):
                    self.waiting.pop(slot, None)
                    self.holding.discard(slot)
                    self.gpus.taken.discard((self.name, slot))
                    if (self, slot) in self.gpus.queue:
                        self.gpus.queue.remove((self, slot))
                case RunUnit(slot, unit, attempt, cells):
                    done = UnitDone(slot, unit, attempt, dict.fromkeys(cells))
                    self.later(now + UNIT_SECONDS * random.Random(unit).uniform(0.8, 1.2), done)
                case ScoreCell(cell, attempt):
                    self.later(now, CellScored(cell, attempt))

    def claims(self, others: Sequence["Sweep"], now: float) -> None:
        free = self.gpus.count - len(self.gpus.taken)
        wanted = len(self.holding) + len(self.waiting)
        self.claim = replace(
            self.claim,
            held=len(self.holding),
            wanted=self.gpus.count if self.share else wanted,
            waits=not free and any(now - since >= 15.0 for since in self.waiting.values()),
            is_limited=self.share is not None,
        )
        rivals = rivals_of(self.claim, [other.claim for other in others])
        self.sizes.append(shared_size(self.claim, rivals, free))
        self.share = fair_share(self.claim, rivals, max(self.sizes))
        slots = self.gpus.count if self.share is None else self.share.slots
        if slots != (self.changes or [self.gpus.count])[-1]:
            self.changes.append(slots)
        if slots != self.state.capacity or any(rival.held for rival in rivals):
            self.tell(CapacityChanged(slots, is_shared=any(one.held for one in rivals)), now)


def play(gpus: Gpus, sweeps: Sequence[Sweep], until: float = 50_000.0) -> float:
    """Let all sweeps end; return the GPU seconds that nobody had while units waited."""
    now = idle = 0.0
    while any(not sweep.ended for sweep in sweeps):
        assert now < until, [sweep.ended for sweep in sweeps]
        alive = [sweep for sweep in sweeps if sweep.begins <= now and not sweep.ended]
        for sweep in alive:
            sweep.live(now)
            if now % 5 == 0 and not sweep.ended:
                sweep.claims([other for other in alive if other is not sweep], now)
        gpus.hand_out(now)
        if any(sweep.state.num_waiting for sweep in alive):
            idle += gpus.count - len(gpus.taken)
        now += 1.0
    return idle


@pytest.mark.parametrize(("priority", "share"), [(1, 4), (3, 2)])
def test_two_sweeps_settle_at_their_shares_and_neither_wastes_the_cluster(
    priority: int, share: int
) -> None:
    gpus = Gpus(8)
    early = Sweep("early", 100, gpus, begins=0.0, priority=1)
    late = Sweep("late", 60, gpus, begins=300.0, priority=priority)
    idle = play(gpus, [early, late])
    assert min(early.changes) == share
    assert early.changes[-1] == 8  # when the other one had ended
    assert len(early.changes) + len(late.changes) <= 8
    # Nothing is loaded over and over, and what is given back is used.
    assert early.num_loads + late.num_loads <= 8 + 8 + 8
    assert idle <= 300
    assert not early.state.failures
    assert not late.state.failures


def test_sweeps_that_all_want_everything_do_not_take_turns() -> None:
    gpus = Gpus(8)
    sweeps = [Sweep(name, 80, gpus, begins=30.0 * n, priority=1) for n, name in enumerate("cab")]
    assert play(gpus, sweeps) <= 300
    for sweep in sweeps:
        assert len(sweep.changes) <= 10, sweep.changes
    assert sum(sweep.num_loads for sweep in sweeps) <= 3 * 8 + 8


def test_more_sweeps_than_gpus_all_end() -> None:
    gpus = Gpus(2)
    sweeps = [Sweep(name, 12, gpus, begins=60.0 * n, priority=1) for n, name in enumerate("abcd")]
    assert play(gpus, sweeps) <= 60
    assert not any(sweep.state.failures for sweep in sweeps)
    assert sum(sweep.num_loads for sweep in sweeps) <= 10
