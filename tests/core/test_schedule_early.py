"""What the schedule does with cells that turn out to be hopeless."""

from raypeft.core.events import (
    CellHopeless,
    Command,
    Event,
    LeaveOut,
    RunUnit,
    ScoreCell,
    SlotReady,
    StartSlot,
    StopSlot,
    Tick,
    UnitDone,
    UnitFailed,
)
from raypeft.core.explain import why_waiting
from raypeft.core.invariants import check
from raypeft.core.plan import Plan
from raypeft.core.records import Failure, FailureKind
from raypeft.core.retry import Policy
from raypeft.core.schedule import initial, step
from raypeft.core.state import CellPhase, State
from tests.support.plans import HARDWARE, make_plan

BAD, GOOD = "base0/a0:task0", "base0/a1:task0"
CRASH = Failure(FailureKind.CRASHED, "boom", retryable=True)


def play(state: State, *events: Event) -> list[Command]:
    commands: list[Command] = []
    for event in events:
        commands += step(state, event)
        check(state)
    return commands


def begun(plan: Plan) -> tuple[State, RunUnit]:
    """Bring up one slot and answer the baseline; return what runs next."""
    state, commands = initial(plan, Policy())
    (slot,) = (command.slot for command in commands if isinstance(command, StartSlot))
    commands = play(state, Tick(0.0), SlotReady(slot, HARDWARE))
    while (run := the_run(commands)).cells == ("base0:task0",):
        commands = play(state, done(run))
    return state, run


def the_run(commands: list[Command]) -> RunUnit:
    (run,) = (command for command in commands if isinstance(command, RunUnit))
    return run


def done(run: RunUnit) -> UnitDone:
    return UnitDone(run.slot, run.unit_id, run.attempt, dict.fromkeys(run.cells))


def hopeless(cell: str) -> CellHopeless:
    return CellHopeless(cell, "stopped early: no gain")


def test_units_of_a_hopeless_cell_that_wait_are_dropped_and_one_that_runs_ends() -> None:
    state, run = begun(make_plan(adapters=1, shards=4))
    commands = play(state, hopeless(BAD))
    assert commands == [LeaveOut(BAD, "stopped early: no gain; nothing of it is answered")]
    assert state.cells[BAD] is CellPhase.STOPPED_EARLY
    assert (state.num_waiting, list(state.running)) == (0, [run.unit_id])
    assert why_waiting(state, BAD).startswith("was left out: stopped early: no gain")
    after = play(state, done(run))
    assert not [command for command in after if isinstance(command, ScoreCell | RunUnit)]
    assert [command.slot for command in after if isinstance(command, StopSlot)] == [run.slot]


def test_the_others_of_a_unit_go_on_without_it() -> None:
    state, run = begun(make_plan(adapters=2, shards=2, subjects_per_unit=2))
    assert run.cells == (BAD, GOOD)
    play(state, hopeless(BAD))
    commands = play(state, done(run))
    assert the_run(commands).cells == (GOOD,)
    commands = play(state, done(the_run(commands)))
    assert [command.cell for command in commands if isinstance(command, ScoreCell)] == [GOOD]


def test_a_slot_that_has_nothing_left_is_stopped_at_once() -> None:
    # The slot loads its base for nothing else than the cell that is given up.
    state, commands = initial(make_plan(adapters=1, shards=2), Policy())
    play(state, Tick(0.0))
    play(state, hopeless("base0:task0"))
    commands = play(state, hopeless(BAD))
    assert [type(command) for command in commands] == [LeaveOut, StopSlot]
    assert not state.slots
    assert state.finished


def test_a_unit_that_fails_afterwards_is_not_tried_again() -> None:
    state, run = begun(make_plan(adapters=1, shards=2))
    play(state, hopeless(BAD))
    play(state, UnitFailed(run.slot, run.unit_id, run.attempt, CRASH))
    assert not state.running
    assert not state.failures
    assert state.cells[BAD] is CellPhase.STOPPED_EARLY


def test_it_is_too_late_once_everything_is_answered_and_said_once() -> None:
    state, run = begun(make_plan(adapters=1, shards=1))
    play(state, done(run))
    assert state.cells[BAD] in (CellPhase.TO_SCORE, CellPhase.SCORING)
    assert play(state, hopeless(BAD), hopeless("of another run")) == []
    other, _ = begun(make_plan(adapters=1, shards=3))
    assert play(other, hopeless(BAD))
    assert play(other, hopeless(BAD)) == []
