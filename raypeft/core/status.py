"""Where a sweep stands, folded from its journal: what `raypeft status` says.

Needs neither the process that runs the sweep nor a cluster, so it can answer from anywhere while
the run goes on and after it died.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from raypeft.core.records import Json


class JournalEntry(Protocol):
    """One line of a journal.

    Attributes:
        at_seconds: When, in seconds since the epoch.
        kind: What happened.
        fields: The particulars.
    """

    @property
    def at_seconds(self) -> float:
        """When."""
        ...

    @property
    def kind(self) -> str:
        """What happened."""
        ...

    @property
    def fields(self) -> Mapping[str, Json]:
        """The particulars."""
        ...


class RunPhase(StrEnum):
    """What the last run did when it was last heard of."""

    NEVER_RUN = "never run"
    RUNNING = "running"
    KILLED = "killed"
    """The journal has no end of the run, and nobody works on it."""
    STOPPED = "stopped"
    ENDED = "ended"


class CellState(StrEnum):
    """Where a cell stands."""

    DONE = "done"
    FAILED = "failed"
    RUNNING = "running"
    WAITING = "waiting"


@dataclass(slots=True)
class CellStatus:
    """One cell.

    Attributes:
        subject: The subject's id.
        task: The leaf task.
        state: Where it stands.
        why: Why it failed or waits, or where it runs.
    """

    subject: str
    task: str
    state: CellState = CellState.WAITING
    why: str = ""


@dataclass(slots=True)
class Status:
    """A sweep as its journal tells it.

    Attributes:
        phase: What the last run did.
        runs: How many runs the journal knows.
        began_seconds: When the last run began, in seconds since the epoch.
        last_seconds: When something was last heard.
        cells: Every cell of the last run.
        slots: What each slot of the last run does.
    """

    phase: RunPhase = RunPhase.NEVER_RUN
    runs: int = 0
    began_seconds: float | None = None
    last_seconds: float | None = None
    cells: list[CellStatus] = field(default_factory=list)
    slots: dict[str, str] = field(default_factory=dict)

    def kill(self) -> None:
        """Say that the process of the last run is gone."""
        self.phase = RunPhase.KILLED
        self.slots = {}
        for cell in self.cells:
            if cell.state is CellState.RUNNING:
                cell.state, cell.why = CellState.WAITING, "the run was killed; start it again"

    def count(self, state: CellState) -> int:
        """Return how many cells are in a state."""
        return sum(1 for cell in self.cells if cell.state is state)


def fold(entries: Iterable[JournalEntry]) -> Status:
    """Return where a sweep stands after these journal lines."""
    folded = _Fold()
    for entry in entries:
        folded.add(entry)
    return folded.status


class _Fold:
    def __init__(self) -> None:
        self.status = Status()
        self._by_key: dict[str, list[CellStatus]] = {}
        self._units: dict[str, tuple[str, ...]] = {}

    def add(self, entry: JournalEntry) -> None:
        fields = entry.fields
        self.status.last_seconds = entry.at_seconds
        match entry.kind:
            case "run_begins":
                self._begin(entry)
            case "run_ends":
                self.status.phase = RunPhase.ENDED
                self.status.slots = {}
            case "stop_requested":
                self.status.phase = RunPhase.STOPPED
                self.status.slots = {}
                for cell in self.status.cells:
                    if cell.state is CellState.RUNNING:
                        self._set(cell, CellState.WAITING, "the run was stopped")
            case "start_slot":
                self.status.slots[fields["slot"]] = f"starting with {fields['base']}"
            case "slot_ready":
                self.status.slots[fields["slot"]] = "idle"
            case "stop_slot" | "slot_failed" | "slot_lost":
                self._slot_ends(fields["slot"], fields)
            case "run_unit":
                self._run(fields)
            case "unit_done" | "unit_failed":
                self._rest(fields["slot"], fields.get("message", "answered, not scored yet"))
            case "cell_scored":
                self._settle(fields["cell"], CellState.DONE, "")
            case "give_up":
                why = f"{fields['kind']}: {fields['message']}"
                self._settle(fields["cell"], CellState.FAILED, why)

    def _begin(self, entry: JournalEntry) -> None:
        before = self.status.runs
        self.status = Status(
            phase=RunPhase.RUNNING,
            runs=before + 1,
            began_seconds=entry.at_seconds,
            last_seconds=entry.at_seconds,
        )
        self._by_key, self._units = {}, {}
        for key, subject, task, done in entry.fields["cells"]:
            cell = CellStatus(subject, task, CellState.DONE if done else CellState.WAITING)
            self._by_key.setdefault(key, []).append(cell)
            self.status.cells.append(cell)
        for subject, task, kind, message in entry.fields["lost"]:
            why = f"{kind}: {message}"
            self.status.cells.append(CellStatus(subject, task, CellState.FAILED, why))

    def _run(self, fields: Mapping[str, Json]) -> None:
        slot, cells = fields["slot"], tuple(fields["cells"])
        self._units[slot] = cells
        self.status.slots[slot] = f"answering unit {fields['unit_id']}"
        for key in cells:
            why = f"in {slot}, attempt {fields['attempt']}"
            self._settle(key, CellState.RUNNING, why)

    def _rest(self, slot: str, why: str) -> None:
        self.status.slots[slot] = "idle"
        for key in self._units.pop(slot, ()):
            self._settle(key, CellState.WAITING, why, only=CellState.RUNNING)

    def _slot_ends(self, slot: str, fields: Mapping[str, Json]) -> None:
        self._rest(slot, str(fields.get("message") or fields.get("reason") or "its slot ended"))
        self.status.slots.pop(slot, None)

    def _settle(self, key: str, state: CellState, why: str, only: CellState | None = None) -> None:
        for cell in self._by_key.get(key, ()):
            if only is None or cell.state is only:
                self._set(cell, state, why)

    @staticmethod
    def _set(cell: CellStatus, state: CellState, why: str) -> None:
        cell.state, cell.why = state, why
