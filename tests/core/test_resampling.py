import numpy as np
import pytest

from raypeft.core import resampling
from raypeft.core.resampling import (
    AggregateGain,
    Floats,
    MeanGain,
    PairedStatistic,
    SumsGain,
    all_signs,
    bootstrap_counts,
    random_signs,
)

RNG = np.random.default_rng(11)
BASE = RNG.normal(size=9)
OVER = RNG.normal(size=(2, 9))


def ratio(sums: Floats) -> Floats:
    return np.asarray(sums[..., 0] / sums[..., 1])


def with_ones(values: Floats) -> Floats:
    return np.stack([values, np.ones_like(values)], axis=-1)


def statistics() -> list[PairedStatistic]:
    """The same gains of a mean, computed in the three ways."""
    return [
        MeanGain(OVER - BASE, (9,)),
        SumsGain(with_ones(BASE), with_ones(OVER), ratio),
        AggregateGain(BASE.tolist(), OVER.tolist(), lambda values: sum(values) / len(values)),
    ]


@pytest.mark.parametrize("other", [1, 2])
def test_the_three_ways_agree_on_a_mean(other: int) -> None:
    one, two = statistics()[0], statistics()[other]
    (counts,) = bootstrap_counts((9,), 20, np.random.default_rng(0))
    (signs,) = random_signs(9, 20, np.random.default_rng(0))
    np.testing.assert_allclose(one.observed(), two.observed())
    np.testing.assert_allclose(one.resampled(counts), two.resampled(counts))
    np.testing.assert_allclose(one.swapped(signs), two.swapped(signs))
    np.testing.assert_array_equal(one.differing(), two.differing())
    np.testing.assert_allclose(one.take([1]).observed(), two.take([1]).observed())


def test_the_influence_of_a_mean_is_that_of_leaving_each_document_out() -> None:
    mean, sums, aggregate = statistics()
    exact, left_out = mean.influence(), sums.influence()
    assert exact is not None
    assert left_out is not None
    np.testing.assert_allclose(exact, left_out)
    assert aggregate.influence() is None


def test_swapping_every_document_turns_the_gain_around() -> None:
    for statistic in statistics():
        np.testing.assert_allclose(statistic.swapped(-np.ones((1, 9)))[0], -statistic.observed())


def test_draws_are_the_same_in_batches_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(bootstrap_counts((9,), 50, np.random.default_rng(1))))
    monkeypatch.setattr(resampling, "BATCH_ELEMENTS", 9 * 7)
    parts = list(bootstrap_counts((9,), 50, np.random.default_rng(1)))
    assert len(parts) == 8
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_each_stratum_keeps_its_number_of_documents() -> None:
    (counts,) = bootstrap_counts((3, 6), 40, np.random.default_rng(1))
    assert set(counts[:, :3].sum(axis=1)) == {3.0}
    assert set(counts[:, 3:].sum(axis=1)) == {6.0}


def test_all_signs_are_all_once_and_touch_no_other_place() -> None:
    signs = np.concatenate(list(all_signs(np.asarray([1, 3, 4]), 6)))
    assert len({tuple(row) for row in signs}) == 8
    assert set(signs[:, [0, 2, 5]].ravel()) == {1.0}
