"""Events that come late, twice or for nothing, and plans that contradict themselves."""

from dataclasses import replace

import pytest

from raypeft.core.events import (
    CapacityChanged,
    Command,
    Event,
    RunUnit,
    ScoreCell,
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
from raypeft.core.explain import why_waiting
from raypeft.core.invariants import check
from raypeft.core.plan import Plan
from raypeft.core.records import Failure, FailureKind
from raypeft.core.retry import Policy
from raypeft.core.schedule import initial, step
from raypeft.core.state import CellPhase, State
from raypeft.core.state_parts import Pace
from tests.support.plans import HARDWARE, make_plan

CRASH = Failure(FailureKind.CRASHED, "boom", retryable=True)
MISFIT = Failure(FailureKind.DOES_NOT_FIT, "rank 8, not 16")


def play(state: State, *events: Event) -> list[Command]:
    commands: list[Command] = []
    for event in events:
        commands += step(state, event)
        check(state)
    return commands


def begun(plan: Plan, policy: Policy) -> tuple[State, list[RunUnit]]:
    state, commands = initial(plan, policy)
    slots = [command.slot for command in commands if isinstance(command, StartSlot)]
    more = play(state, *(SlotReady(slot, HARDWARE) for slot in slots))
    return state, [command for command in more if isinstance(command, RunUnit)]


def done(run: RunUnit) -> UnitDone:
    return UnitDone(run.slot, run.unit_id, run.attempt, dict.fromkeys(run.cells))


def test_a_unit_that_stands_twice_in_a_plan_is_refused() -> None:
    plan = make_plan()
    with pytest.raises(ValueError, match="stands twice"):
        initial(replace(plan, units=(*plan.units, plan.units[0])), Policy())


def test_a_unit_of_a_base_that_stands_nowhere_is_refused() -> None:
    plan = make_plan()
    with pytest.raises(ValueError, match="its base 'base0' nowhere"):
        initial(replace(plan, engines={}), Policy())


def test_a_cell_that_is_answered_and_to_be_answered_is_refused() -> None:
    plan = make_plan(adapters=0)
    with pytest.raises(ValueError, match="is to be answered and is answered"):
        initial(replace(plan, to_score=("base0:task0",)), Policy())


def test_what_a_slot_says_again_changes_nothing() -> None:
    state, (run,) = begun(make_plan(adapters=0, shards=2), Policy())
    assert play(state, SlotReady(run.slot, HARDWARE), SlotPlaced(run.slot)) == []
    assert play(state, SlotFailed("slot-99", CRASH), SlotLost("slot-99", CRASH)) == []


def test_an_idle_slot_that_is_lost_is_missed_by_nobody() -> None:
    state, (first, _) = begun(make_plan(adapters=1), Policy(slots=2))
    play(state, done(first))
    assert play(state, SlotLost(first.slot, CRASH)) == []
    assert len(state.slots) == 1


def test_of_many_idle_slots_one_takes_what_is_tried_again() -> None:
    state, (first, second, third) = begun(make_plan(adapters=2), Policy(slots=3))
    play(state, done(first), done(second))
    failed = UnitFailed(third.slot, third.unit_id, 1, CRASH)
    (again,) = [c for c in play(state, failed) if isinstance(c, RunUnit)]
    assert again.unit_id == third.unit_id


def test_a_cell_whose_scoring_a_stop_interrupts_is_left_to_be_scored() -> None:
    state, (run,) = begun(make_plan(adapters=0), Policy())
    (score, _) = play(state, done(run))
    assert isinstance(score, ScoreCell)
    play(state, StopRequested("SIGTERM"))
    assert state.cells[score.cell] is CellPhase.TO_SCORE
    assert state.finished


def test_a_stop_drops_a_running_unit_that_nobody_wants_any_more() -> None:
    state, (first, second) = begun(make_plan(adapters=0, shards=2), Policy(slots=2))
    outcomes: dict[str, Failure | None] = {first.cells[0]: MISFIT}
    play(state, UnitDone(first.slot, first.unit_id, 1, outcomes))
    commands = play(state, StopRequested("SIGTERM"))
    assert second.slot in [c.slot for c in commands if isinstance(c, StopSlot)]
    assert state.num_waiting == 0


def test_without_limits_nothing_is_ever_overdue() -> None:
    policy = Policy(unit_timeout_seconds=None, start_timeout_seconds=None)
    state, _ = begun(make_plan(adapters=0), policy)
    assert play(state, Tick(1e9), Tick(2e9)) == []


def test_a_drained_run_keeps_a_scoring_that_is_under_way() -> None:
    state, (first, _) = begun(make_plan(adapters=1), Policy(slots=2))
    play(state, done(first))
    play(state, StopRequested("SIGTERM", drain=True))
    assert state.cells[first.cells[0]] is CellPhase.SCORING


def test_a_pace_is_known_after_some_units_and_nothing_is_learnt_from_nothing() -> None:
    pace = Pace()
    pace.add(0.0, 5.0)
    assert (pace.worst, pace.ratio) == (0.0, 1.0)
    for seconds in (10.0, 20.0, 30.0, 40.0, 50.0):
        pace.add(10.0, seconds)
    assert pace.ratio == pytest.approx(155.0 / 50.0)
    assert pace.worst == 5.0


def test_why_a_cell_waits_names_a_load_that_failed() -> None:
    state, commands = initial(make_plan(bases=2, adapters=0), Policy(slots=2, load_attempts=3))
    first, second = (command for command in commands if isinstance(command, StartSlot))
    assert (first.base, second.base) == ("base1", "base0")
    play(state, SlotReady(second.slot, HARDWARE), SlotFailed(first.slot, CRASH))
    play(state, CapacityChanged(1))
    assert why_waiting(state, "base1:task0") == (
        "1 of 1 shards wait: 1 units of base base1 wait, loading the base failed: boom"
    )


def test_why_a_cell_waits_names_only_what_runs_when_nothing_of_it_waits() -> None:
    state, (run,) = begun(make_plan(adapters=0), Policy())
    assert why_waiting(state, run.cells[0]) == ("shard 1 of 1 runs in slot-1 (attempt 1, for 0 s)")
