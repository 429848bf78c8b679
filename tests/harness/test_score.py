"""Scoring replays answers through lm-eval, from frozen documents, and refuses bad answers."""

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from raypeft.core.records import Answer, EvaluationSettings, FailureKind, RequestSet, Scored
from raypeft.errors import CellError
from tests.support.answers import made_up_answers
from tests.support.odd_tasks import write_odd_tasks
from tests.support.tasks import TinyTasks, write_tasks

pytestmark = pytest.mark.torch

SETTINGS = EvaluationSettings(bootstrap_iters=100)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_odd_tasks(tmp_path_factory.mktemp("odd") / "tasks")


def freeze(
    entry: str, folder: Path, settings: EvaluationSettings = SETTINGS
) -> tuple[RequestSet, ...]:
    from raypeft.harness.freeze import freeze_entry

    frozen = freeze_entry(entry, settings, include_path=[str(folder)])
    assert frozen.failures == {}
    return frozen.request_sets


def score(request_set: RequestSet, folder: Path, answers: Sequence[Answer] | None = None) -> Scored:
    from raypeft.harness.score import score as score_cell

    given = made_up_answers(request_set) if answers is None else answers
    return score_cell(request_set, given, include_path=[str(folder)])


@pytest.fixture
def choice(odd: Path) -> RequestSet:
    (request_set,) = freeze("odd_choice", odd)
    return request_set


def test_every_task_is_scored_after_its_data_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    from raypeft.harness.freeze import freeze_entry

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    tasks = write_tasks(tmp_path / "tasks")
    entries = (*tasks.tasks, "tiny_nested", str(tasks.folder / "tiny_function.yaml"))
    frozen = {entry: freeze(entry, tasks.folder) for entry in entries}
    shutil.rmtree(tasks.data)
    shutil.rmtree(tmp_path / "cache")
    again = freeze_entry("tiny_function", SETTINGS, include_path=[str(tasks.folder)])
    assert again.failures["tiny_function"].kind is FailureKind.TASK_FAILED
    for request_sets in frozen.values():
        for request_set in request_sets:
            scored = score(request_set, tasks.folder)
            assert scored.metrics
            assert {sample.doc_id for sample in scored.samples} == {
                document.doc_id for document in request_set.documents
            }
    assert not (tmp_path / "cache").exists()


def test_a_shuffling_task_is_scored_on_the_documents_it_was_frozen_with(odd: Path) -> None:
    from raypeft.harness.codec import thaw_json

    (request_set,) = freeze("odd_shuffled", odd)
    targets = {document.doc_id: document.target for document in request_set.documents}
    answers = [Answer(r.index, text=targets[r.doc_id]) for r in request_set.requests]
    random.seed(31)
    scored = score(request_set, odd, answers)
    assert [metric.value for metric in scored.metrics] == [1.0]
    assert [thaw_json(d.doc)["n"] for d in request_set.documents] != list(range(6))


def test_two_scores_of_the_same_answers_are_equal_even_if_a_metric_draws(odd: Path) -> None:
    (request_set,) = freeze("odd_random", odd)
    first = score(request_set, odd)
    random.seed(7)
    assert score(request_set, odd) == first
    assert 0 < (first.metrics[0].value or 0) < 2


def test_the_order_in_which_answers_come_does_not_matter(choice: RequestSet, odd: Path) -> None:
    answers = list(made_up_answers(choice))
    assert score(choice, odd, answers[::-1]) == score(choice, odd, answers)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_an_answer_that_is_not_finite_voids_the_cell(
    choice: RequestSet, odd: Path, value: float
) -> None:
    answers = [
        replace(answer, logprob=value) if answer.index in (5, 7) else answer
        for answer in made_up_answers(choice)
    ]
    with pytest.raises(CellError, match="2 of 12 log-likelihoods") as caught:
        score(choice, odd, answers)
    assert caught.value.kind == FailureKind.NOT_FINITE
    assert "document 2, request 5" in caught.value.message


def test_missing_doubled_and_foreign_answers_are_refused(choice: RequestSet, odd: Path) -> None:
    answers = list(made_up_answers(choice))
    for wrong, words in (
        (answers[1:], "1 have no answer"),
        ([*answers, answers[0]], "1 answers are doubled"),
        ([*answers, Answer(99, logprob=-1.0, is_greedy=False)], "1 belong to no request"),
        ([replace(answers[0], is_greedy=None), *answers[1:]], "has no is_greedy"),
        ([replace(answers[0], logprob=None), *answers[1:]], "has no logprob"),
    ):
        with pytest.raises(CellError, match=words):
            score(choice, odd, wrong)


def test_the_copy_for_slots_cannot_be_scored(choice: RequestSet, odd: Path) -> None:
    with pytest.raises(ValueError, match="has no documents"):
        score(choice.for_slot(), odd)


def test_a_generation_without_text_is_refused(odd: Path) -> None:
    (request_set,) = freeze("odd_plain", odd)
    answers = [Answer(request.index, logprob=-1.0) for request in request_set.requests]
    with pytest.raises(CellError, match="has no text"):
        score(request_set, odd, answers)


def test_a_metric_that_raises_fails_the_cell_with_its_place(odd: Path) -> None:
    (request_set,) = freeze("odd_raising", odd)
    with pytest.raises(CellError, match="no_such_field") as caught:
        score(request_set, odd)
    assert caught.value.kind == FailureKind.TASK_FAILED
    assert "odd_functions.py, line" in caught.value.message


def test_values_per_document_keep_pairs_vectors_and_flags(tasks: TinyTasks) -> None:
    (vectors,) = freeze("tiny_vectors", tasks.folder)
    sample = score(vectors, tasks.folder).samples[0]
    gold, probabilities = sample.metrics["brier_score"]
    assert isinstance(gold, int)
    assert len(probabilities) == 4
    assert sum(probabilities) == pytest.approx(1)
    (own,) = freeze("tiny_function", tasks.folder)
    flags = score(own, tasks.folder).samples[0].metrics["flags"]
    assert flags
    assert all(type(flag) is bool for flag in flags)


def test_metrics_say_how_they_were_made(tasks: TinyTasks) -> None:
    (rolling,) = freeze("tiny_rolling", tasks.folder)
    by_name = {metric.metric: metric for metric in score(rolling, tasks.folder).metrics}
    words = by_name["word_perplexity"]
    assert (words.aggregation, words.higher_is_better) == ("weighted_perplexity", False)
    assert (words.n, words.stderr, words.filter) == (12, None, "none")
    assert json.loads(words.value_json) == words.value
    (own,) = freeze("tiny_function", tasks.folder)
    letters = score(own, tasks.folder).metrics[0]
    assert (letters.metric, letters.aggregation) == ("letters", "custom")


def test_each_metric_counts_its_own_documents(odd: Path) -> None:
    (request_set,) = freeze("odd_absent_metric", odd)
    metrics = {metric.metric: metric for metric in score(request_set, odd).metrics}
    assert {name: metric.n for name, metric in metrics.items()} == {
        "always": 6,
        "even": 3,
        "bonus": 6,
    }
    assert (metrics["bonus"].aggregation, metrics["bonus"].higher_is_better) == ("mean", None)


def test_samples_come_by_document_then_filter(tasks: TinyTasks) -> None:
    (request_set,) = freeze("tiny_gen", tasks.folder)
    found = [(s.doc_id, s.filter) for s in score(request_set, tasks.folder).samples]
    assert found == [(doc, name) for doc in range(12) for name in ("strict", "vote")]
    assert len(score(request_set, tasks.folder).samples[0].responses[0]) == 2


def test_requests_of_two_types_with_one_number_keep_their_order(odd: Path) -> None:
    (request_set,) = freeze("odd_class_same_idx", odd)
    assert score(request_set, odd).metrics[0].value == 1.0


def test_the_number_of_documents_is_that_of_the_whole_split(odd: Path) -> None:
    (request_set,) = freeze("odd_plain", odd, replace(SETTINGS, limit=2))
    counts = score(request_set, odd).lm_eval["n-samples"]["odd_plain"]
    assert counts == {"original": 6, "effective": 2}


def test_a_target_that_changed_since_freezing_is_refused(tmp_path: Path) -> None:
    folder = write_odd_tasks(tmp_path / "tasks")
    (request_set,) = freeze("odd_plain", folder)
    score(request_set, folder)
    path = folder / "odd_plain.yaml"
    path.write_text(path.read_text().replace("'{{a}}'", "'the {{a}}'"))
    with pytest.raises(CellError, match="another target_hash"):
        score(request_set, folder)


def test_a_document_that_was_stored_wrongly_is_refused(choice: RequestSet, odd: Path) -> None:
    first, *others = choice.documents
    swapped = replace(first, doc=dict(reversed(first.doc.items())))
    with pytest.raises(CellError, match="another doc_hash"):
        score(replace(choice, documents=(swapped, *others)), odd)


def test_nothing_is_printed_while_stderr_is_bootstrapped(
    tasks: TinyTasks, capfd: pytest.CaptureFixture[str]
) -> None:
    (request_set,) = freeze("tiny_lambada", tasks.folder)
    assert score(request_set, tasks.folder).metrics[0].stderr is not None
    output = capfd.readouterr()
    assert output.out == ""
    assert "it/s" not in output.err
