"""Exported files are those that lm-eval writes, and its own tools read them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raypeft.core.records import EvaluationSettings, Group, RequestSet, Scored
from raypeft.errors import SetupError
from tests.support.answers import answer_with, made_up_answers
from tests.support.tasks import TinyTasks

pytestmark = pytest.mark.torch

SETTINGS = EvaluationSettings(bootstrap_iters=100)

DIFFERENT = {
    *("config", "date", "git_hash", "pretty_env_info", "upper_git_hash", "transformers_version"),
    *("tokenizer_pad_token", "tokenizer_eos_token", "tokenizer_bos_token", "eot_token_id"),
    *("max_length", "start_time", "end_time", "total_evaluation_time_seconds", "model_name"),
    *("model_name_sanitized", "model_source", "request_sets"),
}
"""Keys of a results file that say when, where and by whom, and not what."""


def freeze(entry: str, tasks: TinyTasks) -> tuple[tuple[RequestSet, ...], tuple[Group, ...]]:
    from raypeft.harness.freeze import freeze_entry

    frozen = freeze_entry(entry, SETTINGS, include_path=[str(tasks.folder)])
    return frozen.request_sets, frozen.groups


def score_made_up(request_set: RequestSet, tasks: TinyTasks) -> tuple[RequestSet, Scored]:
    from raypeft.harness.score import score

    answers = made_up_answers(request_set)
    return request_set, score(request_set, answers, include_path=[str(tasks.folder)])


def write_reference(lm: Any, tasks: TinyTasks, entry: str, out: Path) -> Path:
    """Write what `lm_eval run` writes; return the folder."""
    import lm_eval
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    tracker = EvaluationTracker(output_path=str(out))
    results = lm_eval.simple_evaluate(
        lm,
        model_args={"pretrained": "some/model"},
        tasks=[entry],
        task_manager=TaskManager(include_path=[str(tasks.folder)], include_defaults=False),
        evaluation_tracker=tracker,
        fewshot_as_multiturn=SETTINGS.fewshot_as_multiturn,
        bootstrap_iters=SETTINGS.bootstrap_iters,
    )
    assert results is not None
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for task in results["configs"]:
        tracker.save_results_samples(task_name=task, samples=samples[task])
    return out / "some__model"


@pytest.mark.parametrize("entry", ["tiny_nested", "tiny_rolling", "tiny_function", "tiny_class"])
def test_the_files_equal_those_of_a_fresh_run(
    lm: Any, tasks: TinyTasks, tmp_path: Path, entry: str
) -> None:
    from raypeft.harness.export import export_lm_eval
    from raypeft.harness.score import score

    reference = write_reference(lm, tasks, entry, tmp_path / "reference")
    request_sets, groups = freeze(entry, tasks)
    answers = answer_with(lm, *request_sets)
    scored = [
        (one, score(one, given, include_path=[str(tasks.folder)]))
        for one, given in zip(request_sets, answers, strict=True)
    ]
    files = export_lm_eval(tmp_path / "ours", subject="some/model", scored=scored, groups=groups)
    assert files.results.parent == tmp_path / "ours" / "some__model"
    (theirs,) = (json.loads(path.read_text()) for path in reference.glob("results_*.json"))
    mine = json.loads(files.results.read_text())
    assert {k: v for k, v in mine.items() if k not in DIFFERENT} == {
        k: v for k, v in theirs.items() if k not in DIFFERENT
    }
    shared = set(mine["config"]) & set(theirs["config"]) - {"model", "model_args"}
    assert {k: mine["config"][k] for k in shared} == {k: theirs["config"][k] for k in shared}
    assert {"limit", "fewshot_seed", "bootstrap_iters"} <= shared
    assert len(list(reference.glob("samples_*.jsonl"))) == len(files.samples)
    for task, path in files.samples.items():
        (expected,) = reference.glob(f"samples_{task}_2*.jsonl")
        assert path.read_text() == expected.read_text()


def test_vectors_are_written_as_lists_where_lm_eval_writes_a_shortened_print(
    lm: Any, tasks: TinyTasks, tmp_path: Path
) -> None:
    from raypeft.harness.export import export_lm_eval
    from raypeft.harness.score import score

    reference = write_reference(lm, tasks, "tiny_vectors", tmp_path / "reference")
    (request_set,), _ = freeze("tiny_vectors", tasks)
    (answers,) = answer_with(lm, request_set)
    scored = score(request_set, answers, include_path=[str(tasks.folder)])
    files = export_lm_eval(tmp_path / "ours", subject="m", scored=[(request_set, scored)])
    (expected,) = reference.glob("samples_*.jsonl")
    ours = files.samples["tiny_vectors"].read_text().splitlines()
    for mine_text, theirs_text in zip(ours, expected.read_text().splitlines(), strict=True):
        mine, theirs = json.loads(mine_text), json.loads(theirs_text)
        gold, vector = mine.pop("brier_score")
        assert [gold, str(np.array(vector))] == theirs.pop("brier_score")
        assert mine == theirs


def test_lm_evals_own_table_reads_the_results(tasks: TinyTasks, tmp_path: Path) -> None:
    from lm_eval.utils import make_table

    from raypeft.harness.export import export_lm_eval

    request_sets, groups = freeze("tiny_nested", tasks)
    scored = [score_made_up(one, tasks) for one in request_sets]
    files = export_lm_eval(
        tmp_path, subject="base/adapter", scored=scored, groups=groups, model_args={"peft": "x"}
    )
    results = json.loads(files.results.read_text())
    table, group_table = make_table(results), make_table(results, "groups")
    assert "tiny_mc_first_n" in table
    assert "Tiny group" in group_table
    value = results["results"]["tiny_nested"]["acc,none"]
    assert f"{value:.4f}" in group_table
    assert results["config"]["model_args"] == {"peft": "x"}
    assert results["request_sets"] == {one.task: one.digest for one in request_sets}


def test_settings_that_differ_between_tasks_are_written_for_each_task(
    tasks: TinyTasks, tmp_path: Path
) -> None:
    from raypeft.harness.export import export_lm_eval
    from raypeft.harness.freeze import freeze_entry

    def frozen(task: str, limit: int) -> RequestSet:
        settings = replace(SETTINGS, limit=limit)
        include = [str(tasks.folder)]
        (one,) = freeze_entry(task, settings, include_path=include).request_sets
        return one

    pairs = [
        score_made_up(frozen("tiny_mc", 2), tasks),
        score_made_up(frozen("tiny_gen", 3), tasks),
    ]
    files = export_lm_eval(tmp_path, subject="m", scored=pairs)
    config = json.loads(files.results.read_text())["config"]
    assert config["limit"] == {"tiny_mc": 2, "tiny_gen": 3}
    assert config["fewshot_seed"] == 1234


def test_a_file_that_cannot_be_written_is_an_error_and_not_a_warning(
    tasks: TinyTasks, tmp_path: Path
) -> None:
    from raypeft.harness.export import export_lm_eval

    (request_set,), _ = freeze("tiny_letters", tasks)
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "m").write_text("a file where the folder should be")
    with pytest.raises(SetupError, match="was not written whole"):
        export_lm_eval(blocked, subject="m", scored=[score_made_up(request_set, tasks)])
