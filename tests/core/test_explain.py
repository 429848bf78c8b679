from raypeft.core.events import (
    CellScored,
    RunUnit,
    ScoreCell,
    SlotFailed,
    SlotLost,
    SlotReady,
    StartSlot,
    StopRequested,
    Tick,
    UnitDone,
    UnitFailed,
)
from raypeft.core.explain import why_waiting
from raypeft.core.records import Failure, FailureKind
from raypeft.core.retry import Policy
from raypeft.core.schedule import initial, step
from raypeft.core.state import State
from tests.support.plans import HARDWARE, make_plan

CRASH = Failure(FailureKind.CRASHED, "boom", retryable=True)
CELL = "base0:task0"


def begun(*, bases: int = 1, adapters: int = 0, shards: int = 1) -> tuple[State, RunUnit]:
    plan = make_plan(bases=bases, adapters=adapters, shards=shards)
    state, commands = initial(plan, Policy(attempts=2, scoring=1))
    (started,) = [c for c in commands if isinstance(c, StartSlot)]
    (run,) = step(state, SlotReady(started.slot, HARDWARE))
    assert isinstance(run, RunUnit)
    return state, run


def test_a_cell_that_runs_says_where_and_how_long() -> None:
    state, _ = begun(shards=3)
    step(state, Tick(5.0))
    assert why_waiting(state, CELL) == (
        "shard 3 of 3 runs in slot-1 (attempt 1, for 5 s); 2 of 3 shards wait: 2 units of base "
        "base0 wait, 1 slots hold the base and are busy"
    )


def test_a_cell_whose_base_is_not_loaded_says_so() -> None:
    state, _ = begun(bases=2)
    assert why_waiting(state, CELL) == (
        "1 of 1 shards wait: 1 units of base base0 wait, no slot holds the base, all 1 slots are "
        "on other bases"
    )


def test_a_cell_whose_base_is_loading_says_so() -> None:
    state, _ = initial(make_plan(adapters=0), Policy())
    assert "1 slots wait for hardware or load the base" in why_waiting(state, CELL)


def test_a_cell_that_waits_after_a_failure_names_the_failure() -> None:
    state, run = begun(adapters=1)
    step(state, SlotLost(run.slot, CRASH))
    assert why_waiting(state, CELL).endswith("the last attempt ended with crashed: boom")


def test_a_cell_that_is_over_says_how_it_ended() -> None:
    state, run = begun()
    step(state, UnitFailed(run.slot, run.unit_id, 1, CRASH))
    step(state, UnitFailed(run.slot, run.unit_id, 2, CRASH))
    assert why_waiting(state, CELL) == "was given up: crashed: boom"


def test_a_cell_goes_from_answered_to_scored_to_done() -> None:
    state, run = begun(adapters=1)
    (score, second) = step(state, UnitDone(run.slot, run.unit_id, 1, dict.fromkeys(run.cells)))
    if not isinstance(score, ScoreCell):
        score, second = second, score
    assert isinstance(score, ScoreCell)
    assert isinstance(second, RunUnit)
    step(state, UnitDone(second.slot, second.unit_id, 1, dict.fromkeys(second.cells)))
    assert why_waiting(state, score.cell) == "is being scored (attempt 1)"
    assert why_waiting(state, second.cells[0]) == (
        "is answered and waits for one of 1 scoring places"
    )
    step(state, CellScored(score.cell, 1))
    assert why_waiting(state, score.cell) == "is done"


def test_a_run_that_stops_and_a_base_that_fails_are_reasons() -> None:
    state, _ = initial(make_plan(bases=1, adapters=0), Policy(load_attempts=2))
    step(state, SlotFailed("slot-1", CRASH))
    step(state, StopRequested("SIGTERM"))
    assert "the run is stopping (SIGTERM)" in why_waiting(state, CELL)


def test_a_cell_of_another_sweep_is_unknown() -> None:
    state, _ = begun()
    assert why_waiting(state, "nowhere") == "is not part of this run"
