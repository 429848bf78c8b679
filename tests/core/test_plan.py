from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from raypeft.core.plan import make_units
from tests.support.plans import make_plan


@given(
    bases=st.integers(1, 2),
    adapters=st.integers(0, 3),
    tasks=st.integers(1, 3),
    shards=st.integers(1, 4),
    together=st.integers(1, 3),
    data=st.data(),
)
def test_units_cover_every_open_shard_of_every_cell_once(
    bases: int, adapters: int, tasks: int, shards: int, together: int, data: st.DataObject
) -> None:
    plan = make_plan(bases=bases, adapters=adapters, tasks=tasks, shards=shards)
    cells = tuple(plan.cells.values())
    every = {(cell.key, index) for cell in cells for index in range(shards)}
    have = data.draw(st.sets(st.sampled_from(sorted(every))))
    answered = {cell.key: {index for key, index in have if key == cell.key} for cell in cells}
    units = make_units(cells, answered=answered, subjects_per_unit=together)
    covered = [(cell, unit.shard_index) for unit in units for cell in unit.cells]
    assert len(covered) == len(set(covered))
    assert set(covered) == every - have


def test_units_of_a_plan_have_different_ids_and_the_same_ones_in_every_plan() -> None:
    first = make_plan(bases=2, adapters=2, tasks=2, shards=3).units
    second = make_plan(bases=2, adapters=2, tasks=2, shards=3).units
    assert first == second
    assert len({unit.id for unit in first}) == len(first)


def test_adapters_share_a_unit_and_the_baseline_stands_alone() -> None:
    units = make_plan(adapters=4, subjects_per_unit=3).units
    assert [(unit.subjects, unit.has_baseline) for unit in units] == [
        (("base0",), True),
        (("base0/a0", "base0/a1"), False),
        (("base0/a2", "base0/a3"), False),
    ]


def test_a_unit_takes_in_subjects_as_long_as_its_time_allows() -> None:
    cells = [replace(cell, seconds=100.0) for cell in make_plan(adapters=7).cells.values()]
    units = make_units(cells, answered={}, subjects_per_unit=16, seconds_per_unit=300.0)
    assert [(len(unit.cells), unit.seconds) for unit in units] == [
        (1, 100.0),
        (2, 200.0),
        (2, 200.0),
        (3, 300.0),
    ]


def test_a_unit_longer_than_its_time_allows_has_one_subject() -> None:
    cells = [replace(cell, seconds=900.0) for cell in make_plan(adapters=2).cells.values()]
    units = make_units(cells, answered={}, subjects_per_unit=16, seconds_per_unit=300.0)
    assert [len(unit.cells) for unit in units] == [1, 1, 1]


def test_what_is_urgent_shares_a_unit_with_what_is_urgent() -> None:
    cells = [
        replace(cell, urgency=number % 2)
        for number, cell in enumerate(make_plan(adapters=4).cells.values())
    ]
    units = make_units(cells, answered={}, subjects_per_unit=2)
    assert [(unit.subjects, unit.urgency) for unit in units[1:]] == [
        (("base0/a0", "base0/a2"), 1),
        (("base0/a1", "base0/a3"), 0),
    ]


def test_a_unit_costs_its_share_of_every_subject() -> None:
    units = make_plan(adapters=2, shards=4, subjects_per_unit=2, tokens=1000).units
    assert {unit.has_baseline: unit.tokens for unit in units} == {True: 250, False: 500}


def test_a_unit_is_for_the_engine_that_answers_its_cells() -> None:
    first, second = make_plan(adapters=1).cells.values()
    units = make_units([first, replace(second, engine="base0@hf")], answered={})
    assert [unit.base for unit in units] == ["base0", "base0@hf"]
