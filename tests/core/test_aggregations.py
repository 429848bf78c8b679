"""The sums of each aggregation against lm-eval's own function."""

import math
import warnings
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lm_eval.api import metrics

from raypeft.core.aggregations import SUMS, NoTermsError

RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

pytestmark = pytest.mark.torch

LOG_LIKELIHOODS = st.floats(-50, -0.01)
PAIRS = st.tuples(LOG_LIKELIHOODS, st.integers(1, 60))
LABELS = st.tuples(st.sampled_from([0, 1]), st.sampled_from([0, 1]))
PROBABILITIES = st.tuples(st.integers(0, 2), st.lists(st.floats(0, 1), min_size=3, max_size=3))


def check(name: str, values: list[Any]) -> None:
    terms, finish = SUMS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn on a single label
        function = {"f1": "f1_score"}.get(name, name)
        expected = float(getattr(metrics, function)(values))
    found = float(finish(terms([list(v) if isinstance(v, tuple) else v for v in values]).sum(0)))
    assert math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-12)


@RELAXED
@given(st.lists(LOG_LIKELIHOODS, min_size=1, max_size=8))
def test_perplexity(values: list[float]) -> None:
    check("perplexity", values)


@RELAXED
@given(st.lists(PAIRS, min_size=1, max_size=8))
def test_weighted_perplexity_and_bits_per_byte(values: list[Any]) -> None:
    check("weighted_perplexity", values)
    check("bits_per_byte", values)


@RELAXED
@given(st.lists(LABELS, min_size=2, max_size=12))
def test_f1_and_matthews(values: list[Any]) -> None:
    check("f1", values)
    check("matthews_corrcoef", values)


@RELAXED
@given(st.lists(PROBABILITIES, min_size=1, max_size=6))
def test_brier_score(values: list[Any]) -> None:
    check("brier_score", values)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("perplexity", "a", "numbers"),
        ("bits_per_byte", [1.0], "pairs of numbers"),
        ("f1", [2, 0], "pairs of labels 0 and 1"),
        ("brier_score", 0.5, "pairs of label and probabilities"),
    ],
)
def test_other_values_are_refused_by_what_is_expected(name: str, value: Any, message: str) -> None:
    terms, _ = SUMS[name]
    with pytest.raises(NoTermsError, match=message):
        terms([value])
