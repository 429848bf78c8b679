import math
from typing import Any

import numpy as np
import pytest
from scipy import optimize, stats

from raypeft.core.equivalence import (
    Evidence,
    Margin,
    best_case,
    evidence_of,
    p_equivalent,
    p_not_worse,
    parse_margin,
    worst_case,
)
from raypeft.core.gains import Gain, GainSettings, Verdict, compute_gains
from raypeft.core.records import Json
from tests.core.cells import make_cell


def counts(wins: int, losses: int, n: int) -> Evidence:
    return Evidence(gain=(wins - losses) / n, standard_error=None, num_units=n, wins=wins,
                    losses=losses)  # fmt: skip


def mean(values: np.ndarray[Any, Any]) -> Evidence:
    error = float(stats.sem(values))
    return Evidence(gain=float(values.mean()), standard_error=error, num_units=len(values))


# --- margins ----------------------------------------------------------------------------------


def test_a_margin_is_a_number_or_a_share_of_the_baseline() -> None:
    assert parse_margin(0.01).of(0.5) == 0.01
    assert parse_margin(2).of(None) == 2.0
    assert parse_margin("2%").of(-50.0) == pytest.approx(1.0)
    assert parse_margin(" 2.5 % ") == Margin(0.025, is_relative=True)
    assert parse_margin("2%").of(0.0) is None
    assert parse_margin("2%").of(None) is None


@pytest.mark.parametrize("value", [0, -0.1, "0%", "-2%", "2", "two", True, None, [1], math.inf])
def test_what_is_no_margin_is_refused_with_what_is_allowed(value: object) -> None:
    with pytest.raises(ValueError, match="expected a number above 0"):
        parse_margin(value)


# --- means ------------------------------------------------------------------------------------


def test_a_mean_is_tested_by_students_t() -> None:
    values = np.random.default_rng(1).normal(0.1, 1, 40)
    not_worse = stats.ttest_1samp(values, -0.3, alternative="greater").pvalue
    not_better = stats.ttest_1samp(values, 0.3, alternative="less").pvalue
    assert p_not_worse(mean(values), 0.3) == pytest.approx(not_worse)
    assert p_equivalent(mean(values), 0.3) == pytest.approx(max(not_worse, not_better))
    interval = stats.t.interval(0.9, 39, values.mean(), stats.sem(values))
    assert (worst_case(mean(values), 0.05), best_case(mean(values), 0.05)) == pytest.approx(
        interval
    )


@pytest.mark.parametrize("error", [None, 0.0, math.nan])
def test_without_spread_nothing_is_ruled_out(error: float | None) -> None:
    evidence = Evidence(gain=0.0, standard_error=error, num_units=50)
    assert p_not_worse(evidence, 0.1) is None
    assert p_equivalent(evidence, 0.1) is None
    assert worst_case(evidence, 0.05) is None
    assert best_case(evidence, 0.05) is None


# --- counts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("wins", "losses", "n"), [(12, 2, 50), (3, 9, 40), (0, 5, 30), (1, 1, 44)])
@pytest.mark.parametrize("margin", [0.02, 0.1, 0.3])
def test_counts_are_tested_by_the_score_at_the_likeliest_shares_under_the_margin(
    wins: int, losses: int, n: int, margin: float
) -> None:
    def loss(share: float) -> float:
        """Minus the log-likelihood where `share` lose and `share - margin` win."""
        shares = np.asarray([share - margin, share, 1 - 2 * share + margin])
        counted = np.asarray([wins, losses, n - wins - losses])
        return -float((counted * np.log(np.maximum(shares, 1e-300)))[counted > 0].sum())

    found = optimize.minimize_scalar(
        loss, bounds=(margin, (1 + margin) / 2), method="bounded", options={"xatol": 1e-12}
    )
    # Under the margin the difference of both counts has this mean and variance.
    variance = n * (2 * found.x - margin - margin**2)
    score = (wins - losses + n * margin) / math.sqrt(variance)
    assert p_not_worse(counts(wins, losses, n), margin) == pytest.approx(
        stats.norm.sf(score), rel=1e-4
    )


def test_bounds_are_where_the_test_is_at_its_level() -> None:
    for evidence in (counts(12, 5, 60), counts(0, 7, 30), counts(3, 0, 1000)):
        low, high = worst_case(evidence, 0.05), best_case(evidence, 0.05)
        assert low is not None
        assert high is not None
        assert low < evidence.gain < high
        assert p_not_worse(evidence, -low) == pytest.approx(0.05, abs=1e-4)


def test_no_loss_in_few_documents_does_not_rule_out_a_loss() -> None:
    worst_of_20, worst_of_2000 = (worst_case(counts(0, 0, n), 0.05) for n in (20, 2000))
    # In closed form z^2/(n+z^2): about a tenth of 20 documents.
    z = stats.norm.isf(0.05)
    assert worst_of_20 == pytest.approx(-(z**2) / (20 + z**2), abs=1e-6)
    assert worst_of_2000 == pytest.approx(-(z**2) / (2000 + z**2), abs=1e-6)
    assert (p_equivalent(counts(0, 0, 20), 0.05) or 0) > 0.05
    assert (p_equivalent(counts(0, 0, 2000), 0.05) or 1) < 0.05


def test_a_margin_of_everything_is_always_kept() -> None:
    assert p_not_worse(counts(0, 10, 10), 1.0) == 0.0
    assert worst_case(counts(0, 10, 10), 0.05) == -1.0


def test_at_the_margin_a_loss_is_ruled_out_as_rarely_as_stated() -> None:
    rng = np.random.default_rng(5)
    for n, discordant in ((80, 0.2), (400, 0.1)):
        margin = 0.05
        shares = [(discordant - margin) / 2, (discordant + margin) / 2, 1 - discordant]
        drawn = rng.multinomial(n, shares, 3_000)
        p = [p_not_worse(counts(int(w), int(k), n), margin) for w, k, _ in drawn]
        rate = np.mean([one is not None and one <= 0.05 for one in p])
        assert rate == pytest.approx(0.05, abs=0.017)


# --- verdicts ---------------------------------------------------------------------------------


def gains_of(before: list[Json], after: list[Json], margin: object, **metric: Any) -> Gain:
    cells = [make_cell(v, adapter=a, **metric) for v, a in ((before, None), (after, "x"))]
    settings = GainSettings(resamples=499, margins={"acc": parse_margin(margin)})
    (gain,) = compute_gains(cells[:1], cells[1:], settings=settings)
    return gain


def zero_one(n: int, wins: int, losses: int) -> tuple[list[Json], list[Json]]:
    same = n - wins - losses
    before: list[Json] = [0.0] * wins + [1.0] * losses + [1.0] * same
    after: list[Json] = [1.0] * wins + [0.0] * losses + [1.0] * same
    return before, after


def test_what_surely_lies_within_the_margin_is_equivalent() -> None:
    gain = gains_of(*zero_one(1000, 5, 6), margin=0.02)
    assert gain.verdict is Verdict.EQUIVALENT
    assert gain.margin == 0.02
    assert gain.p_equivalent == pytest.approx(p_equivalent(counts(5, 6, 1000), 0.02))


def test_what_may_lie_beyond_it_is_inconclusive() -> None:
    gain = gains_of(*zero_one(100, 5, 6), margin=0.02)
    assert gain.verdict is Verdict.INCONCLUSIVE
    assert (gain.p_equivalent or 0) > 0.05


def test_a_real_gain_within_the_margin_is_a_gain_and_says_so() -> None:
    gain = gains_of(*zero_one(2000, 20, 0), margin="3%")
    assert gain.verdict is Verdict.GAIN
    assert gain.reason == "it is real, and smaller than the margin of 0.0297"


def test_without_a_margin_nothing_is_equivalent() -> None:
    cells = [make_cell([1.0, 0.0] * 500, adapter=a) for a in (None, "x")]
    (gain,) = compute_gains(cells[:1], cells[1:], settings=GainSettings(resamples=499))
    assert gain.verdict is Verdict.INCONCLUSIVE
    assert (gain.margin, gain.p_equivalent) == (None, None)


def test_equivalence_is_corrected_within_its_family() -> None:
    before, after = zero_one(600, 4, 4)
    cells = [make_cell(after, adapter=name) for name in "abc"]
    settings = GainSettings(resamples=499, margins={"acc": Margin(0.015)})
    gains = compute_gains([make_cell(before)], cells, settings=settings)
    alone = p_equivalent(counts(4, 4, 600), 0.015)
    assert alone is not None
    assert [gain.p_equivalent for gain in gains] == pytest.approx([3 * alone] * 3)


def test_rows_of_the_table_are_evidence_only_with_gain_and_direction() -> None:
    row: dict[str, Any] = {
        "gain": -0.1, "higher_is_better": False, "standard_error": 0.02, "n": 50, "wins": None,
        "losses": None, "num_clusters": None, "method": "sampled swap test", "is_group": False,
    }  # fmt: skip
    assert evidence_of(row) == Evidence(gain=0.1, standard_error=0.02, num_units=50)
    assert evidence_of(row | {"gain": None}) is None
    assert evidence_of(row | {"higher_is_better": None}) is None
    nothing = {"wins": 0, "losses": 0, "method": "no document differs", "gain": 0.0}
    in_clusters = evidence_of(row | nothing | {"num_clusters": 9})
    assert in_clusters is not None
    assert (in_clusters.num_units, in_clusters.wins) == (9, None)
    of_group, of_task = (evidence_of(row | nothing | {"is_group": g}) for g in (True, False))
    assert of_group is not None
    assert of_task is not None
    assert (of_group.wins, of_task.wins) == (None, 0)
