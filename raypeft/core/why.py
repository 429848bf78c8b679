"""Why a cell stands where it stands: its history, and what it waits for, from the journal.

What the schedule knows while it runs is `raypeft.core.explain`'s; this reads what it has left
behind, so it also answers for a run that is over or died.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from raypeft.core.records import Json
from raypeft.core.status import (
    CellState,
    CellStatus,
    Fold,
    JournalEntry,
    RunPhase,
    SlotDoes,
    Status,
)

MIN_KEY_CHARS = 6
"""So much of a cell's key must be given to be taken for one."""


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that happened to a cell.

    Attributes:
        at_seconds: When, in seconds since the epoch.
        text: What, and why.
    """

    at_seconds: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A cell and its history.

    Attributes:
        cell: The cell.
        now: Where it stands and what it waits for, in a sentence.
        history: What happened to it, in all runs.
    """

    cell: CellStatus
    now: str
    history: tuple[Happening, ...]


def find_cells(status: Status, name: str) -> list[CellStatus]:
    """Return the cells that a name means: `subject/task`, a subject, a task, or a key's start."""
    for found in (
        [cell for cell in status.cells if cell.name == name],
        [cell for cell in status.cells if name in (cell.subject, cell.task)],
        [c for c in status.cells if len(name) >= MIN_KEY_CHARS and c.key.startswith(name)],
    ):
        if found:
            return found
    return []


def explain_cells(
    entries: Iterable[JournalEntry], wanted: Sequence[CellStatus], *, alive: bool
) -> list[Explanation]:
    """Return why cells stand where they stand.

    Args:
        entries: The journal.
        wanted: Cells of its last run, from `find_cells`.
        alive: Whether somebody still works on the sweep.
    """
    fold = Fold()
    histories: dict[str, list[Happening]] = {cell.key: [] for cell in wanted if cell.key}
    units: dict[str, set[str]] = {}
    """Wanted cells of each unit, and of each slot that runs one."""
    for entry in entries:
        fold.add(entry)
        for key in _concerned(entry, histories.keys(), units):
            text = _text(entry.kind, entry.fields, key)
            if text:
                histories[key].append(Happening(entry.at_seconds, text))
    status = fold.status
    if not alive and status.phase is RunPhase.RUNNING:
        status.kill()
    names = {(cell.subject, cell.task) for cell in wanted}
    return [
        Explanation(cell=cell, now=_now(status, cell), history=tuple(histories.get(cell.key, ())))
        for cell in status.cells
        if (cell.subject, cell.task) in names
    ]


def _concerned(
    entry: JournalEntry, wanted: Iterable[str], units: dict[str, set[str]]
) -> Sequence[str]:
    """Return which of the wanted cells a line is about."""
    fields = entry.fields
    if entry.kind in ("run_begins", "run_plans_anew"):
        units.clear()
        number = [cell[0] for cell in fields["cells"]]
        for unit, _, _, members in fields.get("units", ()):
            if own := {number[index] for index in members} & set(wanted):
                units[unit] = own
        return [key for key in wanted if key in set(number)]
    if "cell" in fields:
        return [key for key in wanted if key == fields["cell"]]
    unit, slot = fields.get("unit_id"), str(fields.get("slot"))
    if entry.kind == "run_unit":
        units[str(unit)] = units[slot] = set(fields["cells"]) & set(wanted)
    elif unit is None:
        return sorted(units.pop(slot, ()))  # of a slot that goes, what it was at
    elif entry.kind in ("unit_done", "unit_failed"):
        units.pop(slot, None)
    found = sorted(units.get(str(unit), ()))
    if entry.kind == "split_unit":
        for half in fields["into"]:
            units[str(half)] = set(found)
    return found


def _text(kind: str, fields: Mapping[str, Json], key: str) -> str:
    """Return a line of the journal in words, for one cell; empty if it says nothing about it."""
    what = f"{fields.get('kind')}: {fields.get('message')}"
    match kind:
        case "run_begins":
            return "a run begins"
        case "run_plans_anew":
            return "the run plans anew"
        case "cell_hopeless":
            return f"is found hopeless: {fields['reason']}"
        case "run_unit":
            return (
                f"attempt {fields['attempt']} at unit {fields['unit_id']} in {fields['slot']}: "
                f"{fields['reason']}"
            )
        case "unit_done":
            failed = fields.get("failed", {}).get(key)
            unit = fields["unit_id"]
            return f"unit {unit} failed for it, {failed}" if failed else f"unit {unit} is answered"
        case "unit_failed":
            return f"unit {fields['unit_id']} failed as a whole, {what}"
        case "slot_lost":
            return f"its slot {fields['slot']} is lost, {what}"
        case "stop_slot":
            return f"its slot {fields['slot']} is stopped: {fields['reason']}"
        case "leave_out":
            return f"is left out: {fields['reason']}"
        case "split_unit":
            return f"unit {fields['unit_id']} is halved: {fields['reason']}"
        case "score_cell":
            return f"scoring begins, attempt {fields['attempt']}: {fields['reason']}"
        case "score_failed":
            return f"scoring failed, {what}"
        case "cell_scored":
            return "is scored"
        case "give_up":
            return (
                f"is given up after {fields['attempts']} attempts: {fields['reason']}; the last "
                f"ended with {what}"
            )
    return ""


def _now(status: Status, cell: CellStatus) -> str:
    if cell.state is CellState.DONE:
        return "is done"
    if cell.state is not CellState.WAITING:
        return f"{_WORDS[cell.state]} {cell.why}"
    if status.phase is not RunPhase.RUNNING:
        return f"waits for the next run; the last one is {status.phase}: {cell.why}"
    if cell.num_units and cell.num_answered >= cell.num_units:
        return cell.why
    base = cell.subject.partition("/")[0]
    # A base's second engine has a name of its own, `base@hf`.
    own = [slot for slot in status.slots.values() if slot.base.partition("@")[0] == base]
    counts = Counter(slot.does for slot in own)
    doing = [f"{counts[does]} {_PLURAL[does]}" for does in SlotDoes if counts[does]]
    others = len(status.slots) - len(own)
    slots = f"slots of its base: {', '.join(doing)}" if own else "no slot has its base"
    return f"waits: {cell.why}; {slots}; {others} slots are on other bases"


_WORDS = {
    CellState.FAILED: "failed:",
    CellState.SCORING: "is being scored,",
    CellState.RUNNING: "runs",
    CellState.LEFT_OUT: "is left out:",
    CellState.STOPPED_EARLY: "was stopped early:",
}

_PLURAL = {
    SlotDoes.PLACING: "wait for hardware",
    SlotDoes.LOADING: "load it",
    SlotDoes.ANSWERING: "answer other units",
    SlotDoes.IDLE: "idle",
}
