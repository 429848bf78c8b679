"""Units of several subjects that fail as a whole."""

from raypeft.core.events import (
    CellScored,
    GiveUp,
    RunUnit,
    ScoreCell,
    SlotLost,
    SlotPlaced,
    SlotReady,
    SplitUnit,
    StartSlot,
    UnitFailed,
)
from raypeft.core.retry import Policy
from raypeft.core.state import CellPhase
from tests.core.test_schedule import CRASH, LOST, done, of_kind, only_run, play, start
from tests.support.plans import HARDWARE, make_plan


def test_a_unit_that_fails_as_a_whole_is_halved_until_the_culprit_stands_alone() -> None:
    plan = make_plan(adapters=4, subjects_per_unit=4)
    state, commands = start(plan, Policy(slots=1, attempts=2))
    commands = play(state, done(only_run(commands)))
    culprit = only_run(commands).cells[2]
    crashes = 0
    given_up: list[str] = []
    while not state.finished:
        runs = of_kind(commands, RunUnit)
        for command in of_kind(commands, GiveUp):
            given_up.append(command.cell)
        if not runs:
            scores = [ScoreCell(cell, attempt, "") for cell, attempt in state.scoring.items()]
            commands = play(state, CellScored(scores[0].cell, scores[0].attempt))
            continue
        (run,) = runs
        if culprit in run.cells:
            crashes += 1
            commands = play(state, UnitFailed(run.slot, run.unit_id, run.attempt, CRASH))
        else:
            commands = play(state, done(run))
    # Of four, of two, and alone as often as any unit is tried.
    assert crashes == 4
    assert given_up == [culprit]
    assert sum(phase is CellPhase.DONE for phase in state.cells.values()) == 4


def test_a_lost_slot_is_no_reason_to_split_until_it_happens_again() -> None:
    plan = make_plan(adapters=2, subjects_per_unit=2)
    state, commands = start(plan, Policy(slots=1, slot_losses=2))
    commands = play(state, done(only_run(commands)))
    for expected in (0, 1):
        run = next(iter(state.running.values()))
        commands = play(state, SlotLost(run.slot, LOST))
        assert len(of_kind(commands, SplitUnit)) == expected
        (slot,) = [command.slot for command in of_kind(commands, StartSlot)]
        play(state, SlotPlaced(slot))
        commands = play(state, SlotReady(slot, HARDWARE))
    assert len(only_run(commands).cells) == 1
