"""A sink that lets others watch: metrics, logs. Nothing they do can change what is stored."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from raypeft.core.plan import Cell, Unit
from raypeft.core.records import Answer, Failure, Json, Scored, UnitAnswers
from raypeft.runtime.ports import Sink


class Watcher(Protocol):
    """Who is told what a run writes, after it is written."""

    def noted(self, line: Mapping[str, Json]) -> None:
        """See a line of the journal; `event` says what happened."""
        ...

    def answered(self, unit: Unit, answers: UnitAnswers) -> None:
        """See the answers of a unit; it holds exactly the cells that were answered."""
        ...


class WatchedSink:
    """A `Sink` in front of another one.

    Args:
        sink: Where everything goes.
        watchers: Who is told.
    """

    def __init__(self, sink: Sink, watchers: Sequence[Watcher]) -> None:
        self._sink = sink
        self._watchers = tuple(watchers)

    def answers(self, unit: Unit, attempt: int, answers: UnitAnswers) -> None:
        """Store answers."""
        self._sink.answers(unit, attempt, answers)
        for watcher in self._watchers:
            watcher.answered(unit, answers)

    def load_answers(self, cell: Cell) -> Sequence[Answer]:
        """Return a cell's answers."""
        return self._sink.load_answers(cell)

    def load_shard(self, cell: Cell, index: int) -> Sequence[Answer]:
        """Return a cell's answers of one shard."""
        return self._sink.load_shard(cell, index)

    def scored(self, cell: Cell, scored: Scored) -> None:
        """Store a cell's results."""
        self._sink.scored(cell, scored)

    def gave_up(self, cell: str, failure: Failure, attempts: int) -> None:
        """Store why a cell has no results."""
        self._sink.gave_up(cell, failure, attempts)

    def note(self, line: dict[str, Json]) -> None:
        """Append a line to the journal."""
        self._sink.note(line)
        for watcher in self._watchers:
            watcher.noted(line)
