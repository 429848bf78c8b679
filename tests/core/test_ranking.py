import numpy as np
import pytest

from raypeft.core.ranking import ranks, shares_of_best, shrink


def test_without_any_error_nothing_is_shrunk() -> None:
    gains = np.asarray([0.1, -0.2, 0.3])
    found = shrink(gains, np.zeros((3, 3)))
    assert found is not None
    np.testing.assert_allclose(found, gains, rtol=1e-6)


def test_gains_that_are_all_error_are_shrunk_to_their_mean() -> None:
    gains = np.asarray([0.1, -0.1, 0.05, -0.05])
    found = shrink(gains, np.eye(4))
    assert found is not None
    np.testing.assert_allclose(found, 0.0, atol=1e-9)


def test_with_equal_errors_it_is_the_estimator_of_efron_and_morris() -> None:
    gains = np.random.default_rng(1).normal(0.2, 0.5, 12)
    error = 0.3
    found = shrink(gains, np.eye(12) * error**2)
    # With equal errors the restricted likelihood has this maximum.
    spread = max(0.0, gains.var(ddof=1) - error**2)
    expected = gains.mean() + spread / (spread + error**2) * (gains - gains.mean())
    assert found is not None
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_what_moves_all_adapters_alike_is_no_reason_to_shrink() -> None:
    gains = np.asarray([0.1, 0.2, 0.3, 0.4])
    found = shrink(gains, np.full((4, 4), 0.25) + np.eye(4) * 1e-6)
    assert found is not None
    np.testing.assert_allclose(found, gains, atol=1e-3)


def test_the_less_certain_gain_is_shrunk_more() -> None:
    gains = np.asarray([0.4, 0.4, -0.4, 0.0, -0.4])
    found = shrink(gains, np.diag([0.01, 0.2, 0.01, 0.01, 0.01]))
    assert found is not None
    assert found[1] < found[0] <= 0.4


def test_fewer_than_three_gains_say_nothing_about_their_spread() -> None:
    assert shrink(np.asarray([0.1, 0.2]), np.eye(2)) is None
    assert shrink(np.asarray([0.1, 0.2, np.nan]), np.eye(3)) is None


def test_the_best_of_many_is_overstated_and_shrinking_mends_it() -> None:
    rng = np.random.default_rng(2)
    raw, mended = [], []
    for _ in range(400):
        truth = rng.normal(0, 0.02, 16)
        covariance = np.full((16, 16), 0.0004) + np.eye(16) * 0.0009
        gains = truth + rng.multivariate_normal(np.zeros(16), covariance)
        found = shrink(gains, covariance)
        assert found is not None
        best = int(np.argmax(found))
        raw.append(gains[best] - truth[best])
        mended.append(found[best] - truth[best])
    assert np.mean(raw) > 0.02
    assert abs(np.mean(mended)) < np.mean(raw) / 4


def test_shares_of_best_count_the_baseline_and_split_ties() -> None:
    drawn = np.asarray([[1.0, 0.5], [-1.0, -2.0], [2.0, 2.0], [-1.0, 0.0]])
    assert shares_of_best(drawn, higher_is_better=True) == pytest.approx([1.5 / 4, 1 / 4])
    assert shares_of_best(drawn, higher_is_better=False) == pytest.approx([1 / 4, 1 / 4])


def test_ranks_follow_the_direction_and_ties_share_the_better_one() -> None:
    gains = np.asarray([0.1, 0.3, 0.3, -0.1])
    assert ranks(gains, higher_is_better=True) == [3, 1, 1, 4]
    assert ranks(gains, higher_is_better=False) == [2, 3, 3, 1]


def test_adapters_that_answer_alike_do_not_make_the_spread_of_the_others_nothing() -> None:
    gains = np.asarray([0.0, 0.03, 0.06, 0.07])
    covariance = np.full((4, 4), 0.0002) + np.eye(4) * 0.0002
    alone = shrink(gains, covariance)
    assert alone is not None
    # The last one twice, as a checkpoint that was copied.
    twice = [0, 1, 2, 3, 3]
    found = shrink(gains[twice], covariance[np.ix_(twice, twice)])
    assert found is not None
    assert found[:4] == pytest.approx(alone, abs=0.004)
    assert found[3] == pytest.approx(found[4])


def test_adapters_that_change_nothing_do_not_either() -> None:
    covariance = np.zeros((5, 5))
    covariance[2:, 2:] = np.full((3, 3), 0.0001) + np.eye(3) * 0.0003
    found = shrink(np.asarray([0.0, 0.0, 0.05, 0.08, 0.1]), covariance)
    assert found is not None
    assert found[:2] == pytest.approx([0.0, 0.0])
    assert found[4] > 0.07


def test_two_adapters_one_of_them_twice_are_two() -> None:
    covariance = np.asarray([[4.0, 2.0, 2.0], [2.0, 4.0, 4.0], [2.0, 4.0, 4.0]]) * 1e-4
    assert shrink(np.asarray([0.1, 0.2, 0.2]), covariance) is None


def test_gains_that_differ_by_rounding_share_a_rank() -> None:
    gains = np.asarray([0.1, 0.1 + 1e-16, 0.1 - 1e-17, 0.2])
    assert ranks(gains, higher_is_better=True) == [2, 2, 2, 1]
    assert ranks(gains, higher_is_better=False) == [1, 1, 1, 4]
