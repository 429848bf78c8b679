import math

import numpy as np
import pytest

from raypeft.core.looks import document_order, should_stop


def drawn(rng: np.random.Generator, gain: float, n: int, discordant: float = 0.3) -> list[float]:
    """Differences of a 0/1 metric."""
    shares = [(discordant - gain) / 2, 1 - discordant, (discordant + gain) / 2]
    return list(rng.choice([-1.0, 0.0, 1.0], n, p=shares))


def test_an_adapter_that_is_worth_its_time_is_stopped_as_rarely_as_stated() -> None:
    # After every document: `should_stop` says whether any look so far would have stopped it.
    rng = np.random.default_rng(1)
    trials = 600
    for gain in (0.0, 0.05):
        stops = sum(
            should_stop(drawn(rng, gain, 1_500), alpha=0.1, least_gain=gain).stops
            for _ in range(trials)
        )
        assert stops / trials <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / trials)


def test_differences_of_any_shape_keep_the_rate() -> None:
    rng = np.random.default_rng(2)
    trials, stops = 400, 0
    for _ in range(trials):
        rare = np.where(rng.random(800) < 0.01, 1.0, -0.01 / 0.99)  # mean 0, very skewed
        stops += should_stop(list(rare), alpha=0.1, least_gain=0.0).stops
    assert stops / trials <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / trials)


def test_hopeless_adapters_stop_early() -> None:
    rng = np.random.default_rng(3)
    looks = [should_stop(drawn(rng, -0.1, 3_000), alpha=0.05, least_gain=0.0) for _ in range(100)]
    assert sum(look.stops for look in looks) >= 99
    assert np.median([look.num_documents for look in looks]) < 500


def test_one_without_a_gain_stops_where_a_gain_of_some_size_is_wanted() -> None:
    rng = np.random.default_rng(4)
    looks = [should_stop(drawn(rng, 0.0, 4_000), alpha=0.05, least_gain=0.05) for _ in range(60)]
    assert sum(look.stops for look in looks) >= 58


def test_whoever_stopped_once_stays_stopped_and_later_documents_change_nothing() -> None:
    differences = drawn(np.random.default_rng(5), -0.2, 600)
    last = should_stop(differences, alpha=0.05, least_gain=0.0)
    assert last.stops
    for n in (0, 1, last.num_documents - 1):
        assert not should_stop(differences[:n], alpha=0.05, least_gain=0.0).stops
    first = should_stop(differences[: last.num_documents], alpha=0.05, least_gain=0.0)
    assert (first.stops, first.num_documents, first.reason) == (
        True,
        last.num_documents,
        last.reason,
    )
    assert f"hopeless after {last.num_documents} documents" in last.reason


def test_the_bound_lies_above_the_truth_at_all_times_as_often_as_stated() -> None:
    rng = np.random.default_rng(6)
    trials = 400
    # `upper` is the smallest of all bounds so far, so one look is all looks.
    looks = [should_stop(drawn(rng, 0.1, 1_000), alpha=0.1, least_gain=0.0) for _ in range(trials)]
    uppers = [look.upper for look in looks if look.upper is not None]
    assert len(uppers) == trials
    assert np.mean(np.asarray(uppers) < 0.1) <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / trials)
    assert max(uppers) < 0.35


def test_many_tests_share_the_level() -> None:
    differences = drawn(np.random.default_rng(7), -0.15, 800)
    one = should_stop(differences, alpha=0.05, least_gain=0.0)
    many = should_stop(differences, alpha=0.05, least_gain=0.0, num_tests=384)
    assert one.num_documents < many.num_documents


def test_the_unit_of_the_metric_does_not_matter() -> None:
    differences = drawn(np.random.default_rng(8), -0.2, 300)
    one = should_stop(differences, alpha=0.05, least_gain=0.01)
    scaled = should_stop([100 * d for d in differences], alpha=0.05, least_gain=1.0, largest=100.0)
    assert (one.stops, one.num_documents) == (scaled.stops, scaled.num_documents)
    assert scaled.upper == pytest.approx(100 * (one.upper or 0))


def test_the_order_of_documents_is_random_and_the_same_for_all() -> None:
    order = document_order([5, 3, 9, 1, 7], seed=1)
    assert sorted(order) == [1, 3, 5, 7, 9]
    assert order == document_order([1, 3, 5, 7, 9], seed=1)
    orders = {tuple(document_order([1, 3, 5, 7, 9], seed=seed)) for seed in range(20)}
    assert len(orders) > 10


def test_without_documents_nothing_is_decided() -> None:
    look = should_stop([], alpha=0.05, least_gain=0.0)
    assert (look.stops, look.gain, look.upper) == (False, None, None)


@pytest.mark.parametrize(
    ("differences", "changes", "message"),
    [
        ([0.0, 2.0], {}, "difference 1 is 2.0"),
        ([math.nan], {}, "difference 0 is nan"),
        ([], {"alpha": 0.0}, "alpha is 0"),
        ([], {"least_gain": 1.0}, "least_gain is 1"),
        ([], {"largest": math.inf}, "largest is inf"),
        ([], {"num_tests": 0}, "num_tests is 0"),
    ],
)
def test_what_makes_no_sense_is_refused(
    differences: list[float], changes: dict[str, float], message: str
) -> None:
    settings: dict[str, float] = {"alpha": 0.05, "least_gain": 0.0, **changes}
    with pytest.raises(ValueError, match=message):
        should_stop(differences, **settings)  # type: ignore[arg-type]
