"""The numbers a gain is computed from: per-document values of a pair, and their statistic.

Decides which aggregations can be resampled and how, and refuses an interval where the values of
the documents do not give lm-eval's own aggregate: it would be an interval of something else.
Comparability is decided by `comparable`, methods by `stats`, verdicts by `gains`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from raypeft.core.aggregations import SUMS, NoTermsError, is_number, numbers
from raypeft.core.clusters import (
    ClusterMeanGain,
    Clusters,
    codes_of,
    joined,
    over_joined,
    summed,
)
from raypeft.core.comparable import Pair, check_metric, paired_samples
from raypeft.core.records import Json, MetricValue
from raypeft.core.resampling import AggregateGain, Floats, MeanGain, PairedStatistic, SumsGain
from raypeft.errors import IncomparableError

Aggregates = Mapping[str, Callable[[list[Json]], float]]
"""Aggregations by lm-eval's name; each takes the per-document values as they are stored."""

MEANS = frozenset({"mean", "nanmean"})
"""Aggregations that are the mean of numbers, as long as none of them is NaN."""

MEANINGLESS = frozenset({"bypass"})
"""Aggregations that ignore their documents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedValues:
    """Both sides of one metric of one task, document by document.

    Attributes:
        baseline: The baseline's aggregate.
        adapter: The adapter's aggregate.
        baseline_values: By doc_id; numbers, (value, weight) pairs or whatever the metric keeps.
        adapter_values: Same documents, same order.
        no_interval: Why these values cannot be resampled; empty if they can.
        clusters: The cluster of each document; None where each stands for itself.
    """

    baseline: MetricValue
    adapter: MetricValue
    baseline_values: tuple[Json, ...]
    adapter_values: tuple[Json, ...]
    no_interval: str
    clusters: tuple[str, ...] | None = None

    def zero_one(self) -> tuple[list[float], list[float]]:
        """Return both sides of a 0/1 metric as numbers."""
        left, right = (numbers(side) for side in (self.baseline_values, self.adapter_values))
        return left.tolist(), right.tolist()

    @property
    def discordant(self) -> tuple[int, int] | None:
        """Documents where the adapter is better and worse, for a 0/1 metric; else None."""
        both = (*self.baseline_values, *self.adapter_values)
        if not all(is_number(value) and value in (0, 1) for value in both):
            return None
        pairs = list(zip(self.baseline_values, self.adapter_values, strict=True))
        higher, lower = sum(b < a for b, a in pairs), sum(b > a for b, a in pairs)
        return (lower, higher) if self.adapter.higher_is_better is False else (higher, lower)


@dataclass(frozen=True, slots=True, kw_only=True)
class GainValues:
    """What one row of the gains table is computed from: one task, or the tasks of a group.

    Attributes:
        baseline_value: The baseline's value.
        adapter_value: The adapter's value.
        members: The task's values, or those of each task of the group.
        weights: Each member's weight; they add up to 1.
    """

    baseline_value: float | None
    adapter_value: float | None
    members: tuple[PairedValues, ...]
    weights: tuple[float, ...] = (1.0,)

    @property
    def n(self) -> int:
        """Documents."""
        return sum(len(member.baseline_values) for member in self.members)

    @property
    def num_clusters(self) -> int | None:
        """Clusters, where any member has them; documents of the other members count as one each."""
        if all(member.clusters is None for member in self.members):
            return None
        return sum(
            len(member.baseline_values) if member.clusters is None else len(set(member.clusters))
            for member in self.members
        )

    @property
    def no_interval(self) -> str:
        """Why there is no interval; empty if there can be one."""
        reasons = [member.no_interval for member in self.members]
        if len(self.members) > 1:
            kinds = sorted({member.baseline.aggregation for member in self.members} - MEANS)
            reasons += [f"a task of the group is aggregated by {kind!r}" for kind in kinds]
        return next((reason for reason in reasons if reason), "")

    @property
    def discordant(self) -> tuple[int, int] | None:
        """Documents where the adapter is better and worse, if all metrics are 0/1."""
        counts = [member.discordant for member in self.members]
        known = [count for count in counts if count is not None]
        if len(known) < len(counts):
            return None
        return sum(wins for wins, _ in known), sum(losses for _, losses in known)

    @property
    def higher_is_better(self) -> bool | None:
        """Direction; None where lm-eval does not say or the members disagree."""
        directions = {member.adapter.higher_is_better for member in self.members}
        return directions.pop() if len(directions) == 1 else None


def read_pair(
    pair: Pair,
    metric: str,
    filter_name: str,
    aggregates: Aggregates,
    clusters: Mapping[str, Clusters],
) -> PairedValues:
    """Return both sides of one metric of a pair.

    Args:
        pair: What is compared.
        metric: lm-eval's metric name.
        filter_name: lm-eval's filter name.
        aggregates: Aggregations that are no sums.
        clusters: By request set, where documents belong together.

    Raises:
        IncomparableError: If metric, documents, prompts or targets are not the same.
    """
    left, right = (
        next(
            (m for m in cell.scored.metrics if (m.metric, m.filter) == (metric, filter_name)), None
        )
        for cell in (pair.baseline, pair.adapter)
    )
    check_metric(pair, left, right)
    assert left is not None
    assert right is not None
    ours: list[Json] = []
    theirs: list[Json] = []
    documents: list[int] = []
    for one, other in paired_samples(pair, filter_name):
        present = [metric in sample.metrics for sample in (one, other)]
        if present[0] != present[1]:
            field = f"{metric} of document {one.doc_id}"
            sides = ["present" if p else "(absent)" for p in present]
            raise IncomparableError(field, sides[0], sides[1], pair.adapter.subject)
        if all(present):
            ours.append(one.metrics[metric])
            theirs.append(other.metrics[metric])
            documents.append(one.doc_id)
    names, problem = _cluster_names(clusters.get(pair.adapter.request_set), documents)
    return PairedValues(
        baseline=left,
        adapter=right,
        baseline_values=tuple(ours),
        adapter_values=tuple(theirs),
        no_interval=(
            _why_not(left, ours, aggregates) or _why_not(right, theirs, aggregates) or problem
        ),
        clusters=names,
    )


def _cluster_names(
    clusters: Clusters | None, documents: Sequence[int]
) -> tuple[tuple[str, ...] | None, str]:
    """Return the cluster of each document, and why that is not known."""
    if clusters is None or clusters.problem:
        return None, "" if clusters is None else clusters.problem
    if missing := [doc_id for doc_id in documents if doc_id not in clusters.by_document]:
        return None, f"the cluster of document {missing[0]} is not known"
    return tuple(clusters.by_document[doc_id] for doc_id in documents), ""


def group_values(members: Sequence[PairedValues], sizes: Sequence[int]) -> GainValues:
    """Return what a group's gain is computed from, in lm-eval's arithmetic.

    Args:
        members: The values of each task.
        sizes: What lm-eval weights each task by; all 1 for an unweighted mean.
    """

    def aggregate(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return None
        # The same order of operations as lm-eval's aggregate_subtask_metrics, for equal bits.
        return sum([v * size for v, size in zip(known, sizes, strict=True)]) / sum(sizes)

    return GainValues(
        baseline_value=aggregate([member.baseline.value for member in members]),
        adapter_value=aggregate([member.adapter.value for member in members]),
        members=tuple(members),
        weights=tuple(size / sum(sizes) for size in sizes),
    )


def statistic_of(adapters: Sequence[GainValues], aggregates: Aggregates) -> PairedStatistic:
    """Return the statistic of several adapters of one baseline on one metric.

    All must have been read against the same baseline and have no reason against an interval.
    """
    first = adapters[0].members[0]
    aggregation = first.baseline.aggregation
    codes = None if first.clusters is None else codes_of(first.clusters)
    if aggregation in MEANS:
        return _mean_gain(adapters)
    if aggregation in SUMS:
        terms, finish = SUMS[aggregation]
        sides = [first.baseline_values, *(v.members[0].adapter_values for v in adapters)]
        parts = [terms(values) for values in sides]
        base, *over = parts if codes is None else [summed(part, codes) for part in parts]
        return SumsGain(base, np.stack(over), finish)
    aggregate = partial(_aggregate_or_nan, aggregates[aggregation])
    baseline = list(first.baseline_values)
    lists = [list(values.members[0].adapter_values) for values in adapters]
    if codes is None:
        return AggregateGain(baseline, lists, aggregate)
    clustered = [joined(values, codes) for values in lists]
    return AggregateGain(joined(baseline, codes), clustered, over_joined(aggregate))


def _mean_gain(adapters: Sequence[GainValues]) -> PairedStatistic:
    members, weights = adapters[0].members, adapters[0].weights
    differences = np.stack([_differences(values) for values in adapters])
    base = np.concatenate([numbers(member.baseline_values) for member in members])
    if adapters[0].num_clusters is None:
        strata = tuple(len(member.baseline_values) for member in members)
        return MeanGain(differences, strata, weights, base)
    parts = []
    for number, member in enumerate(members):
        # A member without clusters: each document is its own.
        names = member.clusters or tuple(map(str, range(len(member.baseline_values))))
        parts.append((number, codes_of(names)))
    offsets = np.cumsum([0, *(int(codes.max()) + 1 for _, codes in parts)])
    every = np.concatenate([codes + offsets[number] for number, codes in parts])
    return ClusterMeanGain(
        summed(differences.T, every).T,
        summed(np.ones(len(every)), every),
        tuple(np.diff(offsets).tolist()),
        weights,
        summed(base, every),
    )


def _aggregate_or_nan(aggregate: Callable[[list[Json]], float], values: list[Json]) -> float:
    try:
        return float(aggregate(values))
    except Exception:  # noqa: BLE001 - a draw on which somebody's metric fails has no value
        return math.nan


def _differences(values: GainValues) -> Floats:
    over = [float(value) for member in values.members for value in member.adapter_values]
    base = [float(value) for member in values.members for value in member.baseline_values]
    differences: Floats = np.asarray(over) - np.asarray(base)
    return differences


def is_slow(values: GainValues) -> bool:
    """Whether each draw computes the aggregate anew, in Python."""
    aggregation = values.members[0].baseline.aggregation
    return aggregation not in MEANS and aggregation not in SUMS


def _why_not(metric: MetricValue, values: list[Json], aggregates: Aggregates) -> str:
    """Return why these values cannot be resampled; empty if they can."""
    name = f"{metric.metric},{metric.filter}"
    if metric.value is None:
        return f"{name} is {metric.value_json}, no number"
    if not values:
        return f"no document has a value of {name}"
    try:
        again = _again(metric.aggregation, values, aggregates)
    except NoTermsError as error:
        return f"the documents' values of {name} are no {error}"
    if again is None:
        return f"{name} is aggregated by {metric.aggregation!r}, which cannot be resampled"
    if not (math.isfinite(again) and math.isfinite(metric.value)):
        return ""  # `stats` names what is not finite
    if not math.isclose(again, metric.value, rel_tol=1e-9, abs_tol=1e-12):
        return f"the documents' values of {name} give {again!r}, lm-eval says {metric.value!r}"
    return ""


def _again(aggregation: str, values: list[Json], aggregates: Aggregates) -> float | None:
    """Return the aggregate computed here; None if that is not possible.

    Raises:
        NoTermsError: If the values are not what this aggregation takes.
    """
    if aggregation in MEANS:
        return float(numbers(values).mean())
    if aggregation in SUMS:
        terms, finish = SUMS[aggregation]
        with np.errstate(all="ignore"):
            return float(finish(terms(values).sum(axis=0)))
    if aggregation in aggregates and aggregation not in MEANINGLESS:
        try:
            return float(aggregates[aggregation](list(values)))
        except Exception as error:
            raise NoTermsError(f"input that {aggregation} takes: {error}") from error
    return None
