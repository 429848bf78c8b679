"""What each adapter gained over its baseline, with its uncertainty: the `gains` table.

Decides the order of things: rows are drafted (`gain_drafts`), the adapters of a column compared on
the same draws (`stats`), families corrected and judged (`families`). Whether a pair may be compared
is decided by `comparable`, which values enter by `gain_values`.
"""

from collections.abc import Sequence
from dataclasses import replace

from raypeft.core.comparable import ScoredCell
from raypeft.core.families import Compared, is_testable, judge
from raypeft.core.gain_drafts import Column, comparable_members, draft_gains, noted
from raypeft.core.gain_rows import Gain, GainSettings, Verdict
from raypeft.core.gain_values import GainValues, is_slow, statistic_of
from raypeft.core.identity import digest
from raypeft.core.levels import wilson
from raypeft.core.multiple import FamilyColumn
from raypeft.core.noise import noise_floors
from raypeft.core.records import Group
from raypeft.core.resampling import PairedStatistic
from raypeft.core.stats import Comparison, Outcome, compare

__all__ = ["MIN_RESAMPLES", "Gain", "GainSettings", "Verdict", "compute_gains"]

MIN_RESAMPLES = 99
"""Fewer draws give no 95 % interval worth the name, and no p below 0.01."""


def compute_gains(
    baselines: Sequence[ScoredCell],
    adapters: Sequence[ScoredCell],
    groups: Sequence[Group] = (),
    settings: GainSettings | None = None,
    again: Sequence[ScoredCell] = (),
    *,
    first: Sequence[ScoredCell] | None = None,
) -> list[Gain]:
    """Return the gain of each adapter on each task, group and metric.

    Args:
        baselines: Scored cells of bases alone; of several bases, if need be.
        adapters: Scored cells of adapters; rows come back in their order, groups at the end.
        groups: The groups of the sweep; those without an aggregation of their own give no rows.
        settings: How to compute.
        again: Baselines answered again, for the noise floor; see `noise`.
        first: What they are further answers of; the baselines if None.
    """
    settings = settings or GainSettings()
    drafts = draft_gains(baselines, adapters, groups, settings)
    compared = [
        found
        for column in drafts.columns.values()
        if (found := _compare_column(column, settings, drafts.rows)) is not None
    ]
    by_column = noise_floors(baselines if first is None else first, again, groups, settings)
    floors: dict[int, float] = {}
    for key, column in drafts.columns.items():
        if (floor := by_column.get(key)) is None:
            continue
        for i, _ in column.members:
            floors[i] = floor.size
            if floor.lacking:
                missing = f"its noise floor is without {', '.join(floor.lacking)}"
                drafts.rows[i] = noted(drafts.rows[i], missing)
    return judge(drafts.rows, compared, settings, floors)


def _compare_column(column: Column, settings: GainSettings, rows: list[Gain]) -> Compared | None:
    """Compare all adapters of one baseline on one metric, on the same draws."""
    able = list(comparable_members(column))
    for i, values in column.members:
        if values.no_interval:
            rows[i] = noted(rows[i], f"no interval: {values.no_interval}")
    if not able:
        return None
    slow = is_slow(able[0][1])
    resamples = _slow_resamples(able, settings) if slow else settings.resamples
    if slow and resamples < MIN_RESAMPLES:
        for i, values in able:
            much = f"{len(able)} adapters × {values.n} documents"
            why = f"{rows[i].aggregation} cannot be computed anew for enough draws of {much}"
            rows[i] = noted(rows[i], f"no interval: {why}")
        return None
    statistic = statistic_of([values for _, values in able], settings.aggregates)
    comparisons = compare(
        statistic,
        seed=int(digest("gain_seed", 1, [settings.seed, column.key]), 16),
        resamples=resamples,
        confidence=1 - settings.alpha,
        higher_is_better=able[0][1].higher_is_better,
    )
    for (i, values), comparison in zip(able, comparisons, strict=True):
        rows[i] = _with_shares(_compared(rows[i], comparison), values, settings)
    found = _testable([i for i, _ in able], column.units, statistic, rows)
    return None if found is None else replace(found, draws=resamples)


def _testable(
    places: Sequence[int], units: tuple[str, ...], statistic: PairedStatistic, rows: Sequence[Gain]
) -> Compared | None:
    chosen = [k for k, i in enumerate(places) if is_testable(rows[i])]
    if not chosen:
        return None
    tested = FamilyColumn(statistic.take(chosen), units)
    return Compared(tuple(places[k] for k in chosen), tested)


def _slow_resamples(able: Sequence[tuple[int, GainValues]], settings: GainSettings) -> int:
    # A bootstrap draw takes one aggregate for each side and one for the baseline's own interval, a
    # swap two for each adapter.
    per_draw = able[0][1].n * (2 + 3 * len(able))
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
        baseline_low=comparison.baseline.low,
        baseline_high=comparison.baseline.high,
        adapter_low=comparison.adapter.low,
        adapter_high=comparison.adapter.high,
        shrunk_gain=comparison.shrunk,
        p_best=comparison.p_best,
    )
    note = comparison.note
    if row.num_clusters is not None:
        # What was drawn and swapped are clusters, and so is what differs.
        note = note.replace("document", "cluster")
        row = replace(row, method=row.method.replace("document", "cluster"))
    return noted(row, note) if note else row


def _with_shares(row: Gain, values: GainValues, settings: GainSettings) -> Gain:
    """Return the row with better intervals of both sides where they are shares of documents."""
    if values.discordant is None or len(values.members) > 1 or values.num_clusters is not None:
        return row
    confidence = 1 - settings.alpha
    baseline, adapter = (
        wilson(sum(side), values.n, confidence) for side in values.members[0].zero_one()
    )
    return replace(
        row,
        baseline_low=baseline.low,
        baseline_high=baseline.high,
        adapter_low=adapter.low,
        adapter_high=adapter.high,
    )
