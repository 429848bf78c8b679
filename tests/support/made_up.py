"""The output of a sweep that never ran: tables of made-up rows, written by the store's functions.

For what reads tables: any number of adapters and tasks, planted effects, names and texts of any
kind, within a second and without a model.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raypeft.core.records import Json, Sample, Scored
from raypeft.store.output import open_table_writer, write_table
from raypeft.store.rows import samples_table
from raypeft.store.tables import build, schema_of

Row = dict[str, Any]
ALPHA = 0.05
HARDWARE: Row = {
    "software": '{"torch":"2.13.0"}',
    "hardware_fingerprint": "f00d",
    "device": "Some GPU",
    "num_devices": 1,
    "memory_gib": 80.0,
    "threads": 8,
    "node": "n1",
    "seconds": 12.5,
    "tokens": 4000,
}


@dataclass(frozen=True, kw_only=True)
class MadeUp:
    """A sweep of one base on tasks of one 0/1 metric.

    Attributes:
        base: The base's name.
        adapters: Names.
        tasks: Names.
        effects: For an adapter and a task by how much its share of right documents is higher.
        documents: Of each task.
        failed: Adapters whose cells failed, with the message.
        refused: Adapters whose gains are refused, with the reason.
        answer: What every subject says; `None` makes up a line of its own.
        metric: The metric's name.
        seed: Of everything that is drawn.
    """

    base: str = "base"
    adapters: Sequence[str] = ("one", "two")
    tasks: Sequence[str] = ("red", "blue")
    effects: Mapping[tuple[str, str], float] = field(default_factory=dict)
    documents: int = 200
    failed: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    answer: str | None = None
    metric: str = "acc"
    seed: int = 1


def write_made_up(output: Path, sweep: MadeUp) -> str:
    """Write the four tables; return the output as a text."""
    place = str(output)
    results: list[Row] = []
    gains: list[Row] = []
    cells: list[Row] = []
    with open_table_writer(place, "samples") as samples:
        for task in sweep.tasks:
            # Those that know more know all that others know, as adapters of one base do.
            draw = random.Random(f"{sweep.seed} {task}")
            ranks = [draw.random() for _ in range(sweep.documents)]
            before = [float(rank < 0.5) for rank in ranks]
            for adapter in (None, *sweep.adapters):
                if adapter is not None and adapter in sweep.failed:
                    cells.append(_cell(sweep, adapter, task, failed=sweep.failed[adapter]))
                    continue
                skill = 0.5 + sweep.effects.get((adapter or "", task), 0.0)
                after = _values(ranks, skill, f"{sweep.seed} {task} {adapter}", adapter)
                samples.write(samples_table(_subject(sweep, adapter), _scored(sweep, task, after)))
                results.append(_result(sweep, adapter, task, after))
                cells.append(_cell(sweep, adapter, task))
                if adapter is not None:
                    gains.append(_gain(sweep, adapter, task, before, after))
    write_table(place, "results", build("results", results))
    write_table(place, "gains", build("gains", gains))
    write_table(place, "cells", build("cells", cells))
    return place


def _values(ranks: Sequence[float], skill: float, seed: str, adapter: str | None) -> list[float]:
    draw = random.Random(seed)
    noise = 0.0 if adapter is None else 0.03  # of the documents it answers by chance
    return [
        float(draw.random() < 0.5) if draw.random() < noise else float(rank < skill)
        for rank in ranks
    ]


def _subject(sweep: MadeUp, adapter: str | None) -> str:
    return sweep.base if adapter is None else f"{sweep.base}/{adapter}"


def _scored(sweep: MadeUp, task: str, values: Sequence[float]) -> Scored:
    samples = [
        Sample(
            doc_id=number,
            filter="none",
            responses=_said(sweep, number, value),
            filtered_responses=[f"answer {value:g}"],
            metrics={sweep.metric: value},
            doc_hash=f"d{number}",
            prompt_hash=f"p{number}",
            target_hash=f"t{number}",
        )
        for number, value in enumerate(values)
    ]
    return Scored(
        task=task, metrics=(), samples=tuple(samples), lm_eval={}, lm_eval_version="0.4.13"
    )


def _said(sweep: MadeUp, number: int, value: float) -> Json:
    made_up = f"document {number}: the answer is {'right' if value else 'wrong'}"
    return [[made_up if sweep.answer is None else f"{sweep.answer} {made_up}"]]


def _result(sweep: MadeUp, adapter: str | None, task: str, values: Sequence[float]) -> Row:
    share = sum(values) / len(values)
    return _filled(
        "results",
        HARDWARE
        | {
            "subject": _subject(sweep, adapter),
            "base": sweep.base,
            "adapter": adapter,
            "entry": task,
            "task": task,
            "is_group": False,
            "metric": sweep.metric,
            "filter": "none",
            "value": share,
            "value_json": repr(share),
            "stderr": math.sqrt(share * (1 - share) / len(values)),
            "n": len(values),
            "higher_is_better": True,
            "aggregation": "mean",
            "base_digest": "b" * 16,
            "request_set": f"requests of {task}",
            "engine": "fake",
            "dtype": "float32",
            "numerics": "{}",
            "lm_eval_version": "0.4.13",
        },
    )


def _cell(sweep: MadeUp, adapter: str | None, task: str, failed: str | None = None) -> Row:
    row = {
        "subject": _subject(sweep, adapter),
        "base": sweep.base,
        "adapter": adapter,
        "entry": task,
        "task": task,
        "cell": f"cell of {adapter} on {task}",
        "request_set": f"requests of {task}",
        "state": "done" if failed is None else "failed",
        "reason": None if failed is None else "does_not_fit",
        "message": failed,
        "attempts": 1,
    }
    return _filled("cells", row | (HARDWARE if failed is None else {}))


def _gain(
    sweep: MadeUp, adapter: str, task: str, before: Sequence[float], after: Sequence[float]
) -> Row:
    row: Row = {
        "base": sweep.base,
        "adapter": adapter,
        "task": task,
        "is_group": False,
        "metric": sweep.metric,
        "filter": "none",
        "aggregation": "mean",
        "request_set": f"requests of {task}",
        "higher_is_better": True,
        "n": len(before),
        "family_size": len(sweep.adapters) * len(sweep.tasks),
        "method": "paired",
        "reason": sweep.refused.get(adapter, ""),
        "alpha": ALPHA,
        "seed": 1,
    }
    if adapter in sweep.refused:
        return _filled("gains", row | {"verdict": "refused"})
    return _filled("gains", row | _numbers(before, after, row["family_size"]))


def _numbers(before: Sequence[float], after: Sequence[float], family: int) -> Row:
    wins = sum(a > b for b, a in zip(before, after, strict=True))
    losses = sum(a < b for b, a in zip(before, after, strict=True))
    n = len(before)
    gain = (wins - losses) / n
    error = math.sqrt(max(wins + losses - n * gain**2, 1e-9)) / n
    p = math.erfc(abs(gain) / error / math.sqrt(2))
    corrected = min(1.0, p * family)
    shown = "gain" if gain > 0 else "loss"
    return {
        "baseline_value": sum(before) / n,
        "adapter_value": sum(after) / n,
        "gain": sum(after) / n - sum(before) / n,
        "low": gain - 1.96 * error,
        "high": gain + 1.96 * error,
        "p": p,
        "p_corrected": corrected,
        "wins": wins,
        "losses": losses,
        "standard_error": error,
        "smallest_detectable_gain": 3.9 * error,
        "verdict": shown if corrected <= ALPHA else "inconclusive",
    }


def _filled(table: str, row: Row) -> Row:
    """Return the row with every column of its table, absent ones empty."""
    unknown = row.keys() - set(schema_of(table).names)
    assert not unknown, f"table {table} has no column {unknown}"
    return {name: row.get(name) for name in schema_of(table).names}
