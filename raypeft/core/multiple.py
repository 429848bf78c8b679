"""Corrections of many tests: max-T step-down and false-discovery rate. Holm's is in `stats`.

Decides arithmetic only; which tests form a family is decided by `families`.

- max-T step-down: Westfall & Young 1993, "Resampling-Based Multiple Testing", algorithm 4.1. All
  rows of a family see the same swaps of the same documents, so that correlation between adapters
  (they share a baseline) costs no power. Each gain is divided by its spread under swaps, which
  swaps leave as it is. Each row by itself is an exact test where baseline and adapter can be
  exchanged; several rows together are so up to third moments, which vanish as documents grow.
- False-discovery rate: Benjamini & Hochberg 1995, J R Stat Soc B 57:289; holds for independent
  and positively dependent tests (Benjamini & Yekutieli 2001).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from raypeft.core.identity import digest
from raypeft.core.resampling import BATCH_ELEMENTS, Floats, PairedStatistic

TIE_TOLERANCE = 1e-9
"""Relative: sums in another order differ by rounding, and ties must count as hits."""


@dataclass(frozen=True, slots=True)
class FamilyColumn:
    """Some adapters of one baseline on one task or group, of one family.

    Attributes:
        statistic: Their gains.
        units: What the documents of each stratum are known by. Strata of equal names and sizes
            are swapped alike, in all rows of the family.
    """

    statistic: PairedStatistic
    units: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StepDown:
    """What max-T found.

    Attributes:
        p: Corrected p-values, one for each adapter of each `FamilyColumn`, in order.
        critical: What the largest gain of the family, in units of its spread, must exceed at the
            first step.
    """

    p: tuple[float, ...]
    critical: float


def false_discovery(p_values: Sequence[float]) -> tuple[float, ...]:
    """Return Benjamini and Hochberg's corrected p-values, in the order given."""
    if not p_values:
        return ()
    return tuple(np.atleast_1d(stats.false_discovery_control(p_values, method="bh")).tolist())


def max_t(
    family: Sequence[FamilyColumn], *, seed: int, resamples: int, alpha: float
) -> StepDown | None:
    """Return max-T corrected p-values; None where a row has no usable spread under swaps.

    Rows that no swap changes have p 1 and touch no other.

    Args:
        family: What is tested together.
        seed: Seed of the swaps.
        resamples: Number of swaps.
        alpha: Level of `StepDown.critical`.
    """
    with np.errstate(all="ignore"):  # what is not finite has no usable spread
        scales = _scales(family)
        if scales is None:
            return None
        gains = np.concatenate([one.statistic.observed() for one in family])
        observed = np.divide(np.abs(gains), scales, out=np.zeros_like(gains), where=scales > 0)
        order = np.argsort(observed, kind="stable")  # the smallest first
        bars = observed[order] * (1 - TIE_TOLERANCE)
        hits = np.zeros(len(gains), dtype=np.int64)
        tops = []
        for drawn in _swapped(family, seed, resamples):
            drawn /= np.where(scales > 0, scales, np.inf)
            values = np.abs(drawn[:, order])
            values[np.isnan(values)] = np.inf
            np.maximum.accumulate(values, axis=1, out=values)
            hits += (values >= bars).sum(axis=0)
            tops.append(values[:, -1].copy())
    p_sorted = (1 + hits) / (1 + resamples)
    p_sorted = np.maximum.accumulate(p_sorted[::-1])[::-1]
    p_values = np.empty_like(p_sorted)
    p_values[order] = p_sorted
    p_values[scales == 0] = 1.0
    critical = float(np.quantile(np.concatenate(tops), 1 - alpha, method="higher"))
    return StepDown(tuple(p_values.tolist()), critical)


def _scales(family: Sequence[FamilyColumn]) -> Floats | None:
    found = []
    for one in family:
        scale = one.statistic.swap_scale()
        if scale is None:
            return None
        differs = one.statistic.differing().any(axis=1)
        if not np.isfinite(scale).all() or (differs & ~(scale > 0)).any():
            return None
        found.append(np.where(differs, scale, 0.0))
    scales: Floats = np.concatenate(found)
    return scales


def _swapped(family: Sequence[FamilyColumn], seed: int, resamples: int) -> Iterator[Floats]:
    """Yield batches of all gains of a family under swaps, shape (b, rows)."""
    sizes = {
        (name, size): None
        for one in family
        for name, size in zip(one.units, one.statistic.strata, strict=True)
    }
    streams = {
        (name, size): np.random.default_rng(int(digest("swaps", 1, [seed, name, size]), 16))
        for name, size in sizes
    }
    num_rows = sum(len(one.statistic.differing()) for one in family)
    widest = max(num_rows, *(sum(one.statistic.strata) for one in family))
    num_units = sum(size for _, size in sizes)
    # Signs are kept as bytes for all units; as floats for one `FamilyColumn` at a time.
    batch = max(1, min(BATCH_ELEMENTS // widest, 8 * BATCH_ELEMENTS // num_units))
    done = 0
    while done < resamples:
        num = min(batch, resamples - done)
        signs = {
            unit: rng.integers(0, 2, (num, unit[1]), dtype=np.int8) for unit, rng in streams.items()
        }
        yield np.concatenate([_of_one(one, signs) for one in family], axis=1)
        done += num


def _of_one(one: FamilyColumn, signs: Mapping[tuple[str, int], npt.NDArray[np.int8]]) -> Floats:
    units = zip(one.units, one.statistic.strata, strict=True)
    joined = np.concatenate([signs[unit] for unit in units], axis=1).astype(np.float64)
    joined *= 2.0
    joined -= 1.0
    return one.statistic.swapped(joined)
