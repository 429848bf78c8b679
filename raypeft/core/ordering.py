"""Which cells are worth most, when the night may be too short for all of them.

Decides the urgency of each cell from a setting; that baselines go first whatever the setting, and
what is done with urgency, is `raypeft.core.waiting`'s business.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Literal, TypeAlias, TypeVar

from raypeft.core.plan import Cell

T = TypeVar("T", bound=Hashable)

Order: TypeAlias = Literal["longest", "rows", "tasks", "sweep"]
"""What goes first: `longest` is what takes longest; `rows` is the adapter that is soonest complete
on all tasks; `tasks` is the first task, for every adapter; `sweep` is the first adapter."""


def urgencies(cells: Sequence[Cell], order: Order) -> Mapping[str, int]:
    """Return the urgency of each cell by its key; the greatest goes first, and 0 is none.

    An adapter has a gain on a task only together with its baseline, and a row of the morning's
    table only with all tasks. `rows` therefore finishes one adapter before it begins the next, the
    one with least left to do first: that makes most rows complete in whatever time there is.

    Args:
        cells: What is left to answer, in the sweep's order.
        order: The setting.
    """
    if order == "longest":
        return {}
    if order == "tasks":
        places = _places([(cell.entry, cell.task) for cell in cells])
        return {cell.key: places[cell.entry, cell.task] for cell in cells}
    seconds: dict[str, float] = {}
    for cell in cells:
        seconds[cell.subject] = seconds.get(cell.subject, 0.0) + cell.expected_seconds
    subjects = list(seconds)
    if order == "rows":
        subjects.sort(key=lambda subject: seconds[subject])
    by_subject = _places(subjects)
    return {cell.key: by_subject[cell.subject] for cell in cells}


def _places(things: Sequence[T]) -> dict[T, int]:
    unique = list(dict.fromkeys(things))
    return {thing: len(unique) - place for place, thing in enumerate(unique)}
