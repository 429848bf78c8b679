"""A sweep's tables, made from the store: results, samples, gains, cells.

They can be made again at any time without a model. Whether they must be is told by a digest of
what they are made from, kept in the cells table.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from raypeft.api.planning import Planned
from raypeft.core.clusters import Clusters, clusters_of
from raypeft.core.comparable import ScoredCell
from raypeft.core.gains import Gain, GainSettings, compute_gains
from raypeft.core.identity import canonical, cell_numerics, digest
from raypeft.core.interim import untested_rows
from raypeft.core.plan import Cell
from raypeft.core.records import (
    EngineSpec,
    Failure,
    Group,
    Hardware,
    MetricValue,
    Scored,
)
from raypeft.core.spec import dump_sweep
from raypeft.store.output import open_table_writer, read_run, tables_are_whole, write_table
from raypeft.store.rows import ShardFacts, gains_table, samples_table
from raypeft.store.store import Store
from raypeft.store.tables import build

OUTPUTS_VERSION = 3

LEFT_OUT_REASON = "deadline"
"""In the `cells` table the reason of an open cell that was left out when time was over."""


STOPPED_EARLY_REASON = "stopped_early"
"""The reason of an open cell that was stopped as hopeless."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellRun:
    """What this run did for one cell.

    Attributes:
        attempts: Tries its units had in this run; 0 if everything was in the store.
        slot: The slot that answered last.
        failure: Why it has no results.
        left_out: Why the deadline left it out; empty if it did not.
        stopped_early: Why it was stopped as hopeless; empty if it was not.
    """

    attempts: int = 0
    slot: str | None = None
    failure: Failure | None = None
    left_out: str = ""
    stopped_early: str = ""

    @property
    def open_reason(self) -> str | None:
        """Why it is open although nothing failed, as the `cells` table has it."""
        if self.left_out:
            return LEFT_OUT_REASON
        return STOPPED_EARLY_REASON if self.stopped_early else None


@dataclass(slots=True)
class _Tables:
    """Rows collected while the cells are read one after another."""

    results: list[dict[str, Any]] = field(default_factory=list)
    cells: list[dict[str, Any]] = field(default_factory=list)
    gains: list[Gain] = field(default_factory=list)


def write_outputs(planned: Planned, store: Store, runs: Mapping[str, CellRun]) -> frozenset[str]:
    """Make a sweep's tables, unless they are there already.

    Args:
        planned: The sweep; its plan as it was before the run.
        store: Where answers and scores lie.
        runs: What this run did, by cell key; cells that are absent were done before.

    Returns:
        Keys of cells that have neither results nor a failure and were not left out: open ones, and
        those whose results in the store turned out to be damaged.
    """
    output = planned.resolved.sweep.output
    stopped = {key: CellRun(stopped_early=why) for key, why in planned.stopped.items()}
    runs = {**stopped, **runs}
    inputs = _inputs_digest(planned, runs)
    if tables_are_whole(output) and read_run(output, "cells") == {"inputs": inputs}:
        return frozenset()
    tables = _Tables()
    with open_table_writer(output, "samples") as samples:
        for base in planned.resolved.sweep.bases:
            scored: list[ScoredCell] = []
            for cell in (cell for cell in planned.cells if cell.base == base.name):
                found = _read_cell(cell, store, runs.get(cell.key, CellRun()), planned, tables)
                if found is not None:
                    samples.write(samples_table(cell.subject, found.scored))
                    scored.append(_slim(found))
            groups = _groups(planned, base.name)
            tables.results += _group_rows(scored, groups, planned)
            untested = _untested(base.name, scored, groups, planned, runs)
            tables.gains += _gains(scored, groups, planned, store, untested)
    tables.cells += [_lost_row(planned, lost) for lost in planned.lost]
    write_table(output, "results", build("results", tables.results))
    write_table(output, "gains", gains_table(tables.gains))
    # Last: it says that the other tables are whole.
    missing = frozenset(
        row["cell"] for row in tables.cells if row["state"] == "open" and row["reason"] is None
    )
    run = None if missing else {"inputs": inputs}
    write_table(output, "cells", build("cells", tables.cells, run=run))
    return missing


def _inputs_digest(planned: Planned, runs: Mapping[str, CellRun]) -> str:
    failures = {
        key: [str(run.failure.kind), run.failure.message]
        for key, run in runs.items()
        if run.failure is not None
    }
    value = {
        "sweep": dump_sweep(planned.resolved.sweep),
        "cells": [[cell.subject, cell.entry, cell.score_key] for cell in planned.cells],
        "failures": failures,
        "left_out": sorted(key for key, run in runs.items() if run.left_out),
        "stopped_early": sorted(
            [key, run.stopped_early] for key, run in runs.items() if run.stopped_early
        ),
        "lost": [[lost.subject, lost.task, lost.failure.message] for lost in planned.lost],
        "groups": {
            base: sorted({group.name for found in entries.values() for group in found})
            for base, entries in planned.frozen.groups.items()
        },
    }
    return digest("outputs", OUTPUTS_VERSION, value)


def _read_cell(
    cell: Cell, store: Store, run: CellRun, planned: Planned, tables: _Tables
) -> ScoredCell | None:
    """Read one cell, add its rows, and return it if it has results."""
    scored = None if run.failure else store.get_scored(cell.score_key)
    if scored is None:
        failure = run.failure
        tables.cells.append(
            _cell_row(cell, planned, run)
            | {
                "state": "failed" if failure else "open",
                "reason": str(failure.kind) if failure else run.open_reason,
                "message": failure.message
                if failure
                else run.left_out or run.stopped_early or None,
            }
        )
        return None
    shards = store.shard_facts(cell.answers_key, cell.shards)
    facts = _run_columns(shards)
    tables.cells.append(
        _cell_row(cell, planned, run)
        | {"state": "done", "path": _path(cell, planned, shards)}
        | facts
    )
    engine = planned.plan.engines[cell.engine_name]
    found = ScoredCell(
        subject=cell.subject,
        base=cell.base,
        base_digest=engine.base_digest,
        adapter=_adapter_name(planned, cell.subject),
        task=cell.task,
        request_set=cell.request_set,
        numerics=cell_numerics(engine, planned.resolved.subjects[cell.subject]),
        hardware=tuple(shard.hardware for shard in shards),
        scored=scored,
        scoring=planned.frozen.task(cell.subject, cell.base, cell.task).scoring,
        sampling_seed=_sampling_seed(planned, cell),
        paths=tuple(shard.path for shard in shards),
    )
    for metric in scored.metrics:
        tables.results.append(_result_row(cell, planned, metric, scored) | facts)
    return found


def _slim(cell: ScoredCell) -> ScoredCell:
    """Return the cell without the responses: gains need none, and they are what is large."""
    samples = tuple(
        replace(sample, responses=None, filtered_responses=None) for sample in cell.scored.samples
    )
    return replace(cell, scored=replace(cell.scored, samples=samples))


# --- rows -------------------------------------------------------------------------------------


def _adapter_name(planned: Planned, subject: str) -> str | None:
    adapter = planned.resolved.subjects[subject].adapter
    return None if adapter is None else adapter.name


def _sampling_seed(planned: Planned, cell: Cell) -> int | None:
    task = planned.frozen.task(cell.subject, cell.base, cell.task)
    return planned.plan.engines[cell.engine_name].seed if task.samples else None


def _cell_row(cell: Cell, planned: Planned, run: CellRun) -> dict[str, Any]:
    return {
        "subject": cell.subject,
        "base": cell.base,
        "adapter": _adapter_name(planned, cell.subject),
        "entry": cell.entry,
        "task": cell.task,
        "cell": cell.key,
        "request_set": cell.request_set,
        "reason": None,
        "message": None,
        "attempts": run.attempts,
        "slot": run.slot,
        "path": None,
        **_run_columns(()),
    }


def _lost_row(planned: Planned, lost: Any) -> dict[str, Any]:
    subject = planned.resolved.subjects[lost.subject]
    return {
        "subject": lost.subject,
        "base": subject.base,
        "adapter": _adapter_name(planned, lost.subject),
        "entry": lost.entry,
        "task": lost.task,
        "cell": None,
        "request_set": None,
        "state": "failed",
        "reason": str(lost.failure.kind),
        "message": lost.failure.message,
        "attempts": 0,
        "slot": None,
        "path": None,
        **_run_columns(()),
    }


def _identity_columns(planned: Planned, subject: str, base: str) -> dict[str, Any]:
    engine: EngineSpec = planned.plan.engines[planned.resolved.engine_name(subject)]
    adapter = planned.resolved.subjects[subject].adapter
    return {
        "subject": subject,
        "base": base,
        "adapter": None if adapter is None else adapter.name,
        "base_digest": engine.base_digest,
        "adapter_digest": None if adapter is None else adapter.digest,
        "engine": engine.kind,
        "dtype": engine.dtype,
        "softmax_dtype": engine.softmax_dtype,
        "attn_implementation": engine.attn_implementation,
        "numerics": canonical(cell_numerics(engine, planned.resolved.subjects[subject])),
    }


def _metric_columns(metric: MetricValue) -> dict[str, Any]:
    return {
        "metric": metric.metric,
        "filter": metric.filter,
        "value": metric.value,
        "value_json": metric.value_json,
        "stderr": metric.stderr,
        "n": metric.n,
        "higher_is_better": metric.higher_is_better,
        "aggregation": metric.aggregation,
    }


def _result_row(
    cell: Cell, planned: Planned, metric: MetricValue, scored: Scored
) -> dict[str, Any]:
    return {
        **_identity_columns(planned, cell.subject, cell.base),
        **_metric_columns(metric),
        "entry": cell.entry,
        "task": cell.task,
        "is_group": False,
        "task_version": str(scored.lm_eval["versions"].get(cell.task)),
        "num_fewshot": scored.lm_eval["n-shot"].get(cell.task),
        "cell": cell.key,
        "score": cell.score_key,
        "request_set": cell.request_set,
        "sampling_seed": _sampling_seed(planned, cell),
        "scoring": planned.frozen.task(cell.subject, cell.base, cell.task).scoring,
        "lm_eval_version": scored.lm_eval_version,
    }


def _run_columns(shards: Sequence[ShardFacts]) -> dict[str, Any]:
    """Return the columns that describe how and where; several machines are joined by `and`."""
    if not shards:
        names = ("software", "hardware_fingerprint", "device", "num_devices", "memory_gib")
        return dict.fromkeys((*names, "threads", "node", "seconds", "tokens"))
    machines: list[Hardware] = [shard.hardware for shard in shards]
    first = machines[0]
    return {
        "software": _joined(canonical(dict(machine.software)) for machine in machines),
        "hardware_fingerprint": _joined(machine.fingerprint for machine in machines),
        "device": _joined(machine.device for machine in machines),
        "num_devices": first.num_devices,
        "memory_gib": first.memory_gib,
        "threads": first.threads,
        "node": _joined(machine.node for machine in machines),
        "seconds": sum(shard.seconds for shard in shards),
        "tokens": sum(shard.tokens for shard in shards),
    }


def _path(cell: Cell, planned: Planned, shards: Sequence[ShardFacts]) -> str:
    """Return which way was taken, and what kept the subject from the engine that others had."""
    paths = _joined(shard.path for shard in shards)
    route = planned.resolved.routes[cell.subject]
    why = route.why_not_vllm and f"by hf, since {route.why_not_vllm}"
    return "; ".join(text for text in (paths, why, route.certificate) if text)


def _joined(values: Iterable[str]) -> str:
    return " and ".join(sorted(set(values)))


# --- groups and gains -------------------------------------------------------------------------


def _groups(planned: Planned, base: str) -> dict[str, tuple[Group, ...]]:
    return dict(planned.frozen.groups[base])


def _group_rows(
    cells: Sequence[ScoredCell], groups: Mapping[str, Sequence[Group]], planned: Planned
) -> Iterator[dict[str, Any]]:
    from raypeft.harness.groups import group_metrics  # lm-eval, which reading tables never needs

    by_subject: dict[str, list[ScoredCell]] = {}
    for cell in cells:
        by_subject.setdefault(cell.subject, []).append(cell)
    for own in by_subject.values():
        for entry, members in groups.items():
            found = group_metrics(members, [cell.scored for cell in own])
            for name, metrics in found.items():
                for metric in metrics:
                    yield _group_row(planned, own[0], entry, name, metric)


def _group_row(
    planned: Planned, member: ScoredCell, entry: str, name: str, metric: MetricValue
) -> dict[str, Any]:
    return {
        **_identity_columns(planned, member.subject, member.base),
        **_metric_columns(metric),
        "entry": entry,
        "task": name,
        "is_group": True,
        "task_version": None,
        "num_fewshot": None,
        "cell": None,
        "score": None,
        "request_set": None,
        "sampling_seed": None,
        "scoring": None,
        "lm_eval_version": member.scored.lm_eval_version,
        **_run_columns(()),
    }


def _gains(
    cells: Sequence[ScoredCell],
    groups: Mapping[str, Sequence[Group]],
    planned: Planned,
    store: Store,
    untested: Mapping[tuple[str, str, str], int],
) -> list[Gain]:
    from raypeft.harness.metrics import resampling_aggregates

    sweep = planned.resolved.sweep
    statistics = sweep.statistics
    settings = GainSettings(
        alpha=statistics.alpha,
        power=statistics.power,
        seed=sweep.evaluation.seeds[1],
        resamples=statistics.resamples,
        allow_mixed_hardware=sweep.hardware.allow_mixed,
        aggregates=resampling_aggregates(),
        margins=statistics.margins,
        clusters=_clusters(cells, planned, store),
        untested=untested,
        wants_noise_floor=statistics.noise_floor,
        zero_subjects=frozenset(planned.resolved.zeros),
    )
    subjects = planned.resolved.subjects
    baselines = [cell for cell in cells if cell.adapter is None]
    return compute_gains(
        [cell for cell in baselines if not subjects[cell.subject].again],
        [cell for cell in cells if cell.adapter is not None],
        [group for members in groups.values() for group in members],
        settings,
        [_as_adapter(cell) for cell in baselines if subjects[cell.subject].again],
    )


def _untested(
    base: str,
    scored: Sequence[ScoredCell],
    groups: Mapping[str, Sequence[Group]],
    planned: Planned,
    runs: Mapping[str, CellRun],
) -> dict[tuple[str, str, str], int]:
    """Return the rows that each family of gains lost to early stopping."""
    stopped = [
        (cell.subject, cell.task)
        for cell in planned.cells
        if cell.base == base and cell.key in runs and runs[cell.key].stopped_early
    ]
    baselines = [cell for cell in scored if cell.adapter is None]
    return untested_rows(stopped, baselines, [one for found in groups.values() for one in found])


def _as_adapter(cell: ScoredCell) -> ScoredCell:
    """Return a baseline that was answered again as what its first answers are compared with."""
    numerics = {name: value for name, value in cell.numerics.items() if name != "again"}
    return replace(cell, adapter=cell.subject, numerics=numerics)


def _clusters(cells: Sequence[ScoredCell], planned: Planned, store: Store) -> dict[str, Clusters]:
    """Return by request set which documents belong together, where the sweep names a field."""
    fields = {task.name: task.cluster for task in planned.resolved.sweep.tasks if task.cluster}
    found: dict[str, Clusters] = {}
    # Documents are read only where they are asked for: they are as large as the task.
    for subject, base in {(cell.subject, cell.base): None for cell in cells} if fields else ():
        for task in planned.frozen.tasks(subject, base):
            name = fields.get(task.entry)
            if name is None or not task.digest or task.digest in found:
                continue
            documents = planned.frozen.request_set(store, task.digest).documents
            found[task.digest] = clusters_of(documents, name)
    return found
