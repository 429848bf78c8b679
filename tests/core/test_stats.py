import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from raypeft.core.resampling import AggregateGain, Floats, MeanGain, SumsGain
from raypeft.core.stats import (
    Comparison,
    Outcome,
    compare,
    documents_needed,
    holm,
    mcnemar,
    smallest_detectable_gain,
)

RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def one(differences: list[float] | Floats, **settings: float) -> Comparison:
    values = np.asarray([differences], dtype=np.float64)
    (comparison,) = compare(
        MeanGain(values, (values.shape[1],)), seed=1, confidence=settings.get("confidence", 0.95)
    )
    return comparison


# --- against scipy ----------------------------------------------------------------------------


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (3, 9), (40, 40), (100, 60)])
def test_mcnemar_is_the_exact_binomial_test(wins: int, losses: int) -> None:
    expected = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert mcnemar(wins, losses) == pytest.approx(expected, rel=1e-12)


def test_mcnemar_needs_counts() -> None:
    with pytest.raises(ValueError, match="not -1 and 2"):
        mcnemar(-1, 2)


def test_the_interval_of_a_mean_is_scipys_bca_interval_on_the_same_draws() -> None:
    differences = np.random.default_rng(3).exponential(size=37) - 0.8
    rng, _ = np.random.default_rng(1).spawn(2)
    expected = stats.bootstrap((differences,), np.mean, n_resamples=9_999, rng=rng, method="BCa")
    found = one(differences)
    interval = expected.confidence_interval
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-10)
    assert found.method == "sampled swap test, BCa bootstrap"
    assert found.standard_error == pytest.approx(stats.sem(differences), rel=1e-12)


def test_the_interval_of_a_perplexity_difference_is_scipys_on_the_same_draws() -> None:
    rng = np.random.default_rng(5)
    weights = rng.integers(5, 50, 40).astype(float)
    base = -weights * rng.gamma(3, 1, 40)
    over = base + weights * rng.normal(0.05, 0.2, 40)

    def gain(b: Floats, o: Floats, w: Floats, axis: int = -1) -> Floats:
        total = w.sum(axis=axis)
        value: Floats = np.exp(-o.sum(axis=axis) / total) - np.exp(-b.sum(axis=axis) / total)
        return value

    draws, _ = np.random.default_rng(1).spawn(2)
    expected = stats.bootstrap(
        (base, over, weights), gain, paired=True, n_resamples=9_999, rng=draws, method="BCa"
    )
    statistic = SumsGain(
        np.stack([base, weights], axis=1),
        np.stack([over, weights], axis=1)[None],
        lambda sums: np.asarray(np.exp(-sums[..., 0] / sums[..., 1])),
    )
    (found,) = compare(statistic, seed=1)
    interval = expected.confidence_interval
    assert found.gain == pytest.approx(gain(base, over, weights), rel=1e-12)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-8)
    permuted = stats.permutation_test(
        (base, over),
        lambda b, o, axis=-1: gain(b, o, weights, axis),
        permutation_type="samples",
        n_resamples=9_999,
        rng=np.random.default_rng(2),
    )
    assert found.p == pytest.approx(permuted.pvalue, abs=0.02)


@pytest.mark.parametrize("size", [2, 5, 12])
def test_few_documents_give_scipys_exact_permutation_test(size: int) -> None:
    differences = np.random.default_rng(size).normal(0.4, 1, size)
    found = one(differences)
    expected = stats.permutation_test(
        (differences, np.zeros(size)),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=True,
    )
    assert found.p == pytest.approx(expected.pvalue, rel=1e-12)
    assert found.method.startswith("exact swap test")


def test_many_documents_give_scipys_p_within_its_noise() -> None:
    differences = np.random.default_rng(8).normal(0.15, 1, 150)
    expected = stats.permutation_test(
        (differences, np.zeros(150)),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        n_resamples=9_999,
        vectorized=True,
        rng=np.random.default_rng(1),
    )
    p = one(differences).p
    assert p is not None
    assert abs(p - expected.pvalue) < 4 * math.sqrt(2 * p * (1 - p) / 9_999)


def test_the_swap_test_of_zero_one_differences_is_mcnemars_test() -> None:
    differences = [1.0] * 9 + [-1.0] * 3 + [0.0] * 20
    found = one(differences)
    expected = stats.permutation_test(
        (np.asarray(differences[:12]), np.zeros(12)),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=True,
    )
    assert found.p == pytest.approx(mcnemar(9, 3), rel=1e-12)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert found.method == "exact McNemar, BCa bootstrap"


# --- degenerate input -------------------------------------------------------------------------


def test_no_documents() -> None:
    found = one([])
    assert found.outcome is Outcome.NO_DOCUMENTS
    assert (found.low, found.p, found.n) == (None, None, 0)


def test_one_document() -> None:
    found = one([1.0])
    assert found.outcome is Outcome.ONE_DOCUMENT
    assert (found.gain, found.low, found.high, found.p) == (1.0, None, None, 1.0)
    assert found.standard_error is None


def test_no_document_differs() -> None:
    found = one([0.0] * 50)
    assert found.outcome is Outcome.IDENTICAL
    assert (found.gain, found.low, found.p, found.standard_error) == (0.0, None, 1.0, 0.0)


def test_every_document_differs_by_the_same() -> None:
    found = one([0.1] * 30)
    assert found.outcome is Outcome.CONSTANT
    assert (found.low, found.high) == (None, None)
    assert found.gain == pytest.approx(0.1)
    assert found.p == 1 / 10_000


def test_a_single_document_differs() -> None:
    found = one([0.0] * 49 + [1.0])
    assert found.outcome is Outcome.ONE_DIFFERS
    assert found.p == 1.0
    assert found.low is not None
    assert found.low <= 0.02 <= (found.high or 0.0)


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_touches_its_own_adapter_only(odd: float) -> None:
    rows = np.random.default_rng(0).normal(size=(3, 20))
    alone = compare(MeanGain(rows[[0, 2]], (20,)), seed=4)
    rows[1, 7] = odd
    first, broken, last = compare(MeanGain(rows, (20,)), seed=4)
    assert broken.outcome is Outcome.NOT_FINITE
    assert (broken.low, broken.p, broken.standard_error) == (None, None, None)
    for found, expected in zip((first, last), alone, strict=True):
        assert found.p == expected.p
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)


def test_a_metric_that_overflows_is_not_finite() -> None:
    terms = np.stack([np.full(5, -800.0), np.ones(5)], axis=1)
    statistic = SumsGain(terms, terms[None] * 1.5, lambda sums: np.asarray(np.exp(-sums[..., 0])))
    (found,) = compare(statistic, seed=1)
    assert found.outcome is Outcome.NOT_FINITE


def test_a_metric_that_fails_on_some_draws_has_p_but_no_interval() -> None:
    def picky(values: list[float]) -> float:
        return math.nan if len(set(values)) < 4 else sum(values)

    statistic = AggregateGain([0, 1, 2, 3, 4], [[1, 2, 3, 4, 9]], picky)
    (found,) = compare(statistic, seed=1, resamples=200)
    assert (found.low, found.high) == (None, None)
    assert found.p is not None
    assert found.note == "no interval: the metric is not finite on some draws"


def test_an_aggregate_of_any_kind_gets_a_percentile_interval() -> None:
    rng = np.random.default_rng(9)
    base = rng.normal(0, 1, 60).tolist()
    over = (np.asarray(base) + rng.normal(0.5, 0.3, 60)).tolist()
    (found,) = compare(AggregateGain(base, [over], lambda v: float(np.median(v))), seed=1,
                       resamples=400)  # fmt: skip
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.gain < found.high
    assert found.method == "sampled swap test, percentile bootstrap"
    assert found.standard_error is not None


# --- many adapters, groups --------------------------------------------------------------------


def test_a_metric_that_is_the_same_on_every_draw_has_no_interval() -> None:
    statistic = AggregateGain([0, 1, 2], [[1, 2, 3]], lambda values: 999.0)
    (found,) = compare(statistic, seed=1, resamples=100)
    assert (found.low, found.high) == (None, None)
    assert found.note == "no interval: the metric is the same on every draw"


def test_results_depend_on_the_seed_alone() -> None:
    statistic = MeanGain(np.random.default_rng(0).normal(size=(2, 30)), (30,))
    assert compare(statistic, seed=5) == compare(statistic, seed=5)
    assert compare(statistic, seed=5) != compare(statistic, seed=6)


def test_a_group_is_the_weighted_mean_of_its_tasks() -> None:
    rng = np.random.default_rng(1)
    small, large = rng.normal(0, 1, 10), rng.normal(1, 1, 90)
    rows = np.concatenate([small, large])[None]
    (by_size,) = compare(MeanGain(rows, (10, 90), (0.1, 0.9)), seed=2)
    (equal,) = compare(MeanGain(rows, (10, 90), (0.5, 0.5)), seed=2)
    assert by_size.gain == pytest.approx(rows.mean())
    assert equal.gain == pytest.approx((small.mean() + large.mean()) / 2)
    expected = math.sqrt((small.var(ddof=1) / 10 + large.var(ddof=1) / 90) / 4)
    assert equal.standard_error == pytest.approx(expected)
    assert equal.low is not None
    assert equal.low < equal.gain - expected


def test_an_unweighted_group_of_zero_one_metrics_is_not_mcnemars_test() -> None:
    rows = np.asarray([[1.0, 0, 0, 1, 0, 0, 0, 0, -1, 1]])
    (unequal,) = compare(MeanGain(rows, (2, 8), (0.5, 0.5)), seed=1)
    (equal,) = compare(MeanGain(rows, (2, 8), (0.2, 0.8)), seed=1)
    assert unequal.method.startswith("exact swap test")
    assert equal.method.startswith("exact McNemar")


def test_a_group_with_a_task_of_one_document_has_no_interval() -> None:
    rows = np.random.default_rng(1).normal(size=(1, 11))
    (found,) = compare(MeanGain(rows, (1, 10), (0.5, 0.5)), seed=1)
    assert found.outcome is Outcome.ONE_DOCUMENT
    assert found.low is None
    assert found.p is not None


# --- correction, power ------------------------------------------------------------------------


def test_holm_on_the_example_of_its_definition() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))


@RELAXED
@given(st.lists(st.floats(0, 1), max_size=20))
def test_holm_keeps_order_never_shrinks_and_is_at_most_bonferroni(p_values: list[float]) -> None:
    corrected = holm(p_values)
    for p, c in zip(p_values, corrected, strict=True):
        assert p <= c <= min(1.0, p * len(p_values)) + 1e-15
    for i, p in enumerate(p_values):
        for j, q in enumerate(p_values):
            assert not (p < q and corrected[i] > corrected[j])


def test_holm_refuses_what_is_no_p_value() -> None:
    with pytest.raises(ValueError, match="nan"):
        holm([0.1, math.nan])


def test_the_smallest_detectable_gain_is_found_as_often_as_it_says() -> None:
    n, sd = 400, 1.5
    detectable = smallest_detectable_gain(sd / math.sqrt(n), alpha=0.05)
    assert detectable is not None
    draws = np.random.default_rng(0).normal(detectable, sd, (2_000, n))
    found = stats.ttest_1samp(draws, 0.0, axis=1).pvalue <= 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("error", [None, 0.0, math.nan])
def test_without_spread_no_detectable_gain_is_claimed(error: float | None) -> None:
    assert smallest_detectable_gain(error, alpha=0.05) is None


# --- calibration ------------------------------------------------------------------------------


def test_under_the_null_false_alarms_are_as_rare_as_stated() -> None:
    rng = np.random.default_rng(42)
    continuous = rng.standard_t(4, (2_000, 40))
    correct = (rng.random((2, 2_000, 60)) < 0.6).astype(float)
    for differences in (continuous, correct[1] - correct[0]):
        n = differences.shape[1]
        results = compare(MeanGain(differences, (n,)), seed=7, resamples=999)
        rate = np.mean([(r.p or 0.0) <= 0.05 for r in results])
        assert rate <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2_000)


def test_under_the_null_holm_holds_the_family_with_one_shared_baseline() -> None:
    rng = np.random.default_rng(43)
    families, adapters, n = 300, 10, 50
    false_alarms = 0
    for family in range(families):
        base = rng.normal(size=n)
        over = rng.normal(size=(adapters, n))
        results = compare(MeanGain(over - base, (n,)), seed=family, resamples=499)
        false_alarms += min(holm([r.p or 0.0 for r in results])) <= 0.05
    assert false_alarms / families <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / families)


def test_intervals_cover_the_truth_as_often_as_stated_on_skewed_data() -> None:
    differences = np.random.default_rng(44).exponential(size=(1_500, 60))
    results = compare(MeanGain(differences, (60,)), seed=3, resamples=1_999)
    covered = np.mean([(r.low or 0.0) <= 1.0 <= (r.high or 0.0) for r in results])
    # BCa at n = 60 on an exponential: 93 to 94 % (Efron & Tibshirani 1993, ch. 14).
    assert 0.92 <= covered <= 0.965


def test_the_documents_that_are_asked_for_are_rather_too_many() -> None:
    assert documents_needed(0.1, 0.2, 200) == math.ceil(800 * 1.1)
    assert documents_needed(0.0, 0.2, 200) is documents_needed(0.1, None, 200) is None
    assert documents_needed(1e-9, 0.2, 200) is None
