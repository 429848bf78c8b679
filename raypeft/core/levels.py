"""The interval of a subject's own value, baseline or adapter: how far luck alone may carry it.

- 0/1 metrics of single documents: Wilson's score interval (Wilson 1927, JASA 22:209; recommended
  by Brown, Cai & DasGupta 2001, Stat Sci 16:101). It says something at 0 % and 100 % too.
- Otherwise: percentiles of the bootstrap draws that the gain's interval is made from (Efron &
  Tibshirani 1993, ch. 13.3).

These intervals say how certain a value is by itself. Whether an adapter differs from its baseline
is told by the gain's interval alone, since both answered the same documents.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import stats

from raypeft.core.resampling import Floats


class Interval(NamedTuple):
    """Both ends of an interval; None where there is none."""

    low: float | None
    high: float | None


NO_INTERVAL = Interval(None, None)


def wilson(successes: float, n: int, confidence: float) -> Interval:
    """Return Wilson's score interval of a share."""
    if n < 1:
        return NO_INTERVAL
    z = float(stats.norm.isf((1 - confidence) / 2))
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(max(0.0, middle - half), min(1.0, middle + half))


def percentiles(drawn: Floats, confidence: float) -> Interval:
    """Return the percentile interval of bootstrap draws of a value."""
    if len(drawn) == 0 or not np.isfinite(drawn).all():
        return NO_INTERVAL
    if np.ptp(drawn) <= 1e-12 * np.abs(drawn).max():
        return NO_INTERVAL  # the same on every draw: nothing to tell a spread from
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, (tail, 1 - tail)).tolist()
    return Interval(low, high)
