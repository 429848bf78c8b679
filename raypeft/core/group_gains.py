"""Groups seen from their tasks: which cells and which metrics make up a group's gain.

Decides a group's members, filters and weights as lm-eval's `Group.aggregate` does, and when a
group must not be compared. What is made of the members is left to `gains` and `gain_values`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from raypeft.core.clusters import Clusters
from raypeft.core.comparable import Match, Pair
from raypeft.core.gain_values import (
    Aggregates,
    GainValues,
    PairedValues,
    group_values,
    read_pair,
)
from raypeft.core.records import Group, Json
from raypeft.errors import IncomparableError


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupColumn:
    """One metric of a group for one adapter.

    Attributes:
        base: The base's name.
        adapter: The adapter's name.
        group: The group's name.
        metric: lm-eval's metric name.
        filter: lm-eval's filter name.
        values: What the gain is computed from; None if it is refused.
        request_sets: Those of the members, in order.
        baselines: Subjects of the members' baselines, in order.
        reason: Why it is refused, or the notes of the members' pairs.
    """

    base: str
    adapter: str
    group: str
    metric: str
    filter: str
    values: GainValues | None
    request_sets: tuple[str, ...]
    reason: str
    baselines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Reading:
    """How values are read, see `read_pair`."""

    aggregates: Aggregates
    clusters: Mapping[str, Clusters]


class _RefusedError(Exception):
    """A group's gain must not be computed; the message says why."""


def group_columns(
    groups: Sequence[Group],
    matches: Sequence[Match],
    aggregates: Aggregates,
    clusters: Mapping[str, Clusters],
) -> Iterator[GroupColumn]:
    """Yield every metric of every group for every adapter that has one of its tasks."""
    by_name = {group.name: group for group in groups}
    for group in by_name.values():
        tasks = _leaves(group.name, by_name)
        for config in group.aggregate_metric_list:
            for (base, adapter), found in _by_subject(matches, tasks).items():
                for filter_name in _filters(config, found):
                    column = GroupColumn(
                        base=base,
                        adapter=adapter,
                        group=group.name,
                        metric=str(config["metric"]),
                        filter=filter_name,
                        values=None,
                        request_sets=(),
                        reason="",
                    )
                    yield from _filled(column, config, tasks, found, _Reading(aggregates, clusters))


def _filled(
    column: GroupColumn,
    config: Mapping[str, Json],
    tasks: Sequence[str],
    found: Mapping[str, Sequence[Match]],
    reading: _Reading,
) -> Iterator[GroupColumn]:
    """Yield the column with its values or its refusal; nothing if no task has the metric."""
    try:
        members = _members(column, tasks, found, reading)
    except _RefusedError as error:
        yield replace(column, reason=str(error))
        return
    if not members:
        return
    pairs = [pair for pair, _ in members]
    by_size = bool(config.get("weight_by_size", True))
    sizes = [_size(pair) if by_size else 1 for pair in pairs]
    notes = dict.fromkeys(pair.note for pair in pairs if pair.note)
    yield replace(
        column,
        values=group_values([values for _, values in members], sizes),
        request_sets=tuple(pair.adapter.request_set for pair in pairs),
        reason="; ".join(notes),
        baselines=tuple(pair.baseline.subject for pair in pairs),
    )


def _members(
    column: GroupColumn,
    tasks: Sequence[str],
    found: Mapping[str, Sequence[Match]],
    reading: _Reading,
) -> list[tuple[Pair, PairedValues]]:
    members: list[tuple[Pair, PairedValues]] = []
    for task in tasks:
        matches = found.get(task, ())
        if len(matches) != 1:
            number = "no result" if not matches else f"{len(matches)} results"
            raise _RefusedError(f"{column.adapter} has {number} on {task}, a task of the group")
        pair = matches[0].pair
        if pair is None:
            raise _RefusedError(matches[0].refusal)
        metrics = [*pair.baseline.scored.metrics, *pair.adapter.scored.metrics]
        if not any((m.metric, m.filter) == (column.metric, column.filter) for m in metrics):
            continue  # lm-eval leaves such a task out of the group as well
        try:
            values = read_pair(
                pair, column.metric, column.filter, reading.aggregates, reading.clusters
            )
        except IncomparableError as error:
            raise _RefusedError(str(error)) from error
        members.append((pair, values))
    return members


def _leaves(name: str, groups: Mapping[str, Group]) -> list[str]:
    if name not in groups:
        return [name]
    found = [leaf for child in groups[name].children for leaf in _leaves(child, groups)]
    return list(dict.fromkeys(found))


def _by_subject(
    matches: Sequence[Match], tasks: Sequence[str]
) -> dict[tuple[str, str], dict[str, list[Match]]]:
    subjects: dict[tuple[str, str], dict[str, list[Match]]] = {}
    for match in matches:
        if match.cell.task in tasks:
            found = subjects.setdefault((match.cell.base, match.cell.adapter or ""), {})
            found.setdefault(match.cell.task, []).append(match)
    return subjects


def _filters(config: Mapping[str, Json], found: Mapping[str, Sequence[Match]]) -> list[str]:
    """Return the filters a group aggregates: its own list, or all that its tasks have."""
    given = config.get("filter_list")
    if given is not None:
        return [given] if isinstance(given, str) else [str(name) for name in given]
    metrics = [m for matches in found.values() for x in matches for m in x.cell.scored.metrics]
    return sorted({m.filter for m in metrics if m.metric == config["metric"]})


def _size(pair: Pair) -> int:
    # lm-eval weights a task by its largest number of documents over all metrics (`sample_len`).
    return max(metric.n for metric in pair.adapter.scored.metrics)
