"""The units of one base that wait for a slot, and which of them is next.

Decides the order: the baseline's first, then the most urgent, then the longest, and among units of
about the same length those of the subject that the slot answered last, since its adapter is then in
place. Two exceptions are made when the schedule asks for them: a unit that is too long to wait any
longer, and no unit that is too long to be finished. All operations take constant time in the number
of units, so that a plan of 100,000 units costs nothing to keep.
"""

import heapq
import math
from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

from raypeft.core.plan import Unit

SIZE_STEP = math.sqrt(2)
"""By what factor units may differ that count as equally long."""


class Rank(NamedTuple):
    """Units of equal rank are about equally urgent; the greatest rank goes first."""

    is_baseline: bool
    urgency: int
    size: int
    """log2 of the milliseconds, in halves: units within `SIZE_STEP` count as equally long."""

    @property
    def reversed(self) -> tuple[int, int, int]:
        """What sorts the other way round."""
        return (-self.is_baseline, -self.urgency, -self.size)


def rank_of(unit: Unit) -> Rank:
    """Return a unit's rank."""
    # bit_length of the square counts half powers of two without leaving the integers.
    size = (max(milliseconds(unit), 1) ** 2).bit_length()
    return Rank(unit.has_baseline, unit.urgency, size)


def milliseconds(unit: Unit) -> int:
    """Return a unit's expected time in whole numbers, so that sums of it do not drift."""
    return round(unit.seconds * 1000)


def _least_seconds(size: int) -> float:
    return math.pow(2.0, (size - 1) / 2) / 1000


def _most_seconds(size: int) -> float:
    return math.pow(2.0, size / 2) / 1000


class WaitingUnits:
    """A queue of units of one base.

    Attributes:
        milliseconds: Expected time of all that wait.
    """

    def __init__(self) -> None:
        # Dictionaries stand for ordered sets: units leave from the middle when their cell fails.
        self._ranks: dict[Rank, OrderedDict[tuple[str, ...], dict[str, Unit]]] = {}
        self._heap: list[tuple[tuple[int, int, int], Rank]] = []
        self._sizes: dict[int, dict[Rank, None]] = {}
        self._by_id: dict[str, Unit] = {}
        self.milliseconds = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, unit_id: str) -> bool:
        return unit_id in self._by_id

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_id)

    @property
    def seconds(self) -> float:
        """Expected seconds of all that wait."""
        return self.milliseconds / 1000

    @property
    def longest_seconds(self) -> float:
        """About how long the longest unit takes, rounded down; 0 if none waits."""
        return _least_seconds(max(self._sizes)) if self._sizes else 0.0

    def has_within(self, seconds: float) -> bool:
        """Whether a unit waits that is expected to take no longer than so many seconds."""
        return bool(self._sizes) and _most_seconds(min(self._sizes)) <= seconds

    def push(self, unit: Unit) -> None:
        """Add a unit; of its rank and subjects the last one added goes first."""
        if unit.id in self._by_id:
            raise ValueError(f"unit {unit.id} already waits")
        self._by_id[unit.id] = unit
        self.milliseconds += milliseconds(unit)
        rank = rank_of(unit)
        if rank not in self._ranks:
            self._ranks[rank] = OrderedDict()
            self._sizes.setdefault(rank.size, {})[rank] = None
            heapq.heappush(self._heap, (rank.reversed, rank))
        self._ranks[rank].setdefault(unit.subjects, {})[unit.id] = unit

    def pop(
        self, last_subjects: tuple[str, ...] = (), *, within_seconds: float = math.inf
    ) -> Unit | None:
        """Take the next unit in order, for a slot that answered `last_subjects` before.

        Args:
            last_subjects: Whom the slot answered last.
            within_seconds: Units that may be expected to take longer stay.

        Returns:
            The unit; None if none waits that is short enough.
        """
        first = self._first_rank()
        if first is None:
            return None
        if _most_seconds(first.size) <= within_seconds:
            return self._take(first, last_subjects)
        fitting = [rank for rank in self._ranks if _most_seconds(rank.size) <= within_seconds]
        return self._take(max(fitting), last_subjects) if fitting else None

    def pop_longest(self, last_subjects: tuple[str, ...] = ()) -> Unit:
        """Take one of the longest units, whatever its urgency; one must wait."""
        return self._take(max(self._sizes[max(self._sizes)]), last_subjects)

    def discard(self, unit_id: str) -> None:
        """Take a unit out, if it waits."""
        unit = self._by_id.pop(unit_id, None)
        if unit is None:
            return
        self.milliseconds -= milliseconds(unit)
        rank = rank_of(unit)
        subjects = self._ranks[rank]
        units = subjects[unit.subjects]
        _remove(units, unit_id)
        if not units:
            del subjects[unit.subjects]
            if not subjects:
                del self._ranks[rank]
                del self._sizes[rank.size][rank]
                if not self._sizes[rank.size]:
                    del self._sizes[rank.size]

    def _first_rank(self) -> Rank | None:
        # A rank whose units are gone stays in the heap until it comes up.
        while self._heap and self._heap[0][1] not in self._ranks:
            heapq.heappop(self._heap)
        return self._heap[0][1] if self._heap else None

    def _take(self, rank: Rank, last_subjects: tuple[str, ...]) -> Unit:
        subjects = self._ranks[rank]
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


def _remove(units: dict[str, Unit], unit_id: str) -> None:
    """Delete a key; the last one by `popitem`, which leaves no gap that later look-ups cross."""
    if next(reversed(units)) == unit_id:
        units.popitem()
    else:
        del units[unit_id]
