"""lm-eval's aggregations by name, and its results as records."""

import json
import math

import numpy as np
import pytest

from raypeft.core.records import EvaluationSettings
from tests.support.answers import made_up_answers
from tests.support.tasks import TinyTasks

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("mean", [1.0, 0.0, 0.5], 0.5),
        ("perplexity", [-1.0, -3.0], math.exp(2.0)),
        ("weighted_perplexity", [[-4.0, 1], [-2.0, 2]], math.exp(2.0)),
        ("bits_per_byte", [[-4.0, 1], [-2.0, 2]], 2.0 / math.log(2)),
        ("median", [3.0, 1.0, 2.0], 2.0),
        ("f1", [[1, 1], [0, 1], [1, 0]], 0.5),
        ("matthews_corrcoef", [[1, 1], [0, 0], [1, 1]], 1.0),
        ("brier_score", [[0, [1.0, 0.0]], [1, [1.0, 0.0]]], 1.0),
        ("bleu", [["a b c d", "a b c d"]], 100.0),
    ],
)
def test_values_as_samples_keep_them_are_aggregated_by_name(
    name: str, values: list[object], expected: float
) -> None:
    from raypeft.harness.metrics import aggregate

    assert aggregate(name, values) == pytest.approx(expected, rel=1e-12)


def test_a_tasks_own_aggregation_cannot_be_asked_for_by_name() -> None:
    from raypeft.harness.metrics import aggregate

    with pytest.raises(ValueError, match="'custom' is no aggregation"):
        aggregate("custom", [1.0])


def test_names_and_functions_belong_together() -> None:
    from lm_eval.api.metrics import mean, perplexity

    from raypeft.harness.metrics import aggregation_name

    assert [aggregation_name(f) for f in (mean, perplexity, max)] == [
        "mean",
        "perplexity",
        "custom",
    ]


@pytest.mark.parametrize("task", ["tiny_mc", "tiny_vectors", "tiny_lambada", "tiny_rolling"])
def test_aggregating_samples_again_gives_the_tasks_own_value(tasks: TinyTasks, task: str) -> None:
    from raypeft.harness.freeze import freeze_entry
    from raypeft.harness.metrics import aggregate
    from raypeft.harness.score import score

    include = [str(tasks.folder)]
    settings = EvaluationSettings(bootstrap_iters=0)
    (request_set,) = freeze_entry(task, settings, include_path=include).request_sets
    scored = score(request_set, made_up_answers(request_set), include_path=include)
    assert scored.metrics
    for metric in scored.metrics:
        values = [sample.metrics[metric.metric] for sample in scored.samples]
        assert aggregate(metric.aggregation, values) == metric.value


def test_a_metric_whose_name_ends_in_stderr_is_kept_if_it_is_no_stderr() -> None:
    from raypeft.harness.metrics import metric_values

    result = {"name": "t", "x_stderr,none": 2.0, "y,none": 1, "y_stderr,none": "N/A"}
    values = metric_values(
        result,
        count=lambda metric, name: 3,
        higher_is_better={"y": False},
        aggregation=lambda metric: "mean",
    )
    found = {one.metric: (one.value, one.stderr, one.higher_is_better) for one in values}
    assert found == {"x_stderr": (2.0, None, None), "y": (1.0, None, False)}


def test_what_is_no_number_is_kept_as_json() -> None:
    from raypeft.harness.metrics import metric_values

    result = {"by_length,none": {"4": np.float64(0.1)}, "flag,none": True}
    values = {
        one.metric: one
        for one in metric_values(
            result,
            count=lambda metric, name: 1,
            higher_is_better={},
            aggregation=lambda metric: "custom",
        )
    }
    assert values["by_length"].value is None
    assert json.loads(values["by_length"].value_json) == {"4": 0.1}
    assert values["flag"].value is None


def test_plain_json_keeps_every_bit_of_a_float() -> None:
    from raypeft.harness.metrics import plain_json

    numbers = np.random.default_rng(3).normal(size=50)
    assert plain_json(tuple(numbers)) == numbers.tolist() == plain_json(numbers)
    assert plain_json({"a": (np.int64(3), np.bool_(True))}) == {"a": [3, True]}
