"""The units of one base that wait for a slot, and which of them is next.

Decides the order: the baseline's first, then the longest, and among units of about the same
length those of the subject that the slot answered last, since its adapter is then in place. All
operations take constant time (in the number of units), so that a plan of 100,000 units costs
nothing to keep.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

from raypeft.core.plan import Unit


class Rank(NamedTuple):
    """Units of equal rank are about equally urgent; the greatest rank goes first."""

    is_baseline: bool
    size: int
    """log2 of the tokens, in halves: units within a factor of 1.4 count as equally long."""


def rank_of(unit: Unit) -> Rank:
    """Return a unit's rank."""
    # bit_length of the square counts half powers of two without leaving the integers.
    return Rank(unit.has_baseline, (max(unit.tokens, 1) ** 2).bit_length())


class WaitingUnits:
    """A queue of units of one base.

    Attributes:
        tokens: Estimated tokens of all that wait.
    """

    def __init__(self) -> None:
        # Dictionaries stand for ordered sets: units leave from the middle when their cell fails.
        self._ranks: dict[Rank, OrderedDict[tuple[str, ...], dict[str, Unit]]] = {}
        self._by_id: dict[str, Unit] = {}
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, unit_id: str) -> bool:
        return unit_id in self._by_id

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_id)

    def push(self, unit: Unit) -> None:
        """Add a unit; of its rank and subjects the last one added goes first."""
        if unit.id in self._by_id:
            raise ValueError(f"unit {unit.id} already waits")
        self._by_id[unit.id] = unit
        self.tokens += unit.tokens
        subjects = self._ranks.setdefault(rank_of(unit), OrderedDict())
        subjects.setdefault(unit.subjects, {})[unit.id] = unit

    def pop(self, last_subjects: tuple[str, ...] = ()) -> Unit | None:
        """Take the next unit for a slot that answered `last_subjects` before; None if empty."""
        if not self._ranks:
            return None
        subjects = self._ranks[max(self._ranks)]
        if last_subjects in subjects:
            chosen = last_subjects
        else:
            chosen = next(iter(subjects))
            # The next slot that has no preference starts on another subject.
            subjects.move_to_end(chosen)
        # From the end: taking from the front of a dict slows down with every one taken.
        unit = subjects[chosen][next(reversed(subjects[chosen]))]
        self.discard(unit.id)
        return unit

    def discard(self, unit_id: str) -> None:
        """Take a unit out, if it waits."""
        unit = self._by_id.pop(unit_id, None)
        if unit is None:
            return
        self.tokens -= unit.tokens
        rank = rank_of(unit)
        subjects = self._ranks[rank]
        units = subjects[unit.subjects]
        _remove(units, unit_id)
        if not units:
            del subjects[unit.subjects]
            if not subjects:
                del self._ranks[rank]


def _remove(units: dict[str, Unit], unit_id: str) -> None:
    """Delete a key; the last one by `popitem`, which leaves no gap that later look-ups cross."""
    if next(reversed(units)) == unit_id:
        units.popitem()
    else:
        del units[unit_id]
