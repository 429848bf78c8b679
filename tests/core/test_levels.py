import numpy as np
import pytest
from scipy import stats

from raypeft.core.gains import GainSettings, compute_gains
from raypeft.core.levels import NO_INTERVAL, percentiles, wilson
from tests.core.cells import make_cell


@pytest.mark.parametrize(("successes", "n"), [(0, 5), (3, 10), (250, 1000), (7, 7)])
def test_wilson_is_scipys(successes: int, n: int) -> None:
    expected = stats.binomtest(successes, n).proportion_ci(0.9, method="wilson")
    assert wilson(successes, n, 0.9) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_no_documents_and_no_spread_have_no_interval() -> None:
    assert wilson(0, 0, 0.95) == NO_INTERVAL
    assert percentiles(np.asarray([]), 0.95) == NO_INTERVAL
    assert percentiles(np.full(50, 0.3), 0.95) == NO_INTERVAL
    assert percentiles(np.asarray([0.1, np.nan]), 0.95) == NO_INTERVAL


def test_both_sides_of_a_mean_have_an_interval_of_their_own() -> None:
    rng = np.random.default_rng(3)
    before = rng.normal(2, 1, 400)
    after = before + rng.normal(0.5, 0.1, 400)
    cells = [make_cell(v.tolist(), adapter=a) for v, a in ((before, None), (after, "x"))]
    (gain,) = compute_gains(cells[:1], cells[1:], settings=GainSettings(resamples=1_999))
    expected = stats.t.interval(0.95, 399, before.mean(), stats.sem(before))
    assert (gain.baseline_low, gain.baseline_high) == pytest.approx(expected, abs=0.02)
    assert (gain.adapter_low or 0) - (gain.baseline_low or 0) == pytest.approx(0.5, abs=0.02)
    # Each side by itself is far less certain than the difference.
    assert (gain.high or 0) - (gain.low or 0) < ((gain.baseline_high or 0) - expected[0]) / 3


def test_a_share_has_wilsons_interval_also_where_all_is_right() -> None:
    cells = [make_cell(v, adapter=a) for v, a in (([1.0] * 20, None), ([1.0] * 19 + [0.0], "x"))]
    (gain,) = compute_gains(cells[:1], cells[1:], settings=GainSettings(resamples=499))
    assert (gain.baseline_low, gain.baseline_high) == pytest.approx(wilson(20, 20, 0.95))
    assert (gain.adapter_low, gain.adapter_high) == pytest.approx(wilson(19, 20, 0.95))


def test_intervals_of_shares_cover_the_truth_as_often_as_stated() -> None:
    counts = np.random.default_rng(4).binomial(60, 0.85, 4_000)
    ends = [wilson(int(count), 60, 0.95) for count in counts]
    covered = np.mean([(e.low or 0) <= 0.85 <= (e.high or 0) for e in ends])
    assert covered == pytest.approx(0.95, abs=0.02)
