"""Looks in the driver: what they see, when, and what becomes of one that fails."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from raypeft.core.events import CellHopeless
from raypeft.core.interim import LookSettings, ShardValues
from raypeft.core.plan import Cell, Plan, make_units
from raypeft.core.records import Answer, Failure, FailureKind
from raypeft.core.retry import Policy
from raypeft.core.schedule import initial
from raypeft.errors import StoreError
from raypeft.runtime.driver import drive
from raypeft.runtime.local import LocalPool
from raypeft.runtime.looking import Look, Looking
from raypeft.runtime.meter import Outcome
from tests.support.plans import make_plan, make_request_set
from tests.support.sinks import MemorySink, mean_logprob

BASE, ADAPTER = "base0:task0", "base0/a0:task0"
SETTINGS = LookSettings(baselines={ADAPTER: BASE})


def cut(plan: Plan, *, answered: dict[str, list[int]] | None = None) -> Plan:
    """Return the plan with all its cells cut by documents, some shards answered before."""
    cells = {key: replace(cell, by_documents=True) for key, cell in plan.cells.items()}
    have = answered or {}
    left = [cell for key, cell in cells.items() if len(have.get(key, ())) < cell.shards]
    units = make_units(left, answered=have)
    done = tuple(cells.keys() - {cell.key for cell in left})
    return replace(plan, cells=cells, units=units, done=done)


def looking(plan: Plan, at_once: int = 9) -> tuple[Looking, Callable[[], list[Look]]]:
    state, _ = initial(plan, Policy())
    looks = Looking(plan, SETTINGS, at_once)
    looks.begin(state)
    return looks, lambda: looks.take(state)


def run(plan: Plan, sink: MemorySink, settings: LookSettings = SETTINGS) -> Outcome:
    ticks = itertools.count()
    return drive(
        plan,
        pool=LocalPool(num_slots=1),
        sink=sink,
        policy=Policy(),
        clock=lambda: float(next(ticks)),
        request_sets=make_request_set,
        score=mean_logprob,
        looks=settings,
    )


def test_what_earlier_runs_have_answered_is_looked_at_first() -> None:
    plan = cut(make_plan(adapters=1, shards=3), answered={BASE: [0, 1, 2], ADAPTER: [0, 2]})
    _, take = looking(plan)
    assert {(look.cell, look.index, look.count) for look in take()} == {
        (BASE, 0, 3), (BASE, 1, 3), (BASE, 2, 3), (ADAPTER, 0, 3), (ADAPTER, 2, 3),
    }  # fmt: skip
    assert take() == []


def test_a_baseline_in_whole_batches_is_looked_at_in_the_shards_of_its_adapters() -> None:
    plan = cut(make_plan(adapters=1, shards=3), answered={BASE: [0, 1, 2]})
    base = replace(plan.cells[BASE], by_documents=False, shards=1)
    _, take = looking(replace(plan, cells={**plan.cells, BASE: base}))
    assert [(look.cell, look.index, look.count) for look in take()] == [
        (BASE, 0, 3), (BASE, 1, 3), (BASE, 2, 3),
    ]  # fmt: skip


def test_no_more_looks_are_under_way_than_there_is_room_for() -> None:
    plan = cut(make_plan(adapters=1, shards=3), answered={BASE: [0, 1, 2]})
    looks, take = looking(plan, at_once=2)
    first = take()
    assert (len(first), take()) == (2, [])
    assert looks.ended(first[0].call, ShardValues("acc,none", 1, (1.0,))) == []
    assert len(take()) == 1


def test_a_look_that_nothing_is_stopped_by_any_more_is_dropped() -> None:
    plan = cut(make_plan(adapters=1, shards=2), answered={BASE: [0, 1], ADAPTER: [0, 1]})
    assert plan.units == ()
    _, take = looking(plan)
    assert take() == []


def test_what_a_call_gives_becomes_what_was_seen_or_a_problem() -> None:
    plan = cut(make_plan(adapters=1, shards=2), answered={BASE: [0, 1], ADAPTER: [0]})
    looks, take = looking(plan)
    calls = {(look.cell, look.index): look.call for look in take()}
    assert looks.is_look(calls[BASE, 0])
    assert looks.ended("look/of another run/0-of-2", ShardValues()) == []
    assert looks.ended(calls[BASE, 0], ShardValues("acc,none", 1, (1.0,) * 60)) == []
    (event,) = looks.ended(calls[ADAPTER, 0], ShardValues("acc,none", 1, (0.0,) * 60))
    assert isinstance(event, CellHopeless)
    assert looks.ended(calls[ADAPTER, 0], ShardValues("acc,none", 1, (0.0,) * 60)) == []


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (Failure(FailureKind.CRASHED, "the process died"), "crashed: the process died"),
        ("nonsense", "the look gave str, not ShardValues"),
    ],
)
def test_a_look_that_fails_stops_nothing_and_is_kept(given: object, why: str) -> None:
    plan = cut(make_plan(adapters=1, shards=2), answered={BASE: [0, 1], ADAPTER: [0]})
    looks, take = looking(plan)
    for look in take():
        assert looks.ended(look.call, given) == []
    assert looks.interim.problems == {ADAPTER: why}


def test_without_looks_shards_of_documents_make_the_same_whole() -> None:
    plan, sinks = make_plan(adapters=1), [MemorySink(), MemorySink()]
    run(plan, sinks[0], LookSettings(baselines={}))
    run(cut(make_plan(adapters=1, shards=3)), sinks[1], LookSettings(baselines={}))
    assert sinks[0].results == sinks[1].results


def test_a_run_whose_looks_fail_answers_everything_and_says_why() -> None:
    # The made-up task is none that lm-eval knows.
    sink = MemorySink()
    outcome = run(cut(make_plan(adapters=1, shards=3)), sink)
    assert (set(outcome.done), outcome.stopped_early) == ({BASE, ADAPTER}, {})
    assert "cannot be found again" in outcome.not_looked_at[ADAPTER]
    (line,) = sink.noted("not_looked_at")
    assert line["cell"] == ADAPTER


class UnreadableSink(MemorySink):
    """Cannot read single shards."""

    def load_shard(self, cell: Cell, index: int) -> Sequence[Answer]:
        raise StoreError("store", f"shard {index} is damaged", "run again")


def test_answers_that_cannot_be_read_for_a_look_stop_nothing() -> None:
    outcome = run(cut(make_plan(adapters=1, shards=3)), UnreadableSink())
    assert set(outcome.done) == {BASE, ADAPTER}
    assert "is damaged" in outcome.not_looked_at[ADAPTER]
