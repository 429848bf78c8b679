"""How much worse or better an adapter may really be: margins, and tests against them.

Decides what a margin means, the one-sided tests of "worse than by a margin", and what they say of
equivalence (two one-sided tests: Schuirmann 1987, J Pharmacokinet Biopharm 15:657). Which rows are
tested, the correction and the verdict are decided by `families` and `gate`.

- 0/1 metrics of single documents: Tango's score test of paired shares (Tango 1998, Stat Med
  17:891). It stays honest where no or few documents differ: no loss in 20 documents does not rule
  out that 10 % are lost.
- Otherwise: Student's t with the standard error of the gain.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from scipy import optimize, stats

_PERCENT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*%\s*")

MARGIN_ALLOWED = 'a number above 0 (in the metric\'s unit), or a share of the baseline such as "2%"'


ALLOWS_ALL = (
    'allows everything, since this metric lies between 0 and 1; two hundredths are 0.02, and "2%" '
    "is a share of the baseline"
)
"""What is said of a margin that rules nothing out."""


@dataclass(frozen=True, slots=True)
class Margin:
    """The largest difference of a metric that is of no interest.

    Attributes:
        size: In the metric's unit, or as a share of the baseline's value.
        is_relative: Whether it is such a share.
    """

    size: float
    is_relative: bool = False

    def of(self, baseline: float | None) -> float | None:
        """Return the margin in the metric's unit; None where the baseline gives none."""
        if not self.is_relative:
            return self.size
        if baseline is None or not math.isfinite(baseline) or baseline == 0.0:
            return None
        return self.size * abs(baseline)


def parse_margin(value: object) -> Margin:
    """Return the margin that a sweep or policy gives.

    Raises:
        ValueError: Saying what is allowed.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        if math.isfinite(value) and value > 0:
            return Margin(float(value))
    elif isinstance(value, str) and (match := _PERCENT.fullmatch(value)):
        share = float(match[1]) / 100
        if share > 0:
            return Margin(share, is_relative=True)
    raise ValueError(f"is {value!r}, expected {MARGIN_ALLOWED}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a test against a margin needs of a gain. Better is up, whatever the metric.

    Attributes:
        gain: The gain; negative where the adapter is worse.
        standard_error: Of the gain; None or 0 where the data show no spread.
        num_units: Documents, or clusters where they stand together.
        wins: Documents where the adapter is better, for a 0/1 metric of single documents that all
            weigh the same; else None.
        losses: Documents where it is worse.
    """

    gain: float
    standard_error: float | None
    num_units: int
    wins: int | None = None
    losses: int | None = None


def p_not_worse(evidence: Evidence, margin: float) -> float | None:
    """Return the one-sided p-value of "worse by `margin` or more": small rules it out.

    A negative margin asks whether the adapter is better by that much. None where the data show no
    spread, so that nothing can be ruled out.
    """
    if evidence.wins is not None and evidence.losses is not None:
        if margin >= 1.0:
            return 0.0
        score = _tango(evidence.wins, evidence.losses, evidence.num_units, -margin)
        return None if score is None else float(stats.norm.sf(score))
    error = evidence.standard_error
    if error is None or not math.isfinite(error) or error <= 0.0 or evidence.num_units < 2:
        return None
    return float(stats.t.sf((evidence.gain + margin) / error, evidence.num_units - 1))


def p_equivalent(evidence: Evidence, margin: float) -> float | None:
    """Return the p-value of two one-sided tests that the gain lies within the margin."""
    both = (p_not_worse(evidence, margin), p_not_worse(_mirrored(evidence), margin))
    known = [p for p in both if p is not None]
    return max(known) if len(known) == 2 else None


def worst_case(evidence: Evidence, alpha: float) -> float | None:
    """Return the one-sided lower bound of the gain at level 1 - alpha; None without spread."""
    if evidence.wins is not None and evidence.losses is not None:
        return _tango_bound(evidence, alpha)
    error = evidence.standard_error
    if error is None or not math.isfinite(error) or error <= 0.0 or evidence.num_units < 2:
        return None
    return evidence.gain - float(stats.t.isf(alpha, evidence.num_units - 1)) * error


def best_case(evidence: Evidence, alpha: float) -> float | None:
    """Return the one-sided upper bound of the gain at level 1 - alpha; None without spread."""
    bound = worst_case(_mirrored(evidence), alpha)
    return None if bound is None else -bound


def _mirrored(evidence: Evidence) -> Evidence:
    return Evidence(
        gain=-evidence.gain,
        standard_error=evidence.standard_error,
        num_units=evidence.num_units,
        wins=evidence.losses,
        losses=evidence.wins,
    )


def _tango(wins: int, losses: int, n: int, difference: float) -> float | None:
    """Return Tango's score of the true difference of shares being `difference`."""
    if n < 1 or not -1.0 < difference < 1.0:
        return None
    # The share of losses under this difference: the root of 2n q^2 + b q + c (Tango's eq. 11).
    b = -wins - losses + (2 * n - wins + losses) * difference
    c = -losses * difference * (1 - difference)
    q = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
    variance = n * (2 * q + difference * (1 - difference))
    distance = wins - losses - n * difference
    if variance <= 0.0:
        return None if distance == 0.0 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def _tango_bound(evidence: Evidence, alpha: float) -> float | None:
    wins, losses, n = evidence.wins or 0, evidence.losses or 0, evidence.num_units
    if n < 1:
        return None
    wanted = float(stats.norm.isf(alpha))

    def excess(difference: float) -> float:
        score = _tango(wins, losses, n, difference)
        return (0.0 if score is None else min(score, 1e9)) - wanted

    low, high = -1.0 + 1e-9, (wins - losses) / n
    if excess(low) <= 0.0:
        return -1.0
    if high <= low:
        return -1.0
    return float(optimize.brentq(excess, low, high, xtol=1e-10))


def evidence_of(row: Mapping[str, object]) -> Evidence | None:
    """Return the evidence in a row of the gains table; None where there is no gain or direction.

    Counts are used only where every document weighs the same, which the method says.
    """
    gain, direction = row["gain"], row["higher_is_better"]
    if not isinstance(gain, int | float) or not isinstance(direction, bool):
        return None
    clusters, n = row["num_clusters"], row["n"]
    assert isinstance(n, int)
    method = str(row["method"])
    # Where no document of a group differs, nothing says whether its tasks weigh the same.
    nothing = method.startswith("no document differs") and row["is_group"] is False
    counted = clusters is None and (method.startswith("exact McNemar") or nothing)
    wins, losses = row["wins"], row["losses"]
    error = row["standard_error"]
    return Evidence(
        gain=gain if direction else -gain,
        standard_error=error if isinstance(error, float) else None,
        num_units=clusters if isinstance(clusters, int) else n,
        wins=wins if counted and isinstance(wins, int) else None,
        losses=losses if counted and isinstance(losses, int) else None,
    )
