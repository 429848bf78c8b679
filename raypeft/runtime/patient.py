"""A sink that waits for storage that fails for a while, so that a hiccup at night ends no run.

What a sink promises makes this safe: a method that raises has stored nothing that a second call
would not store alike. Slots work on meanwhile, each to the end of its unit. Who asks for a stop
does not wait: what cannot be written then is lost with the unit, which runs again.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from raypeft.core.plan import Cell, Unit
from raypeft.core.records import Answer, Failure, Json, Scored, UnitAnswers
from raypeft.errors import SetupError, StoreError
from raypeft.runtime.ports import Sink
from raypeft.runtime.stopping import stop_requested

PATIENCE_SECONDS = 900.0
"""Longest that storage may fail at a stretch. Object stores and network disks come back within
minutes; a disk that is full stays so until somebody comes."""

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0

_logger = logging.getLogger(__name__)

_T = TypeVar("_T")


class PatientSink:
    """A `Sink` in front of another one.

    Args:
        sink: Where everything goes.
        patience_seconds: Longest that a write is tried again.
        clock: Seconds that never go back.
        pause: Lets time pass.
        should_stop: Whether somebody wants the run to end.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        patience_seconds: float = PATIENCE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
        should_stop: Callable[[], bool] = stop_requested,
    ) -> None:
        self._sink = sink
        self._patience_seconds = patience_seconds
        self._clock = clock
        self._pause = pause
        self._should_stop = should_stop

    def answers(self, unit: Unit, attempt: int, answers: UnitAnswers) -> None:
        """Store answers."""
        self._patiently(lambda: self._sink.answers(unit, attempt, answers))

    def load_answers(self, cell: Cell) -> Sequence[Answer]:
        """Return a cell's answers."""
        return self._patiently(lambda: self._sink.load_answers(cell))

    def load_shard(self, cell: Cell, index: int) -> Sequence[Answer]:
        """Return a cell's answers of one shard."""
        return self._patiently(lambda: self._sink.load_shard(cell, index))

    def scored(self, cell: Cell, scored: Scored) -> None:
        """Store a cell's results."""
        self._patiently(lambda: self._sink.scored(cell, scored))

    def gave_up(self, cell: str, failure: Failure, attempts: int) -> None:
        """Store why a cell has no results."""
        self._patiently(lambda: self._sink.gave_up(cell, failure, attempts))

    def note(self, line: dict[str, Json]) -> None:
        """Append a line to the journal."""
        self._patiently(lambda: self._sink.note(line))

    def _patiently(self, action: Callable[[], _T]) -> _T:
        began, pause_seconds = self._clock(), FIRST_PAUSE_SECONDS
        while True:
            try:
                return action()
            except StoreError:
                raise  # what is stored is not as it should be, which time does not mend
            except (OSError, SetupError) as error:
                left = began + self._patience_seconds - self._clock()
                if left <= 0 or self._should_stop():
                    raise
                _logger.warning("%s; tried again for %.0f s more", error, left)
            self._wait(min(pause_seconds, left))
            pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)

    def _wait(self, seconds: float) -> None:
        """Let time pass, in steps, so that a request to stop is heard."""
        end = self._clock() + seconds
        while (left := end - self._clock()) > 0 and not self._should_stop():
            self._pause(min(left, FIRST_PAUSE_SECONDS))
