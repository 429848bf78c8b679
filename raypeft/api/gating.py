"""The gate: a policy held against a sweep's gains, with the documents that flipped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raypeft.api.outputs import STOPPED_EARLY_REASON, write_outputs
from raypeft.api.stored import read_planned
from raypeft.core.gate import AdapterGate, Check, is_judged, judge_adapter, passes
from raypeft.core.gate_policy import Policy, parse_policy
from raypeft.errors import Problem, SpecError
from raypeft.store.jsontext import load_json
from raypeft.store.output import Results, open_output, tables_are_whole

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flips:
    """The documents on which an adapter and its baseline differ, for one task.

    Attributes:
        base: The base's name.
        adapter: The adapter's name.
        task: The task.
        metric: The metric.
        filter: Its filter.
        better: doc_ids on which the adapter is better.
        worse: doc_ids on which it is worse.
    """

    base: str
    adapter: str
    task: str
    metric: str
    filter: str
    better: tuple[int, ...]
    worse: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GateReport:
    """What a gate says about a sweep.

    Attributes:
        passed: Whether the policy as a whole is met.
        adapters: What it says about each adapter.
        flips: The documents that flipped on each task that was checked.
    """

    passed: bool
    adapters: tuple[AdapterGate, ...]
    flips: tuple[Flips, ...]


def read_policy(path: str | Path) -> Policy:
    """Read a policy file.

    Raises:
        SpecError: Every problem of the file at once.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        remedy = "name a readable YAML file"
        raise SpecError((Problem(str(path), f"cannot be read: {error}", remedy),)) from error
    return parse_policy(text, source=str(path))


def gate_output(output: str, policy: Policy | str | Path) -> GateReport:
    """Return what a policy says about each adapter of a sweep that was run.

    Args:
        output: The sweep's output.
        policy: The policy, or its file.

    Raises:
        SpecError: If the policy is wrong, or names tasks or adapters that the sweep does not have.
        SetupError: If no sweep has run there.
    """
    if not isinstance(policy, Policy):
        policy = read_policy(policy)
    if not tables_are_whole(output):
        write_outputs(*read_planned(output), runs={})
    results = open_output(output)
    rows, gains = results.results.to_pylist(), results.gains.to_pylist()
    cells = results.cells.to_pylist()
    # From the cells: an adapter that failed as a whole has no gains, and must not go unmentioned.
    subjects = {(r["base"], r["adapter"]): r["subject"] for r in cells if r["adapter"] is not None}
    judged = [key for key in subjects if is_judged(policy, key[1])]
    _check_names(policy, {row["task"] for row in (*rows, *cells)}, judged, subjects)
    _check_metrics(policy, rows)
    found = [
        judge_adapter(
            policy,
            [row for row in gains if (row["base"], row["adapter"]) == (base, adapter)],
            base=base,
            adapter=adapter,
            everything=_everything(base, rows, cells),
            alpha=gains[0]["alpha"] if gains else 0.05,
            num_open=_num_open(base, cells),
        )
        for base, adapter in judged
    ]
    documents = _Documents(results, rows)
    flips = [
        flipped
        for one in found
        for check in one.checks
        if (flipped := _flips(documents, gains, one, check)) is not None
    ]
    return GateReport(passed=passes(policy, found), adapters=tuple(found), flips=tuple(flips))


def _check_names(
    policy: Policy, tasks: set[str], judged: Sequence[Any], subjects: Mapping[Any, str]
) -> None:
    problems = []
    for kind in ("targets", "guards"):
        for index, one in enumerate(getattr(policy, kind)):
            if one.task not in tasks | {"*"}:
                known = ", ".join(sorted(tasks)) or "none"
                message = f"the sweep has no task or group {one.task!r}"
                problems.append(Problem(f"{kind}[{index}].task", message, f"there are {known}"))
    if not judged:
        known = ", ".join(sorted({adapter for _, adapter in subjects})) or "none"
        message = f"no adapter of the sweep matches {', '.join(policy.adapters) or 'nothing'}"
        problems.append(Problem("adapters", message, f"there are {known}"))
    if problems:
        raise SpecError(tuple(problems), "the policy")


def _check_metrics(policy: Policy, rows: Sequence[Row]) -> None:
    """Refuse metrics and filters that no subject has on their task: they are misspelt."""
    known: dict[str, dict[tuple[str, str], None]] = {}
    for row in rows:
        known.setdefault(row["task"], {})[row["metric"], row["filter"]] = None
    problems = []
    for kind in ("targets", "guards"):
        for index, one in enumerate(getattr(policy, kind)):
            found = known.get(one.task, {})
            if found and not any(
                one.metric in (None, metric) and one.filter in (None, name)
                for metric, name in found
            ):
                asked = ",".join(name for name in (one.metric, one.filter) if name)
                message = f"{one.task} has no metric or filter {asked!r}"
                remedy = f"there are {'; '.join(f'{metric},{name}' for metric, name in found)}"
                problems.append(Problem(f"{kind}[{index}].metric", message, remedy))
    if problems:
        raise SpecError(tuple(problems), "the policy")


def _everything(base: str, rows: Sequence[Row], cells: Sequence[Row]) -> list[str]:
    """Return what the sweep's entries stand for: a group where they name one, else their tasks."""
    groups = {row["task"] for row in rows if row["base"] == base and row["is_group"]}
    entries = {row["entry"]: None for row in cells if row["base"] == base}
    found: dict[str, None] = {}
    for entry in entries:
        tasks = [row["task"] for row in cells if (row["base"], row["entry"]) == (base, entry)]
        found.update(dict.fromkeys([entry] if entry in groups else tasks))
    return list(found)


def _num_open(base: str, cells: Sequence[Row]) -> int:
    """Return how many cells of a base have no results yet and may still get some."""
    return sum(
        row["base"] == base and row["state"] == "open" and row["reason"] != STOPPED_EARLY_REASON
        for row in cells
    )


def _flips(
    documents: "_Documents", gains: Sequence[Row], one: AdapterGate, check: Check
) -> Flips | None:
    """Return the documents that flipped; None for a group, or where nothing was compared."""
    row = next(
        (
            row
            for row in gains
            if (row["base"], row["adapter"], row["task"], row["metric"], row["filter"])
            == (one.base, one.adapter, check.task, check.metric, check.filter)
        ),
        None,
    )
    if row is None or row["is_group"] or row["gain"] is None or row["higher_is_better"] is None:
        return None
    baseline = documents.baseline(one, check)
    before, after = (
        documents.values(subject, check.task, check.metric, check.filter)
        for subject in (baseline, f"{one.base}/{one.adapter}")
    )
    signs = {
        doc_id: (after[doc_id] - before[doc_id]) * (1 if row["higher_is_better"] else -1)
        for doc_id in sorted(before.keys() & after.keys())
    }
    return Flips(
        base=one.base,
        adapter=one.adapter,
        task=check.task,
        metric=check.metric,
        filter=check.filter,
        better=tuple(doc_id for doc_id, sign in signs.items() if sign > 0),
        worse=tuple(doc_id for doc_id, sign in signs.items() if sign < 0),
    )


class _Documents:
    """The values of documents, each cell's read once: many adapters share a baseline."""

    def __init__(self, results: Results, rows: Sequence[Row]) -> None:
        self._results = results
        self._rows: dict[tuple[str, str], list[Row]] = {}
        for row in rows:
            if not row["is_group"]:
                self._rows.setdefault((row["base"], row["task"]), []).append(row)
        self._known: dict[tuple[str, str, str, str], dict[int, float]] = {}

    def baseline(self, one: AdapterGate, check: Check) -> str:
        """Return the baseline's subject: that of the adapter's engine and vocabulary."""
        rows = self._rows[one.base, check.task]
        own = next(row for row in rows if row["adapter"] == one.adapter)
        alike = [
            row["subject"]
            for row in rows
            if row["adapter"] is None
            and row["request_set"] == own["request_set"]
            and _settings(row) == _settings(own)
        ]
        return min(alike, key=lambda subject: (subject != one.base, subject), default=one.base)

    def values(self, subject: str, task: str, metric: str, filter_name: str) -> dict[int, float]:
        """Return the metric of each document; those that are no numbers are left out."""
        key = (subject, task, metric, filter_name)
        if key not in self._known:
            self._known[key] = {
                sample["doc_id"]: item["value"]
                for sample in self._results.samples_of(subject, task).to_pylist()
                if sample["filter"] == filter_name
                for item in sample["metrics"]
                if item["name"] == metric and item["value"] is not None
            }
        return self._known[key]


def _settings(row: Row) -> dict[str, Any]:
    numerics = load_json(row["numerics"])
    return {name: value for name, value in numerics.items() if name != "merged"}
