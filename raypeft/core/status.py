"""Where a sweep stands, folded from its journal: what `raypeft status` says.

Needs neither the process that runs the sweep nor a cluster, so it can answer from anywhere while
the run goes on and after it died. Kinds of lines that it does not know change nothing.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from raypeft.core.open_units import OpenUnits
from raypeft.core.records import Json

MAX_FAILURES = 20
"""So many of the last failures are kept."""

MIN_SHARE_FOR_ETA = 0.01
"""Below this share of a run's work its pace says too little about the rest."""

TOKENS_PER_SECOND = 1000.0
"""Weighs units for which nobody expected any seconds against one another, and nothing else."""


STOPPED_AT_WORK = "stopped_at_work"
"""Stands for a reason where a slot was stopped while it answered: its unit took too long."""


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
    PREPARING = "being prepared"
    """Somebody works on it, and builds requests or plans: its run has not begun."""
    RUNNING = "running"
    KILLED = "killed"
    """The journal has no end of the run, and nobody works on it."""
    STOPPED = "stopped"
    ENDED = "ended"


class CellState(StrEnum):
    """Where a cell stands."""

    DONE = "done"
    FAILED = "failed"
    SCORING = "scoring"
    RUNNING = "running"
    WAITING = "waiting"
    LEFT_OUT = "left out"
    """The run's time was over; the next run goes on."""
    STOPPED_EARLY = "stopped early"
    """Hopeless, in this run or an earlier one; no run with the same settings goes on."""


ENDS = (CellState.DONE, CellState.FAILED, CellState.LEFT_OUT, CellState.STOPPED_EARLY)
"""Where a cell stays until the run plans anew."""


class SlotDoes(StrEnum):
    """What a slot does."""

    PLACING = "waits for hardware"
    LOADING = "loads its base"
    ANSWERING = "answers"
    IDLE = "is idle"


@dataclass(slots=True)
class CellStatus:
    """One cell.

    Attributes:
        subject: The subject's id.
        task: The leaf task.
        state: Where it stands.
        why: Why it failed or waits, or where it runs.
        key: The cell's key; empty for a cell that could never run.
        num_units: Units that were open for it when the run began.
        num_answered: How many of them are answered.
    """

    subject: str
    task: str
    state: CellState = CellState.WAITING
    why: str = ""
    key: str = ""
    num_units: int = 0
    num_answered: int = 0

    @property
    def name(self) -> str:
        """What `--why` is asked with."""
        return f"{self.subject}/{self.task}"


@dataclass(slots=True)
class SlotStatus:
    """One slot of the last run.

    Attributes:
        slot: Its id.
        base: What it holds or loads: the name of an engine.
        does: What it does.
        since_seconds: Since when, in seconds since the epoch.
        unit: The unit it answers; empty if none.
        attempt: Which try at it.
        subject: The first subject of the unit, and how many more.
        task: The unit's task.
        node: Where it is, once it is known.
        device: On what.
    """

    slot: str
    base: str
    does: SlotDoes
    since_seconds: float
    unit: str = ""
    attempt: int = 0
    subject: str = ""
    task: str = ""
    node: str = ""
    device: str = ""


@dataclass(frozen=True, slots=True)
class FailureNote:
    """Something that went wrong.

    Attributes:
        at_seconds: When, in seconds since the epoch.
        what: The cell, unit or slot.
        kind: The reason's name in the tables.
        message: What happened.
    """

    at_seconds: float
    what: str
    kind: str
    message: str


@dataclass(slots=True)
class Status:
    """A sweep as its journal tells it.

    Attributes:
        phase: What the last run did.
        runs: How many runs the journal knows.
        began_seconds: When the last run began, in seconds since the epoch.
        last_seconds: When something was last heard.
        cells: Every cell of the last run.
        slots: What each slot of the last run does, by its id.
        failures: What went wrong last, newest last.
        work_seconds: What the units that were open when the last run began were expected to take,
            all slots together.
        work_done_seconds: Of these, what is answered or given up.
        answering_since_seconds: When the last run's first unit began.
    """

    phase: RunPhase = RunPhase.NEVER_RUN
    runs: int = 0
    began_seconds: float | None = None
    last_seconds: float | None = None
    cells: list[CellStatus] = field(default_factory=list)
    slots: dict[str, SlotStatus] = field(default_factory=dict)
    failures: deque[FailureNote] = field(default_factory=lambda: deque(maxlen=MAX_FAILURES))
    work_seconds: float = 0.0
    work_done_seconds: float = 0.0
    answering_since_seconds: float | None = None

    def kill(self) -> None:
        """Say that the process of the last run is gone."""
        self.phase = RunPhase.KILLED
        self.slots = {}
        for cell in self.cells:
            if cell.state in (CellState.RUNNING, CellState.SCORING):
                cell.state, cell.why = CellState.WAITING, "the run was killed; start it again"

    def prepare(self) -> None:
        """Say that another run is about to begin."""
        if self.phase is RunPhase.RUNNING:
            self.kill()
        self.phase = RunPhase.PREPARING

    def count(self, state: CellState) -> int:
        """Return how many cells are in a state."""
        return sum(1 for cell in self.cells if cell.state is state)

    def remaining_seconds(self, now_seconds: float) -> float | None:
        """Return how long the rest takes at the pace so far; None where that is not known.

        What loading and failures cost has slowed the pace too; slots that will come or go are not
        foreseen.
        """
        if self.phase is not RunPhase.RUNNING or self.answering_since_seconds is None:
            return None
        elapsed = now_seconds - self.answering_since_seconds
        done, left = self.work_done_seconds, self.work_seconds - self.work_done_seconds
        if elapsed <= 0 or not done or done < MIN_SHARE_FOR_ETA * self.work_seconds:
            return None
        return max(0.0, left) * elapsed / done


def fold(entries: Iterable[JournalEntry]) -> Status:
    """Return where a sweep stands after these journal lines."""
    folded = Fold()
    for entry in entries:
        folded.add(entry)
    return folded.status


class Fold:
    """Follows a journal line by line; `status` is where the sweep stands after the last one."""

    def __init__(self) -> None:
        self.status = Status()
        self._by_key: dict[str, list[CellStatus]] = {}
        self._running: dict[str, tuple[str, ...]] = {}
        """The cells of each unit that runs."""
        self._current: dict[str, tuple[str, int]] = {}
        """Slot and number of each unit's last attempt."""
        self._units = OpenUnits()
        self._hopeless: dict[str, str] = {}
        """Why cells were found hopeless; it ends only those that are not answered whole by then."""

    def add(self, entry: JournalEntry) -> None:
        """Take a line into account."""
        self.status.last_seconds = entry.at_seconds
        match entry.kind:
            case "run_begins" | "run_plans_anew":
                self._begin(entry)
            case "run_ends":
                self.status.phase = RunPhase.ENDED
                self.status.slots = {}
            case "stop_requested":
                self._stop()
            case "start_slot" | "slot_placed" | "slot_ready":
                self._slot_comes(entry)
            case "stop_slot" | "slot_failed" | "slot_lost":
                self._slot_goes(entry)
            case "run_unit" | "unit_done" | "unit_failed" | "split_unit":
                self._unit(entry)
            case "cell_hopeless":
                self._hopeless[str(entry.fields["cell"])] = str(entry.fields["reason"])
            case "score_cell" | "cell_scored" | "score_failed" | "give_up" | "leave_out":
                self._cell(entry)

    def cells(self, key: str) -> Sequence[CellStatus]:
        """Return the cells of a key: more than one where subjects are alike."""
        return self._by_key.get(key, ())

    def _begin(self, entry: JournalEntry) -> None:
        before = self.status
        self.status = Status(
            phase=RunPhase.RUNNING,
            runs=before.runs + 1,
            began_seconds=entry.at_seconds,
            last_seconds=entry.at_seconds,
        )
        if entry.kind == "run_plans_anew":  # the same run, which has found that it has more to do
            self.status.runs, self.status.began_seconds = before.runs, before.began_seconds
            self.status.failures = before.failures
        self._by_key, self._running, self._current, self._hopeless = {}, {}, {}, {}
        cells = entry.fields["cells"]
        # Older journals do not name the units.
        self._units = OpenUnits(
            {
                unit: (seconds or tokens / TOKENS_PER_SECOND, [cells[i][0] for i in members])
                for unit, tokens, seconds, members in entry.fields.get("units", ())
            }
        )
        self.status.work_seconds = self._units.work_seconds
        stopped = entry.fields.get("stopped", {})
        for key, subject, task, done in cells:
            state = CellState.DONE if done else CellState.WAITING
            why = "" if done else "waits for a slot"
            if key in stopped:  # no part of the plan: nothing more will be heard of it
                state, why = CellState.STOPPED_EARLY, str(stopped[key])
            cell = CellStatus(subject, task, state, why, key, self._units.count(key))
            self._by_key.setdefault(key, []).append(cell)
            self.status.cells.append(cell)
        for subject, task, kind, message in entry.fields["lost"]:
            why = f"{kind}: {message}"
            self.status.cells.append(CellStatus(subject, task, CellState.FAILED, why))

    def _stop(self) -> None:
        self.status.phase = RunPhase.STOPPED
        self.status.slots = {}
        for cell in self.status.cells:
            if cell.state in (CellState.RUNNING, CellState.SCORING):
                cell.state, cell.why = CellState.WAITING, "the run was stopped"

    # --- slots --------------------------------------------------------------------------------

    def _slot_comes(self, entry: JournalEntry) -> None:
        fields, now = entry.fields, entry.at_seconds
        slot = str(fields["slot"])
        if entry.kind == "start_slot":
            base = str(fields["base"])
            self.status.slots[slot] = SlotStatus(slot, base, SlotDoes.PLACING, now)
        elif (known := self.status.slots.get(slot)) is not None:
            placed = entry.kind == "slot_placed"
            known.does, known.since_seconds = SlotDoes.LOADING if placed else SlotDoes.IDLE, now
            known.node = str(fields.get("node") or known.node)
            known.device = str(fields.get("device") or known.device)

    def _slot_goes(self, entry: JournalEntry) -> None:
        fields = entry.fields
        slot = str(fields["slot"])
        why = str(fields.get("message") or fields.get("reason") or "its slot ended")
        known = self.status.slots.pop(slot, None)
        if known is not None and known.unit:
            if entry.kind == "stop_slot":  # beyond its time, as a rule
                what = self._what(known.unit)
                self.status.failures.append(
                    FailureNote(entry.at_seconds, what, STOPPED_AT_WORK, why)
                )
            self._ends(known.unit, f"its slot {slot} ended: {why}")
        if entry.kind != "stop_slot":
            base = f" of base {known.base}" if known is not None else ""
            self._note(entry, f"{slot}{base}")

    # --- units --------------------------------------------------------------------------------

    def _unit(self, entry: JournalEntry) -> None:
        fields = entry.fields
        unit = str(fields["unit_id"])
        if entry.kind in ("unit_done", "unit_failed") and not self._is_current(unit, fields):
            return  # late: the attempt was ended before
        match entry.kind:
            case "run_unit":
                self._runs(entry, unit)
            case "split_unit":
                self._units.split(unit, [str(half) for half in fields["into"]])
            case "unit_done":
                self._answered(entry, unit)
            case _:
                self._note(entry, self._what(unit))
                self._rests(str(fields["slot"]), entry.at_seconds)
                self._ends(unit, f"its last attempt ended with {_reason(fields)}")

    def _runs(self, entry: JournalEntry, unit: str) -> None:
        fields, status = entry.fields, self.status
        slot, cells = str(fields["slot"]), tuple(fields["cells"])
        if status.answering_since_seconds is None:
            status.answering_since_seconds = entry.at_seconds
        self._running[unit] = cells
        self._current[unit] = (slot, int(fields["attempt"]))
        for key in cells:
            self._set(key, CellState.RUNNING, f"in {slot}, attempt {fields['attempt']}")
        if (known := status.slots.get(slot)) is not None:
            known.does, known.since_seconds = SlotDoes.ANSWERING, entry.at_seconds
            known.unit, known.attempt = unit, int(fields["attempt"])
            first = next((cell for key in cells for cell in self.cells(key)), None)
            known.task = "" if first is None else first.task
            more = f" and {len(cells) - 1} more" if len(cells) > 1 else ""
            known.subject = "" if first is None else first.subject + more

    def _answered(self, entry: JournalEntry, unit: str) -> None:
        fields = entry.fields
        failed: Mapping[str, str] = fields.get("failed", {})
        self._rests(str(fields["slot"]), entry.at_seconds)
        for key in self._running.pop(unit, ()):
            if key in failed:
                kind, _, message = failed[key].partition(": ")
                what = ", ".join(cell.name for cell in self.cells(key)) or key
                self.status.failures.append(FailureNote(entry.at_seconds, what, kind, message))
                if not self._has_ended(key):
                    self._set(key, CellState.WAITING, f"its last attempt ended with {failed[key]}")
                continue
            self.status.work_done_seconds += self._units.close(unit, key)
            for cell in () if self._has_ended(key) else self.cells(key):
                cell.num_answered += 1
                rest = cell.num_units - cell.num_answered
                cell.state = CellState.WAITING
                cell.why = "is answered and waits to be scored"
                if rest > 0:
                    cell.why = f"{cell.num_answered} of {cell.num_units} units are answered"

    def _is_current(self, unit: str, fields: Mapping[str, Json]) -> bool:
        return self._current.get(unit) == (str(fields["slot"]), int(fields["attempt"]))

    def _rests(self, slot: str, now_seconds: float) -> None:
        if (known := self.status.slots.get(slot)) is not None:
            known.does, known.since_seconds = SlotDoes.IDLE, now_seconds
            known.unit, known.attempt, known.subject, known.task = "", 0, "", ""

    def _ends(self, unit: str, why: str) -> None:
        self._current.pop(unit, None)
        for key in self._running.pop(unit, ()):
            if any(cell.state is CellState.RUNNING for cell in self.cells(key)):
                self._set(key, CellState.WAITING, why)

    def _what(self, unit: str) -> str:
        names = [cell.name for key in self._running.get(unit, ()) for cell in self.cells(key)]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        return f"{names[0]}{more}" if names else f"unit {unit}"

    # --- cells --------------------------------------------------------------------------------

    def _cell(self, entry: JournalEntry) -> None:
        fields = entry.fields
        key = str(fields["cell"])
        names = ", ".join(cell.name for cell in self.cells(key)) or key
        match entry.kind:
            case "score_cell":
                self._set(key, CellState.SCORING, f"attempt {fields['attempt']}")
            case "cell_scored":
                self._set(key, CellState.DONE, "")
            case "score_failed":
                self._note(entry, names)
                self._set(key, CellState.WAITING, f"scoring ended with {_reason(fields)}")
            case "leave_out":
                reason = str(fields["reason"])
                is_hopeless = key in self._hopeless and reason.startswith(self._hopeless[key])
                state = CellState.STOPPED_EARLY if is_hopeless else CellState.LEFT_OUT
                self._set(key, state, reason)
                self.status.work_done_seconds += self._units.drop(key)
            case _:
                self._note(entry, names)
                self._set(key, CellState.FAILED, _reason(fields))
                self.status.work_done_seconds += self._units.drop(key)

    def _has_ended(self, key: str) -> bool:
        """Whether a cell waits for nothing more, though a unit of it may still come back."""
        return any(cell.state in ENDS for cell in self.cells(key))

    def _set(self, key: str, state: CellState, why: str) -> None:
        for cell in self.cells(key):
            cell.state, cell.why = state, why

    def _note(self, entry: JournalEntry, what: str) -> None:
        fields = entry.fields
        note = FailureNote(
            entry.at_seconds, what, str(fields.get("kind", "")), str(fields.get("message", ""))
        )
        self.status.failures.append(note)


def _reason(fields: Mapping[str, Json]) -> str:
    return f"{fields.get('kind', 'unknown')}: {fields.get('message', '')}"
