import errno

import pytest

from raypeft.core.plan import Cell
from raypeft.core.records import Answer, Json
from raypeft.errors import SetupError, StoreError
from raypeft.runtime.patient import PatientSink
from tests.support.plans import make_plan
from tests.support.sinks import MemorySink

PLAN = make_plan(adapters=0)
LINE: dict[str, Json] = {"event": "x"}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.pauses = 0

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds
        self.pauses += 1


class Failing(MemorySink):
    """Fails until a moment."""

    def __init__(self, clock: Clock, until: float, error: Exception) -> None:
        super().__init__()
        self.clock, self.until, self.error = clock, until, error

    def note(self, line: dict[str, Json]) -> None:
        if self.clock() < self.until:
            raise self.error
        super().note(line)

    def load_answers(self, cell: Cell) -> list[Answer]:
        raise StoreError("/store/x", "is damaged")


def patient(sink: Failing, stop_at: float = 1e9) -> PatientSink:
    clock = sink.clock
    return PatientSink(
        sink,
        patience_seconds=600.0,
        clock=clock,
        pause=clock.pause,
        should_stop=lambda: clock() >= stop_at,
    )


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), SetupError("/out cannot be written", "")]
)
def test_storage_that_comes_back_costs_nothing_but_time(error: Exception) -> None:
    sink = Failing(Clock(), 120.0, error)
    patient(sink).note(LINE)
    assert sink.lines == [LINE]
    assert 120.0 <= sink.clock.now < 160.0


def test_storage_that_stays_away_ends_the_run_with_its_own_words() -> None:
    sink = Failing(Clock(), 1e9, SetupError("/out cannot be written: full", "free space"))
    with pytest.raises(SetupError, match="/out cannot be written: full"):
        patient(sink).note(LINE)
    assert 600.0 <= sink.clock.now < 601.0


def test_who_wants_an_end_need_not_wait_for_it() -> None:
    sink = Failing(Clock(), 1e9, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OSError, match="No space left"):
        patient(sink, stop_at=40.0).note(LINE)
    assert sink.clock.now < 41.0


def test_what_is_damaged_is_not_asked_for_again() -> None:
    sink = Failing(Clock(), 0.0, OSError())
    (cell,) = PLAN.cells.values()
    with pytest.raises(StoreError, match="is damaged"):
        patient(sink).load_answers(cell)
    assert sink.clock.pauses == 0
