"""Groups are scored from records and results alone, whole or not at all."""

import json
from pathlib import Path

import pytest

from raypeft.core.records import EvaluationSettings, Group, Scored
from tests.support.answers import made_up_answers
from tests.support.tasks import TinyTasks, write_task

pytestmark = pytest.mark.torch

SETTINGS = EvaluationSettings(bootstrap_iters=0)


def result(acc: float, docs: int, stderr: float | str = 0.1) -> dict[str, object]:
    return {"alias": "t", "name": "t", "sample_len": docs, "acc,none": acc} | {
        "acc_stderr,none": stderr
    }


def group(name: str, *children: str, weight_by_size: bool = True) -> Group:
    config = {"metric": "acc", "aggregation": "mean", "weight_by_size": weight_by_size}
    return Group(
        name=name, children=children, aggregate_metric_list=({**config, "filter_list": None},)
    )


def score_entry(entry: str, folder: Path) -> tuple[tuple[Group, ...], list[Scored]]:
    from raypeft.harness.freeze import freeze_entry
    from raypeft.harness.score import score

    include = [str(folder)]
    frozen = freeze_entry(entry, SETTINGS, include_path=include)
    return frozen.groups, [
        score(one, made_up_answers(one), include_path=include) for one in frozen.request_sets
    ]


def test_the_mean_is_weighted_by_documents_unless_the_group_says_otherwise() -> None:
    from raypeft.harness.groups import score_groups

    results = {"a": result(1.0, 1), "b": result(0.0, 3)}
    groups = [group("by_size", "a", "b"), group("plain", "a", "b", weight_by_size=False)]
    scored = score_groups(groups, results)
    assert scored["by_size"]["acc,none"] == 0.25
    assert scored["plain"]["acc,none"] == 0.5
    assert scored["plain"]["sample_count"] == {"acc,none": 4}


def test_a_nested_group_is_scored_from_leaf_tasks_in_any_order_of_the_records() -> None:
    from raypeft.harness.groups import score_groups

    results = {"a": result(1.0, 1), "b": result(0.0, 3), "c": result(0.5, 4)}
    inner, outer = group("inner", "a", "b", weight_by_size=False), group("outer", "inner", "c")
    for order in ([inner, outer], [outer, inner]):
        scored = score_groups(order, results)
        assert scored["inner"]["acc,none"] == 0.5
        assert scored["outer"]["acc,none"] == (1.0 * 1 + 0.0 * 3 + 0.5 * 4) / 8


def test_a_group_that_lacks_a_result_is_not_scored_and_neither_are_those_that_hold_it() -> None:
    from raypeft.harness.groups import missing_tasks, score_groups

    groups = [group("whole", "a"), group("inner", "a", "lost"), group("outer", "inner")]
    results = {"a": result(1.0, 5)}
    assert set(score_groups(groups, results)) == {"whole"}
    assert missing_tasks(groups, results) == {"whole": (), "inner": ("lost",), "outer": ("lost",)}


def test_a_stderr_that_a_task_lacks_is_lacking_in_the_group() -> None:
    from raypeft.harness.groups import score_groups

    results = {"a": result(1.0, 5), "b": result(0.0, 5, stderr="N/A")}
    assert score_groups([group("g", "a", "b")], results)["g"]["acc_stderr,none"] == "N/A"


def test_group_metrics_are_values_with_direction_and_count(tasks: TinyTasks) -> None:
    from raypeft.harness.groups import group_metrics, score_groups

    groups, scored = score_entry("tiny_nested", tasks.folder)
    metrics = {m.metric: m for m in group_metrics(groups, scored)["tiny_nested"]}
    results = {one.task: one.lm_eval["results"][one.task] for one in scored}
    expected = score_groups(groups, results)["tiny_nested"]
    assert metrics["acc"].value == expected["acc,none"]
    assert (metrics["acc"].n, metrics["acc"].higher_is_better) == (48, True)
    assert (metrics["exact_match"].filter, metrics["exact_match"].n) == ("strict", 12)
    assert metrics["acc"].stderr is None


def test_records_survive_json(tasks: TinyTasks) -> None:
    from raypeft.harness.groups import score_groups

    groups, scored = score_entry("tiny_nested", tasks.folder)
    results = {one.task: one.lm_eval["results"][one.task] for one in scored}
    read = [
        Group(
            name=one.name,
            children=one.children,
            alias=one.alias,
            aggregate_metric_list=tuple(json.loads(json.dumps(one.aggregate_metric_list))),
            metadata=json.loads(json.dumps(one.metadata)),
        )
        for one in groups
    ]
    assert score_groups(read, results) == score_groups(groups, results)


def test_a_container_without_aggregation_has_no_metrics(tasks: TinyTasks, tmp_path: Path) -> None:
    from raypeft.harness.freeze import freeze_entry
    from raypeft.harness.groups import group_metrics
    from raypeft.harness.score import score

    write_task(tmp_path, {"group": "container", "task": ["tiny_letters"]})
    include = [str(tasks.folder), str(tmp_path)]
    frozen = freeze_entry("container", SETTINGS, include_path=include)
    (request_set,) = frozen.request_sets
    scored = [score(request_set, made_up_answers(request_set), include_path=include)]
    assert group_metrics(frozen.groups, scored) == {"container": ()}


def test_a_task_that_is_scored_twice_is_not_merged_silently(tasks: TinyTasks) -> None:
    from raypeft.harness.groups import merge_results

    groups, scored = score_entry("tiny_letters", tasks.folder)
    with pytest.raises(ValueError, match="scored twice: tiny_letters"):
        merge_results(groups, scored * 2)
