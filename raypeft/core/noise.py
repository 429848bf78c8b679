"""The noise floor: how far a baseline lies from itself when it is answered again.

Decides what further answers of the same baseline say about differences that must not be claimed.
Batches are composed differently and kernels choose differently, so an engine may answer the same
request in two ways; how much that moves a metric depends on engine and hardware. A baseline is
answered again as it is, and through an adapter of zero effect, on the path that adapters take. Of
several answers the one that lies farthest away counts.

The floor of an answer is the larger of two: the difference that was seen, and 1.96 times its spread
had every document that differs fallen to either side by chance. The second is there since
documents that differ in both directions hide each other in the first.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raypeft.core.comparable import ScoredCell
from raypeft.core.engine_choice import AGAIN_SUFFIX, ZERO_SUFFIX
from raypeft.core.gain_drafts import comparable_members, draft_gains
from raypeft.core.gain_rows import GainSettings
from raypeft.core.gain_values import statistic_of
from raypeft.core.records import Group

SPREADS = 1.96
"""95 % of differences by chance alone lie within."""


@dataclass(frozen=True, slots=True)
class NoiseFloor:
    """How far a baseline may lie from itself.

    Attributes:
        size: In the metric's unit.
        lacking: Names of answers that were to be counted and are missing.
    """

    size: float
    lacking: tuple[str, ...] = ()


def noise_floors(
    baselines: Sequence[ScoredCell],
    again: Sequence[ScoredCell],
    groups: Sequence[Group],
    settings: GainSettings,
) -> Mapping[str, NoiseFloor]:
    """Return the noise floor of each column that was answered again, by the column's key.

    Args:
        baselines: Scored cells of bases alone.
        again: The same, answered again, alone and through adapters of zero effect; each has its
            subject's id in the place of an adapter.
        groups: The groups of the sweep.
        settings: As for the gains.
    """
    drafts = draft_gains(baselines, again, groups, settings)
    floors: dict[str, NoiseFloor] = {}
    for key, column in drafts.columns.items():
        seen = [abs(gain) for i, _ in column.members if (gain := drafts.rows[i].gain) is not None]
        able = [values for _, values in comparable_members(column)]
        if able:
            with np.errstate(all="ignore"):
                scale = statistic_of(able, settings.aggregates).swap_scale()
            if scale is not None:
                seen += [SPREADS * spread for spread in scale.tolist() if np.isfinite(spread)]
        if seen:
            names = {drafts.rows[i].adapter for i, _ in column.members}
            floors[key] = NoiseFloor(max(seen), _lacking(names, settings.zero_subjects))
    return floors


def _lacking(names: Collection[str], zero_subjects: Collection[str]) -> tuple[str, ...]:
    """Return the answers that a column's baselines should have beside those that it has."""
    baselines = {
        name.removesuffix(end)
        for name in names
        for end in (AGAIN_SUFFIX, ZERO_SUFFIX)
        if name.endswith(end)
    }
    wanted = {f"{name}{AGAIN_SUFFIX}" for name in baselines}
    wanted |= {zero for name in baselines if (zero := f"{name}{ZERO_SUFFIX}") in zero_subjects}
    return tuple(sorted(wanted - set(names)))
