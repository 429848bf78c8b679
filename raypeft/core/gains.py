"""What each adapter gained over its baseline, with its uncertainty: the `gains` table.

Decides which cells are paired, the family for correction and the verdict. Whether a pair may be
compared is decided by `comparable`, which values enter by `gain_values`, methods by `stats`.

The family: all adapters × (tasks and groups) of one base on one metric and filter, corrected by
Holm. Within it, the chance of any false verdict is at most alpha. Metrics are families of their
own, since a reader decides on one of them (`acc` or `acc_norm`), not on all at once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from raypeft.core.comparable import Match, ScoredCell, match_baseline
from raypeft.core.gain_values import Aggregates, GainValues, is_slow, read_pair, statistic_of
from raypeft.core.group_gains import GroupColumn, group_columns
from raypeft.core.identity import canonical, digest
from raypeft.core.records import Group, Json, MetricValue
from raypeft.core.stats import (
    DEFAULT_RESAMPLES,
    Comparison,
    Outcome,
    compare,
    holm,
    smallest_detectable_gain,
)
from raypeft.errors import IncomparableError

MIN_RESAMPLES = 99
"""Fewer draws give no 95 % interval worth the name, and no p below 0.01."""


class Verdict(StrEnum):
    """What may be said about a gain."""

    GAIN = "gain"
    LOSS = "loss"
    INCONCLUSIVE = "inconclusive"
    REFUSED = "refused"
    """Not computed, since the two sides must not be compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GainSettings:
    """How gains are computed.

    Attributes:
        alpha: Chance of any false verdict in a family.
        power: Of `smallest_detectable_gain`.
        seed: Seed of every draw; each comparison derives its own from it and from its names.
        resamples: Draws for each interval and p.
        aggregate_documents: The same for metrics that are computed anew, in Python, for each draw:
            how many documents may go through such a metric for one row of adapters.
        allow_mixed_hardware: Compare across hardware, and say so.
        aggregates: Functions of aggregations that are no sums (F1, BLEU, …), by lm-eval's name;
            an aggregation that is missing here gets no interval.
    """

    alpha: float = 0.05
    power: float = 0.8
    seed: int = 1234
    resamples: int = DEFAULT_RESAMPLES
    aggregate_documents: int = 500_000
    allow_mixed_hardware: bool = False
    aggregates: Aggregates = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """One row of the gains table.

    Attributes:
        base: The base's name.
        adapter: The adapter's name.
        task: The task or group.
        is_group: Whether it is a group.
        metric: lm-eval's metric name.
        filter: lm-eval's filter name.
        aggregation: lm-eval's aggregation.
        request_set: Digest of the request set; None for a group.
        baseline_value: The baseline's value; None where it is missing or no number.
        adapter_value: The adapter's value.
        gain: adapter_value - baseline_value; None where refused or not finite.
        low: Lower end of the interval of the gain (level 1 - alpha, not corrected).
        high: Upper end.
        p: Two-sided p-value, not corrected.
        p_corrected: Corrected by Holm within the family; the verdict's p-value.
        family_size: p-values in the family.
        n: Documents.
        wins: For 0/1 metrics: documents where the adapter is better than the baseline.
        losses: For 0/1 metrics: documents where it is worse.
        standard_error: Of the gain.
        smallest_detectable_gain: True gain that would be found with the power asked for, at alpha
            divided by the family's size (the first step of Holm).
        higher_is_better: Direction; None where lm-eval does not say.
        method: How interval and p were found.
        verdict: What may be said.
        reason: Why, where the verdict needs it; every warning.
        alpha: As in the settings.
        seed: As in the settings.
    """

    base: str
    adapter: str
    task: str
    is_group: bool
    metric: str
    filter: str
    aggregation: str
    request_set: str | None
    baseline_value: float | None = None
    adapter_value: float | None = None
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_corrected: float | None = None
    family_size: int = 0
    n: int = 0
    wins: int | None = None
    losses: int | None = None
    standard_error: float | None = None
    smallest_detectable_gain: float | None = None
    higher_is_better: bool | None = None
    method: str = ""
    verdict: Verdict = Verdict.INCONCLUSIVE
    reason: str = ""
    alpha: float = 0.05
    seed: int = 1234


@dataclass(slots=True)
class _Drafts:
    """Rows in their final order, and which of them are still to be compared together."""

    rows: list[Gain] = field(default_factory=list)
    columns: dict[str, list[tuple[int, GainValues]]] = field(default_factory=dict)

    def add(self, row: Gain, column: tuple[Json, ...], values: GainValues) -> None:
        self.columns.setdefault(canonical(list(column)), []).append((len(self.rows), values))
        self.rows.append(row)


def compute_gains(
    baselines: Sequence[ScoredCell],
    adapters: Sequence[ScoredCell],
    groups: Sequence[Group] = (),
    settings: GainSettings | None = None,
) -> list[Gain]:
    """Return the gain of each adapter on each task, group and metric.

    Args:
        baselines: Scored cells of bases alone; of several bases, if need be.
        adapters: Scored cells of adapters; rows come back in their order, groups at the end.
        groups: The groups of the sweep; those without an aggregation of their own give no rows.
        settings: How to compute.
    """
    settings = settings or GainSettings()
    drafts = _Drafts()
    matches = [
        match_baseline(cell, baselines, allow_mixed_hardware=settings.allow_mixed_hardware)
        for cell in adapters
    ]
    for match in matches:
        _draft_task(match, settings, drafts)
    for group_column in group_columns(groups, matches, settings.aggregates):
        _draft_group(group_column, settings, drafts)
    for column, members in drafts.columns.items():
        _compare_column(column, members, settings, drafts.rows)
    return _corrected(drafts.rows, settings)


def _draft_task(match: Match, settings: GainSettings, drafts: _Drafts) -> None:
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
            values = read_pair(match.pair, *key, settings.aggregates)
        except IncomparableError as error:
            drafts.rows.append(_refused(row, str(error)))
            continue
        both = GainValues(
            baseline_value=values.baseline.value,
            adapter_value=values.adapter.value,
            members=(values,),
        )
        column = ("task", row.base, row.task, row.request_set, *key)
        drafts.add(_filled(row, both, match.pair.note), column, both)


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


def _draft_group(column: GroupColumn, settings: GainSettings, drafts: _Drafts) -> None:
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
    key = ("group", row.base, row.task, list(column.request_sets), row.metric, row.filter)
    drafts.add(_filled(row, column.values, column.reason), key, column.values)


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
        reason=note,
    )


def _compare_column(
    column: str,
    members: Sequence[tuple[int, GainValues]],
    settings: GainSettings,
    rows: list[Gain],
) -> None:
    """Compare all adapters of one baseline on one metric, on the same draws."""
    able = [(i, values) for i, values in members if not values.no_interval]
    for i, values in members:
        if values.no_interval:
            rows[i] = _noted(rows[i], f"no interval: {values.no_interval}")
    if not able:
        return
    slow = is_slow(able[0][1])
    resamples = _slow_resamples(able, settings) if slow else settings.resamples
    if slow and resamples < MIN_RESAMPLES:
        for i, values in able:
            much = f"{len(able)} adapters × {values.n} documents"
            why = f"{rows[i].aggregation} cannot be computed anew for enough draws of {much}"
            rows[i] = _noted(rows[i], f"no interval: {why}")
        return
    comparisons = compare(
        statistic_of([values for _, values in able], settings.aggregates),
        seed=int(digest("gain_seed", 1, [settings.seed, column]), 16),
        resamples=resamples,
        confidence=1 - settings.alpha,
    )
    for (i, _), comparison in zip(able, comparisons, strict=True):
        rows[i] = _compared(rows[i], comparison)


def _slow_resamples(able: Sequence[tuple[int, GainValues]], settings: GainSettings) -> int:
    # A bootstrap draw takes one aggregate for each side, a swap two for each adapter.
    per_draw = able[0][1].n * (1 + 3 * len(able))
    return min(settings.resamples, settings.aggregate_documents // per_draw)


def _compared(row: Gain, comparison: Comparison) -> Gain:
    row = replace(
        row,
        gain=None if comparison.outcome is Outcome.NOT_FINITE else row.gain,
        low=comparison.low,
        high=comparison.high,
        p=comparison.p,
        standard_error=comparison.standard_error,
        method=comparison.method,
    )
    return _noted(row, comparison.note) if comparison.note else row


def _noted(row: Gain, note: str) -> Gain:
    return replace(row, reason=f"{row.reason}; {note}" if row.reason else note)


# --- family and verdict -----------------------------------------------------------------------


def _corrected(rows: Sequence[Gain], settings: GainSettings) -> list[Gain]:
    families: dict[tuple[str, str, str], list[int]] = {}
    for i, row in enumerate(rows):
        if row.p is not None and row.verdict is not Verdict.REFUSED:
            families.setdefault((row.base, row.metric, row.filter), []).append(i)
    done = list(rows)
    for places in families.values():
        p_values = holm([rows[i].p or 0.0 for i in places])
        for i, p in zip(places, p_values, strict=True):
            detectable = smallest_detectable_gain(
                rows[i].standard_error,
                alpha=settings.alpha / len(places),
                power=settings.power,
            )
            done[i] = replace(
                rows[i],
                p_corrected=p,
                family_size=len(places),
                smallest_detectable_gain=detectable,
            )
    return [_judged(row, settings.alpha) for row in done]


def _judged(row: Gain, alpha: float) -> Gain:
    if row.verdict is Verdict.REFUSED or row.p_corrected is None or row.gain is None:
        return row
    if row.p_corrected > alpha or row.gain == 0.0:
        return row
    if row.higher_is_better is None:
        return _noted(row, "lm-eval does not say whether higher is better")
    better = (row.gain > 0) == row.higher_is_better
    return replace(row, verdict=Verdict.GAIN if better else Verdict.LOSS)
