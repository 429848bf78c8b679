"""How far a run is: a bar on a terminal, a plain line now and then elsewhere.

A night's log should hold some hundred lines and not some hundred thousand, so a plain line is
printed when a cell ends and at most every few seconds.
"""

from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from raypeft.runtime.meter import Progress as Measured

MIN_SECONDS_BETWEEN_LINES = 5.0
MAX_SECONDS_BETWEEN_LINES = 60.0


class ProgressDisplay:
    """Shows a run's progress until it is closed; use it as a context manager.

    Args:
        console: Where; whether it is a terminal decides between bar and lines.
        clock: Seconds that never go back.
    """

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self._console = console
        self._clock = clock
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._last_line = ""
        self._last_seconds = -MAX_SECONDS_BETWEEN_LINES

    def __enter__(self) -> "ProgressDisplay":
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[rest]}", markup=False),
                TimeElapsedColumn(),
            )
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """Print one line above the bar, or as it is."""
        self._console.print(text, markup=False, highlight=False)

    def show(self, measured: Measured) -> None:
        """Show how far the run is."""
        if self._bar is None:
            self._line(measured)
            return
        done = measured.tokens - measured.tokens_open
        if self._task is None:
            self._task = self._bar.add_task("", total=1.0, rest="")
        total = max(measured.tokens, 1)
        self._bar.update(
            self._task,
            description=cells_text(measured),
            completed=done,
            total=total,
            rest=rest_text(measured),
        )

    def _line(self, measured: Measured) -> None:
        now = self._clock()
        cells = cells_text(measured)
        since = now - self._last_seconds
        changed = cells != self._last_line and since >= MIN_SECONDS_BETWEEN_LINES
        if changed or since >= MAX_SECONDS_BETWEEN_LINES:
            self.say(f"{duration_text(measured.seconds)}  {cells}  {rest_text(measured)}")
            self._last_line, self._last_seconds = cells, now


def cells_text(measured: Measured) -> str:
    """Return how many cells are done and failed."""
    text = f"{measured.num_done} of {measured.num_cells} cells scored"
    if measured.num_failed:
        text += f", {measured.num_failed} failed"
    return text


def rest_text(measured: Measured) -> str:
    """Return what is under way and how long the rest takes."""
    parts = []
    if measured.num_running:
        parts.append(f"{measured.num_running} answering")
    if measured.num_loading:
        parts.append(f"{measured.num_loading} loading")
    if measured.num_scoring:
        parts.append(f"{measured.num_scoring} scoring")
    if measured.num_units_open and measured.remaining_seconds is not None:
        parts.append(f"about {duration_text(measured.remaining_seconds)} left")
    return ", ".join(parts)


def duration_text(seconds: float) -> str:
    """Return a duration as a person says it, for instance `1h 02m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
