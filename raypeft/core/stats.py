"""Uncertainty of paired gains: intervals, p-values, correction for many, detectable size.

Pure and seeded. Decides which method is used and what becomes of degenerate input, by name; what
is compared with what, and the verdict, are decided by `gains`. How a gain is recomputed on a draw
of documents is the business of `resampling`.

Methods, with their sources:
- Interval: BCa bootstrap of the paired documents (Efron 1987, "Better bootstrap confidence
  intervals", JASA 82; Efron & Tibshirani 1993, "An Introduction to the Bootstrap", ch. 14.3).
  It corrects for bias and skewness, which perplexities have; where its bias correction is
  infinite, or a metric too slow for a jackknife, the percentile interval (ch. 13.3) is given
  instead and named.
- p for 0/1 differences: exact McNemar, the binomial test on discordant pairs (McNemar 1947; see
  Fagerland, Lydersen & Laake 2013, BMC Med Res Methodol 13:91, on exact against asymptotic).
- p otherwise: randomisation test that swaps baseline and adapter within documents (Fisher 1935;
  Noreen 1989, "Computer-Intensive Methods for Testing Hypotheses"), enumerated where few
  documents differ, else sampled with p = (1 + hits) / (1 + draws), which is never 0 (Phipson &
  Smyth 2010, Stat Appl Genet Mol Biol 9:39).
- Correction: Holm 1979, "A simple sequentially rejective multiple test procedure".
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from scipy import special, stats

from raypeft.core.levels import NO_INTERVAL, Interval, percentiles
from raypeft.core.ranking import shares_of_best, shrink
from raypeft.core.resampling import (
    Bools,
    Floats,
    MeanGain,
    PairedStatistic,
    all_signs,
    bootstrap_counts,
    random_signs,
)

DEFAULT_RESAMPLES = 9_999
TIE_TOLERANCE = 1e-12
"""Relative to the largest value met: sums in another order may differ by rounding."""


MOST_DOCUMENTS = 1_000_000_000
"""No task has more."""


class Outcome(StrEnum):
    """What kind of data a comparison met."""

    OK = "ok"
    NO_DOCUMENTS = "no documents"
    ONE_DOCUMENT = "one document"
    """A task has a single document: nothing can be said about its spread."""
    NOT_FINITE = "not finite"
    """NaN or infinity in a value or in the metric itself."""
    IDENTICAL = "identical on every document"
    CONSTANT = "the same difference on every document"
    ONE_DIFFERS = "one document differs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One paired comparison.

    Attributes:
        gain: Adapter minus baseline.
        low: Lower end of the interval; None where there is none.
        high: Upper end.
        p: Two-sided p-value, not corrected; None where there is none.
        standard_error: Of the gain, by the jackknife or else from the bootstrap draws; None where
            there is none.
        n: Documents.
        outcome: What kind of data it was.
        method: How p and interval were found, for the tables.
        note: What a reader must know: why there is no interval, or how thin the data are.
        baseline: Interval of the baseline's own value.
        adapter: Interval of the adapter's own value.
        shrunk: The gain, shrunk towards those of the other adapters; None where there are too few.
        p_best: Share of draws on which the adapter is best, baseline included; None where the
            metric has no direction.
    """

    gain: float
    low: float | None
    high: float | None
    p: float | None
    standard_error: float | None
    n: int
    outcome: Outcome
    method: str
    note: str = ""
    baseline: Interval = NO_INTERVAL
    adapter: Interval = NO_INTERVAL
    shrunk: float | None = None
    p_best: float | None = None


def mcnemar(wins: int, losses: int) -> float:
    """Return the exact two-sided p-value of McNemar's test from both discordant counts."""
    if wins < 0 or losses < 0:
        raise ValueError(f"discordant counts must be 0 or more, not {wins} and {losses}")
    if wins + losses == 0:
        return 1.0
    return float(stats.binomtest(wins, wins + losses, 0.5).pvalue)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Return Holm's corrected p-values of one family, in the order given.

    The family-wise error rate holds whatever the dependence between the tests.
    """
    if any(not 0.0 <= p <= 1.0 for p in p_values):
        raise ValueError(f"p-values must lie in [0, 1]: {[p for p in p_values if not 0 <= p <= 1]}")
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, p_values[place] * (len(p_values) - rank)))
        corrected[place] = highest
    return tuple(corrected)


def smallest_detectable_gain(
    standard_error: float | None, *, alpha: float, power: float = 0.8
) -> float | None:
    """Return the true gain that a two-sided test at `alpha` would find with this power.

    Normal approximation: (z(1 - alpha/2) + z(power)) × standard error (Cohen 1988, "Statistical
    Power Analysis", ch. 2). None where the data show no spread to tell it from.
    """
    return detectable_gain(standard_error, float(stats.norm.isf(alpha / 2)), power=power)


def detectable_gain(
    standard_error: float | None, critical: float, *, power: float = 0.8
) -> float | None:
    """Return the true gain that is found with this power by whoever asks for `critical` errors.

    None where the data show no spread to tell it from.
    """
    if standard_error is None or not np.isfinite(standard_error) or standard_error <= 0.0:
        return None
    return float((critical + stats.norm.ppf(power)) * standard_error)


def documents_needed(gain: float | None, detectable: float | None, n: int) -> int | None:
    """Return how many documents would find a true gain of this size.

    The spread of a gain falls with the root of the number of documents. It is itself estimated: of
    `n` normal differences its square has a relative standard error of √(2/n), which is added, since
    to ask for too few documents is the worse mistake. None where there is no gain, and beyond a
    billion documents, which says no more than that.

    Args:
        gain: As observed.
        detectable: The gain that `n` documents would find.
        n: Documents there were.
    """
    if not gain or detectable is None or not np.isfinite(gain) or n < 1:
        return None
    needed = n * (detectable / abs(gain)) ** 2 * (1 + np.sqrt(2 / n))
    return int(np.ceil(needed)) if needed <= MOST_DOCUMENTS else None


def compare(
    statistic: PairedStatistic,
    *,
    seed: int,
    resamples: int = DEFAULT_RESAMPLES,
    confidence: float = 0.95,
    higher_is_better: bool | None = None,
) -> tuple[Comparison, ...]:
    """Compare each adapter of a statistic with its baseline.

    All adapters see the same draws of documents and the same swaps; which other adapters there
    are has no influence on an adapter's gain, interval and p, rounding aside. `shrunk` and
    `p_best` are about all of them together.

    Args:
        statistic: The paired values and how a gain is computed from them.
        seed: Seed of the draws.
        resamples: Draws for each of interval and p.
        confidence: Of the interval, for instance 0.95.
        higher_is_better: Direction, for `p_best`.
    """
    n = sum(statistic.strata)
    if n == 0:
        empty = _without_interval(float("nan"), 0, Outcome.NO_DOCUMENTS)
        return tuple(empty for _ in range(len(statistic.differing())))
    with np.errstate(all="ignore"):  # not finite is an outcome here, not an accident
        gains = statistic.observed()
        spread = statistic.influence() if min(statistic.strata) > 1 else None
    finite = np.isfinite(gains)
    if spread is not None:
        # A metric may be finite and cease to exist without one of its documents.
        finite &= np.isfinite(spread).all(axis=1)
    results = [_without_interval(float(gain), n, Outcome.NOT_FINITE) for gain in gains]
    rows = np.flatnonzero(finite).tolist()
    if rows:
        part = None if spread is None else spread[rows]
        asked = _Asked(seed, resamples, confidence, higher_is_better)
        found = _compare_finite(statistic.take(rows), part, asked)
        for row, comparison in zip(rows, found, strict=True):
            results[row] = comparison
    return tuple(results)


def _without_interval(gain: float, n: int, outcome: Outcome) -> Comparison:
    return Comparison(
        gain=gain,
        low=None,
        high=None,
        p=None,
        standard_error=None,
        n=n,
        outcome=outcome,
        method="",
        note=f"no interval: {outcome}",
    )


@dataclass(frozen=True, slots=True)
class _Asked:
    seed: int
    resamples: int
    confidence: float
    higher_is_better: bool | None


def _compare_finite(
    statistic: PairedStatistic, spread: Floats | None, asked: _Asked
) -> list[Comparison]:
    # Two streams, so that the number of bootstrap draws does not change the swaps.
    boot_rng, swap_rng = np.random.default_rng(asked.seed).spawn(2)
    gains = statistic.observed()
    with np.errstate(all="ignore"):  # a draw may overflow; `_at_least` says what becomes of it
        p_values, p_methods = _p_values(statistic, gains, asked.resamples, swap_rng)
    outcomes = _outcomes(statistic, gains, spread)
    errors = None if spread is None else _standard_errors(spread, statistic.strata)
    results = [
        Comparison(
            gain=float(gains[k]),
            low=None,
            high=None,
            p=p_values[k],
            standard_error=None if errors is None else float(errors[k]),
            n=sum(statistic.strata),
            outcome=outcomes[k],
            method=p_methods[k],
            note="" if outcomes[k] is Outcome.OK else f"no interval: {outcomes[k]}",
        )
        for k in range(len(gains))
    ]
    if min(statistic.strata) == 1:
        return results  # one document is the same on every draw
    drawn, baseline = _draw(statistic, asked.resamples, boot_rng)
    for k, outcome in enumerate(outcomes):
        if outcome in (Outcome.OK, Outcome.ONE_DIFFERS):
            one = None if spread is None else spread[k]
            results[k] = _with_interval(results[k], drawn[:, k], one, asked.confidence)
    results = _with_levels(results, drawn, baseline, asked.confidence)
    return _ranked(results, drawn, asked.higher_is_better)


def _with_levels(
    results: list[Comparison], drawn: Floats, baseline: Floats | None, confidence: float
) -> list[Comparison]:
    if baseline is None:
        return results
    return [
        replace(
            one,
            baseline=percentiles(baseline, confidence),
            adapter=percentiles(baseline + drawn[:, k], confidence),
        )
        for k, one in enumerate(results)
    ]


def _ranked(
    results: list[Comparison], drawn: Floats, higher_is_better: bool | None
) -> list[Comparison]:
    able = np.flatnonzero(np.isfinite(drawn).all(axis=0)).tolist()
    if not able:
        return results
    gains = np.asarray([results[k].gain for k in able])
    shrunk = shrink(gains, np.atleast_2d(np.cov(drawn[:, able].T)))
    shares = None
    # The best of some is not the best of all.
    if higher_is_better is not None and len(able) == len(results):
        shares = shares_of_best(drawn, higher_is_better=higher_is_better)
    done = list(results)
    for place, k in enumerate(able):
        done[k] = replace(
            results[k],
            shrunk=None if shrunk is None else float(shrunk[place]),
            p_best=None if shares is None else float(shares[place]),
        )
    return done


def _outcomes(statistic: PairedStatistic, gains: Floats, spread: Floats | None) -> list[Outcome]:
    outcomes = []
    for k, count in enumerate(statistic.differing().sum(axis=1).tolist()):
        scale = abs(float(gains[k])) / sum(statistic.strata)
        if count == 0:
            outcomes.append(Outcome.IDENTICAL)
        elif min(statistic.strata) == 1:
            outcomes.append(Outcome.ONE_DOCUMENT)
        elif spread is not None and float(np.abs(spread[k]).max()) <= TIE_TOLERANCE * scale:
            outcomes.append(Outcome.CONSTANT)
        else:
            outcomes.append(Outcome.ONE_DIFFERS if count == 1 else Outcome.OK)
    return outcomes


def _standard_errors(spread: Floats, strata: Sequence[int]) -> Floats:
    variance = np.zeros(len(spread))
    start = 0
    for n in strata:
        part = spread[:, start : start + n]
        variance += (part**2).sum(axis=1) * (n / (n - 1))
        start += n
    errors: Floats = np.sqrt(variance)
    return errors


def _p_values(
    statistic: PairedStatistic, gains: Floats, resamples: int, rng: np.random.Generator
) -> tuple[list[float], list[str]]:
    differing = statistic.differing()
    p_values = [1.0] * len(gains)
    methods = ["no document differs"] * len(gains)
    sampled = []
    for k in range(len(gains)):
        places = np.flatnonzero(differing[k])
        one = statistic.take([k])
        if len(places) == 0:
            continue
        if signs := _mcnemar_signs(one):
            p_values[k], methods[k] = mcnemar(*signs), "exact McNemar"
        elif 2 ** len(places) <= resamples + 1:
            hits = sum(
                int(_at_least(one.swapped(draws), gains[[k]]).sum())
                for draws in all_signs(places, differing.shape[1])
            )
            p_values[k], methods[k] = hits / 2 ** len(places), "exact swap test"
        else:
            sampled.append(k)
    if sampled:
        part = statistic.take(sampled)
        total = np.zeros(len(sampled), dtype=np.int64)
        for draws in random_signs(differing.shape[1], resamples, rng):
            total += _at_least(part.swapped(draws), gains[sampled]).sum(axis=0)
        for k, hits in zip(sampled, total.tolist(), strict=True):
            p_values[k], methods[k] = (1 + hits) / (1 + resamples), "sampled swap test"
    return p_values, methods


def _mcnemar_signs(one: PairedStatistic) -> tuple[int, int] | None:
    """Return both discordant counts if the swap test of this adapter is McNemar's exact test.

    That is so where every document weighs the same and every difference is -1, 0 or 1.
    """
    if not isinstance(one, MeanGain):
        return None
    shares = [w / n for w, n in zip(one.weights, one.strata, strict=True)]
    if max(shares) - min(shares) > TIE_TOLERANCE * max(shares):
        return None
    values = one.differences[0]
    if not np.isin(values, (-1.0, 0.0, 1.0)).all():
        return None
    return int((values > 0).sum()), int((values < 0).sum())


def _at_least(drawn: Floats, observed: Floats) -> Bools:
    bar = np.abs(observed) * (1 - TIE_TOLERANCE)
    # Where the metric is not finite on a draw, the draw counts as extreme: p must not shrink.
    extreme: Bools = ~(np.abs(drawn) < bar)
    return extreme


def _draw(
    statistic: PairedStatistic, resamples: int, rng: np.random.Generator
) -> tuple[Floats, Floats | None]:
    """Return the gains on bootstrap draws, shape (resamples, k), and the baseline's values."""
    draws, levels = [], []
    with np.errstate(all="ignore"):
        for counts in bootstrap_counts(statistic.strata, resamples, rng):
            draws.append(statistic.resampled(counts))
            level = statistic.resampled_baseline(counts)
            if level is not None:
                levels.append(level)
    return np.concatenate(draws), np.concatenate(levels) if levels else None


def _with_interval(
    comparison: Comparison, drawn: Floats, spread: Floats | None, confidence: float
) -> Comparison:
    if not np.isfinite(drawn).all():
        # F1 of a draw without positives, for instance: the metric does not exist there.
        return replace(comparison, note="no interval: the metric is not finite on some draws")
    if np.ptp(drawn) <= TIE_TOLERANCE * np.abs(drawn).max():
        return replace(comparison, note="no interval: the metric is the same on every draw")
    tail = (1 - confidence) / 2
    levels = None if spread is None else _bca_levels(drawn, comparison.gain, spread, tail)
    low, high = np.quantile(drawn, levels or (tail, 1 - tail)).tolist()
    error = comparison.standard_error
    method = "BCa bootstrap" if levels else "percentile bootstrap"
    return replace(
        comparison,
        low=low,
        high=high,
        standard_error=float(drawn.std(ddof=1)) if error is None else error,
        method=f"{comparison.method}, {method}",
        note="" if comparison.outcome is Outcome.OK else str(comparison.outcome),
    )


def _bca_levels(
    drawn: Floats, gain: float, spread: Floats, tail: float
) -> tuple[float, float] | None:
    """Return the quantile levels of the BCa interval, or None where they do not exist."""
    slack = TIE_TOLERANCE * float(np.abs(drawn).max())
    below = float(np.mean(drawn < gain - slack))
    at_most = float(np.mean(drawn <= gain + slack))
    share = (below + at_most) / 2
    if not 0.0 < share < 1.0:
        return None
    bias = float(special.ndtri(share))
    acceleration = float((spread**3).sum() / (6 * (spread**2).sum() ** 1.5))
    levels = []
    for z in (float(special.ndtri(tail)), float(special.ndtri(1 - tail))):
        shifted = bias + z
        scale = 1 - acceleration * shifted
        if scale <= 0.0:
            return None
        levels.append(float(special.ndtr(bias + shifted / scale)))
    return levels[0], levels[1]
