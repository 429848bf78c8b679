"""What a certificate asks of both engines: a few documents of the sweep's own request sets.

Decides: which documents, and how a request is put so that two engines can be compared by it.
Leaves to others: what the answers are worth (`core.certificate`), and asking (`api.certifying`).
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from raypeft.core.identity import request_set_digest
from raypeft.core.records import Json, Request, RequestSet, RequestType

_SAMPLING = frozenset(("do_sample", "temperature", "top_p", "top_k", "min_p", "typical_p", "seed"))
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""As lm-eval reads them: the first that is there counts."""
_DEFAULT_LENGTH = 256
"""Tokens that lm-eval's classes for hf and for vLLM generate where a task names no number."""
_ADDED_TOKENS = 8
"""A prompt has at most as many tokens as bytes, and what a tokenizer puts around it."""


def certificate_sets(
    request_sets: Iterable[RequestSet], *, num_documents: int
) -> tuple[RequestSet, ...]:
    """Return what both engines answer: of each request type the first documents of its tasks.

    Tasks take turns; of log-likelihoods first the one with the shortest continuations, then the
    one with the longest, and so on: an engine may answer choices of one token in another way.
    Texts that the sweep samples are asked for greedily. Documents that an engine may refuse for
    having no text are left out.

    Args:
        request_sets: The sweep's, with their requests; each is let go before the next one.
        num_documents: How many documents of each request type, whatever the number of tasks.
    """
    offered: dict[RequestType, list[RequestSet]] = defaultdict(list)
    for request_set in request_sets:
        for kind in sorted({request.request_type for request in request_set.requests}):
            first = _first_documents(request_set, kind, num_documents)
            if first.requests:
                offered[kind].append(first)
    return tuple(
        _first_documents(one, kind, count)
        for kind in sorted(offered)
        for one, count in _in_turn(_apart(kind, offered[kind]), num_documents)
    )


def with_room(
    request_set: RequestSet, *, longest: int, extra: int
) -> tuple[RequestSet, frozenset[int]]:
    """Return texts as an engine is asked for them whose rows hold more tokens than the other's.

    Prompts are cut to what a row holds less the tokens to generate. Where a prompt may be too long,
    the engine with more room is let generate as many tokens more, so that both cut it alike.

    Args:
        request_set: What the other engine is asked.
        longest: Tokens that this engine's rows hold.
        extra: How many more than the other's.

    Returns:
        The request set, and the indices of requests whose texts may therefore go on for longer.
    """
    changed = {
        request.index: _longer(request, extra)
        for request in request_set.requests
        if request.request_type == "generate_until" and _may_be_cut(request, longest)
    }
    if not changed:
        return request_set, frozenset()
    requests = tuple(changed.get(request.index, request) for request in request_set.requests)
    return _with_requests(request_set, requests), frozenset(changed)


def _apart(kind: RequestType, offered: Sequence[RequestSet]) -> list[RequestSet]:
    """Return tasks of the shortest and the longest continuations in turn."""
    if kind != "loglikelihood":
        return list(offered)
    left = sorted(offered, key=_longest_continuation)
    ordered: list[RequestSet] = []
    while left:
        ordered.append(left.pop(-1 if len(ordered) % 2 else 0))
    return ordered


def _longest_continuation(request_set: RequestSet) -> int:
    return max(len(str(request.arguments[1]).strip()) for request in request_set.requests)


def _in_turn(offered: Sequence[RequestSet], number: int) -> list[tuple[RequestSet, int]]:
    """Return how many documents each task gives, none of those that give none."""
    available = [len(_doc_ids(one.requests)) for one in offered]
    counts = [0] * len(offered)
    while sum(counts) < min(number, sum(available)):
        for at, most in enumerate(available):
            if counts[at] < most and sum(counts) < number:
                counts[at] += 1
    return [(one, count) for one, count in zip(offered, counts, strict=True) if count]


def _first_documents(request_set: RequestSet, kind: RequestType, number: int) -> RequestSet:
    own = [request for request in request_set.requests if request.request_type == kind]
    empty = {request.doc_id for request in own if _has_no_text(request)}
    first = set([doc for doc in _doc_ids(own) if doc not in empty][:number])
    taken = tuple(
        replace(_greedily(request), index=index)
        for index, request in enumerate(request for request in own if request.doc_id in first)
    )
    documents = tuple(doc for doc in request_set.documents if doc.doc_id in first)
    return _with_requests(replace(request_set, output_type=kind, documents=documents), taken)


def _with_requests(request_set: RequestSet, requests: tuple[Request, ...]) -> RequestSet:
    digest = request_set_digest(
        task=request_set.task,
        version=request_set.version,
        output_type=request_set.output_type,
        requests=requests,
        documents=request_set.documents,
        tokenizer_digest=request_set.tokenizer_digest,
    )
    return replace(request_set, digest=digest, requests=requests)


def _doc_ids(requests: Iterable[Request]) -> list[int]:
    return list(dict.fromkeys(request.doc_id for request in requests))


def _has_no_text(request: Request) -> bool:
    """Return whether engines may differ in whether they can be asked this at all."""
    text = str(request.arguments[0])
    if request.request_type == "loglikelihood" and not text:
        return False  # lm-eval itself puts a token in its place
    return not text.strip()


def _greedily(request: Request) -> Request:
    """Return a request that draws nothing at random: two engines never draw alike."""
    if request.request_type != "generate_until":
        return request
    context, settings = request.arguments
    if not isinstance(settings, Mapping) or not _SAMPLING & settings.keys():
        return request
    greedy = {name: value for name, value in settings.items() if name not in _SAMPLING}
    return replace(request, arguments=(context, {**greedy, "do_sample": False}))


def _may_be_cut(request: Request, longest: int) -> bool:
    context, settings = request.arguments
    length = _length(settings)
    # What is no number is refused by the engine itself.
    return length is not None and len(str(context).encode()) + _ADDED_TOKENS > longest - length


def _length(settings: Json) -> int | None:
    given = settings if isinstance(settings, Mapping) else {}
    named = [given[name] for name in _LENGTHS if given.get(name) is not None]
    length = named[0] if named else _DEFAULT_LENGTH
    return length if isinstance(length, int) else None


def _longer(request: Request, extra: int) -> Request:
    context, settings = request.arguments
    length = _length(settings)
    assert length is not None
    assert isinstance(settings, Mapping)
    others = {name: value for name, value in settings.items() if name not in _LENGTHS}
    return replace(request, arguments=(context, {**others, _LENGTHS[0]: length + extra}))
