"""A task is built again for scoring from its entry, without its dataset where that is possible."""

from pathlib import Path

import pytest

from raypeft.core.records import EvaluationSettings, FailureKind, RequestSet
from raypeft.errors import CellError
from tests.support.answers import made_up_answers
from tests.support.odd_tasks import write_odd_tasks

pytestmark = pytest.mark.torch


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    return write_odd_tasks(tmp_path / "tasks")


def freeze(entry: str, folder: Path) -> RequestSet:
    from raypeft.harness.freeze import freeze_entry

    settings = EvaluationSettings(num_fewshot=0)
    (request_set,) = freeze_entry(entry, settings, include_path=[str(folder)]).request_sets
    return request_set


def test_a_class_that_reads_its_dataset_while_it_is_built_is_scored_where_the_dataset_is(
    odd: Path,
) -> None:
    from raypeft.harness.score import score

    request_set = freeze("odd_class_eager", odd)
    scored = score(request_set, made_up_answers(request_set), include_path=[str(odd)])
    assert [sample.metrics["n"] for sample in scored.samples] == [0, 1, 2, 3]


def test_without_the_dataset_such_a_class_is_a_named_failure(
    odd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raypeft.harness.score import score

    request_set = freeze("odd_class_eager", odd)
    monkeypatch.setenv("ODD_DATA_GONE", "1")
    with pytest.raises(CellError, match="the data is gone") as caught:
        score(request_set, made_up_answers(request_set), include_path=[str(odd)])
    assert caught.value.kind == FailureKind.TASK_FAILED
    assert "frozen documents" in caught.value.message
    plain = freeze_without_data("odd_class_same_idx", odd, monkeypatch)
    scored = score(plain, made_up_answers(plain), include_path=[str(odd)])
    assert len(scored.samples) == 4


def freeze_without_data(entry: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> RequestSet:
    """Freeze where the data is, then take it away."""
    monkeypatch.delenv("ODD_DATA_GONE")
    request_set = freeze(entry, folder)
    monkeypatch.setenv("ODD_DATA_GONE", "1")
    return request_set


def test_a_task_whose_files_are_gone_is_a_named_failure(odd: Path) -> None:
    from raypeft.harness.score import score

    request_set = freeze("odd_plain", odd)
    (odd / "odd_plain.yaml").unlink()
    with pytest.raises(CellError, match="cannot be found again") as caught:
        score(request_set, made_up_answers(request_set), include_path=[str(odd)])
    assert caught.value.kind == FailureKind.TASK_FAILED


def test_an_edited_metric_is_used_in_the_same_process(odd: Path) -> None:
    from raypeft.harness.score import score

    request_set = freeze("odd_plain", odd)
    answers = made_up_answers(request_set)
    before = score(request_set, answers, include_path=[str(odd)])
    path = odd / "odd_plain.yaml"
    path.write_text(path.read_text().replace("exact_match", "bleu").replace(": mean", ": bleu"))
    after = score(request_set, answers, include_path=[str(odd)])
    assert [m.metric for m in (*before.metrics, *after.metrics)] == ["exact_match", "bleu"]


def test_the_built_task_has_the_overrides_it_was_frozen_under(odd: Path) -> None:
    from raypeft.harness.rebuild import scoring_task

    request_set = freeze("odd_choice", odd)
    task = scoring_task(request_set, [str(odd)])
    assert task.get_config("num_fewshot") == 0
    assert task is scoring_task(request_set, [str(odd)])
