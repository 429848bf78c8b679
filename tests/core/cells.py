"""Scored cells of made-up subjects, for the tests of gains."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from raypeft.core.comparable import ScoredCell
from raypeft.core.records import Hardware, Json, MetricValue, Sample, Scored

HARDWARE = Hardware(fingerprint="f1", device="CPU", software={"torch": "2.13", "peft": "0.21"})
NUMERICS: Mapping[str, Json] = {"engine": "hf", "dtype": "float32", "softmax_dtype": None}


def make_scored(
    task: str,
    values: Sequence[Json],
    *,
    metric: str = "acc",
    aggregation: str = "mean",
    value: float | None = None,
    higher_is_better: bool | None = True,
    filter_name: str = "none",
) -> Scored:
    """Return a scored task whose one metric has these per-document values."""
    if value is None and aggregation == "mean":
        value = sum(values) / len(values)
    samples = tuple(
        Sample(
            doc_id=i,
            filter=filter_name,
            responses=[],
            filtered_responses=[],
            metrics={metric: v},
            doc_hash=f"d{i}",
            prompt_hash=f"p{i}",
            target_hash=f"t{i}",
        )
        for i, v in enumerate(values)
    )
    aggregate = MetricValue(
        metric=metric,
        filter=filter_name,
        value=value,
        value_json=json.dumps(value),
        stderr=None,
        n=len(values),
        higher_is_better=higher_is_better,
        aggregation=aggregation,
    )
    return Scored(
        task=task, metrics=(aggregate,), samples=samples, lm_eval={}, lm_eval_version="0.4.13"
    )


def make_cell(
    values: Sequence[Json],
    *,
    adapter: str | None = None,
    base: str = "base",
    task: str = "toy",
    request_set: str | None = None,
    **metric: Any,
) -> ScoredCell:
    """Return a cell; without an adapter it is the baseline's."""
    return ScoredCell(
        subject=base if adapter is None else f"{base}/{adapter}",
        base=base,
        base_digest=f"digest of {base}",
        adapter=adapter,
        task=task,
        request_set=request_set or f"requests of {task}",
        numerics=NUMERICS,
        hardware=(HARDWARE,),
        scored=make_scored(task, values, **metric),
    )


def with_sample(cell: ScoredCell, place: int, **fields: Json) -> ScoredCell:
    """Return the cell with one of its samples changed."""
    samples = list(cell.scored.samples)
    samples[place] = replace(samples[place], **fields)
    return replace(cell, scored=replace(cell.scored, samples=tuple(samples)))
