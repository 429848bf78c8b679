from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from hypothesis import given, settings
from hypothesis import strategies as st

from raypeft.core.events import (
    CapacityChanged,
    CellHopeless,
    CellScored,
    Command,
    Event,
    GiveUp,
    Heartbeat,
    LeaveOut,
    NodeDraining,
    RunUnit,
    ScoreCell,
    ScoreFailed,
    SlotFailed,
    SlotLost,
    SlotPlaced,
    SlotReady,
    StartSlot,
    StopRequested,
    StopSlot,
    Tick,
    UnitDone,
    UnitFailed,
)
from raypeft.core.invariants import check
from raypeft.core.plan import Plan
from raypeft.core.records import Failure, FailureKind
from raypeft.core.retry import Policy
from raypeft.core.schedule import initial, step
from raypeft.core.state import CellPhase, State
from tests.support.plans import HARDWARE, make_plan

CRASH = Failure(FailureKind.CRASHED, "boom", retryable=True)
MISFIT = Failure(FailureKind.DOES_NOT_FIT, "rank 8, not 16")
LOST = Failure(FailureKind.SLOT_LOST, "the node is gone", retryable=True)
NO_MEMORY = Failure(FailureKind.OUT_OF_MEMORY, "CUDA out of memory", retryable=True)
BAD_BASE = Failure(FailureKind.UNREADABLE, "config.json is missing")


@dataclass
class World:
    """Whatever may happen to slots, in any order; keeps its own books of what was done."""

    state: State
    slots: dict[str, str] = field(default_factory=dict)
    """placing, loading, idle, busy"""
    runs: dict[str, RunUnit] = field(default_factory=dict)
    scorings: dict[str, ScoreCell] = field(default_factory=dict)
    seen_slots: set[str] = field(default_factory=set)
    answered: set[tuple[int, str]] = field(default_factory=set)
    """By shard and cell: units may be split."""
    ends: Counter[str] = field(default_factory=Counter)
    told: list[Event] = field(default_factory=list)

    def tell(self, event: Event) -> None:
        self.told.append(event)
        self.carry_out(step(self.state, event))
        check(self.state)

    def carry_out(self, commands: list[Command]) -> None:
        for command in commands:
            assert command.reason, command
            match command:
                case StartSlot(slot):
                    assert slot not in self.seen_slots
                    self.seen_slots.add(slot)
                    self.slots[slot] = "placing"
                case StopSlot(slot):
                    del self.slots[slot]
                    self.runs.pop(slot, None)
                case RunUnit(slot, unit_id, _, cells):
                    assert self.slots[slot] == "idle"
                    assert unit_id not in {run.unit_id for run in self.runs.values()}
                    assert cells
                    shard = self.state.units[unit_id].shard_index
                    assert not self.answered & {(shard, cell) for cell in cells}
                    self.slots[slot] = "busy"
                    self.runs[slot] = command
                case ScoreCell(cell):
                    assert cell not in self.scorings
                    assert not self.ends[cell]
                    self.scorings[cell] = command
                case GiveUp(cell) | LeaveOut(cell):
                    self.ends[cell] += 1

    def choices(self) -> list[Callable[[], None]]:
        found: list[Callable[[], None]] = []
        for slot, phase in tuple(self.slots.items()):
            if phase == "placing":
                found.append(partial(self.moves, slot, "loading", SlotPlaced(slot)))
            if phase == "loading":
                hardware = replace(HARDWARE, node=node_of(slot))
                found.append(partial(self.moves, slot, "idle", SlotReady(slot, hardware)))
            if phase == "busy":
                found.append(partial(self.answers, slot, None))
        for cell in tuple(self.scorings):
            found.append(partial(self.scores, cell, None))
        return found

    def mischief(self, failure: Failure) -> list[Callable[[], None]]:
        found: list[Callable[[], None]] = []
        for slot, phase in tuple(self.slots.items()):
            found.append(partial(self.dies, slot, failure))
            if phase == "busy":
                found.append(partial(self.answers, slot, failure))
                found.append(partial(self.fails, slot, failure))
                run = self.runs[slot]
                beat = Heartbeat(slot, run.unit_id, run.attempt, progress=len(self.told))
                found.append(partial(self.tell, beat))
        for cell in tuple(self.scorings):
            found.append(partial(self.scores, cell, failure))
        for event in self.told[-20:]:
            if not isinstance(event, StopRequested):
                found.append(partial(self.tell, event))  # late, or said twice
        for cell in (*self.state.plan.cells, "of another run"):
            found.append(partial(self.tell, CellHopeless(cell, "no gain")))
        now = self.state.now_seconds
        # Time goes on, jumps far ahead, and is said to go back.
        found += [partial(self.tell, Tick(now + seconds)) for seconds in (1.0, 40.0, 500.0, -100.0)]
        found += [partial(self.tell, CapacityChanged(slots)) for slots in (0, 1, 3, 99)]
        found += [partial(self.tell, NodeDraining(node)) for node in NODES]
        return found

    def moves(self, slot: str, phase: str, event: Event) -> None:
        self.slots[slot] = phase
        self.tell(event)

    def dies(self, slot: str, failure: Failure) -> None:
        phase = self.slots.pop(slot)
        self.runs.pop(slot, None)
        kind = SlotFailed if phase in ("placing", "loading") else SlotLost
        self.tell(kind(slot, failure))

    def answers(self, slot: str, failure: Failure | None) -> None:
        run = self.runs.pop(slot)
        self.slots[slot] = "idle"
        outcomes: dict[str, Failure | None] = dict.fromkeys(run.cells)
        if failure is not None:
            outcomes[run.cells[0]] = failure
        shard = self.state.units[run.unit_id].shard_index
        self.answered |= {(shard, c) for c, outcome in outcomes.items() if outcome is None}
        self.tell(UnitDone(slot, run.unit_id, run.attempt, outcomes))

    def fails(self, slot: str, failure: Failure) -> None:
        run = self.runs.pop(slot)
        self.slots[slot] = "idle"
        self.tell(UnitFailed(slot, run.unit_id, run.attempt, failure))

    def scores(self, cell: str, failure: Failure | None) -> None:
        score = self.scorings.pop(cell)
        if failure is None:
            self.ends[cell] += 1
            self.tell(CellScored(cell, score.attempt))
        else:
            self.tell(ScoreFailed(cell, score.attempt, failure))


UNFINISHED = (CellPhase.FAILED, CellPhase.NOT_STARTED, CellPhase.STOPPED_EARLY)
NODES = ("node-0", "node-1", "node-2")


def node_of(slot: str) -> str:
    return NODES[int(slot.removeprefix("slot-")) % len(NODES)]


FAILURES = st.sampled_from([CRASH, MISFIT, LOST, NO_MEMORY, BAD_BASE])
PLANS = st.builds(
    make_plan,
    bases=st.integers(1, 3),
    adapters=st.integers(0, 5),
    tasks=st.integers(1, 2),
    shards=st.integers(1, 3),
    subjects_per_unit=st.integers(1, 4),
    load_seconds=st.sampled_from([0.0, 2.0, 60.0]),
    upper=st.sampled_from([1.0, 3.0]),
)
POLICIES = st.builds(
    Policy,
    slots=st.integers(1, 4),
    scoring=st.integers(1, 2),
    attempts=st.integers(1, 3),
    slot_losses=st.integers(1, 3),
    load_attempts=st.integers(1, 2),
    unit_timeout_seconds=st.sampled_from([None, 50.0]),
    start_timeout_seconds=st.sampled_from([None, 90.0]),
    deadline_seconds=st.sampled_from([None, 0.0, 20.0, 200.0, 1000.0]),
    drains_at_deadline=st.booleans(),
)


@settings(max_examples=150, deadline=None)
@given(plan=PLANS, policy=POLICIES, data=st.data())
def test_whatever_happens_every_cell_ends_once_and_nothing_is_answered_twice(
    plan: Plan, policy: Policy, data: st.DataObject
) -> None:
    state, commands = initial(plan, policy)
    world = World(state)
    world.carry_out(commands)
    check(state)
    for failure in data.draw(st.lists(st.none() | FAILURES, max_size=60)):
        choices = world.choices() if failure is None else world.mischief(failure)
        if choices:
            data.draw(st.sampled_from(choices))()
    while not state.finished:
        choices = world.choices()
        if not choices and policy.deadline_seconds is not None:
            choices = [partial(world.tell, Tick(state.now_seconds + 1.0))]
        assert choices, "something is left to do and nothing is under way"
        choices[0]()
    assert world.ends == Counter(dict.fromkeys(plan.cells, 1))
    for unit in plan.units:
        for cell in unit.cells:
            is_answered = (unit.shard_index, cell) in world.answered
            assert is_answered or state.cells[cell] in UNFINISHED
    assert not world.slots
    if policy.deadline_seconds is None:
        assert {state.cells[cell] for cell in state.left_out} <= {CellPhase.STOPPED_EARLY}


@settings(max_examples=50, deadline=None)
@given(plan=PLANS, policy=POLICIES, data=st.data(), drain=st.booleans())
def test_a_stop_at_any_moment_ends_the_run_and_gives_nothing_up(
    plan: Plan, policy: Policy, data: st.DataObject, drain: bool
) -> None:
    state, commands = initial(plan, policy)
    world = World(state)
    world.carry_out(commands)
    for _ in range(data.draw(st.integers(0, 30))):
        if choices := world.choices():
            data.draw(st.sampled_from(choices))()
    world.tell(StopRequested("SIGTERM", drain=True))
    for _ in range(data.draw(st.integers(0, 3))):
        if choices := world.choices():
            data.draw(st.sampled_from(choices))()
    if not drain:
        world.tell(StopRequested("SIGTERM", drain=False))
        assert state.finished
        world.scorings.clear()
    while not state.finished:
        world.choices()[0]()
    assert not world.slots
    assert not state.failures
    assert set(world.ends.values()) <= {1}
