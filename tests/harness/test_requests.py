"""What is kept of a built task, and what cannot be kept and is refused."""

from pathlib import Path

import pytest

from raypeft.core.records import EvaluationSettings, FailureKind, Frozen
from tests.support.odd_tasks import write_odd_tasks
from tests.support.tasks import TinyTasks

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_odd_tasks(tmp_path_factory.mktemp("odd") / "tasks")


def freeze(entry: str, folder: Path) -> Frozen:
    from raypeft.harness.freeze import freeze_entry

    return freeze_entry(entry, EvaluationSettings(), include_path=[str(folder)])


def test_repeated_calls_are_rows_of_their_own_in_the_order_of_the_model_calls(
    tasks: TinyTasks,
) -> None:
    (request_set,) = freeze("tiny_gen", tasks.folder).request_sets
    found = [(r.index, r.doc_id, r.idx, r.repeat) for r in request_set.requests]
    assert found == [(2 * doc + repeat, doc, 0, repeat) for doc in range(12) for repeat in (0, 1)]


def test_request_types_follow_one_another(tasks: TinyTasks) -> None:
    (request_set,) = freeze("tiny_class", tasks.folder).request_sets
    kinds = [request.request_type for request in request_set.requests]
    assert kinds == ["loglikelihood"] * 9 + ["generate_until"] * 9


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        ("odd_image", "images or audio"),
        ("odd_class_sets", "document 0.labels is a builtins.set"),
        ("odd_changing", "changes document 0"),
        ("odd_class_no_order", "mixes request types"),
        ("odd_class_other_type", "'multiple_choice' requests"),
        ("odd_number", "arguments of types (str, int), not (str, str)"),
    ],
)
def test_what_cannot_be_frozen_is_unsupported_and_says_why(
    odd: Path, task: str, reason: str
) -> None:
    failure = freeze(task, odd).failures[task]
    assert failure.kind is FailureKind.UNSUPPORTED
    assert reason in failure.message


def test_documents_have_the_hashes_that_lm_eval_writes(tasks: TinyTasks) -> None:
    from lm_eval.utils import hash_string

    from raypeft.harness.codec import thaw_json
    from raypeft.harness.requests import document_hash

    (request_set,) = freeze("tiny_mc", tasks.folder).request_sets
    for document in request_set.documents:
        assert document_hash(thaw_json(document.doc)) == document.doc_hash
        assert hash_string(str(document.target)) == document.target_hash
