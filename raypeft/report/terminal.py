"""The morning table on a terminal: findings, baselines, gains, failures.

Decides how things look; what they say is decided in `morning`. Task names, adapter names and
messages come from files and models and are hostile text: control characters are shown escaped,
and rich's own markup is never interpreted.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from raypeft.report.findings import Finding, column_label, findings
from raypeft.report.morning import BaseReport, Column, Morning, Row, Score
from raypeft.report.standings import standings
from raypeft.report.table_views import MARKS
from raypeft.report.text import clean

STYLES = {
    "gain": "bold green",
    "loss": "bold red",
    "equivalent": "cyan",
    "inconclusive": "dim",
    "refused": "yellow",
}
MAX_COLUMNS = 12
"""Tasks across the gains table at most; more would be folded beyond reading."""

MAX_COLUMNS_WITH_INTERVALS = 8
MAX_ADAPTERS = 16
BASELINE = "(baseline)"
"""Names the first row, of values; those of adapters are differences from them."""

MAX_TASKS = 3
"""Tasks that a row of failures names; more are counted."""

MAX_FAILURE_CHARS = 200
"""The page and `--json` have whole messages."""

MIN_NAME_COLUMNS = 24
FINDING_STYLES = {"ship": "bold", "harm": "red", "failed": "red", "refused": "yellow"}


def render(morning: Morning, *, title: str, details: bool = False) -> RenderableType:
    """Return the whole report as something rich can print.

    Args:
        morning: What to say.
        title: The sweep's name or folder.
        details: Whether to list every gain with its interval, not only the headline table.
    """
    parts: list[RenderableType] = [_headline(morning, title)]
    parts += [_finding(finding) for finding in findings(morning)]
    for report in morning.bases:
        if details or not report.gains:
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
    if morning.left_out:
        parts += [Text(""), left_out_table(morning.left_out)]
    if morning.stopped_early:
        parts += [Text(""), stopped_table(morning.stopped_early)]
    if morning.failures:
        parts += [Text(""), failures_table(morning.failures)]
    return Group(*parts)


def print_report(morning: Morning, console: Console, *, title: str, details: bool = False) -> None:
    """Print the report; colour is the console's business (off when it is no terminal)."""
    console.print(render(morning, title=title, details=details))


def _headline(morning: Morning, title: str) -> Text:
    text = Text(clean(title), style="bold")
    text.append(f"  {morning.num_done} of {morning.num_cells} cells scored", style="default")
    if morning.num_open:
        text.append(f", {morning.num_open} open", style="bold yellow")
    if morning.stopped_early:
        text.append(f", {len(morning.stopped_early)} stopped early", style="bold yellow")
    if morning.failures:
        text.append(f", {len(morning.failures)} failed", style="bold red")
    counts = ", ".join(
        f"{morning.verdicts[verdict]} {verdict}" for verdict in MARKS if verdict in morning.verdicts
    )
    if counts:
        text.append(f"; gains: {counts}", style="default")
    return text


def _finding(finding: Finding) -> RenderableType:
    return Text(f"• {finding.text}", style=FINDING_STYLES.get(finding.kind, ""))


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
        table.add_row(Text(_task_label(column)), Text(column_label(column)), *_score_cells(score))
    return table


def gains_table(report: BaseReport) -> RenderableType:
    """Return the gains of one base's adapters, the best adapter first and tasks across."""
    columns = _shown_columns(report)
    with_intervals = len(columns) <= MAX_COLUMNS_WITH_INTERVALS
    table = _table(f"Gains over {report.base}")
    ranked = [one for one in standings(report) if one.adapter in report.gains]
    shown = [one.adapter for one in ranked[:MAX_ADAPTERS]]
    longest = max(len(clean(name)) for name in (BASELINE, *shown))
    table.add_column("adapter", min_width=min(longest, MIN_NAME_COLUMNS), overflow="fold")
    for column in columns:
        table.add_column(Text(f"{clean(column.task)}\n{column_label(column)}"), justify="right")
    values = [_baseline_cell(report, column, with_intervals) for column in columns]
    table.add_row(Text(BASELINE, style="italic"), *values)
    for adapter in shown:
        by_column = report.gains[adapter]
        cells = [_gain_cell(by_column.get(column), with_intervals) for column in columns]
        table.add_row(Text(clean(adapter)), *cells)
    rest = {
        "adapters": len(ranked) - len(shown),
        "tasks": len(report.columns) - len(columns),
    }
    words = [f"{count} more {what}" for what, count in rest.items() if count]
    if not words:
        return table
    note = f"… and {' and '.join(words)} (--all or --html shows them)"
    return Group(table, Text(note, style="dim"))


def _shown_columns(report: BaseReport) -> tuple[Column, ...]:
    """Return all columns, or where they are many those that the sweep asked for by name."""
    if len(report.columns) <= MAX_COLUMNS:
        return report.columns
    return tuple(
        sorted(report.columns, key=lambda column: column.task != column.entry)[:MAX_COLUMNS]
    )


def _baseline_cell(report: BaseReport, column: Column, with_interval: bool) -> Text:
    score = report.baseline.get(column)
    if score is None or score.value is None:
        return Text("–", style="dim")
    text = f"{score.value:.4g}  "  # as far to the left as a gain with its mark
    rows = [rows[column] for rows in report.gains.values() if column in rows]
    ends = [(row["baseline_low"], row["baseline_high"]) for row in rows]
    known = next(((low, high) for low, high in ends if low is not None and high is not None), None)
    if with_interval and known is not None:
        text += f"\n[{known[0]:.3g}, {known[1]:.3g}]"
    return Text(text, style="italic")


def _gain_cell(row: Row | None, with_interval: bool) -> Text:
    if row is None:
        return Text("–", style="dim")
    verdict = str(row["verdict"])
    mark, style = MARKS.get(verdict, "?"), STYLES.get(verdict, "")
    if row["gain"] is None:
        return Text(f"{mark} {verdict}", style=style)
    text = f"{row['gain']:+.4g} {mark}"
    if with_interval and row["low"] is not None and row["high"] is not None:
        text += f"\n[{row['low']:+.3g}, {row['high']:+.3g}]"
    return Text(text, style=style)


def details_table(
    rows: Iterable[Row], title: str = "All gains", sides: tuple[str, str] = ("baseline", "adapter")
) -> Table:
    """Return every gain with its numbers.

    Args:
        rows: Rows of the gains table.
        title: What they are.
        sides: What the two values are called.
    """
    rows = list(rows)
    # Who it is stands in the title where it is one alone.
    is_alone = sides != ("baseline", "adapter") and len({row["adapter"] for row in rows}) == 1
    table = _table(title)
    for name in ("task", "metric") if is_alone else ("adapter", "task", "metric"):
        table.add_column(name, overflow="fold")
    for name in (*sides, "gain", _interval_name(rows), "p", "corrected p", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("smallest\ndetectable", justify="right")
    table.add_column("verdict")
    for row in rows:
        verdict = str(row["verdict"])
        interval = f"[{row['low']:+.4g}, {row['high']:+.4g}]" if row["low"] is not None else "–"
        numbers = [_number(row[key]) for key in ("baseline_value", "adapter_value", "gain")]
        p_values = [_number(row[key]) for key in ("p", "p_corrected")]
        reason = f": {clean(row['reason'])}" if row["reason"] else ""
        suffix = "" if row["filter"] == "none" else f",{row['filter']}"
        table.add_row(
            *(() if is_alone else (Text(clean(row["adapter"])),)),
            Text(clean(row["task"])),
            Text(clean(row["metric"] + suffix)),
            *numbers,
            Text(interval),
            *p_values,
            str(row["n"]),
            _number(row["smallest_detectable_gain"]),
            Text(verdict + reason, style=STYLES.get(verdict, "")),
        )
    return table


def _interval_name(rows: Sequence[Row]) -> str:
    levels = {1 - row["alpha"] for row in rows}
    return f"{100 * min(levels):g} % interval" if len(levels) == 1 else "interval"


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


def left_out_table(rows: Iterable[Row]) -> Table:
    """Return what the deadline left out, once for each subject: such rows are in part only."""
    tasks: dict[str, list[str]] = {}
    for row in rows:
        tasks.setdefault(row["subject"], []).append(row["task"])
    table = _table("Left out by the deadline; the next run goes on with them", style="yellow")
    for name in ("subject", "tasks"):
        table.add_column(name, overflow="fold")
    for subject, names in tasks.items():
        table.add_row(Text(clean(subject)), Text(clean(", ".join(names))))
    return table


def stopped_table(rows: Iterable[Row]) -> Table:
    """Return what was stopped as hopeless, and by what; it has no score and no gain."""
    table = _table(
        "Stopped early, and not scored: the gain waited for is ruled out", style="yellow"
    )
    for name in ("subject", "task", "why"):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(clean(row[name])) for name in ("subject", "task", "message")))
    return table


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
            Text(clean(", ".join(tasks) if len(tasks) <= MAX_TASKS else f"{len(tasks)} tasks")),
            Text(clean(message, MAX_FAILURE_CHARS)),
        )
    return table


def _table(title: str, style: str = "") -> Table:
    # A plain string would be read as markup, and names are not ours.
    # Few lines, since a report should fit a screen.
    return Table(
        title=Text(clean(title)),
        title_justify="left",
        title_style=style,
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )


def _legend() -> Text:
    return Text(
        "▲ gain, ▼ loss (significant after correction for all comparisons), ≈ equivalent, "
        "· inconclusive, ✗ refused; [interval of the difference, or the baseline, taken alone]",
        style="dim",
    )


def _task_label(column: Column) -> str:
    return clean(column.task) + (" (group)" if column.is_group else "")


def _score_cells(score: Score | None) -> tuple[str, str, str]:
    if score is None:
        return ("–", "–", "–")
    return (_number(score.value), _number(score.stderr), str(score.n))


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}"
