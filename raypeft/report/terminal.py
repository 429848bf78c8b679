"""The morning table on a terminal: baselines, gains, failures, what to type next.

Decides how things look; what they say is decided in `morning`. Task names, adapter names and
messages come from files and models and are hostile text: control characters are shown escaped,
and rich's own markup is never interpreted.
"""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from raypeft.report.morning import BaseReport, Column, Morning, Row, Score

STYLES = {"gain": "bold green", "loss": "bold red", "refused": "yellow", "inconclusive": "dim"}
MARKS = {"gain": "▲", "loss": "▼", "inconclusive": "·", "refused": "✗"}
MAX_DETAILS = 40
MAX_MESSAGE_CHARS = 300


def render(morning: Morning, *, title: str, details: bool = False) -> RenderableType:
    """Return the whole report as something rich can print.

    Args:
        morning: What to say.
        title: The sweep's name or folder.
        details: Whether to list every gain with its interval, not only the headline table.
    """
    parts: list[RenderableType] = [_headline(morning, title)]
    for report in morning.bases:
        parts += [Text(""), baseline_table(report)]
        if report.gains:
            parts += [Text(""), gains_table(report)]
    if morning.bases:
        parts.append(_legend())
    if details and morning.details:
        parts += [Text(""), details_table(morning.details)]
    refused = [row for row in morning.details if row["verdict"] == "refused"]
    if refused and not details:
        parts += [Text(""), refusals_table(refused)]
    if morning.failures:
        parts += [Text(""), failures_table(morning.failures)]
    return Group(*parts)


def print_report(morning: Morning, console: Console, *, title: str, details: bool = False) -> None:
    """Print the report; colour is the console's business (off when it is no terminal)."""
    console.print(render(morning, title=title, details=details))


def clean(text: object, max_chars: int = MAX_MESSAGE_CHARS) -> str:
    """Return text that cannot move the cursor, hide itself or flood the screen."""
    raw = str(text)
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in raw)
    return shown if len(shown) <= max_chars else shown[: max_chars - 1] + "…"


def _headline(morning: Morning, title: str) -> Text:
    text = Text(clean(title), style="bold")
    text.append(f"  {morning.num_done} of {morning.num_cells} cells scored", style="default")
    if morning.num_open:
        text.append(f", {morning.num_open} open", style="bold yellow")
    if morning.failures:
        text.append(f", {len(morning.failures)} failed", style="bold red")
    counts = ", ".join(
        f"{morning.verdicts[verdict]} {verdict}" for verdict in MARKS if verdict in morning.verdicts
    )
    if counts:
        text.append(f"; gains: {counts}", style="default")
    return text


def baseline_table(report: BaseReport) -> Table:
    """Return the baselines of one base, one row for each task."""
    table = _table(f"Baseline of {report.base}")
    table.add_column("task")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("± stderr", justify="right")
    table.add_column("documents", justify="right")
    for column in report.columns:
        score = report.baseline.get(column)
        table.add_row(Text(_task_label(column)), Text(_metric_label(column)), *_score_cells(score))
    return table


def gains_table(report: BaseReport) -> Table:
    """Return the gains of one base's adapters, adapters down and tasks across."""
    table = _table(f"Gains over {report.base}")
    table.add_column("adapter")
    for column in report.columns:
        table.add_column(Text(f"{clean(column.task)}\n{_metric_label(column)}"), justify="right")
    for adapter, by_column in report.gains.items():
        cells = [_gain_cell(by_column.get(column)) for column in report.columns]
        table.add_row(Text(clean(adapter)), *cells)
    return table


def _gain_cell(row: Row | None) -> Text:
    if row is None:
        return Text("–", style="dim")
    verdict = str(row["verdict"])
    if row["gain"] is None:
        return Text(f"{MARKS[verdict]} {verdict}", style=STYLES[verdict])
    text = f"{row['gain']:+.4g} {MARKS[verdict]}"
    if row["low"] is not None and row["high"] is not None:
        text += f"\n[{row['low']:+.3g}, {row['high']:+.3g}]"
    return Text(text, style=STYLES[verdict])


def details_table(rows: Iterable[Row], title: str = "All gains") -> Table:
    """Return every gain with its numbers."""
    table = _table(title)
    for name in ("adapter", "task", "metric"):
        table.add_column(name)
    for name in ("baseline", "adapter", "gain", "95 % interval", "p", "corrected p", "n"):
        table.add_column(name, justify="right")
    table.add_column("smallest detectable", justify="right")
    table.add_column("verdict")
    for row in rows:
        verdict = str(row["verdict"])
        interval = f"[{row['low']:+.4g}, {row['high']:+.4g}]" if row["low"] is not None else "–"
        numbers = [_number(row[key]) for key in ("baseline_value", "adapter_value", "gain")]
        p_values = [_number(row[key]) for key in ("p", "p_corrected")]
        reason = f": {clean(row['reason'])}" if row["reason"] else ""
        table.add_row(
            Text(clean(row["adapter"])),
            Text(clean(row["task"])),
            Text(clean(f"{row['metric']},{row['filter']}")),
            *numbers,
            Text(interval),
            *p_values,
            str(row["n"]),
            _number(row["smallest_detectable_gain"]),
            Text(verdict + reason, style=STYLES[verdict]),
        )
    return table


def refusals_table(rows: Iterable[Row]) -> RenderableType:
    """Return why comparisons were refused, and what to do about it."""
    grouped: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        reason = str(row["reason"]).split("not comparable, ")[-1]
        grouped.setdefault((row["adapter"], reason), set()).add(row["task"])
    table = _table("Refused comparisons", style="yellow")
    for name in ("adapter", "tasks", "reason"):
        table.add_column(name, overflow="fold")
    for (adapter, reason), tasks in grouped.items():
        table.add_row(
            Text(clean(adapter)), Text(clean(", ".join(sorted(tasks)))), Text(clean(reason))
        )
    remedy = Text(
        "Answer both sides alike: run on the same hardware and software, with a new `store` where "
        "the old answers differ; or let it through, flagged, with `hardware.allow_mixed`.",
        style="dim",
    )
    return Group(table, remedy)


def failures_table(rows: Iterable[Row]) -> Table:
    """Return what failed, once for each subject and reason, with the tasks it cost."""
    grouped: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        key = (row["subject"], row["reason"] or row["state"], row["message"] or "")
        grouped.setdefault(key, []).append(row["task"])
    table = _table("Failed cells", style="bold red")
    for name in ("subject", "reason", "tasks", "message"):
        table.add_column(name, overflow="fold")
    for (subject, reason, message), tasks in grouped.items():
        table.add_row(
            Text(clean(subject)),
            Text(clean(reason), style="red"),
            Text(clean(", ".join(tasks))),
            Text(clean(message)),
        )
    return table


def _table(title: str, style: str = "") -> Table:
    # A plain string would be read as markup, and names are not ours.
    return Table(title=Text(clean(title)), title_justify="left", title_style=style)


def _legend() -> Text:
    return Text(
        "▲ gain, ▼ loss (significant after correction for all comparisons of the base), "
        "· inconclusive, ✗ refused; brackets: 95 % interval of the paired difference",
        style="dim",
    )


def _task_label(column: Column) -> str:
    return clean(column.task) + (" (group)" if column.is_group else "")


def _metric_label(column: Column) -> str:
    arrow = {True: " ↑", False: " ↓", None: ""}[column.higher_is_better]
    suffix = "" if column.filter == "none" else f",{column.filter}"
    return clean(column.metric + suffix) + arrow


def _score_cells(score: Score | None) -> tuple[str, str, str]:
    if score is None:
        return ("–", "–", "–")
    return (_number(score.value), _number(score.stderr), str(score.n))


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}"
