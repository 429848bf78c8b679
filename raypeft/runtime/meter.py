"""Counts what a run does: for the progress line, the summary and the journal."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from raypeft.core.events import (
    CellScored,
    Command,
    Event,
    RunUnit,
    SlotFailed,
    SlotLost,
    SlotPlaced,
    SlotReady,
    StartSlot,
    StopSlot,
    UnitDone,
    UnitFailed,
)
from raypeft.core.records import Failure
from raypeft.core.state import CellPhase, State


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is.

    Attributes:
        num_cells: Cells of the plan, those done before among them.
        num_done: Cells with results.
        num_failed: Cells that were given up.
        num_units: Units that were open when the run began.
        num_units_open: Units that are open now.
        tokens: Estimated tokens of all units.
        tokens_open: Estimated tokens of the open ones.
        num_running: Units that run.
        num_loading: Slots that wait for their hardware or load their base.
        num_scoring: Cells that are being scored.
        seconds: Since the run began.
    """

    num_cells: int
    num_done: int
    num_failed: int
    num_units: int
    num_units_open: int
    tokens: int
    tokens_open: int
    num_running: int
    num_loading: int
    num_scoring: int
    seconds: float

    @property
    def remaining_seconds(self) -> float | None:
        """How long the rest takes at the pace so far; None before anything is answered."""
        tokens_done = self.tokens - self.tokens_open
        return self.seconds * self.tokens_open / tokens_done if tokens_done else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended.

    Attributes:
        done: Keys of cells with results, those done before among them.
        failed: Why others have none, by key.
        left_out: Why the deadline left out others, by key.
        stopped_early: Why others were stopped as hopeless, by key.
        not_looked_at: Why cells that were to be looked at could not be, by key.
        num_units: Units that were open when the run began.
        num_attempts: Attempts that were begun.
        num_slots_started: Slots that were started.
        seconds: Wall time.
        busy_seconds: Slots' time with units, all slots together.
        loading_seconds: Slots' time with loading.
    """

    done: tuple[str, ...]
    failed: Mapping[str, Failure]
    left_out: Mapping[str, str]
    stopped_early: Mapping[str, str]
    num_units: int
    num_attempts: int
    num_slots_started: int
    seconds: float
    busy_seconds: float
    loading_seconds: float
    not_looked_at: Mapping[str, str] = field(default_factory=dict)


class Meter:
    """Adds up slots' time from the events and commands that pass by.

    Args:
        started_seconds: When the run began.
    """

    def __init__(self, started_seconds: float) -> None:
        self.started_seconds = started_seconds
        self._busy_seconds = 0.0
        self._loading_seconds = 0.0
        self._num_slots_started = 0
        self._num_scored = 0
        self._loading_since: dict[str, float] = {}
        self._busy_since: dict[str, float] = {}

    def see(self, thing: Event | Command, now_seconds: float) -> None:
        """Take note of an event or a command."""
        match thing:
            case StartSlot():
                self._num_slots_started += 1
            case SlotPlaced(slot):
                self._loading_since.setdefault(slot, now_seconds)
            case RunUnit(slot):
                self._busy_since[slot] = now_seconds
            case SlotReady(slot) | SlotFailed(slot) | SlotLost(slot) | StopSlot(slot):
                self._end(slot, now_seconds)
            case UnitDone(slot) | UnitFailed(slot):
                self._end(slot, now_seconds)
            case CellScored():
                self._num_scored += 1

    def progress(self, state: State, now_seconds: float) -> Progress:
        """Return how far the run is."""
        return Progress(
            num_cells=len(state.cells),
            num_done=len(state.plan.done) + self._num_scored,
            num_failed=len(state.failures),
            num_units=len(state.units),
            num_units_open=state.num_units_open,
            tokens=state.tokens,
            tokens_open=state.tokens_open,
            num_running=len(state.running),
            num_loading=sum(base.num_starting for base in state.bases.values()),
            num_scoring=len(state.scoring),
            seconds=now_seconds - self.started_seconds,
        )

    def outcome(self, state: State, now_seconds: float) -> Outcome:
        """Return how the run ended."""
        done = (cell for cell, phase in state.cells.items() if phase is CellPhase.DONE)
        early = {
            cell: why
            for cell, why in state.left_out.items()
            if state.cells[cell] is CellPhase.STOPPED_EARLY
        }
        return Outcome(
            done=tuple(done),
            failed=dict(state.failures),
            left_out={cell: why for cell, why in state.left_out.items() if cell not in early},
            stopped_early=early,
            num_units=len(state.units),
            num_attempts=sum(tally.started for tally in state.tallies.values()),
            num_slots_started=self._num_slots_started,
            seconds=now_seconds - self.started_seconds,
            busy_seconds=self._busy_seconds,
            loading_seconds=self._loading_seconds,
        )

    def _end(self, slot: str, now_seconds: float) -> None:
        if slot in self._loading_since:
            self._loading_seconds += now_seconds - self._loading_since.pop(slot)
        if slot in self._busy_since:
            self._busy_seconds += now_seconds - self._busy_since.pop(slot)
