"""Deadlines, heartbeats, and what becomes of the order when time is short."""

from collections.abc import Iterable
from dataclasses import replace

import pytest

from raypeft.core.events import (
    CellScored,
    Command,
    Event,
    GiveUp,
    Heartbeat,
    LeaveOut,
    RunUnit,
    ScoreCell,
    SlotLost,
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
from tests.core.night import Night
from tests.support.plans import HARDWARE, make_plan

CRASH = Failure(FailureKind.CRASHED, "boom", retryable=True)
LOST = Failure(FailureKind.SLOT_LOST, "the node is gone", retryable=True)


def play(state: State, *events: Event) -> list[Command]:
    commands: list[Command] = []
    for event in events:
        commands += step(state, event)
        check(state)
    return commands


def begun(plan: Plan, policy: Policy) -> tuple[State, list[RunUnit]]:
    """Bring up every slot that is asked for at first."""
    state, commands = initial(plan, policy)
    play(state, Tick(0.0))
    slots = [command.slot for command in commands if isinstance(command, StartSlot)]
    more = play(state, *(SlotReady(slot, HARDWARE) for slot in slots))
    play(state, Tick(0.0))
    return state, [command for command in more if isinstance(command, RunUnit)]


def of(commands: Iterable[Command], kind: type[Command]) -> list[Command]:
    return [command for command in commands if isinstance(command, kind)]


def done(run: RunUnit) -> UnitDone:
    return UnitDone(run.slot, run.unit_id, run.attempt, dict.fromkeys(run.cells))


# --- the deadline -----------------------------------------------------------------------------


def test_a_unit_that_cannot_end_in_time_is_not_begun_and_a_shorter_one_is() -> None:
    # Tasks of 1, 2 and 4 seconds, none of which may well take three times as long.
    plan = make_plan(adapters=0, tasks=4, upper=3.0)
    state, runs = begun(plan, Policy(deadline_seconds=8.0))
    assert [run.cells for run in runs] == [("base0:task1",)]
    commands = play(state, Tick(2.0), done(runs[0]))
    assert [run.cells for run in commands if isinstance(run, RunUnit)] == [("base0:task0",)]


def test_a_night_that_is_too_short_leaves_out_what_it_cannot_do_and_ends_before_its_time() -> None:
    state, (run,) = begun(make_plan(adapters=0, tasks=2), Policy(deadline_seconds=3.0))
    play(state, Tick(2.5))
    commands = play(state, done(run))
    assert of(commands, LeaveOut) == [
        LeaveOut(
            "base0:task0",
            "nothing that is left can be finished before the deadline; nothing of it is answered",
        )
    ]
    (score,) = [command for command in commands if isinstance(command, ScoreCell)]
    assert state.cells[score.cell] is CellPhase.SCORING
    play(state, CellScored(score.cell, score.attempt))
    assert state.finished
    assert not state.failures


def test_at_the_deadline_what_runs_is_stopped_and_what_is_answered_is_scored() -> None:
    state, runs = begun(make_plan(adapters=1, shards=1), Policy(slots=2, deadline_seconds=10.0))
    first, second = runs
    play(state, done(first))
    commands = play(state, Tick(10.0))
    assert StopSlot(second.slot, "the deadline came first") in commands
    assert [command.cell for command in commands if isinstance(command, LeaveOut)] == [
        second.cells[0]
    ]
    assert state.cells[first.cells[0]] is CellPhase.SCORING
    assert state.cells[second.cells[0]] is CellPhase.NOT_STARTED
    assert "the deadline came first" in why_waiting(state, second.cells[0])
    assert play(state, done(second), SlotLost(second.slot, LOST), Tick(20.0)) == []


def test_at_the_deadline_what_runs_may_finish_if_the_sweep_says_so() -> None:
    policy = Policy(slots=2, deadline_seconds=10.0, drains_at_deadline=True)
    state, runs = begun(make_plan(adapters=3), policy)
    first, second = runs
    commands = play(state, Tick(10.0))
    assert not of(commands, StopSlot)
    assert len(of(commands, LeaveOut)) == 2
    assert [type(command) for command in play(state, done(first))] == [ScoreCell, StopSlot]
    # It is not tried again: it is left out like what was never begun.
    failed = UnitFailed(second.slot, second.unit_id, 1, CRASH)
    assert [type(command) for command in play(state, failed)] == [LeaveOut, StopSlot]


def test_a_cell_that_is_left_out_in_part_says_how_much_of_it_is_answered() -> None:
    state, (run,) = begun(make_plan(adapters=0, shards=3), Policy(deadline_seconds=10.0))
    play(state, done(run))
    (left,) = of(play(state, Tick(10.0)), LeaveOut)
    assert left == LeaveOut("base0:task0", "the deadline came first; 1 of 3 shards are answered")


def test_a_unit_of_several_subjects_that_fails_after_the_deadline_is_not_halved() -> None:
    policy = Policy(slots=2, deadline_seconds=10.0, drains_at_deadline=True)
    state, runs = begun(make_plan(adapters=4, subjects_per_unit=4), policy)
    fused = next(run for run in runs if len(run.cells) == 4)
    play(state, Tick(10.0))
    commands = play(state, UnitFailed(fused.slot, fused.unit_id, 1, CRASH))
    assert len(of(commands, LeaveOut)) == 4


def test_a_failure_that_lasts_is_a_failure_after_the_deadline_too() -> None:
    policy = Policy(deadline_seconds=10.0, drains_at_deadline=True)
    state, (run,) = begun(make_plan(adapters=0), policy)
    play(state, Tick(10.0))
    misfit = Failure(FailureKind.DOES_NOT_FIT, "rank 8, not 16")
    commands = play(state, UnitFailed(run.slot, run.unit_id, 1, misfit))
    assert len(of(commands, GiveUp)) == 1
    assert state.finished


def test_a_deadline_that_is_over_at_the_start_leaves_everything_out() -> None:
    plan = make_plan(bases=2, adapters=2)
    state, commands = initial(plan, Policy(slots=4, deadline_seconds=0.0))
    assert commands == []
    commands = play(state, Tick(0.0))
    assert {command.cell for command in commands if isinstance(command, LeaveOut)} == set(
        plan.cells
    )
    assert state.finished


def test_a_base_that_cannot_be_loaded_in_time_is_not_loaded() -> None:
    plan = make_plan(bases=2, adapters=0, load_seconds=100.0)
    _, commands = initial(plan, Policy(slots=4, deadline_seconds=50.0))
    assert commands == []


def test_a_stop_before_the_deadline_leaves_nothing_out() -> None:
    state, _ = begun(make_plan(adapters=2), Policy(deadline_seconds=10.0))
    play(state, StopRequested("SIGTERM"), Tick(20.0))
    assert state.finished
    assert not state.left_out


def test_units_that_take_longer_than_expected_make_the_schedule_more_careful() -> None:
    plan = make_plan(adapters=0, shards=20, tokens=20_000)
    assert {unit.seconds for unit in plan.units} == {1.0}
    night = Night(
        plan, Policy(deadline_seconds=95.0), load_seconds=0.0, unit_seconds=lambda run: 20.0
    )
    night.play_until(94.0)
    # A fifth would be begun at 80 s by what was expected of it, and lost.
    assert night.count(RunUnit) == 4
    assert night.state.finished
    assert night.state.left_out


# --- order ------------------------------------------------------------------------------------


def test_urgency_decides_when_not_everything_can_be_done() -> None:
    plan = make_plan(adapters=3, tasks=3)
    urgency = {f"base0/a{number}": 3 - number for number in range(3)}
    units = tuple(replace(u, urgency=urgency.get(u.subjects[0], 0)) for u in plan.units)
    night = Night(
        replace(plan, units=units),
        Policy(deadline_seconds=75.0),
        load_seconds=0.0,
        unit_seconds=lambda run: 10.0,
    )
    night.play_until(100.0)
    runs = [run.cells[0].split(":")[0] for run in night.commands if isinstance(run, RunUnit)]
    assert runs[:6] == ["base0"] * 3 + ["base0/a0"] * 3
    assert set(runs[6:]) <= {"base0/a1"}


# --- heartbeats -------------------------------------------------------------------------------


def beat(run: RunUnit, progress: int) -> Heartbeat:
    return Heartbeat(run.slot, run.unit_id, run.attempt, progress)


def test_a_slow_unit_that_gets_on_is_not_stopped_and_a_hung_one_is() -> None:
    state, (run,) = begun(make_plan(adapters=0), Policy(unit_timeout_seconds=10.0))
    for now in (8.0, 16.0, 24.0):
        assert play(state, beat(run, round(now)), Tick(now)) == []
    # It is alive and does not get on.
    assert play(state, beat(run, 24), Tick(33.9)) == []
    commands = play(state, beat(run, 24), Tick(34.0))
    assert commands[0] == StopSlot(
        run.slot, "made no progress for 10 seconds (unit_timeout) in slot-1"
    )
    tally = state.tallies[run.unit_id]
    assert tally.last is not None
    assert tally.last.kind is FailureKind.TIMED_OUT


def test_without_heartbeats_time_is_counted_from_the_start() -> None:
    state, (run,) = begun(make_plan(adapters=0), Policy(unit_timeout_seconds=10.0))
    assert play(state, beat(run, 0), Tick(9.0)) == []
    assert of(play(state, Tick(10.0)), StopSlot)


def test_progress_that_is_told_in_time_counts_although_its_tick_is_late() -> None:
    state, (run,) = begun(make_plan(adapters=0), Policy(unit_timeout_seconds=10.0))
    assert play(state, beat(run, 1), Tick(500.0)) == []
    assert of(play(state, Tick(510.0)), StopSlot)


def test_time_in_which_nobody_listened_is_charged_to_no_attempt_and_no_start() -> None:
    policy = Policy(unit_timeout_seconds=10.0, start_timeout_seconds=10.0)
    state, _ = begun(make_plan(adapters=0), policy)
    assert play(state, Tick(905.0, 900.0), Tick(909.9)) == []
    assert of(play(state, Tick(910.0)), StopSlot)
    assert play(state, Tick(1800.0, 890.0)) == []
    assert of(play(state, Tick(1810.0)), StopSlot)


def test_time_in_which_nobody_listened_counts_for_the_deadline() -> None:
    state, _ = begun(make_plan(adapters=0), Policy(deadline_seconds=10.0))
    assert of(play(state, Tick(10.0, 10.0)), LeaveOut)


@pytest.mark.parametrize("attempt", [0, 2])
def test_a_heartbeat_of_another_attempt_is_nothing(attempt: int) -> None:
    state, (run,) = begun(make_plan(adapters=0), Policy(unit_timeout_seconds=10.0))
    play(state, Tick(5.0), Heartbeat(run.slot, run.unit_id, attempt, 7), Tick(9.0))
    assert of(play(state, Tick(10.0)), StopSlot)


def test_a_heartbeat_of_a_unit_that_ended_before_the_tick_is_nothing() -> None:
    state, (run,) = begun(make_plan(adapters=0), Policy(unit_timeout_seconds=10.0))
    play(state, beat(run, 3), done(run), Tick(5.0))
    assert play(state, Tick(50.0)) == []
