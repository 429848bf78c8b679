"""Where each adapter stands among those of its base: a pure function of the gains table.

Decides which rows count for what. Losses count wherever they are found, on tasks and groups. The
mean that orders adapters takes one column for each task entry of the sweep, the group's own where
a group was asked for, so that a group of 57 tasks does not outvote everything else; and only
metrics between 0 and 1, since points of accuracy and of perplexity have no common unit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from raypeft.report.morning import BaseReport, Column, Morning, Row


class Tier(StrEnum):
    """What may be said about an adapter as a whole, the best first."""

    GAINS_ONLY = "gains, no loss found"
    MIXED = "gains and losses"
    UNDECIDED = "nothing shown"
    HARMFUL = "losses, no gain found"
    NO_RESULTS = "no results"


TIERS = tuple(Tier)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One adapter among those of its base. Rows are those of the headline columns.

    Attributes:
        base: The base's name.
        adapter: The adapter's name.
        place: 1 is the best; by tier, completeness and mean gain.
        tier: What may be said about it as a whole.
        gains: Rows with the verdict gain, the clearest first.
        losses: Rows with the verdict loss, the clearest first.
        equivalent: Rows shown to be within the margin.
        inconclusive: Rows that could be either.
        refused: Rows that must not be compared.
        missing: Columns without a row: their cells failed, or are open.
        mean_gain: Mean over the task entries, shrunk where the table has it, positive is better;
            None where no metric lies between 0 and 1 or one of them is missing.
    """

    base: str
    adapter: str
    place: int
    tier: Tier
    gains: tuple[Row, ...]
    losses: tuple[Row, ...]
    equivalent: tuple[Row, ...]
    inconclusive: tuple[Row, ...]
    refused: tuple[Row, ...]
    missing: tuple[Column, ...]
    mean_gain: float | None

    @property
    def is_complete(self) -> bool:
        """Whether there is a gain of every column."""
        return not self.missing and not self.refused


def standings(report: BaseReport, without_results: Sequence[str] = ()) -> tuple[Standing, ...]:
    """Return the adapters of one base, the best first.

    Args:
        report: The base's part of the morning.
        without_results: Adapters of the base that have no row at all.
    """
    averaged = averaged_columns(report)
    found = [
        _standing(report, adapter, rows, averaged)
        for adapter, rows in {**report.gains, **{name: {} for name in without_results}}.items()
    ]
    ordered = sorted(found, key=_order)
    return tuple(replace(one, place=place) for place, one in enumerate(ordered, start=1))


def adapters_without_results(morning: Morning, base: str) -> tuple[str, ...]:
    """Return the adapters of a base that failed on everything, each once."""
    known = {name for report in morning.bases if report.base == base for name in report.gains}
    failed = (row["adapter"] for row in morning.failures if row["base"] == base)
    return tuple(dict.fromkeys(name for name in failed if name is not None and name not in known))


def _standing(
    report: BaseReport, adapter: str, rows: Mapping[Column, Row], averaged: Sequence[Column]
) -> Standing:
    by_verdict = {
        verdict: tuple(
            sorted((r for r in rows.values() if r["verdict"] == verdict), key=clearest_first)
        )
        for verdict in ("gain", "loss", "equivalent", "inconclusive", "refused")
    }
    return Standing(
        base=report.base,
        adapter=adapter,
        place=0,
        tier=_tier(len(by_verdict["gain"]), len(by_verdict["loss"]), len(rows)),
        gains=by_verdict["gain"],
        losses=by_verdict["loss"],
        equivalent=by_verdict["equivalent"],
        inconclusive=by_verdict["inconclusive"],
        refused=by_verdict["refused"],
        missing=tuple(column for column in report.columns if column not in rows),
        mean_gain=_mean([_shrunk_of(rows.get(column)) for column in averaged]),
    )


def _tier(num_gains: int, num_losses: int, num_rows: int) -> Tier:
    if not num_rows:
        return Tier.NO_RESULTS
    if num_gains:
        return Tier.MIXED if num_losses else Tier.GAINS_ONLY
    return Tier.HARMFUL if num_losses else Tier.UNDECIDED


def _order(one: Standing) -> tuple[float, ...]:
    # What has not been measured everywhere may hide a loss, so it stands behind what has.
    # Rounded, since equal means of shrunk gains differ in their last digits.
    mean = -round(one.mean_gain, 9) if one.mean_gain is not None else 0.0
    rest = (len(one.losses) - len(one.gains), float(one.mean_gain is None))
    return (TIERS.index(one.tier), float(not one.is_complete), mean, *rest)


def clearest_first(row: Row) -> tuple[float, float]:
    """Order rows by corrected p; equal ones by how many standard errors the gain is."""
    error, gain = row["standard_error"], row["gain"]
    p = row["p_corrected"]
    ratio = abs(gain) / error if gain is not None and error else 0.0
    return (1.0 if p is None else p, -ratio)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _shrunk_of(row: Row | None) -> float | None:
    return None if row is None else better_by(row, shrunk(row))


# --- rows -------------------------------------------------------------------------------------


def shrunk(row: Row) -> float | None:
    """Return the gain shrunk against the winner's curse; the gain itself where there is none."""
    found: float | None = row.get("shrunk_gain")
    if found is None:
        found = row["gain"]
    return found


def better_by(row: Row, value: float | None) -> float | None:
    """Return a difference so that positive is better; None where no direction is known."""
    if value is None or row["higher_is_better"] is None:
        return None
    return value if row["higher_is_better"] else -value


def worst_bound(row: Row) -> float | None:
    """Return the end of the interval that is worse, positive is better; None without interval."""
    ends = [better_by(row, row["low"]), better_by(row, row["high"])]
    known = [end for end in ends if end is not None]
    return min(known) if len(known) == 2 else None


def scale(row: Row) -> float:
    """Return by what differences of metrics of different units are made alike: the baseline."""
    return abs(row["baseline_value"] or 0.0) or 1.0


def worst_of(rows: Sequence[Row]) -> tuple[float, Row] | None:
    """Return the largest loss that the intervals of rows allow, as a share of the baseline.

    Returns:
        The bound, negative and in its metric's own unit, and its row; None where none allows any.
    """
    bounds = [(bound, row) for row in rows if (bound := worst_bound(row)) is not None and bound < 0]
    return min(bounds, key=lambda pair: pair[0] / scale(pair[1]), default=None)


def is_level(one: Standing, other: Standing) -> bool:
    """Return whether two adapters stand in the order of the table and not of their numbers."""
    return _order(one) == _order(other)


def averaged_columns(report: BaseReport) -> tuple[Column, ...]:
    """Return the columns whose mean orders the adapters: one unit, one for each task entry."""
    asked = {column.entry for column in report.columns if column.task == column.entry}
    return tuple(
        column
        for column in report.columns
        if is_share(column, report)
        and (column.task == column.entry or (column.entry not in asked and not column.is_group))
    )


def is_share(column: Column, report: BaseReport) -> bool:
    """Return whether a column's values are shares: between 0 and 1, more is better."""
    score = report.baseline.get(column)
    rows = [rows[column] for rows in report.gains.values() if column in rows]
    values = [row[side] for row in rows for side in ("baseline_value", "adapter_value")]
    values.append(None if score is None else score.value)
    known = [value for value in values if value is not None]
    return column.higher_is_better is True and bool(known) and all(0 <= v <= 1 for v in known)
