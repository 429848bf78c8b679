"""The gate: may an adapter be shipped? Policy × rows of the gains table → GO, NO-GO or UNDECIDED.

Decides what the gains say about each target and guard of a policy. No verdict is ever assumed: what
is missing, refused or too thin is UNDECIDED, which does not pass.

- A target passes if its verdict is a gain, corrected for all adapters and tasks of its base, and
  if the gain's one-sided bound reaches `min_gain`. It fails if the verdict is a loss, or if a gain
  of `min_gain` is ruled out.
- A guard "*" must cover something: a sweep of targets alone shows nothing of what is forgotten.
- While cells of the base are open nothing passes: the family that gains are corrected for grows as
  they finish, and what is shown now may not be then.
- A guard passes if the one-sided bound of the loss lies within the margin, and fails if a loss
  beyond the margin is shown. Bounds are at alpha divided by the number of guards (or targets) of
  the adapter, so that all of them hold at once (Bonferroni).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from raypeft.core.equivalence import ALLOWS_ALL, Evidence, best_case, evidence_of, worst_case
from raypeft.core.gate_policy import EVERYTHING, Guard, Policy, Target

Row: TypeAlias = Mapping[str, Any]


class Decision(StrEnum):
    """What a gate says."""

    GO = "GO"
    NO_GO = "NO-GO"
    UNDECIDED = "UNDECIDED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One target or guard for one adapter, or what is asked of the sweep as a whole.

    Attributes:
        kind: `target`, `guard`, or `sweep`, which is undecided and stands there only to say why.
        task: The task or group; "*" is all of them.
        metric: The metric; empty where there is none.
        filter: Its filter.
        decision: What the gains say.
        gain: The gain, better being more, whatever the metric's direction.
        worst: One-sided lower bound of it.
        best: One-sided upper bound of it.
        limit: What `worst` must reach: `min_gain`, or minus the margin.
        reason: In words.
    """

    kind: str
    task: str
    metric: str
    filter: str
    decision: Decision
    gain: float | None = None
    worst: float | None = None
    best: float | None = None
    limit: float | None = None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgetting:
    """What an adapter lost, or did not, on one task that is no target.

    Attributes:
        task: The task or group.
        metric: The metric.
        filter: Its filter.
        gain: Better being more; a loss is negative.
        low: Lower end of its interval.
        high: Upper end.
        verdict: As in the gains table.
    """

    task: str
    metric: str
    filter: str
    gain: float
    low: float | None
    high: float | None
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterGate:
    """What a gate says about one adapter.

    Attributes:
        base: The base's name.
        adapter: The adapter's name.
        decision: GO if every check passes, NO-GO if one fails.
        checks: Targets, then guards, then what is asked of the sweep.
        forgetting: The largest loss first.
    """

    base: str
    adapter: str
    decision: Decision
    checks: tuple[Check, ...]
    forgetting: tuple[Forgetting, ...]


def judge_adapter(
    policy: Policy,
    rows: Sequence[Row],
    *,
    base: str,
    adapter: str,
    everything: Sequence[str],
    alpha: float,
    num_open: int = 0,
) -> AdapterGate:
    """Return what a policy says about one adapter.

    Args:
        policy: The policy.
        rows: The adapter's rows of the gains table, in the table's order.
        base: The base's name.
        adapter: The adapter's name.
        everything: The tasks and groups that "*" stands for.
        alpha: Level where the policy gives none.
        num_open: Cells of the base that are yet to be answered or scored.
    """
    level = alpha if policy.alpha is None else policy.alpha
    targets = [(target, _find(rows, target)) for target in policy.targets]
    guards = [(guard, _find(rows, guard)) for guard in _spelt_out(policy, everything)]
    checks = [
        *(_check_target(t, row, level / len(targets)) for t, row in targets),
        *(_check_guard(g, row, level / len(guards)) for g, row in guards),
        *_check_sweep(policy, everything, base, num_open),
    ]
    aims = {target.task for target in policy.targets}
    found = (_find(rows, Target(task=task)) for task in everything if task not in aims)
    profile = [loss for row in found if row is not None and (loss := _forgetting(row))]
    return AdapterGate(
        base=base,
        adapter=adapter,
        decision=_together([check.decision for check in checks]),
        checks=tuple(checks),
        forgetting=tuple(sorted(profile, key=lambda loss: loss.gain)),
    )


def passes(policy: Policy, found: Sequence[AdapterGate]) -> bool:
    """Return whether the policy as a whole is met."""
    goes = [one.decision is Decision.GO for one in found]
    return bool(goes) and (all(goes) if policy.require == "all" else any(goes))


def is_judged(policy: Policy, adapter: str) -> bool:
    """Return whether a policy is about an adapter."""
    return any(fnmatchcase(adapter, pattern) for pattern in policy.adapters)


def _together(decisions: Sequence[Decision]) -> Decision:
    if Decision.NO_GO in decisions:
        return Decision.NO_GO
    everything_passed = bool(decisions) and set(decisions) == {Decision.GO}
    return Decision.GO if everything_passed else Decision.UNDECIDED


def _spelt_out(policy: Policy, everything: Sequence[str]) -> list[Guard]:
    """Return the guards with `*` spelt out; what is named by itself is not in it."""
    named = {one.task for one in policy.targets} | {one.task for one in policy.guards}
    found: list[Guard] = []
    for guard in policy.guards:
        tasks = [guard.task]
        if guard.task == EVERYTHING:
            tasks = [task for task in everything if task not in named]
        found += [guard.model_copy(update={"task": task}) for task in tasks]
    return found


def _find(rows: Sequence[Row], wanted: Target | Guard) -> Row | None:
    """Return the row of a target or guard: lm-eval's first metric and filter unless named."""
    for row in rows:
        if (
            row["task"] == wanted.task
            and wanted.metric in (None, row["metric"])
            and wanted.filter in (None, row["filter"])
        ):
            return row
    return None


def _check_target(target: Target, row: Row | None, alpha: float) -> Check:
    evidence = None if row is None else evidence_of(row)
    check = _check("target", target, row, evidence, alpha, target.min_gain)
    if row is None or evidence is None:
        return check
    gain = f"{evidence.gain:+.4g}"
    if row["verdict"] == "loss":
        return _decided(check, Decision.NO_GO, f"a loss of {-evidence.gain:.4g} is shown")
    if check.best is not None and check.best < target.min_gain:
        reason = f"{gain}; a gain of {target.min_gain:.4g} is ruled out (at best {check.best:+.4g})"
        return _decided(check, Decision.NO_GO, reason)
    if row["verdict"] != "gain":
        why = f": {row['reason']}" if row["reason"] else ""
        return _decided(check, Decision.UNDECIDED, f"{gain} is {row['verdict']}{why}")
    if target.min_gain > 0 and (check.worst is None or check.worst < target.min_gain):
        reason = (
            f"{gain} is a gain, but one of {target.min_gain:.4g} is not shown{_at_worst(check)}"
        )
        return _decided(check, Decision.UNDECIDED, reason)
    return _decided(check, Decision.GO, f"a gain of {gain} is shown")


def _check_guard(guard: Guard, row: Row | None, alpha: float) -> Check:
    evidence = None if row is None else evidence_of(row)
    margin = None if row is None else guard.largest_loss.of(row["baseline_value"])
    limit = None if margin is None else -margin
    check = _check("guard", guard, row, evidence, alpha, limit)
    if row is None or evidence is None:
        return check
    if margin is None:
        reason = f"{guard.margin} of a baseline of {row['baseline_value']} is no margin"
        return _decided(check, Decision.UNDECIDED, reason)
    if row["wins"] is not None and margin >= 1.0:
        return _decided(check, Decision.UNDECIDED, f"a margin of {margin:.4g} {ALLOWS_ALL}")
    if row["higher_is_better"] and guard.largest_loss.is_relative and guard.largest_loss.size >= 1:
        reason = f"a margin of {guard.margin} allows that all of the baseline's value is lost"
        return _decided(check, Decision.UNDECIDED, reason)
    gain = f"{evidence.gain:+.4g}"
    if check.best is not None and check.best < -margin:
        reason = f"{gain}; a loss of more than {margin:.4g} is shown"
        return _decided(check, Decision.NO_GO, reason)
    if check.worst is None:
        why = f": {row['reason']}" if row["reason"] else ""
        reason = f"{gain}; the data show no spread to bound a loss by{why}"
        return _decided(check, Decision.UNDECIDED, reason)
    if check.worst < -margin:
        reason = f"{gain}; a loss of more than {margin:.4g} is not ruled out{_at_worst(check)}"
        return _decided(check, Decision.UNDECIDED, reason)
    floor = row["noise_floor"]
    if floor is not None and floor > margin:
        reason = f"the noise floor of {floor:.4g} is larger than the margin of {margin:.4g}"
        return _decided(check, Decision.UNDECIDED, reason)
    return _decided(check, Decision.GO, f"a loss of {margin:.4g} is ruled out{_at_worst(check)}")


def _check_sweep(
    policy: Policy, everything: Sequence[str], base: str, num_open: int
) -> list[Check]:
    """Return why nothing may pass yet, whatever targets and guards say."""
    reasons = []
    aims = {target.task for target in policy.targets}
    guards_all = any(guard.task == EVERYTHING for guard in policy.guards)
    if guards_all and aims.issuperset(everything):
        reasons.append(
            f'the guard "{EVERYTHING}" covers nothing: the sweep has no task but the targets; add '
            "tasks that must not be forgotten, or leave the guard out"
        )
    if num_open:
        cells = "1 cell of {} is" if num_open == 1 else f"{num_open} cells of {{}} are"
        reasons.append(
            f"the sweep is unfinished: {cells.format(base)} open, and what is shown now may not "
            "hold among more comparisons; run it again to its end"
        )
    return [
        Check(
            kind="sweep",
            task=EVERYTHING,
            metric="",
            filter="",
            decision=Decision.UNDECIDED,
            reason=reason,
        )
        for reason in reasons
    ]


def _check(
    kind: str,
    wanted: Target | Guard,
    row: Row | None,
    evidence: Evidence | None,
    alpha: float,
    limit: float | None,
) -> Check:
    """Return the check with its numbers; undecided, since nothing has been decided yet."""
    reason = "there is no result" if row is None else f"no gain: {row['reason']}"
    return Check(
        kind=kind,
        task=wanted.task,
        metric=wanted.metric or "" if row is None else row["metric"],
        filter=wanted.filter or "" if row is None else row["filter"],
        decision=Decision.UNDECIDED,
        gain=None if evidence is None else evidence.gain,
        worst=None if evidence is None else worst_case(evidence, alpha),
        best=None if evidence is None else best_case(evidence, alpha),
        limit=limit,
        reason=reason,
    )


def _decided(check: Check, decision: Decision, reason: str) -> Check:
    return replace(check, decision=decision, reason=reason)


def _at_worst(check: Check) -> str:
    return "" if check.worst is None else f" (at worst {check.worst:+.4g})"


def _forgetting(row: Row) -> Forgetting | None:
    evidence = evidence_of(row)
    if evidence is None:
        return None
    low, high = row["low"], row["high"]
    if not row["higher_is_better"] and low is not None and high is not None:
        low, high = -high, -low
    return Forgetting(
        task=row["task"],
        metric=row["metric"],
        filter=row["filter"],
        gain=evidence.gain,
        low=low,
        high=high,
        verdict=row["verdict"],
    )
