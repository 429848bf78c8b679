"""Freezing keeps every request and document, and turns what fails into named failures."""

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raypeft.core.records import EvaluationSettings, FailureKind, Frozen
from raypeft.errors import SpecError
from tests.support.odd_tasks import BAD_TASKS, write_odd_tasks
from tests.support.tasks import TinyTasks

pytestmark = pytest.mark.torch

SETTINGS = EvaluationSettings()


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_odd_tasks(tmp_path_factory.mktemp("odd") / "tasks")


def freeze(entry: str, folder: Path, settings: EvaluationSettings = SETTINGS) -> Frozen:
    from raypeft.harness.freeze import freeze_entry

    return freeze_entry(entry, settings, include_path=[str(folder)])


def test_a_request_set_says_what_it_was_made_of(tasks: TinyTasks) -> None:
    settings = replace(SETTINGS, limit=4, num_fewshot=3)
    frozen = freeze("tiny_tag", tasks.folder, settings)
    assert [one.task for one in frozen.request_sets] == ["tiny_mc", "tiny_mc_first_n"]
    first = frozen.request_sets[0]
    assert (first.entry, first.version, first.num_fewshot) == ("tiny_tag", "1.0", 3)
    assert (first.num_docs, len(first.documents), len(first.requests)) == (12, 4, 16)
    assert first.config["metadata"]["version"] == 1.0
    assert first.output_type == "multiple_choice"
    assert first.settings == settings
    assert first.tokenizer_digest == ""


def test_groups_are_kept_with_their_aggregation(tasks: TinyTasks) -> None:
    frozen = freeze("tiny_nested", tasks.folder)
    groups = {group.name: group for group in frozen.groups}
    nested, inner = groups["tiny_nested"], groups["tiny_group"]
    assert nested.children == ("tiny_group", "tiny_mc", "tiny_mc_first_n", "tiny_gen")
    assert (inner.alias, inner.metadata["version"]) == ("Tiny group", 7)
    assert [config["weight_by_size"] for config in inner.aggregate_metric_list] == [False]
    assert {one.task for one in frozen.request_sets} >= {"tiny_letters", "tiny_mutual", "tiny_gen"}


def test_every_bad_task_of_a_group_is_named_and_takes_no_other_with_it(odd: Path) -> None:
    frozen = freeze("odd_group", odd)
    assert [one.task for one in frozen.request_sets] == ["odd_plain", "odd_choice"]
    assert set(frozen.failures) == set(BAD_TASKS)
    for name, failure in frozen.failures.items():
        assert failure.kind is FailureKind.TASK_FAILED
        assert failure.message.startswith(f"task '{name}'")
        assert failure.detail
    messages = {name: failure.message for name, failure in frozen.failures.items()}
    assert "absent_test.jsonl" in messages["odd_no_data"]
    assert "has no function 'absent'" in messages["odd_no_function"]
    assert "TemplateSyntaxError" in messages["odd_bad_template"]
    assert "absent_filter" in messages["odd_bad_filter"]
    assert "holds no documents" in messages["odd_empty"]
    assert "no_such_metric" in messages["odd_metric"]
    (group,) = frozen.groups
    assert set(BAD_TASKS) < set(group.children)


def test_an_unknown_name_is_a_failure_of_the_sweep_file(odd: Path) -> None:
    frozen = freeze("odd_plian", odd)
    failure = frozen.failures["odd_plian"]
    assert failure.kind is FailureKind.SPEC
    assert "did you mean odd_plain" in failure.message


def test_a_group_that_lm_eval_cannot_read_is_a_failure_of_the_entry(tmp_path: Path) -> None:
    (tmp_path / "g.yaml").write_text("group: g\ntask: [{}]\n")
    failure = freeze("g", tmp_path).failures["g"]
    assert failure.kind is FailureKind.TASK_FAILED
    assert "must have 'task' or 'group' key" in failure.message


def test_a_group_without_tasks_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "g.yaml").write_text("group: g\ntask: []\n")
    assert "holds no task" in freeze("g", tmp_path).failures["g"].message


def test_generated_code_needs_permission_and_is_not_even_imported_without(odd: Path) -> None:
    for name, module in (("odd_unsafe", "odd_import"), ("odd_unsafe_allowed", "odd_import")):
        failure = freeze(name, odd).failures[name]
        assert failure.kind is FailureKind.UNSAFE
        assert "confirm_run_unsafe_code" in failure.message
        assert not any(module in loaded for loaded in sys.modules)
    allowed = replace(SETTINGS, confirm_run_unsafe_code=True)
    assert freeze("odd_unsafe_allowed", odd, allowed).failures == {}
    assert "was imported" in freeze("odd_unsafe", odd, allowed).failures["odd_unsafe"].message


def test_a_yaml_file_can_be_an_entry(odd: Path) -> None:
    path = str(odd / "odd_plain.yaml")
    frozen = freeze(path, odd)
    assert [one.task for one in frozen.request_sets] == ["odd_plain"]
    assert frozen.request_sets[0].digest == freeze("odd_plain", odd).request_sets[0].digest


def test_a_task_that_shuffles_is_frozen_the_same_whatever_ran_before(odd: Path) -> None:
    random.seed(99)
    first = freeze("odd_shuffled", odd)
    random.seed(100)
    freeze("odd_group", odd)
    assert freeze("odd_shuffled", odd) == first
    order = [document.doc["n"] for document in first.request_sets[0].documents]
    assert order != sorted(order)


def test_another_process_freezes_the_same(odd: Path, tasks: TinyTasks) -> None:
    script = (
        "import sys\n"
        "from raypeft.core.records import EvaluationSettings\n"
        "from raypeft.harness.freeze import freeze_entry\n"
        "for name in sys.argv[2:]:\n"
        "    for one in freeze_entry(name, EvaluationSettings(), include_path=sys.argv[1:2])"
        ".request_sets:\n"
        "        print(one.task, one.digest)\n"
    )
    command = [sys.executable, "-c", script, str(odd), "odd_shuffled", "odd_choice"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    here = [freeze(name, odd).request_sets[0] for name in ("odd_shuffled", "odd_choice")]
    assert output.splitlines() == [f"{one.task} {one.digest}" for one in here]


def test_the_digest_follows_the_prompts_and_nothing_else(tasks: TinyTasks) -> None:
    def digest(**changes: object) -> str:
        settings = replace(SETTINGS, **changes)  # type: ignore[arg-type]
        return freeze("tiny_gen", tasks.folder, settings).request_sets[0].digest

    assert digest(bootstrap_iters=5) == digest() == digest(num_fewshot=1)
    others = [digest(num_fewshot=2), digest(limit=3), digest(gen_kwargs={"max_gen_toks": 3})]
    others += [digest(fewshot_seed=5), digest(system_instruction="Be brief.")]
    assert len({digest(), *others}) == 6


def test_the_random_state_of_the_caller_is_left_alone(tasks: TinyTasks) -> None:
    random.seed(5)
    np.random.seed(5)
    expected = random.Random(5).random(), np.random.RandomState(5).random()
    freeze("tiny_mc", tasks.folder)
    assert (random.random(), np.random.random()) == expected


def test_nothing_is_printed(tasks: TinyTasks, capfd: pytest.CaptureFixture[str]) -> None:
    freeze("tiny_function", tasks.folder)
    output = capfd.readouterr()
    assert output.out == ""
    assert "%|" not in output.err
    assert "it/s" not in output.err


def test_a_chat_template_that_is_asked_for_must_be_given(tasks: TinyTasks) -> None:
    settings = replace(SETTINGS, apply_chat_template=True)
    with pytest.raises(SpecError, match="chat template"):
        freeze("tiny_mc", tasks.folder, settings)


def test_own_tasks_override_those_of_lm_eval(odd: Path, tmp_path: Path) -> None:
    text = (odd / "odd_plain.yaml").read_text().replace("odd_plain", "hellaswag")
    (tmp_path / "mine.yaml").write_text(text)
    frozen = freeze("hellaswag", tmp_path)
    assert frozen.request_sets[0].requests[0].arguments[0] == "item 0"
