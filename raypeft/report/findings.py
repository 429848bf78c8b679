"""The headline findings: what a sweep says, in plain sentences.

Decides which sentences may be said; the terminal and the page print the same ones. Only corrected
p-values speak here, "no loss found" is never put as "no loss", and what was not measured is named.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from shlex import quote

from raypeft.report.morning import BaseReport, Column, Morning, Row
from raypeft.report.standings import (
    Standing,
    Tier,
    adapters_without_results,
    better_by,
    clearest_first,
    is_level,
    scale,
    shrunk,
    standings,
    worst_bound,
    worst_of,
)
from raypeft.report.text import clean

MAX_NAMES = 3
"""Tasks or adapters that a sentence names before it only counts the rest."""


class FindingKind(StrEnum):
    """What a finding is about."""

    SHIP = "ship"
    COST = "cost"
    SURE = "sure"
    NEXT = "next"
    HARM = "harm"
    FAILED = "failed"
    REFUSED = "refused"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence or two.

    Attributes:
        kind: What it is about.
        text: One line; every name in it is clean.
    """

    kind: FindingKind
    text: str


def findings(morning: Morning) -> tuple[Finding, ...]:
    """Return what a sweep says, base by base, the most important first."""
    found: list[Finding] = []
    for report in morning.bases:
        if report.gains:
            ranked = standings(report, adapters_without_results(morning, report.base))
            found += _of_base(ranked, _alpha(report), _hidden_losses(morning, report, ranked[0]))
    found += _failures(morning)
    found += _stopped(morning)
    if morning.num_open:
        counts = f"{morning.num_open} of {morning.num_cells} cells have no result yet"
        text = f"{counts}: all of the above is provisional."
        found.append(Finding(FindingKind.OPEN, text))
    return tuple(found)


def _stopped(morning: Morning) -> list[Finding]:
    """Return who was given up as hopeless: such cells have no score."""
    tasks: dict[str, list[str]] = {}
    for row in morning.stopped_early:
        tasks.setdefault(row["subject"], []).append(row["task"])
    return [
        Finding(
            FindingKind.OPEN,
            f"{clean(subject)} was stopped early on {clean(', '.join(names))}: the gain that "
            "early_stopping waits for is ruled out there; what it has lost was not measured.",
        )
        for subject, names in tasks.items()
    ]


def _hidden_losses(morning: Morning, report: BaseReport, one: Standing) -> list[Row]:
    """Return an adapter's losses under other metrics than those that tasks are quoted by."""
    shown = {(column.task, column.metric, column.filter) for column in report.columns}
    found = [
        row
        for row in morning.details
        if (row["base"], row["adapter"], row["verdict"]) == (one.base, one.adapter, "loss")
        and (row["task"], row["metric"], row["filter"]) not in shown
    ]
    return sorted(found, key=clearest_first)


def _of_base(ranked: Sequence[Standing], alpha: float, hidden: Sequence[Row]) -> list[Finding]:
    best = ranked[0]
    found = [Finding(FindingKind.SHIP, _ship(best, hidden))]
    if best.gains:
        found.append(Finding(FindingKind.COST, _cost(best, hidden)))
    found.append(Finding(FindingKind.SURE, _sure(ranked, alpha)))
    rest = ranked[1:]
    if best.gains and (others := [one for one in rest if one.tier is best.tier]):
        found.append(Finding(FindingKind.NEXT, _next(best, others[0])))
    found += _harms([one for one in rest if one.losses])
    if num_refused := sum(len(one.refused) for one in ranked):
        reason = next(row["reason"] for one in ranked for row in one.refused)
        text = (
            f"{_count(num_refused, 'comparison')} with {clean(best.base)} refused: {clean(reason)}."
        )
        found.append(Finding(FindingKind.REFUSED, text))
    return found


def _alpha(report: BaseReport) -> float:
    rows = (row for rows in report.gains.values() for row in rows.values())
    return max((float(row["alpha"]) for row in rows), default=0.05)


def _ship(best: Standing, hidden: Sequence[Row]) -> str:
    base, name = clean(best.base), clean(best.adapter)
    if best.tier is Tier.GAINS_ONLY:
        where = " under the first metric of each task" if hidden else ""
        head = f"Over {base}, ship {name}: {_gain_count(best)} and no loss was found{where}."
        return f"{head} Clearest: {_claims(best.gains)}."
    if best.tier is Tier.MIXED:
        head = f"No adapter of {base} gains without losing elsewhere; {name} comes nearest"
        head = f"{head}: {_gain_count(best)}, losses on {len(best.losses)}"
        return f"{head}. Clearest gain: {_claims(best.gains, 1)}."
    head = f"No adapter of {base} is shown to gain anything"
    if best.losses:
        return f"{head}, and the best of them, {name}, loses: {_claims(best.losses)}."
    return f"{head}: nothing here is a reason to ship one.{_sight(best)}"


def _gain_count(one: Standing) -> str:
    text = f"it gains on {len(one.gains)} of {_measured(one)}"
    if one.mean_gain is not None:
        text += f" ({one.mean_gain:+.3f} on average)"
    return text


def _num_measured(one: Standing) -> int:
    return sum(map(len, (one.gains, one.losses, one.equivalent, one.inconclusive)))


def _measured(one: Standing) -> str:
    rows = (*one.gains, *one.losses, *one.equivalent, *one.inconclusive)
    groups = sum(row["is_group"] for row in rows)
    tasks = _count(len(rows) - groups, "task")
    return f"{len(rows)} ({tasks}, {_count(groups, 'group')})" if groups else tasks


def _cost(best: Standing, hidden: Sequence[Row]) -> str:
    name = clean(best.adapter)
    parts = []
    if best.losses:
        parts.append(f"it loses {_claims(best.losses)}")
    if hidden:
        parts.append(f"under another metric it loses {_claims(hidden)}")
    if best.equivalent:
        parts.append(f"it is shown to stay within the margin on {_tasks(best.equivalent)}")
    if best.inconclusive:
        parts.append(f"it is undecided on {_tasks(best.inconclusive)}{_worst(best.inconclusive)}")
    if not best.is_complete:
        lacking = [clean(column.task) for column in best.missing]
        lacking += [clean(row["task"]) for row in best.refused]
        parts.append(f"it is not known on {_listed(lacking)}")
    if not parts and len(best.gains) == 1:
        return (
            f"What {name} costs elsewhere was not measured: {_tasks(best.gains)} is all there is."
        )
    if not parts:
        return f"What {name} costs elsewhere: nothing, it gains on everything that was measured."
    return f"What {name} costs elsewhere: {'; '.join(parts)}."


def _worst(rows: Sequence[Row]) -> str:
    """Return how large a loss the intervals of undecided rows still allow."""
    said = []
    if (found := worst_of(rows)) is not None:
        bound, row = found
        said.append(f"its interval allows a loss of {abs(bound):.3g} on {clean(row['task'])}")
    if unknown := [row for row in rows if worst_bound(row) is None]:
        said.append(f"nothing bounds a loss on {_tasks(unknown)}")
    return f" ({'; '.join(said)})" if said else ""


def _sight(best: Standing) -> str:
    """Return which gains would have been too small to be seen."""
    rows = [row for row in best.inconclusive if row["smallest_detectable_gain"] is not None]
    if not rows:
        return ""
    row = min(rows, key=lambda row: row["smallest_detectable_gain"] / scale(row))
    size, task = f"{row['smallest_detectable_gain']:.3g}", clean(row["task"])
    return f" Gains below {size} are easily missed even on {task}, where one sees best."


def _sure(ranked: Sequence[Standing], alpha: float) -> str:
    judged = [(*one.gains, *one.losses, *one.equivalent, *one.inconclusive) for one in ranked]
    rows = [row for own in judged for row in own]
    claims = sum(len(one.gains) + len(one.losses) for one in ranked)
    names = sorted({clean(row["correction"]) for row in rows if row.get("correction")})
    by = f" ({' and '.join(names)})" if names else ""
    text = (
        f"How sure: {_count(claims, 'gain or loss', 'gains and losses')} among"
        f" {_count(len(rows), 'comparison')}, corrected together for each metric{by}"
    )
    if claims:
        text += f"; that any of a metric's is false has a chance of at most {100 * alpha:g}%"
    return f"{text}.{_chance(ranked[0])}"


def _chance(best: Standing) -> str:
    """Return on how many of its gains an adapter is likelier than not the best of all."""
    known = [row for row in best.gains if row.get("p_best") is not None]
    if not known:
        return ""
    likely = sum(row["p_best"] > 0.5 for row in known)
    of = f"{likely} of the {len(known)} columns"
    return f" {clean(best.adapter)} is more likely than not the best of all on {of} it gains on."


def _next(best: Standing, second: Standing) -> str:
    mean = "" if second.mean_gain is None else f" ({second.mean_gain:+.3f} on average)"
    # Names are not ours, and this line is made to be copied into a shell.
    left, right = (quote(f"{clean(one.base)}/{clean(one.adapter)}") for one in (second, best))
    head = "Level with it by its numbers is" if is_level(best, second) else "Next is"
    return (
        f"{head} {clean(second.adapter)}{mean}. That the first is better than it is not shown here;"
        f" whether it is: `raypeft compare OUTPUT {left} {right}`."
    )


def _harms(harmful: Sequence[Standing]) -> list[Finding]:
    worst_first = sorted(harmful, key=lambda one: (len(one.gains) - len(one.losses), -one.place))
    found = [Finding(FindingKind.HARM, _harm(one)) for one in worst_first[:MAX_NAMES]]
    if rest := len(harmful) - len(found):
        lose = "loses" if rest == 1 else "lose"
        text = f"{_count(rest, 'more adapter')} of {clean(harmful[0].base)} {lose} somewhere."
        found.append(Finding(FindingKind.HARM, text))
    return found


def _harm(one: Standing) -> str:
    also = f"; it also gains on {_tasks(one.gains)}" if one.gains else ""
    head = f"{clean(one.adapter)} loses on {len(one.losses)} of {_num_measured(one)}"
    return f"{head}: {_claims(one.losses, 1)}{also}."


def _failures(morning: Morning) -> list[Finding]:
    by_subject: dict[str, list[Row]] = {}
    for row in morning.failures:
        by_subject.setdefault(row["subject"], []).append(row)
    found = []
    for subject, rows in by_subject.items():
        reasons = sorted({clean(row["reason"] or row["state"]) for row in rows})
        text = f"{clean(subject)} failed on {_count(len(rows), 'task')}: {', '.join(reasons)}."
        found.append(Finding(FindingKind.FAILED, text))
    if len(found) > MAX_NAMES:
        rest = len(found) - MAX_NAMES
        text = f"{_count(rest, 'more subject')} failed somewhere; the failures are listed below."
        found[MAX_NAMES:] = [Finding(FindingKind.FAILED, text)]
    return found


# --- words ------------------------------------------------------------------------------------


def column_label(column: Column) -> str:
    """Return a column's metric, filter and direction."""
    arrow = {True: " ↑", False: " ↓", None: ""}[column.higher_is_better]
    suffix = "" if column.filter == "none" else f",{column.filter}"
    return clean(column.metric + suffix) + arrow


def p_text(p: float) -> str:
    """Return a p-value as it is written in a sentence."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _claims(rows: Sequence[Row], limit: int = 2) -> str:
    """Return the clearest of some gains or losses with interval and corrected p."""
    return ", ".join(_claim(row) for row in rows[:limit])


def _claim(row: Row) -> str:
    # The shrunk gain is what to expect of an adapter that was chosen for being the best.
    gain, expected = row["gain"], shrunk(row)
    text = f"{gain:+.3g} {clean(row['metric'])} on {clean(row['task'])}"
    inside = []
    if better_by(row, gain) is not None and not row["higher_is_better"]:
        inside.append("lower is better")
    if row["low"] is not None and row["high"] is not None:
        inside.append(f"{row['low']:+.3g} to {row['high']:+.3g}")
    if row.get("shrunk_gain") is not None and expected is not None:
        inside.append(f"shrunk to {expected:+.3g}")
    if row["p_corrected"] is not None:
        inside.append(f"corrected {p_text(row['p_corrected'])}")
    return f"{text} ({', '.join(inside)})" if inside else text


def _tasks(rows: Sequence[Row]) -> str:
    return _listed([clean(row["task"]) for row in rows])


def _listed(names: Sequence[str]) -> str:
    if len(names) <= MAX_NAMES + 1:
        return ", ".join(names)
    return f"{', '.join(names[:MAX_NAMES])} and {len(names) - MAX_NAMES} more"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
