"""Looks while a sweep runs: which cells are hopeless, from the documents answered so far.

Decides what is looked at, and says so for each cell that is stopped. The bound is that of
`raypeft.core.looks`, the order of the documents that of `raypeft.core.document_shards`. Shards
come in any order; a look takes them in theirs, from the first one that both sides have answered
to the last before a gap. So which documents a look sees does not depend on how fast they came.
"""

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace

from raypeft.core.comparable import ScoredCell
from raypeft.core.events import CellHopeless
from raypeft.core.gain_values import MEANS
from raypeft.core.looks import should_stop
from raypeft.core.records import Group, MetricValue, Scored

LOOKED_AT = ("acc_norm", "acc", "exact_match", "em", "f1")
"""Metrics that are looked at where the sweep names none, the first that a task has: means of
values from 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LookSettings:
    """What is looked at, and how strictly.

    Attributes:
        baselines: For each adapter's cell that is looked at the cell of its baseline, by keys.
        metric: `acc` or `acc,filter`; empty is the first of `LOOKED_AT` that a task has.
        least_gain: The smallest gain worth waiting for.
        alpha: Chance of stopping any adapter, on any task, whose gain is that large.
        num_tests: Cells that share it.
    """

    baselines: Mapping[str, str]
    metric: str = ""
    least_gain: float = 0.0
    alpha: float = 0.05
    num_tests: int = 1

    def among(self, cells: Container[str]) -> "LookSettings":
        """Return the same for some of the cells; the level stays that of all."""
        kept = {key: other for key, other in self.baselines.items() if key in cells}
        return replace(self, baselines=kept)


@dataclass(frozen=True, slots=True)
class ShardValues:
    """What one subject's answers to one shard are worth, document by document.

    Attributes:
        metric: The metric and its filter, `acc,none`.
        sign: -1 where less is better.
        values: One for each document, in the shard's order.
        problem: Why they cannot be looked at; empty if they can.
    """

    metric: str = ""
    sign: int = 1
    values: tuple[float, ...] = ()
    problem: str = ""


def untested_rows(
    stopped: Sequence[tuple[str, str]], baselines: Sequence[ScoredCell], groups: Sequence[Group]
) -> dict[tuple[str, str, str], int]:
    """Return how many rows each family of gains lost to early stopping.

    Args:
        stopped: Subject and task of the cells of one base that were stopped.
        baselines: The base's scored cells.
        groups: Those of the sweep; a group lacks the subject too that lacks one of its tasks.

    Returns:
        The number by (base, metric, filter).
    """
    by_name = {group.name: group for group in groups}
    metrics: dict[str, set[tuple[str, str, str]]] = {}
    for cell in baselines:
        for metric in cell.scored.metrics:
            family = (cell.base, metric.metric, metric.filter)
            metrics.setdefault(cell.task, set()).add(family)
    lost: set[tuple[str, str, tuple[str, str, str]]] = set()
    for subject, task in stopped:
        for family in metrics.get(task, ()):
            lost.add((subject, task, family))
            lost |= {
                (subject, f"group {group.name}", family)
                for group in by_name.values()
                if _holds(group.name, task, by_name)
                and family[1] in {config["metric"] for config in group.aggregate_metric_list}
            }
    return dict(Counter(family for _, _, family in lost))


def _holds(name: str, task: str, groups: Mapping[str, Group]) -> bool:
    if name not in groups:
        return name == task
    return any(_holds(child, task, groups) for child in groups[name].children)


def values_of(scored: Scored, doc_ids: Sequence[int], metric: str) -> ShardValues:
    """Return the values of a shard that lm-eval has scored.

    Args:
        scored: What it found.
        doc_ids: The shard's documents, in order.
        metric: See `LookSettings`.
    """
    chosen = _chosen(scored.metrics, metric)
    if chosen is None:
        has = ", ".join(sorted({f"{m.metric},{m.filter}" for m in scored.metrics})) or "none"
        wanted = metric or f"one of {', '.join(LOOKED_AT)}"
        return ShardValues(problem=f"the task's metrics are {has}; looked at is {wanted}")
    name = f"{chosen.metric},{chosen.filter}"
    if chosen.aggregation not in MEANS or chosen.higher_is_better is None:
        why = f"its aggregation is {chosen.aggregation!r}"
        if chosen.higher_is_better is None:
            why = "lm-eval does not say whether more of it is better"
        return ShardValues(name, problem=f"{name} cannot be looked at: {why}")
    by_document = {
        sample.doc_id: sample.metrics.get(chosen.metric)
        for sample in scored.samples
        if sample.filter == chosen.filter
    }
    values: list[float] = []
    for doc_id in doc_ids:
        value = by_document.get(doc_id)
        if not isinstance(value, bool | int | float) or not 0 <= value <= 1:
            why = f"it is {value!r} for document {doc_id}, expected a number from 0 to 1"
            return ShardValues(name, problem=f"{name} cannot be looked at: {why}")
        values.append(float(value))
    return ShardValues(name, 1 if chosen.higher_is_better else -1, tuple(values))


def _chosen(metrics: Sequence[MetricValue], wanted: str) -> MetricValue | None:
    name, _, filter_name = wanted.partition(",")
    for candidate in (name,) if name else LOOKED_AT:
        for metric in metrics:
            if metric.metric == candidate and filter_name in ("", metric.filter):
                return metric
    return None


@dataclass(slots=True)
class Interim:
    """What was seen so far, and what follows from it.

    Attributes:
        settings: What is looked at.
        counts: For each cell that is looked at, into how many shards it is cut.
        problems: Why cells are not looked at after all.
    """

    settings: LookSettings
    counts: Mapping[str, int]
    problems: dict[str, str] = field(default_factory=dict)
    _seen: dict[tuple[str, int], dict[int, ShardValues]] = field(default_factory=dict)
    _stopped: set[str] = field(default_factory=set)

    def adapters_of(self, baseline: str) -> list[str]:
        """Return the cells that are compared with a baseline's."""
        return [cell for cell, other in self.settings.baselines.items() if other == baseline]

    def add(self, cell: str, index: int, count: int, values: ShardValues) -> list[CellHopeless]:
        """Take note of a shard and return the cells that turn out to be hopeless.

        Args:
            cell: The cell, an adapter's or a baseline's.
            index: Which shard.
            count: Of how many.
            values: What it is worth.
        """
        self._seen.setdefault((cell, count), {})[index] = values
        own = [cell] if cell in self.counts else self.adapters_of(cell)
        found = (self._look(one) for one in own if self.counts[one] == count)
        return [event for event in found if event is not None]

    def _look(self, cell: str) -> CellHopeless | None:
        if cell in self._stopped or cell in self.problems:
            return None
        differences = self._differences(cell)
        if cell in self.problems:
            return None
        settings = self.settings
        look = should_stop(
            differences,
            alpha=settings.alpha,
            least_gain=settings.least_gain,
            num_tests=settings.num_tests,
        )
        if not look.stops:
            return None
        self._stopped.add(cell)
        metric = self._seen[cell, self.counts[cell]][0].metric
        reason = (
            f"stopped early by {metric}: {look.reason}; {len(differences)} documents were seen, "
            f"and the gain's upper bound is {look.upper:+.4g}; alpha {settings.alpha:g} is shared "
            f"by {settings.num_tests} cells"
        )
        return CellHopeless(cell, reason)

    def _differences(self, cell: str) -> list[float]:
        """Return adapter minus baseline, from the first shard to the last before a gap."""
        count = self.counts[cell]
        ours = self._seen.get((cell, count), {})
        theirs = self._seen.get((self.settings.baselines[cell], count), {})
        differences: list[float] = []
        for index in range(count):
            if index not in ours or index not in theirs:
                break
            after, before = ours[index], theirs[index]
            problem = after.problem or before.problem
            if not problem and after.metric != before.metric:
                problem = f"its metric is {after.metric} and the baseline's {before.metric}"
            if problem:
                self.problems[cell] = problem
                break
            pairs = zip(after.values, before.values, strict=True)
            differences += [after.sign * (mine - base) for mine, base in pairs]
        return differences
