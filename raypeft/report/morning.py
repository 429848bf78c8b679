"""What the morning table says, as values: no colours, no widths, no disk.

Rows come from the tables of a sweep's output (see `raypeft.store.tables`); `terminal` draws them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One subject's value of one metric.

    Attributes:
        value: None where lm-eval's value is no number.
        stderr: lm-eval's standard error, if it gives one.
        n: Documents.
    """

    value: float | None
    stderr: float | None
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One task or group under its headline metric.

    Attributes:
        task: Task or group.
        metric: The metric shown.
        filter: Its filter.
        is_group: Whether it is a group.
        higher_is_better: Direction; None where lm-eval does not say.
        entry: The sweep's task entry that brought it; a group that was asked for is its own.
    """

    task: str
    metric: str
    filter: str
    is_group: bool
    higher_is_better: bool | None
    entry: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseReport:
    """One base, its baseline and its adapters.

    Attributes:
        base: The base's name.
        columns: Headline columns, groups after their tasks.
        baseline: The baseline's score for each column.
        gains: For each adapter the gains table's row of each column.
    """

    base: str
    columns: tuple[Column, ...]
    baseline: Mapping[Column, Score]
    gains: Mapping[str, Mapping[Column, Row]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Morning:
    """Everything the terminal report shows.

    Attributes:
        bases: One report for each base.
        details: Every row of the gains table, sorted for reading.
        failures: Rows of the cells table that failed.
        num_cells: All cells.
        num_done: Those with a score.
        num_open: Those that have neither score nor failure and were not stopped as hopeless.
        left_out: Rows of the cells table that the deadline left open.
        stopped_early: Rows of those that were stopped as hopeless.
        verdicts: How many headline gains ended in each verdict.
    """

    bases: tuple[BaseReport, ...]
    details: tuple[Row, ...]
    failures: tuple[Row, ...]
    num_cells: int
    num_done: int
    num_open: int = 0
    left_out: tuple[Row, ...] = ()
    stopped_early: tuple[Row, ...] = ()
    verdicts: Mapping[str, int] = field(default_factory=dict)


def summarise(results: Sequence[Row], gains: Sequence[Row], cells: Sequence[Row]) -> Morning:
    """Return what the report says about a sweep.

    Args:
        results: Rows of the `results` table.
        gains: Rows of the `gains` table.
        cells: Rows of the `cells` table.
    """
    bases = tuple(
        _base_report(base, results, gains) for base in _unique(row["base"] for row in results)
    )
    failures = tuple(row for row in cells if row["state"] == "failed")
    counts: dict[str, int] = {}
    for report in bases:
        for by_column in report.gains.values():
            for row in by_column.values():
                counts[row["verdict"]] = counts.get(row["verdict"], 0) + 1
    return Morning(
        bases=bases,
        details=tuple(gains),
        failures=failures,
        num_cells=len(cells),
        num_done=sum(1 for row in cells if row["state"] == "done"),
        num_open=sum(
            1 for row in cells if row["state"] == "open" and row["reason"] != "stopped_early"
        ),
        left_out=_open_for("deadline", cells),
        stopped_early=_open_for("stopped_early", cells),
        verdicts=counts,
    )


def _open_for(reason: str, cells: Sequence[Row]) -> tuple[Row, ...]:
    return tuple(row for row in cells if row["state"] == "open" and row["reason"] == reason)


def _base_report(base: str, results: Sequence[Row], gains: Sequence[Row]) -> BaseReport:
    own = [row for row in results if row["base"] == base]
    # By the subject, since a base enlarged for some adapters is a baseline too, but not this one.
    baseline_rows = [row for row in own if row["adapter"] is None and row["subject"] == base]
    # Tasks that the baseline lacks stand behind: nobody has a gain there, which must be seen.
    columns = headline_columns([*baseline_rows, *own])
    baseline: dict[Column, Score] = {}
    for column in columns:
        for row in baseline_rows:
            if _is_of(row, column):
                baseline[column] = Score(value=row["value"], stderr=row["stderr"], n=row["n"])
    by_adapter: dict[str, dict[Column, Row]] = {}
    for row in gains:
        if row["base"] != base:
            continue
        chosen = by_adapter.setdefault(row["adapter"], {})
        for column in columns:
            if _is_of(row, column):
                chosen[column] = row
    return BaseReport(base=base, columns=columns, baseline=baseline, gains=by_adapter)


def headline_columns(rows: Sequence[Row]) -> tuple[Column, ...]:
    """Return one column for each task: its first metric under its first filter.

    lm-eval's order is the task author's: the first metric of `metric_list` is the one a task is
    quoted by. A group whose tasks are shown keeps its own column, placed after them.
    """
    seen: dict[str, Column] = {}
    for row in rows:
        if row["task"] not in seen and row["value"] is not None:
            seen[row["task"]] = Column(
                task=row["task"],
                metric=row["metric"],
                filter=row["filter"],
                is_group=bool(row["is_group"]),
                higher_is_better=row["higher_is_better"],
                entry=row["entry"],
            )
    return tuple(sorted(seen.values(), key=lambda column: column.is_group))


def _is_of(row: Row, column: Column) -> bool:
    return (row["task"], row["metric"], row["filter"]) == (
        column.task,
        column.metric,
        column.filter,
    )


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
