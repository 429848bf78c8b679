"""Paired statistics that can be resampled: how a gain is recomputed on other draws of documents.

Decides the arithmetic of three kinds of gain: differences of (weighted) means, differences of
functions of sums (perplexity, F1 and their like), and differences of any aggregate computed from a
list. Each handles several adapters of one baseline at once, so that all of them see the same
draws. What is made of the draws (intervals, p-values, verdicts) is left to `stats` and `gains`.

Throughout, `n` is the number of documents and `k` the number of adapters; a draw is a vector of
`n` counts (bootstrap: how often each document was drawn) or of `n` signs (randomisation: -1 where
baseline and adapter swap their values).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from raypeft.core.records import Json

Floats: TypeAlias = npt.NDArray[np.float64]
Bools: TypeAlias = npt.NDArray[np.bool_]

BATCH_ELEMENTS = 4_000_000
"""Elements of one batch of draws (32 MB as float64): bounds memory, whatever `n` is."""


GRADIENT_STEP = 1e-5
"""Relative step of a slope: about the cube root of float64's precision, the best for a central
difference."""


class PairedStatistic(Protocol):
    """A gain of each of `k` adapters over one baseline, on `n` shared documents."""

    @property
    def strata(self) -> tuple[int, ...]:
        """Documents of each stratum (task of a group), in order; they add up to `n`."""
        ...

    def observed(self) -> Floats:
        """Return the gains on the documents as they are, shape (k,)."""
        ...

    def differing(self) -> Bools:
        """Return where baseline and adapter differ, shape (k, n)."""
        ...

    def resampled(self, counts: Floats) -> Floats:
        """Return the gains where documents count `counts` (b, n) times, shape (b, k)."""
        ...

    def swapped(self, signs: Floats) -> Floats:
        """Return the gains where values are swapped at `signs` (b, n) of -1, shape (b, k)."""
        ...

    def resampled_baseline(self, counts: Floats) -> Floats | None:
        """Return the baseline's own value on the same draws, shape (b,); None if not known."""
        ...

    def swap_scale(self) -> Floats | None:
        """Return the spread of the gains under random swaps, shape (k,), or its linearisation.

        It depends only on what swaps leave as it is, so that dividing by it keeps a swap test
        exact. None where it is too slow to compute.
        """
        ...

    def influence(self) -> Floats | None:
        """Return each document's jackknife influence on the gains, shape (k, n).

        Scaled so that n/(n-1) times the sum of squares in a stratum is its share of the variance.
        None where it is too slow to compute.
        """
        ...

    def take(self, adapters: Sequence[int]) -> "PairedStatistic":
        """Return the same statistic for some of the adapters."""
        ...


@dataclass(frozen=True, slots=True)
class MeanGain:
    """The difference of two means; with several strata, of two weighted means of means.

    Attributes:
        differences: Adapter minus baseline for each document, shape (k, n), stratum by stratum.
        strata: Documents of each stratum.
        weights: Weight of each stratum's mean; they add up to 1.
        baseline: The baseline's values, shape (n,); None leaves its own interval out.
    """

    differences: Floats
    strata: tuple[int, ...]
    weights: tuple[float, ...] = (1.0,)
    baseline: Floats | None = None

    def _coefficients(self) -> Floats:
        shares = [w / n for w, n in zip(self.weights, self.strata, strict=True)]
        return np.repeat(np.asarray(shares, dtype=np.float64), self.strata)

    def _weighted_sums(self, draws: Floats) -> Floats:
        if len(self.strata) == 1:
            # Sums of whole numbers are exact, so that ties in 0/1 metrics stay ties.
            total: Floats = draws @ self.differences.T
            return total * (self.weights[0] / self.strata[0])
        weighted: Floats = draws @ (self.differences * self._coefficients()).T
        return weighted

    def observed(self) -> Floats:
        """See `PairedStatistic`."""
        gains: Floats = self._weighted_sums(np.ones((1, self.differences.shape[1])))[0]
        return gains

    def differing(self) -> Bools:
        """See `PairedStatistic`."""
        places: Bools = self.differences != 0.0
        return places

    def resampled(self, counts: Floats) -> Floats:
        """See `PairedStatistic`."""
        return self._weighted_sums(counts)

    def swapped(self, signs: Floats) -> Floats:
        """See `PairedStatistic`."""
        return self._weighted_sums(signs)

    def resampled_baseline(self, counts: Floats) -> Floats | None:
        """See `PairedStatistic`."""
        return None if self.baseline is None else counts @ (self.baseline * self._coefficients())

    def swap_scale(self) -> Floats:
        """See `PairedStatistic`: exact, since swaps are independent."""
        scale: Floats = np.sqrt(((self.differences * self._coefficients()) ** 2).sum(axis=1))
        return scale

    def influence(self) -> Floats:
        """See `PairedStatistic`."""
        parts = []
        start = 0
        for size in self.strata:
            part = self.differences[:, start : start + size]
            parts.append(part - part.mean(axis=1, keepdims=True))
            start += size
        centred: Floats = np.concatenate(parts, axis=1) * self._coefficients()
        return centred

    def take(self, adapters: Sequence[int]) -> "MeanGain":
        """See `PairedStatistic`."""
        rows = self.differences[list(adapters)]
        return MeanGain(rows, self.strata, self.weights, self.baseline)


@dataclass(frozen=True, slots=True)
class SumsGain:
    """The difference of `finish(sums over the documents)` of two sides.

    Perplexity, bits per byte, F1 and Matthews' correlation are of this kind: each document adds a
    few numbers (log-likelihood and weight, or what it is in the confusion matrix).

    Attributes:
        baseline: What each document adds, shape (n, m).
        adapters: The same for the adapters, shape (k, n, m).
        finish: Turns sums of shape (..., m) into metrics of shape (...).
    """

    baseline: Floats
    adapters: Floats
    finish: Callable[[Floats], Floats]

    @property
    def strata(self) -> tuple[int, ...]:
        """See `PairedStatistic`."""
        return (len(self.baseline),)

    def observed(self) -> Floats:
        """See `PairedStatistic`."""
        gains: Floats = self.resampled(np.ones((1, len(self.baseline))))[0]
        return gains

    def differing(self) -> Bools:
        """See `PairedStatistic`."""
        places: Bools = (self.adapters != self.baseline).any(axis=2)
        return places

    def resampled(self, counts: Floats) -> Floats:
        """See `PairedStatistic`."""
        base = self.finish(counts @ self.baseline)
        over = self.finish(np.matmul(counts, self.adapters))
        return (over - base).T

    def swapped(self, signs: Floats) -> Floats:
        """See `PairedStatistic`."""
        middle = (self.adapters + self.baseline).sum(axis=1)[:, None, :] / 2
        half = np.matmul(signs, (self.adapters - self.baseline) / 2)
        gains: Floats = (self.finish(middle + half) - self.finish(middle - half)).T
        return gains

    def resampled_baseline(self, counts: Floats) -> Floats:
        """See `PairedStatistic`."""
        return self.finish(counts @ self.baseline)

    def swap_scale(self) -> Floats:
        """See `PairedStatistic`: linearised at the middle of both sides, which swaps keep."""
        middle = (self.adapters + self.baseline).sum(axis=1) / 2
        slopes = np.empty_like(middle)
        for j in range(middle.shape[1]):
            step = np.zeros_like(middle)
            step[:, j] = GRADIENT_STEP * (np.abs(middle[:, j]) + 1.0)
            rise = self.finish(middle + step) - self.finish(middle - step)
            slopes[:, j] = rise / (2 * step[:, j])
        effects = np.einsum("knm,km->kn", self.adapters - self.baseline, slopes)
        scale: Floats = np.sqrt((effects**2).sum(axis=1))
        return scale

    def influence(self) -> Floats:
        """See `PairedStatistic`."""
        base = self.finish(self.baseline.sum(axis=0) - self.baseline)
        over = self.finish(self.adapters.sum(axis=1, keepdims=True) - self.adapters)
        left_out = over - base
        n = left_out.shape[1]
        centred: Floats = (left_out.mean(axis=1, keepdims=True) - left_out) * ((n - 1) / n)
        return centred

    def take(self, adapters: Sequence[int]) -> "SumsGain":
        """See `PairedStatistic`."""
        return SumsGain(self.baseline, self.adapters[list(adapters)], self.finish)


@dataclass(frozen=True, slots=True)
class AggregateGain:
    """The difference of any aggregate of a list of per-document values (BLEU, chrF, …).

    Every draw computes the aggregate anew, so it is as slow as the aggregate is.

    Attributes:
        baseline: Values of the baseline, n of them, whatever the aggregate takes.
        adapters: Values of the adapters, k lists of n.
        aggregate: Turns a list of values into a number.
    """

    baseline: Sequence[Json]
    adapters: Sequence[Sequence[Json]]
    aggregate: Callable[[list[Json]], float]

    @property
    def strata(self) -> tuple[int, ...]:
        """See `PairedStatistic`."""
        return (len(self.baseline),)

    def observed(self) -> Floats:
        """See `PairedStatistic`."""
        gains: Floats = self.resampled(np.ones((1, len(self.baseline))))[0]
        return gains

    def differing(self) -> Bools:
        """See `PairedStatistic`."""
        rows = [
            [a != b for a, b in zip(values, self.baseline, strict=True)] for values in self.adapters
        ]
        return np.asarray(rows, dtype=np.bool_).reshape(len(self.adapters), len(self.baseline))

    def resampled(self, counts: Floats) -> Floats:
        """See `PairedStatistic`."""
        rows = []
        for draw in counts:
            picks = np.repeat(np.arange(len(draw)), draw.astype(np.int64)).tolist()
            base = self.aggregate([self.baseline[i] for i in picks])
            rows.append([self.aggregate([v[i] for i in picks]) - base for v in self.adapters])
        return np.asarray(rows, dtype=np.float64)

    def swapped(self, signs: Floats) -> Floats:
        """See `PairedStatistic`."""
        rows = []
        for draw in signs:
            keep = (draw > 0).tolist()
            row = []
            for values in self.adapters:
                both = list(zip(keep, self.baseline, values, strict=True))
                base = self.aggregate([b if kept else v for kept, b, v in both])
                row.append(self.aggregate([v if kept else b for kept, b, v in both]) - base)
            rows.append(row)
        return np.asarray(rows, dtype=np.float64)

    def resampled_baseline(self, counts: Floats) -> Floats:
        """See `PairedStatistic`."""
        values = []
        for draw in counts:
            picks = np.repeat(np.arange(len(draw)), draw.astype(np.int64)).tolist()
            values.append(self.aggregate([self.baseline[i] for i in picks]))
        return np.asarray(values, dtype=np.float64)

    def swap_scale(self) -> None:
        """See `PairedStatistic`."""
        return None

    def influence(self) -> None:
        """See `PairedStatistic`: None, since n aggregates of n documents are too slow."""
        return None

    def take(self, adapters: Sequence[int]) -> "AggregateGain":
        """See `PairedStatistic`."""
        return AggregateGain(self.baseline, [self.adapters[i] for i in adapters], self.aggregate)


def bootstrap_counts(
    strata: Sequence[int], resamples: int, rng: np.random.Generator
) -> Iterator[Floats]:
    """Yield batches of bootstrap draws: how often each document was drawn, stratum by stratum.

    With one stratum the drawn documents are those that `scipy.stats.bootstrap` draws from the same
    generator.
    """
    for size in _batches(resamples, sum(strata)):
        parts = []
        for n in strata:
            picks = rng.integers(0, n, (size, n))
            picks += np.arange(size)[:, None] * n
            flat = np.bincount(picks.ravel(), minlength=size * n)
            parts.append(flat.reshape(size, n))
        yield np.concatenate(parts, axis=1).astype(np.float64)


def random_signs(n: int, resamples: int, rng: np.random.Generator) -> Iterator[Floats]:
    """Yield batches of random sign vectors."""
    for size in _batches(resamples, n):
        signs: Floats = rng.integers(0, 2, (size, n), dtype=np.int8).astype(np.float64)
        yield signs * 2.0 - 1.0


def all_signs(places: npt.NDArray[np.intp], n: int) -> Iterator[Floats]:
    """Yield batches of every sign vector that differs from all +1 at `places` only."""
    total = 2 ** len(places)
    start = 0
    for size in _batches(total, n):
        codes = np.arange(start, start + size)[:, None]
        signs = np.ones((size, n))
        signs[:, places] = 1.0 - 2.0 * ((codes >> np.arange(len(places))) & 1)
        start += size
        yield signs


def _batches(total: int, n: int) -> Iterator[int]:
    rows = max(1, BATCH_ELEMENTS // max(1, n))
    while total > 0:
        size = min(rows, total)
        yield size
        total -= size
