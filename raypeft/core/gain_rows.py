"""One row of the gains table, what may be said of it, and how gains are computed.

Decides names and their meaning only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from raypeft.core.clusters import Clusters
from raypeft.core.equivalence import Margin
from raypeft.core.gain_values import Aggregates
from raypeft.core.stats import DEFAULT_RESAMPLES


class Verdict(StrEnum):
    """What may be said about a gain."""

    GAIN = "gain"
    LOSS = "loss"
    INCONCLUSIVE = "inconclusive"
    EQUIVALENT = "equivalent"
    """No difference was found, and one beyond the margin is ruled out."""
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
        margins: By metric, differences that are of no interest; without one no gain is called
            equivalent.
        clusters: By request set, which of its documents belong together.
        untested: By family (base, metric, filter), how many rows it lost to early stopping; they
            count as tested, since who is left was chosen by its luck as well.
        wants_noise_floor: Whether the sweep asks for noise floors: rows that have none say so.
        zero_subjects: Ids of the baselines that are answered through an adapter of zero effect:
            noise floors that are without them say so.
    """

    alpha: float = 0.05
    power: float = 0.8
    seed: int = 1234
    resamples: int = DEFAULT_RESAMPLES
    aggregate_documents: int = 500_000
    allow_mixed_hardware: bool = False
    aggregates: Aggregates = field(default_factory=dict)
    margins: Mapping[str, Margin] = field(default_factory=dict)
    clusters: Mapping[str, Clusters] = field(default_factory=dict)
    untested: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    wants_noise_floor: bool = False
    zero_subjects: frozenset[str] = frozenset()


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
        p_corrected: Corrected within the family; the verdict's p-value.
        family_size: p-values in the family.
        n: Documents.
        wins: For 0/1 metrics: documents where the adapter is better than the baseline.
        losses: For 0/1 metrics: documents where it is worse.
        standard_error: Of the gain.
        smallest_detectable_gain: True gain that would be found with the power asked for, at the
            first step of the correction; None where no gain of any size could have been.
        higher_is_better: Direction; None where lm-eval does not say.
        method: How interval and p were found.
        verdict: What may be said.
        reason: Why, where the verdict needs it; every warning.
        alpha: As in the settings.
        seed: As in the settings.
        correction: How `p_corrected` was found: "max-T" or "Holm".
        q: p corrected for the false-discovery rate (Benjamini & Hochberg 1995): for screening, not
            for the verdict.
        margin: Differences up to this size are of no interest; None where the sweep gives none.
        p_equivalent: p of two one-sided tests that the gain lies within the margin, corrected by
            Holm over the family's rows with a margin.
        documents_needed: Documents with which a gain of the observed size would be found with the
            power asked for.
        baseline_low: Lower end of the interval of the baseline's own value (level 1 - alpha).
        baseline_high: Upper end.
        adapter_low: Lower end of the interval of the adapter's own value.
        adapter_high: Upper end.
        shrunk_gain: The gain, shrunk towards those of the other adapters (empirical Bayes): what
            to expect of the best one on new documents.
        rank: 1 is the best adapter of its baseline here, by `shrunk_gain`, or by the gain where
            there is none.
        p_best: Share of bootstrap draws on which it is best, baseline included.
        noise_floor: How far the baseline may lie from itself when answered again (see `noise`);
            gains up to it are not claimed. None where that was not tried.
        num_clusters: Clusters that were drawn and swapped as a whole; None where each document
            stands for itself.
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
    correction: str | None = None
    q: float | None = None
    margin: float | None = None
    p_equivalent: float | None = None
    documents_needed: int | None = None
    baseline_low: float | None = None
    baseline_high: float | None = None
    adapter_low: float | None = None
    adapter_high: float | None = None
    shrunk_gain: float | None = None
    rank: int | None = None
    p_best: float | None = None
    noise_floor: float | None = None
    num_clusters: int | None = None
