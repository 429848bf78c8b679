"""Looks at an adapter while it is being evaluated: may it be stopped, since it is hopeless?

Decides that from the documents answered so far, such that one may look after every document and
the error rate still holds. Which adapters are looked at and what stopping means is the schedule's
business; nothing here is on by default.

The method is a test by betting (Waudby-Smith & Ramdas 2023, "Estimating means of bounded random
variables by betting", J R Stat Soc B 86:1, with the bets of their section B.3, "aGRAPA"): capital
is bet, document by document, against "the true gain is `least_gain` or more". Were that so, the
capital could not be expected to grow, and by Ville's inequality (1939) would reach 1/alpha at any
time at all with a chance of at most alpha. The bound that is shown is their empirical-Bernstein
confidence sequence (their theorem 2), valid at all times as well.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from raypeft.core.resampling import Floats

LARGEST_BET = 0.5
"""Share of the largest bet that cannot go bankrupt; the value that the source recommends."""


@dataclass(frozen=True, slots=True)
class Look:
    """What one look found.

    Attributes:
        stops: Whether the adapter is hopeless.
        num_documents: Documents looked at; where it stops, those after which it could have.
        gain: Mean difference so far; None without documents.
        upper: Bound above the true gain, at all times at once with chance 1 - alpha.
        reason: In words, for the journal and the tables.
    """

    stops: bool
    num_documents: int
    gain: float | None
    upper: float | None
    reason: str


def document_order(doc_ids: Sequence[int], seed: int) -> list[int]:
    """Return documents in the order in which they must be answered to be looked at.

    The order is random, so that the first documents stand for all of them; the same for the
    baseline and all adapters, so that differences are paired.
    """
    ids = sorted(doc_ids)
    Random(seed).shuffle(ids)
    return ids


def should_stop(
    differences: Sequence[float],
    *,
    alpha: float,
    least_gain: float,
    largest: float = 1.0,
    num_tests: int = 1,
) -> Look:
    """Return whether an adapter may be stopped, after the documents answered so far.

    Contract: `differences` begin like those of every earlier look at this adapter and task, in the
    order of `document_order`; each is adapter minus baseline, turned so that more is better, and
    lies within ±`largest`. One may ask at any time and as often as one likes: an adapter whose true
    gain is at least `least_gain` is stopped with a chance of at most `alpha`/`num_tests`, so that
    the chance of stopping any such one among `num_tests` is at most `alpha`.

    Whoever is stopped gets no verdict "gain", so stopping adds no false gains. Its gain so far must
    not be reported as that of the whole task: it was looked at when it was low.

    Args:
        differences: Of the documents so far.
        alpha: See above.
        least_gain: The smallest gain worth waiting for; 0 stops only what is worse than the base.
        largest: The largest difference that a document can have; 1 for metrics from 0 to 1.
        num_tests: Adapters times tasks that are looked at.

    Raises:
        ValueError: If a difference is not finite or too large, or a setting makes no sense.
    """
    values = np.asarray(differences, dtype=np.float64)
    _check(values, alpha, least_gain, largest, num_tests)
    n = len(values)
    if n == 0:
        return Look(False, 0, None, None, "no document yet")
    level = alpha / num_tests
    shares, bar = (values / largest + 1) / 2, (least_gain / largest + 1) / 2
    mean, upper = float(values.mean()), _upper(shares, level)
    bound = largest * (2 * upper - 1)
    reached = np.flatnonzero(_log_capital(shares, bar) >= -math.log(level))
    if len(reached) == 0:
        reason = f"a gain of {least_gain:.4g} is possible after {n} documents"
        return Look(False, n, mean, bound, reason)
    first = int(reached[0]) + 1
    reason = (
        f"hopeless after {first} documents: a gain of {least_gain:.4g} or more is ruled out at "
        f"level {level:.3g} at all times (mean difference so far: {values[:first].mean():+.4g})"
    )
    return Look(True, first, mean, bound, reason)


def _check(values: Floats, alpha: float, least_gain: float, largest: float, num_tests: int) -> None:
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha is {alpha}, expected a share above 0 and below 1")
    if num_tests < 1:
        raise ValueError(f"num_tests is {num_tests}, expected 1 or more")
    if not (math.isfinite(largest) and largest > 0.0):
        raise ValueError(f"largest is {largest}, expected a number above 0")
    if not -largest < least_gain < largest:
        raise ValueError(f"least_gain is {least_gain}, expected less than {largest} either way")
    odd = np.flatnonzero(~(np.abs(values) <= largest))
    if len(odd):
        raise ValueError(
            f"difference {odd[0]} is {values[odd[0]]}, expected one within ±{largest}; looks are "
            "for metrics whose values per document are bounded"
        )


def _log_capital(shares: Floats, bar: float) -> Floats:
    """Return the logarithm of the capital after each document; shares lie in [0, 1]."""
    means, variances = _before(shares)
    distance = bar - means
    bets = np.clip(distance / (variances + distance**2), 0.0, LARGEST_BET / (1 - bar))
    growth: Floats = np.cumsum(np.log1p(bets * (bar - shares)))
    return growth


def _before(shares: Floats) -> tuple[Floats, Floats]:
    """Return mean and variance before each document, with half a document at 1/2 to begin with."""
    counts = np.arange(1, len(shares) + 1)
    means = (0.5 + np.cumsum(shares)) / (counts + 1)
    squares = np.cumsum((shares - means) ** 2)
    variances = (0.25 + squares) / (counts + 1)
    return np.concatenate([[0.5], means[:-1]]), np.concatenate([[0.25], variances[:-1]])


def _upper(shares: Floats, level: float) -> float:
    """Return the smallest upper bound so far of the empirical-Bernstein confidence sequence."""
    means, variances = _before(shares)
    counts = np.arange(1, len(shares) + 1)
    wanted = -math.log(level)
    bets = np.minimum(np.sqrt(2 * wanted / (variances * counts * np.log1p(counts))), LARGEST_BET)
    costs = (shares - means) ** 2 * (-np.log1p(-bets) - bets)
    total = np.cumsum(bets)
    bounds = (np.cumsum(bets * shares) + wanted + np.cumsum(costs)) / total
    return float(min(1.0, bounds.min()))
