"""Rows of the gains table before anything is computed, and which are compared on the same draws.

Decides which values stand against which, and what is refused. A *column* is one metric of one task
or group against one baseline: its adapters are compared together, on equal draws.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from raypeft.core.comparable import Match, ScoredCell, match_baseline
from raypeft.core.gain_rows import Gain, GainSettings, Verdict
from raypeft.core.gain_values import GainValues, read_pair
from raypeft.core.group_gains import GroupColumn, group_columns
from raypeft.core.identity import canonical
from raypeft.core.records import Group, Json, MetricValue
from raypeft.errors import IncomparableError


@dataclass(slots=True)
class Column:
    """What is compared on the same draws.

    Attributes:
        key: Names it; equal for equal baselines, documents and metrics.
        units: Request sets of the task, or of each task of the group.
        members: Places of the rows, each with its values.
    """

    key: str
    units: tuple[str, ...]
    members: list[tuple[int, GainValues]] = field(default_factory=list)


@dataclass(slots=True)
class Drafts:
    """Rows in their final order, and the columns of those that are not refused."""

    rows: list[Gain] = field(default_factory=list)
    columns: dict[str, Column] = field(default_factory=dict)

    def add(
        self, row: Gain, key: tuple[Json, ...], units: tuple[str, ...], values: GainValues
    ) -> None:
        """Add a row that can be compared."""
        name = canonical(list(key))
        column = self.columns.setdefault(name, Column(name, units))
        column.members.append((len(self.rows), values))
        self.rows.append(row)


def draft_gains(
    baselines: Sequence[ScoredCell],
    adapters: Sequence[ScoredCell],
    groups: Sequence[Group],
    settings: GainSettings,
) -> Drafts:
    """Return a row for each adapter, task or group, and metric, groups at the end."""
    drafts = Drafts()
    matches = [
        match_baseline(cell, baselines, allow_mixed_hardware=settings.allow_mixed_hardware)
        for cell in adapters
    ]
    for match in matches:
        _draft_task(match, settings, drafts)
    for column in group_columns(groups, matches, settings.aggregates, settings.clusters):
        _draft_group(column, settings, drafts)
    return drafts


def noted(row: Gain, note: str) -> Gain:
    """Return the row with something more to know."""
    return replace(row, reason=f"{row.reason}; {note}" if row.reason else note)


def _draft_task(match: Match, settings: GainSettings, drafts: Drafts) -> None:
    before = (
        {(m.metric, m.filter): m for m in match.baseline.scored.metrics} if match.baseline else {}
    )
    after = {(m.metric, m.filter): m for m in match.cell.scored.metrics}
    for key in {**before, **after}:
        row = _task_row(match, before.get(key), after.get(key), settings)
        if match.pair is None:
            drafts.rows.append(_refused(row, match.refusal))
            continue
        try:
            values = read_pair(match.pair, *key, settings.aggregates, settings.clusters)
        except IncomparableError as error:
            drafts.rows.append(_refused(row, str(error)))
            continue
        both = GainValues(
            baseline_value=values.baseline.value,
            adapter_value=values.adapter.value,
            members=(values,),
        )
        # The baseline too: a base has one of each engine, and they answer the same request set.
        baseline = match.pair.baseline.subject
        request_set = match.cell.request_set
        column = ("task", row.base, baseline, row.task, request_set, *key)
        drafts.add(_filled(row, both, match.pair.note), column, (request_set,), both)


def _task_row(
    match: Match, before: MetricValue | None, after: MetricValue | None, settings: GainSettings
) -> Gain:
    metric = after or before
    assert metric is not None
    return Gain(
        base=match.cell.base,
        adapter=match.cell.adapter or "",
        task=match.cell.task,
        is_group=False,
        metric=metric.metric,
        filter=metric.filter,
        aggregation=metric.aggregation,
        request_set=match.cell.request_set,
        baseline_value=before.value if before else None,
        adapter_value=after.value if after else None,
        n=metric.n,
        higher_is_better=metric.higher_is_better,
        alpha=settings.alpha,
        seed=settings.seed,
    )


def _draft_group(column: GroupColumn, settings: GainSettings, drafts: Drafts) -> None:
    row = Gain(
        base=column.base,
        adapter=column.adapter,
        task=column.group,
        is_group=True,
        metric=column.metric,
        filter=column.filter,
        aggregation="mean",
        request_set=None,
        alpha=settings.alpha,
        seed=settings.seed,
    )
    if column.values is None:
        drafts.rows.append(_refused(row, column.reason))
        return
    # The members' request sets belong to the column: only equal ones can share draws.
    units = column.request_sets
    key = ("group", row.base, list(column.baselines), row.task, list(units), row.metric, row.filter)
    drafts.add(_filled(row, column.values, column.reason), key, units, column.values)


def _refused(row: Gain, reason: str) -> Gain:
    return replace(row, verdict=Verdict.REFUSED, reason=reason)


def _filled(row: Gain, values: GainValues, note: str) -> Gain:
    before, after = values.baseline_value, values.adapter_value
    gain = None if before is None or after is None else after - before
    wins, losses = values.discordant or (None, None)
    return replace(
        row,
        baseline_value=before,
        adapter_value=after,
        gain=gain if gain is not None and math.isfinite(gain) else None,
        n=values.n,
        wins=wins,
        losses=losses,
        higher_is_better=values.higher_is_better,
        num_clusters=values.num_clusters,
        reason=note,
    )


def comparable_members(column: Column) -> Iterator[tuple[int, GainValues]]:
    """Yield the members of a column whose values can be resampled."""
    return ((i, values) for i, values in column.members if not values.no_interval)
