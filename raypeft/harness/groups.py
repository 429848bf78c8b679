"""Groups: kept as records, scored again by lm-eval's own aggregation.

Nothing but the records and the tasks' results is needed: no dataset, no YAML. A group of which a
task has no result is not scored at all; lm-eval would take the mean of the others, under the same
name.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lm_eval.api.group import Group as LmEvalGroup
from lm_eval.api.task import Task
from lm_eval.config.group import AggMetricConfig
from lm_eval.evaluator_utils import EvalAcc, aggregate_groups

from raypeft.core.records import Group, Json, MetricValue, Scored
from raypeft.harness.metrics import metric_values, plain_json


def freeze_groups(groups: Mapping[str, LmEvalGroup]) -> tuple[Group, ...]:
    """Return the records of lm-eval's groups."""
    return tuple(
        Group(
            name=group.name,
            children=tuple(group.child_names),
            alias=group.alias,
            aggregate_metric_list=tuple(
                # A callable is kept by name: lm-eval accepts one and never calls it.
                plain_json(asdict(config))
                for config in group.aggregate_metric_list or ()
            ),
            metadata=plain_json(group.metadata or {}),
        )
        for group in groups.values()
    )


def score_groups(
    groups: Sequence[Group], task_results: Mapping[str, Mapping[str, Json]]
) -> dict[str, dict[str, Json]]:
    """Score groups from their tasks' results, as `lm_eval.evaluate` does.

    Args:
        groups: The groups, in any order; nested ones beside those that hold them.
        task_results: For each leaf task what lm-eval has under `results`
            (`Scored.lm_eval["results"][task]`).

    Returns:
        For each group what lm-eval has under `results`; a group without all of its tasks' results
        is left out (see `missing_tasks`).
    """
    missing = missing_tasks(groups, task_results)
    acc = EvalAcc(
        metrics={name: dict(result) for name, result in task_results.items()},
        groups=_thaw_groups([group for group in groups if not missing[group.name]]),
    )
    aggregate_groups(acc)
    return {
        group.name: plain_json(acc.metrics[group.name])
        for group in groups
        if group.name in acc.metrics and not missing[group.name]
    }


def missing_tasks(
    groups: Sequence[Group], task_results: Mapping[str, Any]
) -> dict[str, tuple[str, ...]]:
    """Return for each group its leaf tasks that have no result."""
    by_name = {group.name: group for group in groups}
    return {
        group.name: tuple(task for task in _leaf_names(group, by_name) if task not in task_results)
        for group in groups
    }


def group_metrics(
    groups: Sequence[Group], scored: Sequence[Scored]
) -> dict[str, tuple[MetricValue, ...]]:
    """Return the aggregated metrics of each group whose tasks are all scored.

    A container without aggregation has none.
    """
    merged = merge_results(groups, scored)
    found: dict[str, tuple[MetricValue, ...]] = {}
    for group in groups:
        result = merged["results"].get(group.name)
        if result is None:
            continue
        counts = result.get("sample_count", {})
        directions = merged["higher_is_better"].get(group.name, {})
        found[group.name] = tuple(
            metric_values(
                result,
                count=lambda metric, name, counts=counts: counts[f"{metric},{name}"],  # type: ignore[misc]
                higher_is_better=directions,
                aggregation=lambda metric: "mean",
            )
        )
    return found


def merge_results(groups: Sequence[Group], scored: Sequence[Scored]) -> dict[str, Json]:
    """Return one results dictionary for all tasks of a subject, as one `evaluate` would.

    Args:
        groups: Groups to be scored with them; one that lacks a task's result is left out.
        scored: The tasks' scores, in lm-eval's order.

    Raises:
        ValueError: If a task is there twice; a results dictionary holds it once.
    """
    names = [one.task for one in scored]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ValueError(f"scored twice: {', '.join(doubled)}; merge each score on its own")
    parts = {one.task: one.lm_eval for one in scored}
    missing = missing_tasks(groups, parts)
    acc = EvalAcc(
        metrics={task: dict(part["results"][task]) for task, part in parts.items()},
        configs={task: part["configs"][task] for task, part in parts.items()},
        versions={task: part["versions"][task] for task, part in parts.items()},
        num_fewshot={task: part["n-shot"][task] for task, part in parts.items()},
        higher_is_better={task: part["higher_is_better"][task] for task, part in parts.items()},
        n_samples={task: part["n-samples"][task] for task, part in parts.items()},
        groups=_thaw_groups([group for group in groups if not missing[group.name]]),
    )
    merged: dict[str, Json] = plain_json(aggregate_groups(acc)._to_eval_results())
    return merged


class _LeafName:
    """A task that is known by its name only; all that `Group.aggregate` asks of its children."""

    def __init__(self, task_name: str) -> None:
        self.task_name = task_name


# `Group.get_all_tasks` asks `isinstance(child, Task)`.
Task.register(_LeafName)


def _thaw_groups(groups: Sequence[Group]) -> dict[str, LmEvalGroup]:
    thawed = {
        group.name: LmEvalGroup(
            name=group.name,
            alias=group.alias,
            aggregate_metric_list=[
                AggMetricConfig(**{**config, "aggregation": "mean"})
                for config in group.aggregate_metric_list
            ],
            metadata=dict(group.metadata),
        )
        for group in groups
    }
    for group in groups:
        for child in group.children:
            thawed[group.name].add(thawed[child] if child in thawed else _LeafName(child))
    return thawed


def _leaf_names(group: Group, by_name: Mapping[str, Group]) -> Iterator[str]:
    for child in group.children:
        if child in by_name:
            yield from _leaf_names(by_name[child], by_name)
        else:
            yield child
