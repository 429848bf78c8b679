"""Rows of the gains, results and cells tables with a few words, for what is said about them."""

from collections.abc import Sequence
from typing import Any

from raypeft.report.morning import Morning, summarise
from raypeft.store.tables import schema_of

Row = dict[str, Any]


def gain_row(adapter: str, task: str, verdict: str, gain: float | None = 0.1, **more: Any) -> Row:
    """Return a row of the gains table; what is not named is made up to fit the verdict."""
    is_shown = verdict in {"gain", "loss"}
    row: Row = {
        "base": "base",
        "adapter": adapter,
        "task": task,
        "is_group": False,
        "metric": "acc",
        "filter": "none",
        "aggregation": "mean",
        "baseline_value": 0.5,
        "adapter_value": None if gain is None else 0.5 + gain,
        "gain": gain,
        "low": None if gain is None else gain - 0.05,
        "high": None if gain is None else gain + 0.05,
        "p": None if gain is None else 0.001 if is_shown else 0.3,
        "p_corrected": None if gain is None else 0.004 if is_shown else 1.0,
        "family_size": 4,
        "n": 100,
        "standard_error": 0.025,
        "smallest_detectable_gain": 0.08,
        "higher_is_better": True,
        "method": "paired",
        "verdict": verdict,
        "reason": "",
        "alpha": 0.05,
        "seed": 1,
    }
    return dict.fromkeys(schema_of("gains").names) | row | more


def result_row(task: str, value: float = 0.5, **more: Any) -> Row:
    """Return a row of the results table, of the baseline unless an adapter is named."""
    row: Row = {
        "subject": "base",
        "base": "base",
        "adapter": None,
        "entry": task,
        "task": task,
        "is_group": False,
        "metric": "acc",
        "filter": "none",
        "value": value,
        "stderr": 0.05,
        "n": 100,
        "higher_is_better": True,
    }
    return dict.fromkeys(schema_of("results").names) | row | more


def failed_cell(adapter: str, task: str, reason: str = "does_not_fit", **more: Any) -> Row:
    """Return a row of the cells table of a cell that failed."""
    row: Row = {
        "subject": f"base/{adapter}",
        "base": "base",
        "adapter": adapter,
        "entry": task,
        "task": task,
        "state": "failed",
        "reason": reason,
        "message": "why",
    }
    return dict.fromkeys(schema_of("cells").names) | row | more


def morning_of(gains: Sequence[Row], failures: Sequence[Row] = (), **results: Any) -> Morning:
    """Return the morning of some gains, every task of theirs having a baseline."""
    tasks = dict.fromkeys((row["task"], row["is_group"]) for row in gains)
    baselines = [
        result_row(task, is_group=is_group, **results.get(task, {})) for task, is_group in tasks
    ]
    return summarise(baselines, gains, failures)
