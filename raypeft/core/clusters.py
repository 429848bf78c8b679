"""Documents that belong together (a shared passage, repeats): drawn and swapped as one.

Decides how documents become clusters, and the gain of means over clusters of unequal size. Other
statistics need nothing of their own: sums are added up within each cluster, lists are joined.

A mean over drawn clusters is a ratio, sum over size; its jackknife leaves out whole clusters and
is the cluster-robust standard error (Cameron & Miller 2015, "A Practitioner's Guide to
Cluster-Robust Inference", J Hum Resour 50:317; Miller 2024, arXiv 2411.00640, for evaluations).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from raypeft.core.identity import canonical
from raypeft.core.records import Document, Json
from raypeft.core.resampling import Bools, Floats

Codes: TypeAlias = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Clusters:
    """Which documents of a request set belong together.

    Attributes:
        by_document: For each doc_id the name of its cluster.
        problem: Why that is not known, although the sweep asks for clusters; else empty.
    """

    by_document: Mapping[int, str]
    problem: str = ""


def clusters_of(documents: Sequence[Document], field: str) -> Clusters:
    """Return the clusters of documents that share the value of a field.

    Args:
        documents: All documents of a request set.
        field: Name of the field; dots lead into nested mappings.
    """
    found: dict[int, str] = {}
    for document in documents:
        value: Json = document.doc
        for name in field.split("."):
            if not isinstance(value, Mapping) or name not in value:
                known = ", ".join(sorted(map(str, value))) if isinstance(value, Mapping) else "none"
                problem = (
                    f"document {document.doc_id} has no field {field!r}, which the sweep names as "
                    f"`cluster`; its fields are {known}"
                )
                return Clusters({}, problem)
            value = value[name]
        found[document.doc_id] = canonical(value)
    return Clusters(found)


def codes_of(names: Sequence[str]) -> Codes:
    """Return each document's cluster as a number from 0, in the order of the names."""
    _, codes = np.unique(np.asarray(names, dtype=np.str_), return_inverse=True)
    return codes.reshape(-1)


def summed(terms: Floats, codes: Codes) -> Floats:
    """Return what the documents of each cluster add together; documents are the first axis."""
    total = np.zeros((int(codes.max()) + 1, *terms.shape[1:]))
    np.add.at(total, codes, terms)
    return total


def joined(values: Sequence[Json], codes: Codes) -> list[Json]:
    """Return the values of each cluster as a list."""
    lists: list[list[Json]] = [[] for _ in range(int(codes.max()) + 1)]
    for value, code in zip(values, codes.tolist(), strict=True):
        lists[code].append(value)
    return list(lists)


def over_joined(aggregate: Callable[[list[Json]], float]) -> Callable[[list[Json]], float]:
    """Return an aggregate of values as one of clusters' lists of values."""
    return lambda lists: aggregate([value for values in lists for value in values])


@dataclass(frozen=True, slots=True)
class ClusterMeanGain:
    """The difference of two (weighted means of) means, over clusters.

    Attributes:
        differences: Sum of adapter minus baseline in each cluster, shape (k, n), n clusters,
            stratum by stratum.
        sizes: Documents of each cluster, shape (n,).
        strata: Clusters of each stratum.
        weights: Weight of each stratum's mean; they add up to 1.
        baseline: Sum of the baseline's values in each cluster, shape (n,).
    """

    differences: Floats
    sizes: Floats
    strata: tuple[int, ...]
    weights: tuple[float, ...]
    baseline: Floats

    def _slices(self) -> list[tuple[float, slice]]:
        ends = np.cumsum(self.strata).tolist()
        starts = [0, *ends[:-1]]
        return [(w, slice(a, b)) for w, a, b in zip(self.weights, starts, ends, strict=True)]

    def _means(self, counts: Floats, sums: Floats) -> Floats:
        """Return the weighted mean of means on draws; `sums` has shape (n, k)."""
        total = np.zeros((len(counts), sums.shape[1]))
        for weight, part in self._slices():
            drawn = counts[:, part]
            total += weight * (drawn @ sums[part]) / (drawn @ self.sizes[part])[:, None]
        return total

    def _coefficients(self) -> Floats:
        shares = [weight / self.sizes[part].sum() for weight, part in self._slices()]
        return np.repeat(np.asarray(shares, dtype=np.float64), self.strata)

    def observed(self) -> Floats:
        """See `PairedStatistic`."""
        gains: Floats = self.resampled(np.ones((1, len(self.sizes))))[0]
        return gains

    def differing(self) -> Bools:
        """See `PairedStatistic`: clusters, not documents."""
        places: Bools = self.differences != 0.0
        return places

    def resampled(self, counts: Floats) -> Floats:
        """See `PairedStatistic`."""
        return self._means(counts, self.differences.T)

    def swapped(self, signs: Floats) -> Floats:
        """See `PairedStatistic`: sizes stay, so a swap is linear."""
        gains: Floats = signs @ (self.differences * self._coefficients()).T
        return gains

    def resampled_baseline(self, counts: Floats) -> Floats:
        """See `PairedStatistic`."""
        return self._means(counts, self.baseline[:, None])[:, 0]

    def swap_scale(self) -> Floats:
        """See `PairedStatistic`."""
        scale: Floats = np.sqrt(((self.differences * self._coefficients()) ** 2).sum(axis=1))
        return scale

    def influence(self) -> Floats:
        """See `PairedStatistic`: by leaving out whole clusters."""
        parts = []
        for weight, part in self._slices():
            sums, sizes = self.differences[:, part], self.sizes[part]
            n = len(sizes)
            left_out = weight * (sums.sum(axis=1, keepdims=True) - sums) / (sizes.sum() - sizes)
            parts.append((left_out.mean(axis=1, keepdims=True) - left_out) * ((n - 1) / n))
        centred: Floats = np.concatenate(parts, axis=1)
        return centred

    def take(self, adapters: Sequence[int]) -> "ClusterMeanGain":
        """See `PairedStatistic`."""
        rows = self.differences[list(adapters)]
        return ClusterMeanGain(rows, self.sizes, self.strata, self.weights, self.baseline)
