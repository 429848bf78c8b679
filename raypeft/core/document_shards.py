"""Shards that are cut by documents, at random: what may be looked at before the rest is answered.

Decides which documents a shard holds. Shards are otherwise ranges of an engine's batches, and
those are sorted by length: their first documents are the longest, and stand for nothing. Here the
order is random, so that the documents of the first shards stand for all. It follows from the
request set alone, so that every subject has the same order, in every run.

To an engine such a shard is a request set of its own: it makes batches of it and of nothing else.
"""

from collections.abc import Sequence
from dataclasses import replace

from raypeft.core.identity import digest
from raypeft.core.looks import document_order
from raypeft.core.records import Answer, RequestSet

MIN_DOCUMENTS = 20
"""Documents of a shard, below which an engine would be kept from working in large batches for too
little that a look could tell."""


def shards_for_looks(num_documents: int, wanted: int) -> int:
    """Return into how many shards a request set is cut; below 2 it cannot be looked at."""
    return min(wanted, num_documents // MIN_DOCUMENTS)


def shard_digest(request_set: str, index: int, count: int) -> str:
    """Return the digest under which a shard travels; it is no part of any identity."""
    return digest("documents of a shard", 1, [request_set, index, count])


def documents_of_shard(request_set: RequestSet, index: int, count: int) -> list[int]:
    """Return the doc_ids of a shard, in the order in which they are looked at.

    Raises:
        ValueError: If the shard would be empty.
    """
    doc_ids = {request.doc_id for request in request_set.requests}
    seed = int(digest("order of documents", 1, request_set.digest), 16)
    order = document_order(list(doc_ids), seed)
    members = order[index * len(order) // count : (index + 1) * len(order) // count]
    if not members:
        raise ValueError(
            f"shard {index} of {count} of request set '{request_set.task}' is empty: it has "
            f"{len(order)} documents"
        )
    return members


def shard_of_documents(request_set: RequestSet, index: int, count: int) -> RequestSet:
    """Return a shard as a request set of its own; its requests keep their indices."""
    members = set(documents_of_shard(request_set, index, count))
    return replace(
        request_set,
        digest=shard_digest(request_set.digest, index, count),
        requests=tuple(one for one in request_set.requests if one.doc_id in members),
        documents=tuple(one for one in request_set.documents if one.doc_id in members),
    )


def answers_to(shard: RequestSet, answers: Sequence[Answer]) -> list[Answer]:
    """Return those of a cell's answers that belong to a shard."""
    wanted = {request.index for request in shard.requests}
    return [answer for answer in answers if answer.index in wanted]
