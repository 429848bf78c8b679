"""Freeze, answer, score gives bit for bit what a fresh `simple_evaluate` gives."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from raypeft.core.records import EvaluationSettings, Frozen, RequestSet, Scored
from tests.support.answers import answer_with
from tests.support.tasks import TinyTasks

pytestmark = pytest.mark.torch

SETTINGS = EvaluationSettings(bootstrap_iters=100)


@dataclass
class Chat:
    """The chat template of an lm-eval model, as a caller would give it."""

    lm: Any
    digest: str = "d" * 32
    name: str = "default"

    @property
    def tokenizer_name(self) -> str:
        return str(self.lm.tokenizer_name)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return str(self.lm.apply_chat_template(chat_history, add_generation_prompt))


def fresh(lm: Any, tasks: TinyTasks, entry: str, settings: EvaluationSettings) -> dict[str, Any]:
    """Run lm-eval itself."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    results = lm_eval.simple_evaluate(
        lm,
        tasks=[entry],
        task_manager=TaskManager(include_path=[str(tasks.folder)], include_defaults=False),
        num_fewshot=settings.num_fewshot,
        limit=settings.limit,
        gen_kwargs=dict(settings.gen_kwargs) if settings.gen_kwargs else None,
        apply_chat_template=settings.apply_chat_template,
        system_instruction=settings.system_instruction,
        fewshot_as_multiturn=settings.fewshot_as_multiturn,
        bootstrap_iters=settings.bootstrap_iters,
    )
    assert results is not None
    return dict(results)


def ours(
    lm: Any, tasks: TinyTasks, entry: str, settings: EvaluationSettings
) -> tuple[Frozen, list[Scored]]:
    """Freeze, answer with lm-eval's own model, score."""
    from raypeft.harness.freeze import freeze_entry
    from raypeft.harness.score import score

    include = [str(tasks.folder)]
    chat = Chat(lm) if settings.apply_chat_template else None
    frozen = freeze_entry(entry, settings, include_path=include, chat=chat)
    assert frozen.failures == {}
    answers = answer_with(lm, *frozen.request_sets)
    scored = [
        score(request_set, given, include_path=include)
        for request_set, given in zip(frozen.request_sets, answers, strict=True)
    ]
    return frozen, scored


def assert_equal_runs(reference: dict[str, Any], frozen: Frozen, scored: list[Scored]) -> None:
    """Compare everything lm-eval says with everything we say."""
    from raypeft.harness.groups import merge_results
    from raypeft.harness.metrics import plain_json

    merged = merge_results(frozen.groups, scored)
    for part in ("results", "groups", "group_subtasks", "configs", "versions", "n-shot"):
        assert merged.get(part) == plain_json(reference.get(part)), part
    for part in ("higher_is_better", "n-samples"):
        assert merged[part] == plain_json(reference[part]), part
    assert set(reference["samples"]) == {one.task for one in scored}
    for request_set, one in zip(frozen.request_sets, scored, strict=True):
        assert_equal_samples(reference["samples"][one.task], request_set, one)


def assert_equal_samples(
    reference: list[dict[str, Any]], request_set: RequestSet, scored: Scored
) -> None:
    from raypeft.harness.export import export_samples
    from raypeft.harness.metrics import plain_json

    exported = export_samples(request_set, scored)
    assert len(exported) == len(reference)
    for mine, theirs in zip(exported, reference, strict=True):
        assert plain_json(mine) == plain_json(theirs)


@pytest.mark.parametrize(
    "task",
    [
        "tiny_mc",
        "tiny_mc_first_n",
        "tiny_letters",
        "tiny_mutual",
        "tiny_vectors",
        "tiny_gen",
        "tiny_lambada",
        "tiny_rolling",
        "tiny_function",
        "tiny_empty_context",
        "tiny_class",
    ],
)
def test_every_kind_of_task_scores_as_in_a_fresh_run(lm: Any, tasks: TinyTasks, task: str) -> None:
    reference = fresh(lm, tasks, task, SETTINGS)
    assert_equal_runs(reference, *ours(lm, tasks, task, SETTINGS))


@pytest.mark.parametrize("entry", ["tiny_group", "tiny_nested", "tiny_tag"])
def test_groups_and_tags_score_as_in_a_fresh_run(lm: Any, tasks: TinyTasks, entry: str) -> None:
    reference = fresh(lm, tasks, entry, SETTINGS)
    assert_equal_runs(reference, *ours(lm, tasks, entry, SETTINGS))


OVERRIDES: Mapping[str, dict[str, Any]] = {
    "shots": {"num_fewshot": 3},
    "no_shots": {"num_fewshot": 0},
    "limit": {"limit": 5},
    "share": {"limit": 0.3},
    "gen_kwargs": {"gen_kwargs": {"max_gen_toks": 3, "until": ["e"]}},
    "no_stderr": {"bootstrap_iters": 0},
    "system": {"system_instruction": "Be brief. 🙂"},
    "chat": {"apply_chat_template": True, "fewshot_as_multiturn": True},
    "chat_one_turn": {"apply_chat_template": True, "system_instruction": "Be brief."},
    "chat_all": {
        "apply_chat_template": True,
        "fewshot_as_multiturn": True,
        "system_instruction": "Be brief.",
        "num_fewshot": 2,
        "limit": 4,
    },
}


@pytest.mark.parametrize("name", OVERRIDES)
@pytest.mark.parametrize("task", ["tiny_mc", "tiny_gen"])
def test_overrides_act_as_in_a_fresh_run(lm: Any, tasks: TinyTasks, task: str, name: str) -> None:
    settings = replace(SETTINGS, **OVERRIDES[name])
    assert_equal_runs(fresh(lm, tasks, task, settings), *ours(lm, tasks, task, settings))


def test_a_task_that_pins_no_shots_keeps_it_as_in_a_fresh_run(lm: Any, tasks: TinyTasks) -> None:
    settings = replace(SETTINGS, num_fewshot=3)
    frozen, scored = ours(lm, tasks, "tiny_letters", settings)
    assert_equal_runs(fresh(lm, tasks, "tiny_letters", settings), frozen, scored)
    assert frozen.request_sets[0].num_fewshot == 0


def test_an_adapter_scores_as_in_a_fresh_run_and_unlike_its_base(
    lm: Any, tasks: TinyTasks, base: Path, adapter: Path
) -> None:
    from lm_eval.models.huggingface import HFLM

    adapted = HFLM(pretrained=str(base), peft=str(adapter), batch_size=4, device="cpu")
    frozen, scored = ours(adapted, tasks, "tiny_mc", SETTINGS)
    assert_equal_runs(fresh(adapted, tasks, "tiny_mc", SETTINGS), frozen, scored)
    baseline_frozen, baseline = ours(lm, tasks, "tiny_mc", SETTINGS)
    assert baseline_frozen == frozen
    assert baseline[0].samples[0].responses != scored[0].samples[0].responses


def test_two_runs_in_a_row_are_equal(lm: Any, tasks: TinyTasks) -> None:
    assert ours(lm, tasks, "tiny_nested", SETTINGS) == ours(lm, tasks, "tiny_nested", SETTINGS)


def test_the_prompts_hold_what_the_tiny_tasks_are_meant_to_show(lm: Any, tasks: TinyTasks) -> None:
    """Parity on tasks that lack the odd cases would show nothing."""
    frozen, _ = ours(lm, tasks, "tiny_lambada", SETTINGS)
    contexts = [request.arguments[0] for request in frozen.request_sets[0].requests]
    assert len(lm.tok_encode(contexts[0])) > lm.max_length
    assert contexts[1].endswith("  ")
    assert not all(context.isascii() for context in contexts)
    frozen, _ = ours(lm, tasks, "tiny_empty_context", SETTINGS)
    assert {request.arguments[0] for request in frozen.request_sets[0].requests} == {""}
    frozen, _ = ours(lm, tasks, "tiny_mc", SETTINGS)
    prompts = {
        request.arguments[0].split("Question:")[1] for request in frozen.request_sets[0].requests
    }
    assert len(prompts) > 1, "the random sampler draws other shots for other documents"
