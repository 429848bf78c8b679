"""Which adapter is best, and what to expect of it: ranking against the winner's curse.

Decides how the gains of several adapters over one baseline are shrunk towards each other, and how
likely each is the best. Pure arithmetic on gains and their joint draws.

The adapter that came out best did so partly by luck, so its gain overstates it. The gains are
therefore taken as draws of a normal distribution of true gains, whose mean and spread are
estimated from them (empirical Bayes: Efron & Morris 1975, "Data analysis using Stein's estimator",
JASA 70:311; the spread by restricted maximum likelihood: Patterson & Thompson 1971, Biometrika
58:545). The errors share the baseline's luck, so their whole covariance enters, not only the
standard errors: what moves all adapters alike tells nothing about which is best.
"""

import numpy as np
from scipy import optimize

from raypeft.core.resampling import Floats

MIN_ADAPTERS = 3
"""Two gains say next to nothing about the spread of true gains."""

EQUAL_GAINS = 1e-6
"""Relative to the largest: gains that differ by less share a rank."""

NO_ERROR = 1e-10
"""Relative: a variance below is that of rounding."""


def shrink(gains: Floats, covariance: Floats) -> Floats | None:
    """Return the gains as expected on new documents; None for fewer than `MIN_ADAPTERS`.

    Args:
        gains: Of k adapters over one baseline. Those that answer alike count as one.
        covariance: Of their errors, shape (k, k).
    """
    k = len(gains)
    if k < MIN_ADAPTERS or not (np.isfinite(gains).all() and np.isfinite(covariance).all()):
        return None
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    values = np.clip(values, 0.0, None)
    ones, turned = vectors.T @ np.ones(k), vectors.T @ gains
    telling = _telling(turned, ones, values)
    if values.max() > 0.0 and len(telling[0]) < MIN_ADAPTERS:
        return None
    spread = _spread(*telling, float(np.var(gains)))
    variances = values + spread
    if float(variances.max()) <= 0.0:
        return gains.copy()  # no error at all, so nothing to shrink
    mean = _mean(turned, ones, variances)
    rest = turned - mean * ones
    kept = np.divide(spread, variances, out=np.ones(k), where=variances > 0.0)
    shrunk: Floats = mean + vectors @ (kept * rest)
    return shrunk


def _telling(turned: Floats, ones: Floats, values: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the directions that tell of the spread: those with errors, and one of the rest.

    Adapters that answer alike, or as the baseline does, differ without any error. Taken for draws
    of true gains, they would make the spread of all the others 0. Of the directions without errors
    stays the one in which all of their adapters move together.
    """
    exact = values <= values.max() * NO_ERROR
    if exact.all():
        return turned, ones, values
    shared = float(np.sqrt((ones[exact] ** 2).sum()))
    parts = [turned[~exact], ones[~exact], values[~exact]]
    if shared > np.sqrt(NO_ERROR):
        along = float((turned[exact] * ones[exact]).sum()) / shared
        ends = (along, shared, 0.0)
        parts = [np.append(part, end) for part, end in zip(parts, ends, strict=True)]
    return parts[0], parts[1], parts[2]


def _mean(turned: Floats, ones: Floats, variances: Floats) -> float:
    weights = 1.0 / np.maximum(variances, variances.max() * 1e-12)
    return float((weights * ones * turned).sum() / (weights * ones**2).sum())


def _spread(turned: Floats, ones: Floats, values: Floats, largest: float) -> float:
    """Return the variance of the true gains by restricted maximum likelihood."""
    # Adapters without any error would make the likelihood infinite at 0.
    floor = max(float(values.max()), largest) * 1e-9
    if floor <= 0.0:
        return 0.0

    def loss(spread: float) -> float:
        variances = values + spread + floor
        mean = _mean(turned, ones, variances)
        rest = turned - mean * ones
        information = float((ones**2 / variances).sum())
        return float(np.log(variances).sum() + np.log(information) + (rest**2 / variances).sum())

    top = 4.0 * largest + floor
    found = optimize.minimize_scalar(
        loss, bounds=(0.0, top), method="bounded", options={"xatol": top * 1e-7}
    )
    # The bounded search never tries its ends.
    return 0.0 if loss(0.0) <= float(found.fun) else float(found.x)


def shares_of_best(drawn: Floats, *, higher_is_better: bool) -> Floats:
    """Return for each adapter the share of draws on which it is best, baseline included.

    Args:
        drawn: Gains on joint draws of documents, shape (b, k); the baseline's is 0.
        higher_is_better: Direction. Ties share a draw.
    """
    better = drawn if higher_is_better else -drawn
    everyone = np.concatenate([np.zeros((len(better), 1)), better], axis=1)
    scale = np.abs(everyone).max(axis=1, keepdims=True)
    is_top = everyone >= everyone.max(axis=1, keepdims=True) - 1e-12 * scale
    shares: Floats = (is_top / is_top.sum(axis=1, keepdims=True)).mean(axis=0)[1:]
    return shares


def ranks(gains: Floats, *, higher_is_better: bool, size: float = 0.0) -> list[int]:
    """Return each adapter's rank, 1 for the best; equal gains share the better rank.

    Gains that were shrunk to one value differ by rounding, which depends on the adapters' order.

    Args:
        gains: Shrunk or not.
        higher_is_better: Direction.
        size: The largest gain before shrinking, either way.
    """
    better = gains if higher_is_better else -gains
    slack = EQUAL_GAINS * max(size, float(np.abs(better).max(initial=0.0)))
    return [1 + int((better > one + slack).sum()) for one in better]
