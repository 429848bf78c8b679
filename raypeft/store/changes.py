"""The documents on which an adapter and its baseline differ, found without holding every sample.

Decides how the samples table is gone through: once for the values of one metric, which are small,
and once more for the texts of the few documents that somebody wants to read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raypeft.store.output import Results

CellName: TypeAlias = tuple[str, str]
"""A subject and a task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """One metric of one cell, document by document.

    Attributes:
        doc_ids: Ascending.
        values: One for each; NaN where it is no number.
    """

    doc_ids: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One document with two values.

    Attributes:
        doc_id: The document.
        before: The baseline's value.
        after: The adapter's value.
        is_better: Whether the adapter's is the better one.
    """

    doc_id: int
    before: float
    after: float
    is_better: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """The documents on which two cells differ.

    Attributes:
        better: Where the adapter is better, the largest difference first; perhaps not all.
        worse: Where it is worse.
        num_better: All of those.
        num_worse: All of these.
    """

    better: tuple[Change, ...]
    worse: tuple[Change, ...]
    num_better: int
    num_worse: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """What one subject said to one document.

    Attributes:
        responses: JSON text, as in the samples table.
        filtered_responses: JSON text.
    """

    responses: str
    filtered_responses: str


def read_values(
    results: Results, metrics: Mapping[CellName, tuple[str, str]]
) -> dict[CellName, Values]:
    """Return one metric of some cells, document by document.

    Args:
        results: The sweep's tables.
        metrics: For each cell the metric and its filter.
    """
    columns = ("subject", "task", "doc_id", "filter", "metrics")
    parts: dict[CellName, list[Values]] = {}
    for part in results.sample_parts(columns):
        for cell in _cells(part):
            if cell in metrics:
                metric, filter_name = metrics[cell]
                chosen = _of_cell(part, cell).filter(pc.field("filter") == filter_name)
                parts.setdefault(cell, []).append(_values(chosen, metric))
    return {cell: _joined(found) for cell, found in parts.items()}


def read_texts(
    results: Results, wanted: Mapping[CellName, tuple[str, frozenset[int]]]
) -> dict[CellName, dict[int, Texts]]:
    """Return the responses of some documents of some cells.

    Args:
        results: The sweep's tables.
        wanted: For each cell the filter and the documents.
    """
    columns = ("subject", "task", "doc_id", "filter", "responses", "filtered_responses")
    found: dict[CellName, dict[int, Texts]] = {}
    for part in results.sample_parts(columns):
        for cell in _cells(part):
            filter_name, doc_ids = wanted.get(cell, ("", frozenset()))
            if not doc_ids:
                continue
            is_wanted = pc.field("doc_id").isin(sorted(doc_ids))
            rows = _of_cell(part, cell).filter((pc.field("filter") == filter_name) & is_wanted)
            for row in rows.to_pylist():
                found.setdefault(cell, {})[row["doc_id"]] = Texts(
                    responses=row["responses"], filtered_responses=row["filtered_responses"]
                )
    return found


def changes(baseline: Values, adapter: Values, *, higher_is_better: bool, limit: int) -> Changes:
    """Return where two cells differ.

    Args:
        baseline: The one side.
        adapter: The other.
        higher_is_better: The metric's direction.
        limit: Documents that are named on each side at most.
    """
    doc_ids, left, right = np.intersect1d(
        baseline.doc_ids, adapter.doc_ids, assume_unique=True, return_indices=True
    )
    before, after = baseline.values[left], adapter.values[right]
    # NaN is no value: it differs from everything, itself among it.
    delta = np.nan_to_num(after - before, nan=0.0)
    gained = delta if higher_is_better else -delta
    sides = []
    for sign in (1.0, -1.0):
        places = np.flatnonzero(gained * sign > 0)
        ordered = places[np.lexsort((doc_ids[places], -np.abs(delta[places])))][:limit]
        named = tuple(
            Change(
                doc_id=int(doc_ids[i]),
                before=float(before[i]),
                after=float(after[i]),
                is_better=sign > 0,
            )
            for i in ordered
        )
        sides.append((named, len(places)))
    (better, num_better), (worse, num_worse) = sides
    return Changes(better=better, worse=worse, num_better=num_better, num_worse=num_worse)


def _cells(part: pa.Table) -> list[CellName]:
    pairs = part.select(["subject", "task"]).group_by(["subject", "task"]).aggregate([])
    return [(row["subject"], row["task"]) for row in pairs.to_pylist()]


def _of_cell(part: pa.Table, cell: CellName) -> pa.Table:
    subject, task = cell
    return part.filter((pc.field("subject") == subject) & (pc.field("task") == task))


def _values(rows: pa.Table, metric: str) -> Values:
    """Return a metric's column of samples; documents that lack it are left out."""
    doc_ids = rows.column("doc_id").to_numpy()
    lists = rows.column("metrics").combine_chunks()
    flat = pc.list_flatten(lists)
    is_metric = pc.equal(pc.struct_field(flat, "name"), metric)
    owners = pc.filter(pc.list_parent_indices(lists), is_metric).to_numpy(zero_copy_only=False)
    values = pc.filter(pc.struct_field(flat, "value"), is_metric)
    numbers = values.to_numpy(zero_copy_only=False).astype(np.float64)
    return Values(doc_ids=doc_ids[owners], values=numbers)


def _joined(parts: Sequence[Values]) -> Values:
    doc_ids = np.concatenate([part.doc_ids for part in parts])
    values = np.concatenate([part.values for part in parts])
    order = np.argsort(doc_ids, kind="stable")
    return Values(doc_ids=doc_ids[order], values=values[order])
