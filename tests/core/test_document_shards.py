import pytest

from raypeft.core.document_shards import (
    MIN_DOCUMENTS,
    answers_to,
    documents_of_shard,
    shard_digest,
    shard_of_documents,
    shards_for_looks,
)
from raypeft.core.records import Answer
from tests.support.plans import make_request_set


def test_shards_hold_every_document_once_whatever_their_number() -> None:
    whole = make_request_set("r", num_requests=50)
    for count in (1, 2, 7, 50):
        shards = [shard_of_documents(whole, index, count) for index in range(count)]
        requests = [request for shard in shards for request in shard.requests]
        assert sorted(request.index for request in requests) == list(range(50))
        for index, shard in enumerate(shards):
            doc_ids = documents_of_shard(whole, index, count)
            assert [request.doc_id for request in shard.requests] == sorted(doc_ids)
            assert [document.doc_id for document in shard.documents] == sorted(doc_ids)


def test_the_order_is_random_and_follows_from_the_request_set_alone() -> None:
    whole = make_request_set("r", num_requests=200)
    order = documents_of_shard(whole, 0, 1)
    assert order != sorted(order)
    # The copy that travels to a slot has no documents.
    assert documents_of_shard(whole.for_slot(), 0, 1) == order
    parts = [doc for index in range(4) for doc in documents_of_shard(whole, index, 4)]
    assert parts == order
    assert documents_of_shard(make_request_set("s", num_requests=200), 0, 1) != order


def test_a_shard_is_known_by_its_whole_its_place_and_their_number() -> None:
    digests = {shard_digest(whole, i, n) for whole in "ab" for n in (2, 3) for i in range(n)}
    assert len(digests) == 10
    assert not digests & {"a", "b"}


def test_the_answers_of_a_shard_are_found_among_all() -> None:
    whole = make_request_set("r", num_requests=6)
    shard = shard_of_documents(whole, 1, 3)
    answers = [Answer(request.index, logprob=-1.0) for request in whole.requests]
    assert [a.index for a in answers_to(shard, answers)] == [r.index for r in shard.requests]


def test_a_shard_that_would_be_empty_is_refused() -> None:
    with pytest.raises(ValueError, match="shard 0 of 7 of request set 'r' is empty"):
        documents_of_shard(make_request_set("r", num_requests=6), 0, 7)


def test_small_tasks_are_cut_into_fewer_shards() -> None:
    assert shards_for_looks(8 * MIN_DOCUMENTS, 8) == 8
    assert shards_for_looks(3 * MIN_DOCUMENTS + 1, 8) == 3
    assert shards_for_looks(2 * MIN_DOCUMENTS - 1, 8) == 1
