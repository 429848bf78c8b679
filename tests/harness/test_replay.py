"""Stand-ins for scoring hold frozen documents and given answers, and nothing else."""

import copy

import pytest

from raypeft.core.records import Answer, EvaluationSettings, Request, RequestSet
from tests.support.tasks import TinyTasks

pytestmark = pytest.mark.torch


@pytest.fixture
def request_set(tasks: TinyTasks) -> RequestSet:
    from raypeft.harness.freeze import freeze_entry

    settings = EvaluationSettings(limit=5)
    frozen = freeze_entry("tiny_gen", settings, include_path=[str(tasks.folder)])
    return frozen.request_sets[0]


def test_frozen_documents_are_as_many_as_the_split_and_new_at_each_access(
    request_set: RequestSet,
) -> None:
    from raypeft.harness.replay import FrozenDocs

    docs = FrozenDocs(request_set)
    assert (len(docs), len(list(docs))) == (12, 5)
    assert list(docs.features) == ["id", "question", "answer"]
    docs[0]["answer"] = "changed"
    assert docs[0]["answer"] != "changed"
    assert [doc_id for doc_id, _ in docs.pairs()] == [0, 1, 2, 3, 4]


def test_a_task_that_reaches_for_its_dataset_learns_why_there_is_none() -> None:
    from raypeft.harness.replay import NoDataset

    dataset = copy.deepcopy(NoDataset())
    with pytest.raises(LookupError, match=r"frozen documents.*\['test'\]"):
        dataset["test"]
    with pytest.raises(LookupError, match=r"dataset\.column_names"):
        _ = dataset.column_names


def test_instances_have_fresh_responses_for_each_view(request_set: RequestSet) -> None:
    from raypeft.harness.replay import build_instances

    first, second = build_instances(request_set), build_instances(request_set)
    first[0].resps.append("x")
    first[0].arguments[1]["until"] = []
    assert second[0].resps == []
    assert second[0].arguments == request_set.requests[0].arguments
    assert [instance.repeats for instance in second] == [2] * 5
    assert {instance.task_name for instance in second} == {"tiny_gen"}


def test_instances_of_several_types_come_back_in_the_order_of_the_task() -> None:
    from raypeft.harness.replay import task_order

    def request(index: int, doc_id: int, idx: int, kind: str, repeat: int = 0) -> Request:
        return Request(index, doc_id, idx, repeat, kind, ("x",))  # type: ignore[arg-type]

    texts = [request(2 * doc + r, doc, 1, "generate_until", r) for doc in (0, 1) for r in (0, 1)]
    scores = [request(4 + doc, doc, 0, "loglikelihood") for doc in (0, 1)]
    found = [(one.doc_id, one.request_type) for one in task_order([*texts, *scores])]
    assert found == [
        (0, "loglikelihood"),
        (0, "generate_until"),
        (1, "loglikelihood"),
        (1, "generate_until"),
    ]


def test_the_model_gives_what_it_was_given(request_set: RequestSet) -> None:
    from raypeft.harness.replay import ReplayModel, build_instances

    requests = request_set.requests
    model = ReplayModel(requests, [Answer(r.index, text=str(r.index)) for r in requests])
    calls = [one for one in build_instances(request_set) for _ in range(2)]
    assert model.generate_until(calls) == [str(index) for index in range(10)]
