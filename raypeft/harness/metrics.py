"""lm-eval's metrics as records, and lm-eval's aggregations by name.

Which metrics a task has, their values and their stderr are lm-eval's; here they are only read out
of its results and given a form that tables can hold.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import lm_eval.api.metrics  # noqa: F401 - fills the registry
import numpy as np
from lm_eval.api.registry import aggregation_registry
from lm_eval.utils import handle_non_serializable

from raypeft.core.records import Json, MetricValue

CUSTOM = "custom"
"""Name of an aggregation that is a task's own function."""


def aggregate(name: str, values: Sequence[Any]) -> float:
    """Aggregate values per document as lm-eval does.

    Args:
        name: `MetricValue.aggregation`.
        values: `Sample.metrics[metric]` of each document.

    Raises:
        ValueError: If lm-eval has no aggregation of this name.
    """
    if name not in aggregation_registry:
        known = ", ".join(sorted(aggregation_registry.keys()))
        raise ValueError(
            f"'{name}' is no aggregation of lm-eval, so it cannot be computed apart from its "
            f"task; known are {known}"
        )
    return float(aggregation_registry.get(name)(values))


def resampling_aggregates() -> dict[str, Callable[[list[Any]], float]]:
    """Return every aggregation of lm-eval by its name, for statistics that draw documents anew."""
    return {name: partial(aggregate, name) for name in aggregation_registry}


def aggregation_name(function: Any) -> str:
    """Return the name under which lm-eval knows an aggregation, `custom` if it does not."""
    for name, known in aggregation_registry.items():
        if known is function:
            return str(name)
    return CUSTOM


def metric_values(
    result: Mapping[str, Any],
    *,
    count: Callable[[str, str], int],
    higher_is_better: Mapping[str, bool | None],
    aggregation: Callable[[str], str],
) -> Iterator[MetricValue]:
    """Read the metrics out of one task's or group's result.

    Args:
        result: What lm-eval has under `results` for it.
        count: From how many documents a metric and filter was computed.
        higher_is_better: Direction by metric.
        aggregation: Name of a metric's aggregation.
    """
    for key, value in result.items():
        metric, comma, filter_name = key.rpartition(",")
        # `name`, `alias`, `sample_len` and `sample_count` stand beside the metrics.
        if not comma or _is_stderr(key, result):
            continue
        stderr = result.get(f"{metric}_stderr,{filter_name}")
        yield MetricValue(
            metric=metric,
            filter=filter_name,
            value=as_number(value),
            value_json=json.dumps(plain_json(value)),
            stderr=as_number(stderr),
            n=count(metric, filter_name),
            higher_is_better=higher_is_better.get(metric),
            aggregation=aggregation(metric),
        )


def as_number(value: Any) -> float | None:
    """Return a number as float, anything else (lm-eval's `N/A`, for instance) as None."""
    is_number = isinstance(value, int | float | np.integer | np.floating)
    return float(value) if is_number and not isinstance(value, bool) else None


def plain_json(value: Any) -> Json:
    """Return a value of lm-eval as JSON: tuples and arrays become lists, numpy scalars numbers.

    Floats keep every bit; what JSON has no form for becomes text, as in lm-eval's own files.
    """
    return json.loads(json.dumps(value, default=_default))


def _default(value: Any) -> Json:
    return value.tolist() if isinstance(value, np.ndarray) else handle_non_serializable(value)


def _is_stderr(key: str, result: Mapping[str, Any]) -> bool:
    metric, _, filter_name = key.rpartition(",")
    base = metric.removesuffix("_stderr")
    return base != metric and f"{base},{filter_name}" in result
