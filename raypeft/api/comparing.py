"""Comparisons of any two subjects, of one sweep or of two, document by document.

Decides which sides stand against each other and by whose rules. Whether they may be compared is
decided by `raypeft.core.comparable`, field by field, as for every gain.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from raypeft.api.scored_cells import RunSweep
from raypeft.core.comparable import ScoredCell
from raypeft.core.gains import Gain, GainSettings, Verdict, compute_gains
from raypeft.core.identity import canonical
from raypeft.core.records import Group, Json
from raypeft.core.spec import Sweep
from raypeft.errors import Problem, SpecError

_NAMES = (
    *("base", "adapter", "task", "is_group", "metric", "filter", "aggregation", "request_set"),
    *("alpha", "seed"),
)
"""What a refused row says beside its reason."""

SEPARATOR = "::"
"""Between a sweep's output and a subject, where a comparison reaches into another sweep."""


@dataclass(frozen=True, slots=True)
class _Side:
    run: RunSweep
    subject: str


def compare_subjects(output: str, left: str, right: str) -> list[Gain]:
    """Return what the right subject gains over the left, on every task and group both have.

    Gains are judged as the sweep of the left subject says (`statistics`, seeds, clusters); where
    that of the right says otherwise, each row's reason tells. Hardware may differ only where both
    allow it.

    Args:
        output: A sweep's output.
        left: A subject's id, or `<other output>::<subject>`.
        right: Likewise.

    Returns:
        One gain for each task or group and metric, refused ones among them; the fields `base` and
        `adapter` hold the two subjects.

    Raises:
        SpecError: If a subject is not there, or both have no task in common.
        StoreError: If a sweep has no tables.
    """
    runs: dict[str, RunSweep] = {}
    sides = []
    for name in (left, right):
        place, _, subject = name.rpartition(SEPARATOR)
        run = runs.setdefault(place or output, RunSweep(place or output))
        sides.append(_Side(run, subject))
    return _compare(sides[0], sides[1], (left, right))


def compare_sweeps(left: str, right: str) -> list[Gain]:
    """Return what each subject gains in the right sweep over itself in the left.

    Each subject is a family of its own: p is corrected for its tasks, not for the subjects.

    Args:
        left: A sweep's output.
        right: Another one's.

    Raises:
        SpecError: If they have no subject, or no task of one, in common.
        StoreError: If a sweep has no tables.
    """
    first, second = RunSweep(left), RunSweep(right)
    common = [subject for subject in first.subjects if subject in second.subjects]
    if not common:
        sides = [f"{run.output} has {', '.join(run.subjects)}" for run in (first, second)]
        remedy = f"name two subjects: raypeft compare {left} SUBJECT {right}{SEPARATOR}SUBJECT"
        raise SpecError((Problem("", f"no subject in common: {'; '.join(sides)}", remedy),))
    gains: list[Gain] = []
    for subject in common:
        names = (f"{left}{SEPARATOR}{subject}", f"{right}{SEPARATOR}{subject}")
        gains += _compare(_Side(first, subject), _Side(second, subject), names)
    return gains


def _compare(left: _Side, right: _Side, names: tuple[str, str]) -> list[Gain]:
    sides = [side.run.cells(side.subject) for side in (left, right)]
    common = {cell.task for cell in sides[0]} & {cell.task for cell in sides[1]}
    if not common:
        tasks = [", ".join(cell.task for cell in side) for side in sides]
        message = f"no task in common: {names[0]} has {tasks[0]}; {names[1]} has {tasks[1]}"
        raise SpecError((Problem("", message, "evaluate both on the same tasks"),))
    # Pairing looks for the base alone; here the left side stands for it.
    baselines, others = (
        [replace(cell, base="", adapter=role) for cell in side if cell.task in common]
        for side, role in zip(sides, (None, names[1]), strict=True)
    )
    # The base's digest stays: subjects of two bases answer with different models.
    groups, refused = _groups(left, right, (sides[0][0].base, sides[1][0].base))
    twice = _answered_twice(left, common)
    settings = _settings(left, right, sorted(common), [*baselines, *others])
    gains = compute_gains(
        baselines,
        others,
        groups,
        settings,
        [again for _, again in twice],
        first=list({first.task: first for first, _ in twice}.values()),
    )
    gains += [
        Gain(
            base="",
            adapter=names[1],
            task=row["task"],
            is_group=True,
            metric=row["metric"],
            filter=row["filter"],
            aggregation=row["aggregation"],
            request_set=None,
            alpha=settings.alpha,
            seed=settings.seed,
            verdict=Verdict.REFUSED,
            reason=refused[row["task"]],
        )
        for row in right.run.group_rows
        if row["subject"] == right.subject and row["task"] in refused
    ]
    rules = _rules_differ(left, right)
    return [_labelled(_as_tabled(gain, left, right), names[0], rules) for gain in gains]


def _as_tabled(gain: Gain, left: _Side, right: _Side) -> Gain:
    """Return a group's gain, refused if its values are not those of the tables.

    Definitions of groups are read anew from the task files, which may have changed since.
    """
    if not gain.is_group or gain.verdict is Verdict.REFUSED:
        return gain
    for side, value in ((left, gain.baseline_value), (right, gain.adapter_value)):
        key = (side.subject, gain.task, gain.metric, gain.filter)
        for row in side.run.group_rows:
            own = (row["subject"], row["task"], row["metric"], row["filter"])
            if own == key and not _is_same(value, row["value"]):
                reason = (
                    f"group {gain.task} is defined otherwise now than when {side.run.output} was "
                    f"run: {gain.metric} of {side.subject} is {row['value']} there and {value} now"
                )
                return Gain(
                    **{name: getattr(gain, name) for name in _NAMES},
                    verdict=Verdict.REFUSED,
                    reason=reason,
                )
    return gain


def _is_same(value: float | None, tabled: float | None) -> bool:
    if value is None or tabled is None:
        return value is tabled
    # Both add up the same numbers, in another order.
    return math.isclose(value, tabled, rel_tol=1e-9, abs_tol=1e-12) or value == tabled


def _labelled(gain: Gain, left: str, rules: str) -> Gain:
    reason = "; ".join(text for text in (gain.reason, rules) if text)
    return replace(gain, base=left, reason=reason)


def _groups(
    left: _Side, right: _Side, bases: tuple[str, str]
) -> tuple[list[Group], dict[str, str]]:
    """Return the groups that both sweeps define alike, and why others must not be compared."""
    ours, theirs = left.run.groups(bases[0]), right.run.groups(bases[1])
    alike, refused = [], {}
    for name in ours.keys() & theirs.keys():
        if difference := _group_difference(ours[name], theirs[name]):
            refused[name] = difference
        else:
            alike.append(ours[name])
    return sorted(alike, key=lambda group: list(ours).index(group.name)), refused


def _group_difference(ours: Group, theirs: Group) -> str:
    for field in ("children", "aggregate_metric_list"):
        values: list[Json] = [asdict(group)[field] for group in (ours, theirs)]
        left, right = (canonical(value) for value in values)
        if left != right:
            return f"group {ours.name}: {field} differs: {left} against {right}"
    return ""


def _answered_twice(left: _Side, tasks: set[str]) -> list[tuple[ScoredCell, ScoredCell]]:
    """Return the answers of the left subject's baseline in pairs, for the floor, under its name."""
    if not left.run.sweep.statistics.noise_floor:
        return []
    return [
        (
            replace(first, subject=left.subject, base="", adapter=None),
            replace(again, base="", adapter=again.subject),
        )
        for first, again in left.run.answered_twice(left.subject)
        if first.task in tasks
    ]


def _settings(
    left: _Side, right: _Side, tasks: Sequence[str], cells: Sequence[ScoredCell]
) -> GainSettings:
    sweep, other = left.run.sweep, right.run.sweep
    aggregations = {metric.aggregation for cell in cells for metric in cell.scored.metrics}
    aggregates = {}
    if aggregations - {"mean"}:
        from raypeft.harness.metrics import resampling_aggregates  # lm-eval, which means do without

        aggregates = resampling_aggregates()
    return GainSettings(
        alpha=sweep.statistics.alpha,
        power=sweep.statistics.power,
        seed=sweep.evaluation.seeds[1],
        resamples=sweep.statistics.resamples,
        allow_mixed_hardware=sweep.hardware.allow_mixed and other.hardware.allow_mixed,
        aggregates=aggregates,
        margins=sweep.statistics.margins,
        clusters=left.run.clusters(tasks),
        zero_subjects=left.run.zero_subjects,
    )


def _rules_differ(left: _Side, right: _Side) -> str:
    """Return whose rules hold where the two sweeps' differ; empty where they do not."""
    ours, theirs = _rules(left.run.sweep), _rules(right.run.sweep)
    odd = [name for name in ours if ours[name] != theirs[name]]
    if not odd:
        return ""
    return (
        f"judged by the rules of {left.run.output}; {right.run.output} has other {', '.join(odd)}"
    )


def _rules(sweep: Sweep) -> dict[str, str]:
    # Early stopping decides what is scored, not how what is scored is judged.
    statistics: dict[str, Json] = sweep.statistics.model_dump(
        mode="json", exclude={"early_stopping"}
    )
    rules = {f"statistics.{name}": canonical(value) for name, value in statistics.items()}
    clusters: Json = {task.name: task.cluster for task in sweep.tasks if task.cluster}
    return rules | {"seed": str(sweep.evaluation.seeds[1]), "clusters": canonical(clusters)}
