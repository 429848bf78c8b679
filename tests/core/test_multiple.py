import itertools
import math

import numpy as np
import pytest
from scipy import stats

from raypeft.core.multiple import FamilyColumn, StepDown, false_discovery, max_t
from raypeft.core.resampling import AggregateGain, Floats, MeanGain, SumsGain
from raypeft.core.stats import holm


def family(*tasks: Floats) -> list[FamilyColumn]:
    return [FamilyColumn(MeanGain(d, (d.shape[1],)), (f"task {i}",)) for i, d in enumerate(tasks)]


def corrected(tested: list[FamilyColumn], resamples: int = 999, seed: int = 1) -> StepDown:
    found = max_t(tested, seed=seed, resamples=resamples, alpha=0.05)
    assert found is not None
    return found


def enumerated(*tasks: Floats) -> list[float]:
    """Westfall and Young's algorithm 4.1, word for word, over every swap there is."""

    def gains(signs: list[Floats]) -> Floats:
        rows = [
            (d * s).sum(axis=1) / np.sqrt((d**2).sum(axis=1))
            for d, s in zip(tasks, signs, strict=True)
        ]
        sizes: Floats = np.abs(np.concatenate(rows))
        return sizes

    observed = gains([np.ones(d.shape[1]) for d in tasks])
    order = np.argsort(-observed)
    hits, total = np.zeros(len(observed)), 0
    sizes = [d.shape[1] for d in tasks]
    for signs in itertools.product((-1.0, 1.0), repeat=sum(sizes)):
        drawn = gains(np.split(np.asarray(signs), np.cumsum(sizes)[:-1]))
        total += 1
        for step, row in enumerate(order):
            hits[row] += drawn[order[step:]].max() >= observed[row] - 1e-9
    p_values = hits / total
    for before, row in itertools.pairwise(order):
        p_values[row] = max(p_values[row], p_values[before])
    return list(p_values)


def test_p_values_are_those_of_the_algorithm_over_all_swaps() -> None:
    rng = np.random.default_rng(2)
    one, two = rng.normal(0.6, 1, (3, 6)), rng.normal(0.9, 1, (2, 5))
    one[1] = one[0] + rng.normal(0, 0.1, 6)
    expected = enumerated(one, two)
    found = corrected(family(one, two), resamples=19_999).p
    for p, q in zip(found, expected, strict=True):
        assert abs(p - q) < 4 * math.sqrt(q / 19_999)


def test_equal_adapters_cost_nothing() -> None:
    row = np.random.default_rng(3).normal(0.4, 1, 50)
    alone = corrected(family(row[None])).p
    together = corrected(family(np.tile(row, (20, 1)))).p
    assert together == pytest.approx(alone * 20)


def test_a_group_is_swapped_with_its_tasks() -> None:
    rng = np.random.default_rng(4)
    one, two = rng.normal(0.3, 1, (1, 30)), rng.normal(0.3, 1, (1, 30))
    both = MeanGain(np.concatenate([one, two], axis=1), (30, 30), (0.5, 0.5))
    group = FamilyColumn(both, ("task 0", "task 1"))
    alone = FamilyColumn(both, ("others", "of theirs"))
    tasks = family(one, two)
    # What hangs together is corrected less than what does not.
    assert corrected([*tasks, group], 9_999).critical < corrected([*tasks, alone], 9_999).critical


def test_a_row_that_no_swap_changes_has_p_1_and_touches_no_other() -> None:
    rows = np.random.default_rng(5).normal(0.3, 1, (2, 40))
    with_zero = np.concatenate([rows, np.zeros((1, 40))])
    assert corrected(family(with_zero)).p == (*corrected(family(rows)).p, 1.0)


def test_a_perplexity_is_swapped_as_well_as_a_mean() -> None:
    rng = np.random.default_rng(6)
    base = np.stack([-rng.gamma(3, 5, 60), np.full(60, 10.0)], axis=1)
    over = np.stack([base * [0.8, 1.0], base * [1.01, 1.0]])
    found = corrected(
        [
            FamilyColumn(
                SumsGain(base, over, lambda s: np.asarray(np.exp(-s[..., 0] / s[..., 1]))), ("t",)
            )
        ]
    )
    assert found.p[0] == pytest.approx(1 / 1000)


def test_the_scale_of_a_ratio_is_the_spread_of_its_swaps() -> None:
    rng = np.random.default_rng(7)
    base = np.stack([rng.normal(5, 1, 400), rng.integers(5, 9, 400).astype(float)], axis=1)
    over = base[None] + rng.normal(0, [0.5, 0.0], (1, 400, 2))
    statistic = SumsGain(base, over, lambda s: np.asarray(s[..., 0] / s[..., 1]))
    signs = rng.choice([-1.0, 1.0], (4_000, 400))
    assert statistic.swap_scale() == pytest.approx(statistic.swapped(signs).std(axis=0), rel=0.05)


def test_what_is_too_slow_or_has_no_spread_is_left_to_another_correction() -> None:
    slow = FamilyColumn(AggregateGain([1.0, 2.0], [[2.0, 2.0]], lambda v: float(sum(v))), ("t",))
    flat = FamilyColumn(
        SumsGain(np.zeros((3, 1)), np.ones((1, 3, 1)), lambda s: np.asarray(s[..., 0] * 0)), ("t",)
    )
    for tested in (slow, flat):
        assert max_t([tested], seed=1, resamples=99, alpha=0.05) is None


def test_the_seed_decides() -> None:
    rows = np.random.default_rng(8).normal(0.2, 1, (3, 40))
    assert corrected(family(rows), seed=1) == corrected(family(rows), seed=1)
    assert corrected(family(rows), seed=1) != corrected(family(rows), seed=2)


def test_the_critical_value_of_one_row_is_that_of_a_normal() -> None:
    rows = np.random.default_rng(9).normal(0, 1, (1, 500))
    assert corrected(family(rows), 9_999).critical == pytest.approx(1.96, abs=0.06)


@pytest.mark.parametrize("p_values", [[], [0.2], [0.01, 0.04, 0.03, 0.005, 0.9]])
def test_false_discovery_is_benjamini_and_hochbergs(p_values: list[float]) -> None:
    m = len(p_values)
    ordered = sorted(p_values)
    by_hand = [min(ordered[j] * m / (j + 1) for j in range(ordered.index(p), m)) for p in p_values]
    assert false_discovery(p_values) == pytest.approx(tuple(by_hand))


# --- calibration ------------------------------------------------------------------------------


def shared_baseline(
    rng: np.random.Generator, adapters: int, n: int, likeness: float, gains: Floats
) -> Floats:
    """Differences of 0/1 metrics: adapters are alike, and all stand against one baseline."""
    hardness = rng.normal(0, 1, n)
    common = rng.normal(0, 1, n) * math.sqrt(likeness)
    own = rng.normal(0, 1, (adapters, n)) * math.sqrt(1 - likeness)
    base = hardness + rng.normal(0, 1, n) > 0
    over = hardness + common + own + gains[:, None] > 0
    return over.astype(float) - base


@pytest.mark.parametrize("likeness", [0.0, 0.9])
def test_under_the_null_the_family_holds_its_level_also_with_alike_adapters(
    likeness: float,
) -> None:
    rng = np.random.default_rng(11)
    trials, false_alarms = 600, 0
    for trial in range(trials):
        tasks = [shared_baseline(rng, 8, 60, likeness, np.zeros(8)) for _ in range(3)]
        false_alarms += min(corrected(family(*tasks), 199, trial).p) <= 0.05
    assert false_alarms / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


def test_true_gains_beside_it_do_not_raise_the_rate_of_false_ones() -> None:
    rng = np.random.default_rng(12)
    truth = np.asarray([0.0] * 6 + [1.5] * 4)
    trials, false_alarms, found = 500, 0, 0
    for trial in range(trials):
        p = corrected(family(shared_baseline(rng, 10, 80, 0.5, truth)), 199, trial).p
        false_alarms += min(p[:6]) <= 0.05
        found += sum(one <= 0.05 for one in p[6:])
    assert false_alarms / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)
    assert found / trials > 2.0


def test_alike_adapters_are_found_more_often_than_by_holm() -> None:
    rng = np.random.default_rng(13)
    found = {"max-T": 0, "Holm": 0}
    for trial in range(150):
        common = rng.normal(0.3, 1, 80)
        rows = common + rng.normal(0, 0.3, (16, 80))
        found["max-T"] += sum(p <= 0.05 for p in corrected(family(rows), 399, trial).p)
        found["Holm"] += sum(p <= 0.05 for p in holm(stats.ttest_1samp(rows, 0, axis=1).pvalue))
    assert found["max-T"] > 1.3 * found["Holm"]
