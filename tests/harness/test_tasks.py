"""Entries are resolved by lm-eval's own manager, without building a task."""

from pathlib import Path

import pytest

from raypeft.core.records import EvaluationSettings
from tests.support.tasks import TinyTasks, write_task

pytestmark = pytest.mark.torch


def test_a_group_resolves_to_the_tasks_that_lm_eval_makes_of_it(tasks: TinyTasks) -> None:
    from lm_eval.tasks import TaskManager

    from raypeft.harness.tasks import load_entry

    manager = TaskManager(include_path=[str(tasks.folder)], include_defaults=False)
    theirs = manager.load(["tiny_nested"])
    ours = load_entry("tiny_nested", [str(tasks.folder)])
    assert list(ours.leaves) == list(theirs["tasks"])
    assert {name: group.child_names for name, group in ours.groups.items()} == theirs["group_map"]
    assert ours.leaves["tiny_gen"].config["task_alias"] == "generation"


def test_the_configuration_of_a_leaf_is_not_changed_by_building_it(tasks: TinyTasks) -> None:
    from raypeft.harness.tasks import apply_overrides, load_entry

    leaf = load_entry("tiny_gen", [str(tasks.folder)]).leaves["tiny_gen"]
    first = leaf.build()
    apply_overrides(first, EvaluationSettings(gen_kwargs={"max_gen_toks": 1}, num_fewshot=3))
    second = leaf.build()
    assert first.get_config("generation_kwargs")["max_gen_toks"] == 1
    assert second.get_config("generation_kwargs")["max_gen_toks"] == 8
    assert second.get_config("num_fewshot") == 1


def test_tasks_defined_inside_a_group_are_leaves_under_its_name(
    tasks: TinyTasks, tmp_path: Path
) -> None:
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import _factory

    from raypeft.harness.tasks import load_entry

    member = {"task": "inline", "include": "none", "dataset_path": "json", "doc_to_text": "x"}
    write_task(
        tmp_path,
        {"group": "own", "num_fewshot": 4, "task": [member, {"group": "sub", "task": ["tiny_mc"]}]},
    )
    loaded = load_entry("own", [str(tasks.folder), str(tmp_path)])
    assert list(loaded.leaves) == ["own::inline", "tiny_mc"]
    assert loaded.leaves["own::inline"].config["num_fewshot"] == 4
    assert loaded.leaves["tiny_mc"].config["num_fewshot"] == 4
    assert set(loaded.groups) == {"own", "own::sub"}
    assert _factory.ConfigurableTask is ConfigurableTask


@pytest.mark.parametrize(("pinned", "given", "expected"), [(0, 5, 0), (2, 5, 5), (None, None, 0)])
def test_shots_are_overridden_as_simple_evaluate_does(
    tasks: TinyTasks, pinned: int | None, given: int | None, expected: int
) -> None:
    from raypeft.harness.tasks import apply_overrides, load_entry

    leaf = load_entry("tiny_mc", [str(tasks.folder)]).leaves["tiny_mc"]
    leaf.config["num_fewshot"] = pinned
    task = leaf.build()
    apply_overrides(task, EvaluationSettings(num_fewshot=given))
    assert task.get_config("num_fewshot") == expected
