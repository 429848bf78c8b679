"""Reading what a sweep left behind: status, report, comparison. Nothing is computed by a model."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from raypeft.api.outputs import write_outputs
from raypeft.api.stored import read_planned
from raypeft.core.comparable import ScoredCell
from raypeft.core.gains import Gain, compute_gains
from raypeft.core.records import Hardware, MetricValue, Sample, Scored
from raypeft.core.status import RunPhase, Status, fold
from raypeft.errors import Problem, SpecError, StoreError
from raypeft.report.morning import Morning, summarise
from raypeft.store.journal import read_journal
from raypeft.store.jsontext import load_json
from raypeft.store.lease import read_lease
from raypeft.store.output import Results, open_output, tables_are_whole

METRIC_FIELDS = (
    *("metric", "filter", "value", "value_json", "stderr", "n"),
    *("higher_is_better", "aggregation"),
)
SEPARATOR = "::"
"""Between a sweep's output and a subject, where a comparison reaches into another sweep."""


def read_status(output: str) -> Status:
    """Return where a sweep stands, from its journal and the lease of its run.

    Raises:
        StoreError: If no sweep has run there.
    """
    status = fold(read_journal(output))
    if status.runs == 0:
        raise StoreError(output, "no sweep has run here", "give the `output` of a sweep")
    lease = read_lease(output)
    if status.phase is RunPhase.RUNNING and not (lease and lease.is_alive(time.time())):
        status.kill()
    return status


def read_report(output: str) -> Morning:
    """Return what a sweep found; of a run that has not ended, what it has found so far.

    Raises:
        SetupError: If no sweep has run there.
    """
    if not tables_are_whole(output) or read_lease(output) is not None:
        write_outputs(*read_planned(output), runs={})
    results = open_output(output)
    return summarise(
        results.results.to_pylist(), results.gains.to_pylist(), results.cells.to_pylist()
    )


def compare_subjects(output: str, left: str, right: str) -> list[Gain]:
    """Return what the right subject gains over the left, on every task that both have.

    Args:
        output: A sweep's output.
        left: A subject's id, or `<other output>::<subject>`.
        right: Likewise.

    Returns:
        One gain for each task and metric, refused ones among them; the fields `base` and
        `adapter` hold the two subjects.

    Raises:
        SpecError: If a subject is not there, or both have no task in common.
        StoreError: If a sweep has no tables.
    """
    sides = [_cells(output, subject) for subject in (left, right)]
    common = {cell.task for cell in sides[0]} & {cell.task for cell in sides[1]}
    if not common:
        tasks = [", ".join(cell.task for cell in side) for side in sides]
        message = f"no task in common: {left} has {tasks[0]}; {right} has {tasks[1]}"
        raise SpecError((Problem("", message, "evaluate both on the same tasks"),))
    # Pairing looks for the base alone; here the left side stands for it.
    baselines, others = (
        [replace(cell, base="", adapter=role) for cell in side if cell.task in common]
        for side, role in zip(sides, (None, right), strict=True)
    )
    return [replace(gain, base=left) for gain in compute_gains(baselines, others)]


def _cells(output: str, subject: str) -> list[ScoredCell]:
    place, _, name = subject.rpartition(SEPARATOR)
    results = open_output(place or output)
    rows = [row for row in results.results.to_pylist() if not row["is_group"]]
    own = [row for row in rows if row["subject"] == name]
    if not own:
        known = sorted({row["subject"] for row in rows})
        message = f"no results of {name!r} in {results.place}"
        raise SpecError((Problem("", message, f"there are {', '.join(known) or 'none'}"),))
    by_task: dict[str, list[Mapping[str, Any]]] = {}
    for row in own:
        by_task.setdefault(row["task"], []).append(row)
    return [_cell(results, task, task_rows) for task, task_rows in by_task.items()]


def _cell(results: Results, task: str, rows: Sequence[Mapping[str, Any]]) -> ScoredCell:
    first = rows[0]
    samples = tuple(
        Sample(
            doc_id=row["doc_id"],
            filter=row["filter"],
            responses=None,
            filtered_responses=None,
            metrics={item["name"]: load_json(item["json"]) for item in row["metrics"]},
            doc_hash=row["doc_hash"],
            prompt_hash=row["prompt_hash"],
            target_hash=row["target_hash"],
        )
        for row in results.samples_of(first["subject"], task).to_pylist()
    )
    scored = Scored(
        task=task,
        metrics=tuple(MetricValue(**{name: row[name] for name in METRIC_FIELDS}) for row in rows),
        samples=samples,
        lm_eval=None,
        lm_eval_version=first["lm_eval_version"],
    )
    return ScoredCell(
        subject=first["subject"],
        base=first["base"],
        base_digest=first["base_digest"],
        adapter=first["adapter"],
        task=task,
        request_set=first["request_set"],
        numerics=json.loads(first["numerics"]),
        hardware=_machines(first),
        scored=scored,
        scoring=first["scoring"],
        sampling_seed=first["sampling_seed"],
    )


def _machines(row: Mapping[str, Any]) -> tuple[Hardware, ...]:
    """Return what answered, as far as the tables say: one machine for each distinct fingerprint."""
    software = [json.loads(text) for text in row["software"].split(" and ")]
    return tuple(
        Hardware(fingerprint=fingerprint, device=row["device"], software=versions)
        for fingerprint in row["hardware_fingerprint"].split(" and ")
        for versions in software
    )
