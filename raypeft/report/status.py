"""Where a sweep stands, on a terminal: as a picture, as one line, and why one cell waits."""

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from raypeft.core.status import CellState, RunPhase, Status
from raypeft.core.why import Explanation
from raypeft.report.progress import duration_text
from raypeft.report.text import clean
from raypeft.report.views import table

MAX_HISTORY = 40
MAX_SHOWN_FAILURES = 8


def status_view(status: Status, *, title: str, now_seconds: float) -> RenderableType:
    """Return where a sweep stands."""
    lines: list[RenderableType] = [Text(f"{clean(title)}: {status.phase}", style="bold")]
    lines.append(Text(counts_text(status)))
    if status.last_seconds is not None and status.began_seconds is not None:
        age = duration_text(now_seconds - status.last_seconds)
        began = duration_text(now_seconds - status.began_seconds)
        text = f"run {status.runs} began {began} ago; last heard of {age} ago"
        lines.append(Text(text, style="dim"))
    if status.phase is RunPhase.RUNNING:
        lines.append(Text(rest_text(status, now_seconds)))
    if status.slots:
        lines.append(_slots(status, now_seconds))
    if status.failures:
        lines.append(_failures(status, now_seconds))
    unfinished = [cell for cell in status.cells if cell.state is not CellState.DONE]
    if unfinished:
        rows = [(cell.subject, cell.task, cell.state, cell.why) for cell in unfinished]
        lines.append(table("Cells that are not done", ("subject", "task", "state", "why"), rows))
    return Group(*lines)


def counts_text(status: Status) -> str:
    """Return how many cells are in each state."""
    counts = ", ".join(
        f"{status.count(state)} {state}" for state in CellState if status.count(state)
    )
    return f"{len(status.cells)} cells: {counts}" if status.cells else "no cells"


def rest_text(status: Status, now_seconds: float) -> str:
    """Return how long the rest takes, or why that cannot be said."""
    rest = status.remaining_seconds(now_seconds)
    if rest is None:
        return "how long the rest takes is not known yet: too little is answered"
    done = status.work_done_seconds / status.work_seconds if status.work_seconds else 1.0
    return (
        f"about {duration_text(rest)} left at the pace so far ({done:.0%} of this run's work is "
        "answered; scoring at the end not counted)"
    )


def status_line(status: Status, now_seconds: float) -> str:
    """Return where a sweep stands in one line, for a log."""
    parts = [str(status.phase), counts_text(status)]
    if status.slots:
        parts.append(f"{len(status.slots)} slots")
    if (rest := status.remaining_seconds(now_seconds)) is not None:
        parts.append(f"about {duration_text(rest)} left")
    if status.failures:
        last = status.failures[-1]
        parts.append(f"last failure: {clean(last.what)}: {last.kind}: {clean(last.message)}")
    return "; ".join(parts)


def why_view(found: Sequence[Explanation]) -> RenderableType:
    """Return why cells stand where they stand, each with its history."""
    blocks: list[RenderableType] = []
    for one in found:
        cell = one.cell
        blocks.append(Text(f"{clean(cell.subject)} on {clean(cell.task)}", style="bold"))
        blocks.append(Text(f"  {clean(one.now)}"))
        if cell.key:
            blocks.append(Text(f"  cell {cell.key}", style="dim"))
        left_out = len(one.history) - MAX_HISTORY
        if left_out > 0:
            blocks.append(Text(f"  … {left_out} earlier lines (--json shows all)", style="dim"))
        for item in one.history[-MAX_HISTORY:]:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(item.at_seconds))
            blocks.append(Text(f"  {when}  {clean(item.text)}"))
    return Group(*blocks)


class StatusDisplay:
    """Shows where a sweep stands until it is closed; use it as a context manager.

    A terminal is drawn anew; elsewhere a line is printed when something has changed.

    Args:
        console: Where.
        title: What it is called.
    """

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._live: Live | None = None
        self._last: object = None

    def __enter__(self) -> "StatusDisplay":
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, status: Status, now_seconds: float) -> None:
        """Show where the sweep stands now."""
        if self._live is not None:
            view = status_view(status, title=self._title, now_seconds=now_seconds)
            self._live.update(view, refresh=True)
            return
        # Not the time that is left, which changes with every look.
        newest = status.failures[-1] if status.failures else None
        standing = (status.phase, status.runs, counts_text(status), tuple(status.slots), newest)
        if standing != self._last:
            self._last = standing
            when = time.strftime("%H:%M:%S", time.localtime(now_seconds))
            line = f"{when}  {status_line(status, now_seconds)}"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _slots(status: Status, now_seconds: float) -> RenderableType:
    rows = []
    for slot in status.slots.values():
        unit = f"{slot.subject} on {slot.task}, attempt {slot.attempt}" if slot.unit else ""
        since = duration_text(now_seconds - slot.since_seconds)
        where = " ".join(part for part in (slot.node, slot.device) if part)
        rows.append((slot.slot, slot.base, slot.does, since, unit, where))
    columns = ("slot", "base", "does", "for", "unit", "where")
    return table("Slots", columns, rows)


def _failures(status: Status, now_seconds: float) -> RenderableType:
    rows = [
        (duration_text(now_seconds - note.at_seconds), note.what, note.kind, note.message)
        for note in list(status.failures)[-MAX_SHOWN_FAILURES:]
    ]
    return table("Last failures", ("ago", "what", "reason", "message"), rows)
