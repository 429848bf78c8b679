from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from random import Random
from typing import TypeVar

import pytest

from raypeft.core.events import (
    CellScored,
    Command,
    Event,
    GiveUp,
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
from tests.core.night import Night
from tests.support.plans import HARDWARE, make_plan

C = TypeVar("C", bound=Command)

CRASH = Failure(FailureKind.CRASHED, "boom", retryable=True)
MISFIT = Failure(FailureKind.DOES_NOT_FIT, "rank 8, not 16")
LOST = Failure(FailureKind.SLOT_LOST, "the node is gone", retryable=True)
NO_MEMORY = Failure(FailureKind.OUT_OF_MEMORY, "CUDA out of memory", retryable=True)
BAD_BASE = Failure(FailureKind.UNREADABLE, "config.json is missing")


def of_kind(commands: Iterable[Command], kind: type[C]) -> list[C]:
    return [command for command in commands if isinstance(command, kind)]


def start(plan: Plan, policy: Policy | None = None) -> tuple[State, list[Command]]:
    """Bring up every slot that the schedule asks for at first."""
    state, commands = initial(plan, policy or Policy())
    commands = [*commands, *play(state, Tick(0.0))]
    for command in of_kind(commands, StartSlot):
        commands += play(state, SlotPlaced(command.slot), SlotReady(command.slot, HARDWARE))
    return state, commands


def play(state: State, *events: Event) -> list[Command]:
    commands: list[Command] = []
    for event in events:
        commands += step(state, event)
        check(state)
    return commands


def done(run: RunUnit, **failures: Failure) -> UnitDone:
    outcomes: dict[str, Failure | None] = dict.fromkeys(run.cells)
    return UnitDone(run.slot, run.unit_id, run.attempt, outcomes | failures)


def failed(run: RunUnit, failure: Failure = CRASH) -> UnitFailed:
    return UnitFailed(run.slot, run.unit_id, run.attempt, failure)


def only_run(commands: Iterable[Command]) -> RunUnit:
    (run,) = of_kind(commands, RunUnit)
    return run


# --- the order of work ------------------------------------------------------------------------


def test_the_baseline_goes_first_and_then_the_longest_unit() -> None:
    night = Night(make_plan(adapters=2, tasks=3), Policy()).play()
    runs = of_kind(night.commands, RunUnit)
    tasks = [run.cells[0].split(":")[1] for run in runs]
    assert [run.cells[0].startswith("base0:") for run in runs] == [True] * 3 + [False] * 6
    assert tasks[:3] == ["task2", "task1", "task0"]
    assert tasks[3:] == ["task2"] * 2 + ["task1"] * 2 + ["task0"] * 2


def test_a_slot_stays_with_the_subject_it_answered_last_among_units_of_equal_length() -> None:
    night = Night(make_plan(adapters=3, shards=4), Policy()).play()
    subjects = [run.cells[0].split(":")[0] for run in of_kind(night.commands, RunUnit)]
    changes = sum(left != right for left, right in pairwise(subjects))
    assert changes == 3


def test_a_slot_keeps_its_base_while_there_is_work_for_it() -> None:
    night = Night(make_plan(bases=3, adapters=2, tasks=4), Policy(slots=1)).play()
    assert [command.base for command in of_kind(night.commands, StartSlot)] == [
        "base2",
        "base1",
        "base0",
    ]


def test_a_change_of_base_is_a_stop_and_a_start_under_a_new_id() -> None:
    plan = make_plan(bases=2, adapters=0)
    state, commands = start(plan)
    (first,) = of_kind(commands, StartSlot)
    commands = play(state, done(only_run(commands)))
    assert [type(command) for command in commands] == [StopSlot, StartSlot, ScoreCell]
    (second,) = of_kind(commands, StartSlot)
    assert (first.base, second.base) == ("base1", "base0")
    assert first.slot != second.slot


def test_slots_spread_over_bases_instead_of_all_loading_the_largest() -> None:
    _, commands = start(make_plan(bases=4, adapters=9), Policy(slots=8))
    bases = Counter(command.base for command in of_kind(commands, StartSlot))
    assert bases.keys() == {"base0", "base1", "base2", "base3"}
    assert bases["base3"] == 3


def test_no_more_slots_are_started_than_units_wait() -> None:
    _, commands = start(make_plan(adapters=1), Policy(slots=8))
    assert len(of_kind(commands, StartSlot)) == 2


def test_a_slot_is_stopped_when_nothing_is_left_for_it() -> None:
    state, commands = start(make_plan(adapters=0))
    commands = play(state, done(only_run(commands)))
    assert [type(command) for command in commands] == [ScoreCell, StopSlot]


def test_an_idle_slot_is_kept_while_a_unit_of_its_base_might_still_fail() -> None:
    state, commands = start(make_plan(adapters=1), Policy(slots=2))
    first, second = of_kind(commands, RunUnit)
    assert not of_kind(play(state, done(first)), StopSlot)
    again = only_run(play(state, SlotLost(second.slot, LOST)))
    assert (again.slot, again.unit_id, again.attempt) == (first.slot, second.unit_id, 2)


def test_a_cell_is_scored_when_its_last_shard_is_answered() -> None:
    state, commands = start(make_plan(adapters=0, shards=2))
    commands = play(state, done(only_run(commands)))
    assert not of_kind(commands, ScoreCell)
    commands = play(state, done(only_run(commands)))
    (score,) = of_kind(commands, ScoreCell)
    play(state, CellScored(score.cell, score.attempt))
    assert state.finished
    assert state.cells[score.cell] is CellPhase.DONE


def test_scorings_are_bounded_since_each_holds_its_answers_in_memory() -> None:
    plan = make_plan(adapters=0, tasks=5)
    waiting = Plan(
        engines=plan.engines,
        subjects=plan.subjects,
        cells=plan.cells,
        to_score=tuple(plan.cells),
    )
    state, commands = initial(waiting, Policy(scoring=2))
    first, second = of_kind(commands, ScoreCell)
    assert not of_kind(commands, StartSlot)
    (third,) = of_kind(play(state, CellScored(first.cell, 1)), ScoreCell)
    assert third.cell not in (first.cell, second.cell)


def test_a_plan_with_nothing_left_is_finished_at_once() -> None:
    plan = make_plan()
    finished = Plan(
        engines=plan.engines, subjects=plan.subjects, cells=plan.cells, done=tuple(plan.cells)
    )
    state, commands = initial(finished, Policy())
    check(state)
    assert state.finished
    assert commands == []


def test_a_plan_that_forgets_a_cell_is_refused() -> None:
    plan = make_plan()
    with pytest.raises(ValueError, match="nothing is planned for the cells"):
        initial(Plan(engines=plan.engines, subjects=plan.subjects, cells=plan.cells), Policy())


# --- failures ---------------------------------------------------------------------------------


def test_a_failed_unit_runs_again_under_the_next_attempt_and_is_given_up_at_last() -> None:
    state, commands = start(make_plan(adapters=0), Policy(attempts=3))
    attempts = []
    while runs := of_kind(commands, RunUnit):
        attempts.append(runs[0].attempt)
        commands = play(state, failed(runs[0]))
    assert attempts == [1, 2, 3]
    (given_up,) = of_kind(commands, GiveUp)
    assert given_up == GiveUp("base0:task0", CRASH, 3, "crashed, attempt 3 of 3")
    assert state.finished


def test_a_failure_that_does_not_go_away_is_not_tried_again() -> None:
    state, commands = start(make_plan(adapters=0))
    commands = play(state, failed(only_run(commands), MISFIT))
    (given_up,) = of_kind(commands, GiveUp)
    assert (given_up.failure, given_up.attempts) == (MISFIT, 1)


def test_out_of_memory_is_tried_again_on_a_fresh_slot() -> None:
    state, commands = start(make_plan(adapters=0))
    run = only_run(commands)
    commands = play(state, failed(run, NO_MEMORY))
    assert [type(command) for command in commands] == [StopSlot, StartSlot]
    (fresh,) = of_kind(commands, StartSlot)
    again = only_run(play(state, SlotReady(fresh.slot, HARDWARE)))
    assert (again.unit_id, again.attempt) == (run.unit_id, 2)


def test_a_cell_that_fails_for_good_is_given_up_and_its_other_shards_are_dropped() -> None:
    state, commands = start(make_plan(adapters=0, shards=5))
    run = only_run(commands)
    commands = play(state, done(run, **{run.cells[0]: MISFIT}))
    assert [type(command) for command in commands] == [GiveUp, StopSlot]
    assert state.finished


def test_one_bad_cell_of_a_unit_leaves_the_others_alone() -> None:
    plan = make_plan(adapters=3, subjects_per_unit=3)
    state, commands = start(plan)
    commands = play(state, done(only_run(commands)))
    run = only_run(commands)
    bad, flaky, good = run.cells
    commands = play(state, done(run, **{bad: MISFIT, flaky: CRASH}))
    assert [command.cell for command in of_kind(commands, GiveUp)] == [bad]
    assert [command.cell for command in of_kind(commands, ScoreCell)] == [good]
    again = only_run(commands)
    assert (again.cells, again.attempt) == ((flaky,), 2)


def test_a_unit_stays_for_its_other_cells_when_one_of_them_is_given_up() -> None:
    state, commands = start(make_plan(adapters=2, shards=2, subjects_per_unit=2))
    for _ in range(2):
        commands = play(state, done(only_run(commands)))
    run = only_run(commands)
    bad, good = run.cells
    commands = play(state, done(run, **{bad: MISFIT}))
    assert only_run(commands).cells == (good,)


def test_an_answer_for_a_cell_that_was_given_up_meanwhile_changes_nothing() -> None:
    state, commands = start(make_plan(adapters=0, shards=2), Policy(slots=2))
    first, second = of_kind(commands, RunUnit)
    (given_up,) = of_kind(play(state, done(first, **{first.cells[0]: MISFIT})), GiveUp)
    assert not of_kind(play(state, done(second)), ScoreCell)
    assert state.cells[given_up.cell] is CellPhase.FAILED
    assert state.finished


def test_a_lost_slot_has_a_budget_of_its_own() -> None:
    state, commands = start(make_plan(adapters=0), Policy(attempts=1, slot_losses=2))
    (first,) = of_kind(commands, StartSlot)
    commands = play(state, SlotLost(first.slot, LOST))
    (second,) = of_kind(commands, StartSlot)
    run = only_run(play(state, SlotReady(second.slot, HARDWARE)))
    assert run.attempt == 2
    commands = play(state, SlotLost(second.slot, LOST))
    (given_up,) = of_kind(commands, GiveUp)
    assert given_up.reason == (
        "slot_lost, slot loss 2 of 2; the unit itself is held to be the cause"
    )


def test_a_base_that_cannot_be_loaded_gives_up_its_cells_and_the_others_go_on() -> None:
    state, commands = initial(make_plan(bases=2, adapters=1), Policy(load_attempts=2))
    for _ in range(2):
        (started,) = of_kind(commands, StartSlot)
        assert started.base == "base1"
        commands = play(state, SlotPlaced(started.slot), SlotFailed(started.slot, CRASH))
    assert {command.cell for command in of_kind(commands, GiveUp)} == {
        "base1:task0",
        "base1/a0:task0",
    }
    (started,) = of_kind(commands, StartSlot)
    assert started.base == "base0"


def test_a_base_that_does_not_exist_is_loaded_once() -> None:
    state, commands = initial(make_plan(adapters=1), Policy(load_attempts=5))
    (started,) = of_kind(commands, StartSlot)
    commands = play(state, SlotFailed(started.slot, BAD_BASE))
    assert len(of_kind(commands, GiveUp)) == 2
    assert state.finished


def test_slots_that_fail_to_load_at_the_same_time_count_once() -> None:
    state, commands = initial(make_plan(adapters=7), Policy(slots=8, load_attempts=2))
    slots = [command.slot for command in of_kind(commands, StartSlot)]
    commands = play(state, *(SlotFailed(slot, CRASH) for slot in slots))
    assert not of_kind(commands, GiveUp)
    # One slot probes; the others wait for what it finds.
    (probe,) = of_kind(commands, StartSlot)
    commands = play(state, SlotReady(probe.slot, HARDWARE))
    assert len(of_kind(commands, StartSlot)) == 7


def test_a_place_that_never_comes_up_is_given_up_while_others_hold_the_base() -> None:
    state, commands = initial(make_plan(adapters=9), Policy(slots=2, load_attempts=2))
    good, bad = of_kind(commands, StartSlot)
    play(state, SlotReady(good.slot, HARDWARE))
    (again,) = of_kind(play(state, SlotFailed(bad.slot, CRASH)), StartSlot)
    commands = play(state, SlotFailed(again.slot, CRASH))
    assert commands == []
    assert state.capacity == 1
    assert len(state.running) == 1


def test_an_answer_of_an_attempt_that_is_no_longer_current_is_dropped() -> None:
    state, commands = start(make_plan(adapters=0), Policy(unit_timeout_seconds=10.0))
    first = only_run(commands)
    play(state, Tick(1.0))
    (fresh,) = of_kind(play(state, Tick(12.0)), StartSlot)
    second = only_run(play(state, SlotReady(fresh.slot, HARDWARE)))
    assert not state.is_current(first.slot, first.unit_id, first.attempt)
    assert play(state, done(first), failed(first), SlotLost(first.slot, LOST)) == []
    assert len(of_kind(play(state, done(second)), ScoreCell)) == 1
    assert play(state, done(second), done(first)) == []


def test_a_scoring_that_fails_is_tried_again_and_given_up_at_last() -> None:
    state, commands = start(make_plan(adapters=0), Policy(attempts=2))
    (score,) = of_kind(play(state, done(only_run(commands))), ScoreCell)
    (again,) = of_kind(play(state, ScoreFailed(score.cell, 1, CRASH)), ScoreCell)
    assert again.attempt == 2
    assert play(state, ScoreFailed(score.cell, 1, CRASH), CellScored(score.cell, 1)) == []
    assert state.cells[score.cell] is CellPhase.SCORING
    (given_up,) = of_kind(play(state, ScoreFailed(score.cell, 2, CRASH)), GiveUp)
    assert given_up.attempts == 2
    assert state.finished


# --- time -------------------------------------------------------------------------------------


def test_a_unit_beyond_its_time_is_stopped_with_its_slot_and_runs_again() -> None:
    state, commands = start(make_plan(adapters=0), Policy(unit_timeout_seconds=10.0))
    run = only_run(commands)
    play(state, Tick(5.0))  # its time begins with the first tick after its start
    assert play(state, Tick(14.9)) == []
    commands = play(state, Tick(15.0))
    assert [type(command) for command in commands] == [StopSlot, StartSlot]
    assert commands[0] == StopSlot(run.slot, "ran longer than 10 seconds (unit_timeout) in slot-1")


def test_the_time_of_an_attempt_does_not_count_for_the_next_one() -> None:
    state, commands = start(make_plan(adapters=0), Policy(unit_timeout_seconds=10.0))
    play(state, Tick(0.0))
    play(state, failed(only_run(commands)), Tick(5.0))
    assert play(state, Tick(10.0), Tick(14.9)) == []
    assert of_kind(play(state, Tick(15.0)), StopSlot)


def test_time_that_passed_before_a_unit_began_is_not_charged_to_it() -> None:
    state, commands = initial(make_plan(adapters=0), Policy(unit_timeout_seconds=10.0))
    (started,) = of_kind(commands, StartSlot)
    play(state, Tick(0.0))
    run = only_run(play(state, SlotReady(started.slot, HARDWARE)))
    # A slow store kept the driver from its clock; the unit began just now.
    assert play(state, Tick(1000.0)) == []
    assert state.is_current(run.slot, run.unit_id, run.attempt)


def test_a_load_beyond_its_time_is_a_failed_load() -> None:
    policy = Policy(start_timeout_seconds=100.0, load_attempts=2)
    state, commands = initial(make_plan(adapters=0), policy)
    (first,) = of_kind(commands, StartSlot)
    play(state, Tick(0.0), SlotPlaced(first.slot), Tick(90.0))
    assert play(state, Tick(189.0)) == []
    (second,) = of_kind(play(state, Tick(190.0)), StartSlot)
    play(state, SlotPlaced(second.slot), Tick(200.0))
    (given_up,) = of_kind(play(state, Tick(300.0)), GiveUp)
    assert given_up.failure.kind is FailureKind.TIMED_OUT
    assert given_up.failure.message == "slot-2 did not load its base within 100 seconds"


def test_slots_that_find_no_room_beside_others_say_nothing_about_their_base() -> None:
    plan = make_plan(bases=2, adapters=3)
    state, commands = initial(plan, Policy(slots=2, start_timeout_seconds=100.0))
    first, second = of_kind(commands, StartSlot)
    assert first.base != second.base
    play(state, Tick(0.0), SlotPlaced(first.slot), SlotReady(first.slot, HARDWARE))
    commands = play(state, Tick(100.0))
    assert [type(command) for command in commands] == [StopSlot]
    assert state.capacity == 1
    assert not state.failures


def test_a_base_whose_slots_find_no_node_at_all_is_given_up() -> None:
    policy = Policy(start_timeout_seconds=100.0, load_attempts=1)
    state, _ = initial(make_plan(adapters=0), policy)
    play(state, Tick(0.0))
    (given_up,) = of_kind(play(state, Tick(100.0)), GiveUp)
    assert "found no node with its hardware free" in given_up.failure.message


# --- the end ----------------------------------------------------------------------------------


def test_a_stop_ends_everything_and_charges_nobody() -> None:
    state, commands = start(make_plan(adapters=3, shards=2), Policy(slots=2))
    running = of_kind(commands, RunUnit)
    commands = play(state, StopRequested("SIGTERM"))
    assert {type(command) for command in commands} == {StopSlot}
    assert {command.slot for command in of_kind(commands, StopSlot)} == {
        run.slot for run in running
    }
    assert state.finished
    assert not state.failures
    assert all(tally.failed == tally.lost == 0 for tally in state.tallies.values())


def test_a_drain_lets_running_units_finish_and_begins_nothing() -> None:
    state, commands = start(make_plan(adapters=3), Policy(slots=2))
    first, second = of_kind(commands, RunUnit)
    assert play(state, StopRequested("SIGTERM", drain=True)) == []
    assert not state.finished
    commands = play(state, done(first), failed(second))
    assert {type(command) for command in commands} == {StopSlot}
    assert state.finished


def test_the_same_events_give_the_same_commands() -> None:
    def play_night() -> list[Command]:
        random = Random(7)

        def fail(run: RunUnit) -> Event | None:
            return failed(run) if random.random() < 0.2 else None

        plan = make_plan(bases=3, adapters=5, tasks=3, shards=2)
        return Night(plan, Policy(slots=3), fail=fail).play().commands

    assert play_night() == play_night()


@pytest.mark.slow
def test_a_night_of_a_hundred_thousand_units_on_a_thousand_slots_keeps_them_busy() -> None:
    random = Random(1)

    def fail(run: RunUnit) -> Event | None:
        return failed(run) if random.random() < 0.01 else None

    plan = make_plan(bases=40, adapters=49, tasks=10, shards=5)
    assert len(plan.units) == 100_000
    night = Night(
        plan,
        Policy(slots=1000, scoring=16),
        load_seconds=180.0,
        unit_seconds=lambda run: random.lognormvariate(5.5, 0.6),
        fail=fail,
    ).play()
    check(night.state)
    phases = Counter(night.state.cells.values())
    assert phases[CellPhase.DONE] + phases[CellPhase.FAILED] == 20_000
    assert phases[CellPhase.FAILED] < 20
    # Slots that wait or load are what the night is lost to.
    assert night.busy_seconds / (1000 * night.now) > 0.9
    assert night.count(StartSlot) < 4000
