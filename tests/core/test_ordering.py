from dataclasses import replace
from itertools import groupby

from raypeft.core.ordering import Order, urgencies
from raypeft.core.plan import Cell
from tests.support.plans import make_plan


def cells() -> list[Cell]:
    """Return three adapters on three tasks, of which the second has least left to do."""
    made = list(make_plan(adapters=3, tasks=3).cells.values())
    done = {("base0/a1", "task2"), ("base0/a2", "task0")}
    return [replace(c, seconds=c.tokens / 100) for c in made if (c.subject, c.task) not in done]


def ordered(order: Order) -> list[Cell]:
    found = urgencies(cells(), order)
    return sorted(cells(), key=lambda cell: -found[cell.key])


def test_rows_finish_one_adapter_before_the_next_the_one_with_least_to_do_first() -> None:
    subjects = [subject for subject, _ in groupby(cell.subject for cell in ordered("rows"))]
    # 30, 50, 60 and 60 seconds are left.
    assert subjects[:2] == ["base0/a1", "base0/a2"]
    assert len(subjects) == 4


def test_tasks_go_in_the_sweeps_order_for_everybody() -> None:
    tasks = [task for task, _ in groupby(cell.task for cell in ordered("tasks"))]
    assert tasks == ["task0", "task1", "task2"]


def test_adapters_go_in_the_sweeps_order() -> None:
    subjects = [subject for subject, _ in groupby(cell.subject for cell in ordered("sweep"))]
    assert subjects == ["base0", "base0/a0", "base0/a1", "base0/a2"]


def test_nothing_is_urgent_where_only_length_counts() -> None:
    assert urgencies(cells(), "longest") == {}
