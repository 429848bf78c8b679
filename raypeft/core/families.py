"""Families of gains: correction for many, verdicts, and how much was needed to tell.

Decides what is corrected together and how, and what may be said of each gain in the end.

The family: all adapters × (tasks and groups) of one base on one metric and filter. Within it, the
chance of any false gain or loss is at most alpha; apart from that, so is the chance of any false
"equivalent". Metrics are families of their own, since a reader decides on one of them (`acc` or
`acc_norm`), not on all at once.

The correction is max-T over swaps that all rows share, wherever every row of the family can be
swapped at once. It is Holm's, and said so, where a family has one row, where a metric is too slow
to be swapped as often (BLEU), or has no spread under swaps, and where there are too few draws to
tell p-values of the size of alpha.

Rows that early stopping has kept from being computed stay in their family, with p = 1: of many
adapters without a gain the luckiest is the one that is not stopped. They cannot be swapped, so that
their family is Holm's.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from raypeft.core.equivalence import ALLOWS_ALL, Evidence, evidence_of, p_equivalent
from raypeft.core.gain_drafts import noted
from raypeft.core.gain_rows import Gain, GainSettings, Verdict
from raypeft.core.identity import digest
from raypeft.core.multiple import FamilyColumn, false_discovery, max_t
from raypeft.core.ranking import ranks
from raypeft.core.stats import detectable_gain, documents_needed, holm

MIN_DRAWS_BELOW_ALPHA = 20
"""With fewer draws beyond alpha, the draws' own luck decides what is significant."""


NOT_TWICE = "the baseline has no second answers that can be compared"


@dataclass(frozen=True, slots=True)
class Compared:
    """The rows of one column that have a p-value.

    Attributes:
        places: Of the rows.
        tested: Their statistic, in the same order.
        draws: How many swaps a sampled p-value is of; None if not known.
    """

    places: tuple[int, ...]
    tested: FamilyColumn
    draws: int | None = None


def judge(
    rows: Sequence[Gain],
    columns: Sequence[Compared],
    settings: GainSettings,
    floors: Mapping[int, float],
) -> list[Gain]:
    """Return the rows with everything that depends on other rows, and their verdicts.

    Args:
        rows: All of them, compared.
        columns: Those with a p-value; each row in at most one column.
        settings: How to compute.
        floors: Noise floors by place of a row, where they are known.
    """
    done = [replace(row, noise_floor=floors.get(i)) for i, row in enumerate(rows)]
    for column in columns:
        _rank(done, column)
        if settings.wants_noise_floor:
            for i in column.places:
                if i not in floors:
                    done[i] = noted(done[i], "its noise floor is not known: " + NOT_TWICE)
    families: dict[tuple[str, str, str], list[Compared]] = {}
    for column in columns:
        row = done[column.places[0]]
        families.setdefault((row.base, row.metric, row.filter), []).append(column)
    for name, family in families.items():
        untested = settings.untested.get(name, 0)
        _correct(done, list(name), family, settings, untested)
        places = [place for column in family for place in column.places]
        _test_equivalence(done, places, settings, untested)
    return [_judged(row, settings.alpha) for row in done]


def _rank(rows: list[Gain], column: Compared) -> None:
    """Rank the adapters of one baseline on one task and metric."""
    places = [i for i in column.places if rows[i].gain is not None]
    direction = rows[places[0]].higher_is_better if places else None
    if direction is None:
        return
    shrunk = [gain for i in places if (gain := rows[i].shrunk_gain) is not None]
    raw = [gain for i in places if (gain := rows[i].gain) is not None]
    best_known = shrunk if len(shrunk) == len(places) else raw
    size = max(map(abs, raw))
    found = ranks(np.asarray(best_known), higher_is_better=direction, size=size)
    for i, rank in zip(places, found, strict=True):
        rows[i] = replace(rows[i], rank=rank)


def _correct(
    rows: list[Gain],
    name: list[str],
    family: Sequence[Compared],
    settings: GainSettings,
    untested: int,
) -> None:
    places = [place for column in family for place in column.places]
    raw = [rows[i].p or 0.0 for i in places]
    size = len(places) + untested
    found = None
    enough = settings.alpha * (settings.resamples + 1) >= MIN_DRAWS_BELOW_ALPHA
    if len(places) > 1 and enough and not untested:
        found = max_t(
            [column.tested for column in family],
            seed=int(digest("family_seed", 1, [settings.seed, *name]), 16),
            resamples=settings.resamples,
            alpha=settings.alpha,
        )
    if found is None:
        correction, p_values = "Holm", list(holm([*raw, *[1.0] * untested])[: len(raw)])
        critical = float(stats.norm.isf(settings.alpha / size / 2))
    else:
        # An exact p is free of the luck of draws; correcting must not make it smaller.
        correction, critical = "max-T", found.critical
        p_values = [max(p, q) for p, q in zip(raw, found.p, strict=True)]
    rates = false_discovery([*raw, *[1.0] * untested])[: len(raw)]
    for i, p, q in zip(places, p_values, rates, strict=True):
        detectable = detectable_gain(rows[i].standard_error, critical, power=settings.power)
        rows[i] = replace(
            rows[i],
            p_corrected=p,
            correction=correction,
            q=q,
            family_size=size,
            smallest_detectable_gain=detectable,
            documents_needed=documents_needed(rows[i].gain, detectable, rows[i].n),
        )
    draws = {place: column.draws for column in family for place in column.places}
    tests = size if correction == "Holm" else 1
    for i in places:
        rows[i] = _unattainable(rows[i], draws[i], tests, settings.alpha)


def _unattainable(row: Gain, draws: int | None, tests: int, alpha: float) -> Gain:
    """Return the row as it is, or saying that no gain of any size could have been claimed.

    A p-value has a least one: of a few documents, or of a few draws. Where that is too large, it
    is misleading to say which gain would have been found.

    Args:
        row: The row, corrected.
        draws: See `Compared`.
        tests: By what the smallest p-value of the family is multiplied.
        alpha: Level.
    """
    units, what = row.n, "documents"
    if row.num_clusters is not None:
        units, what = row.num_clusters, "clusters"
    if row.method.startswith("sampled") and draws is not None:
        least, few = 1 / (1 + draws), f"{draws} draws"
    else:
        least, few = 2.0 ** (1 - units), f"{units} {what}"
    if least * tests <= alpha:
        return row
    needed = None
    if few != f"{draws} draws" and row.documents_needed is not None and units:
        enough = math.ceil(row.n / units * (1 + math.log2(tests / alpha)))
        needed = max(row.documents_needed, enough)
    row = replace(row, smallest_detectable_gain=None, documents_needed=needed)
    if units < 2 or not row.gain:
        return row  # that is said already, or nobody would claim anything
    least = min(1.0, least * tests)
    return noted(row, f"{few} are too few to claim any gain: corrected p is {least:.2g} or more")


def _test_equivalence(
    rows: list[Gain], places: Sequence[int], settings: GainSettings, untested: int
) -> None:
    known: dict[int, float] = {}
    for i in places:
        row = rows[i]
        given = settings.margins.get(row.metric)
        margin = None if given is None else given.of(row.baseline_value)
        if margin is None:
            continue
        rows[i] = replace(row, margin=margin)
        if row.wins is not None and margin >= 1.0:
            rows[i] = noted(rows[i], f"a margin of {margin:.4g} {ALLOWS_ALL}")
            continue
        evidence = _evidence(row)
        p = None if evidence is None else p_equivalent(evidence, margin)
        if p is not None:
            known[i] = p
    corrected = holm([*known.values(), *[1.0] * untested])[: len(known)]
    for i, p in zip(known, corrected, strict=True):
        rows[i] = replace(rows[i], p_equivalent=p)


def _evidence(row: Gain) -> Evidence | None:
    # Equivalence has no direction; where lm-eval gives none, either will do.
    names = ("gain", "n", "num_clusters", "method", "wins", "losses", "standard_error", "is_group")
    values = {name: getattr(row, name) for name in names}
    return evidence_of(values | {"higher_is_better": row.higher_is_better is not False})


def _judged(row: Gain, alpha: float) -> Gain:
    if row.verdict is Verdict.REFUSED or row.p_corrected is None or row.gain is None:
        return row
    better = (row.gain > 0) == row.higher_is_better
    within = row.p_equivalent is not None and row.p_equivalent <= alpha
    floor = row.noise_floor or 0.0
    unsure = f"not claimed: the baseline, answered again, may differ from itself by {floor:.4g}"
    if row.p_corrected > alpha or row.gain == 0.0:
        if within and floor > (row.margin or 0.0):
            return noted(row, unsure)
        return replace(row, verdict=Verdict.EQUIVALENT) if within else row
    if abs(row.gain) <= floor:
        return noted(row, unsure)
    if row.higher_is_better is None:
        return noted(row, "lm-eval does not say whether higher is better")
    if within:
        row = noted(row, f"it is real, and smaller than the margin of {row.margin:.4g}")
    return replace(row, verdict=Verdict.GAIN if better else Verdict.LOSS)


def is_testable(row: Gain) -> bool:
    """Whether a row belongs to a family: it has a p-value, and was not refused."""
    return row.p is not None and math.isfinite(row.p) and row.verdict is not Verdict.REFUSED
