"""The noise floor: how far a baseline lies from itself when it is answered twice.

Decides what two answers of the same baseline say about differences that must not be claimed.
Batches are composed differently and kernels choose differently, so an engine may answer the same
request in two ways; how much that moves a metric depends on engine and hardware.

The floor of a column is the larger of two: the difference that was seen, and 1.96 times its spread
had every document that differs fallen to either side by chance. The second is there since
documents that differ in both directions hide each other in the first.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from raypeft.core.comparable import ScoredCell
from raypeft.core.gain_drafts import comparable_members, draft_gains
from raypeft.core.gain_rows import GainSettings
from raypeft.core.gain_values import statistic_of
from raypeft.core.records import Group

SPREADS = 1.96
"""95 % of differences by chance alone lie within."""


def noise_floors(
    baselines: Sequence[ScoredCell],
    again: Sequence[ScoredCell],
    groups: Sequence[Group],
    settings: GainSettings,
) -> Mapping[str, float]:
    """Return the noise floor of each column that was answered twice, by the column's key.

    Args:
        baselines: Scored cells of bases alone.
        again: The same, answered a second time; each has a name in the place of an adapter.
        groups: The groups of the sweep.
        settings: As for the gains.
    """
    drafts = draft_gains(baselines, again, groups, settings)
    floors: dict[str, float] = {}
    for key, column in drafts.columns.items():
        seen = [abs(gain) for i, _ in column.members if (gain := drafts.rows[i].gain) is not None]
        able = [values for _, values in comparable_members(column)]
        if able:
            with np.errstate(all="ignore"):
                scale = statistic_of(able, settings.aggregates).swap_scale()
            if scale is not None:
                seen += [SPREADS * spread for spread in scale.tolist() if np.isfinite(spread)]
        if seen:
            floors[key] = max(seen)
    return floors
