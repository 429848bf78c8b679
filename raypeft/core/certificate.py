"""The certificate of an adapter: a fast engine's answers beside those of the reference engine.

Decides: which documents are answered by both, what is measured, and when an adapter must go to the
reference engine instead. Leaves to others: answering them, and what follows for the plan.

A fast engine can be wrong without a word (an adapter applied in part, another's weights, a stale
cache). Both engines answer a few documents of the sweep itself, for every adapter; where they lie
further apart than rounding explains, the adapter is not evaluated there.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from raypeft.core.identity import request_set_digest
from raypeft.core.records import Answer, Request, RequestSet, RequestType

TOLERANCE_NATS: Mapping[str, float] = {"float32": 2e-3, "float16": 0.1, "bfloat16": 0.5}
"""How far the log-likelihoods of one request may lie apart, by the dtype of the weights. In 16
bits a logit of 20 is rounded to 0.01 and 0.06, and a continuation adds up its tokens."""

MOST_AT_ONCE = 0.5
"""Largest share of greedy texts that may differ in their first letter. In 16 bits a near tie turns
most texts somewhere, and what follows is another text; a wrong model's begin otherwise."""


_SAMPLING = frozenset(("do_sample", "temperature", "top_p", "top_k", "min_p", "typical_p", "seed"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """How far two engines lie apart on the same requests.

    Attributes:
        num_loglikelihoods: Log-likelihoods compared, of continuations and of whole texts.
        worst_nats: Largest difference; of a whole text its difference per word. NaN where one
            engine gave no number.
        mean_nats: Mean of these differences.
        num_documents: Documents with several continuations to choose from.
        num_flips: Of these, how many prefer another continuation.
        num_greedy_flips: Continuations that only one engine would have generated greedily.
        num_texts: Greedy texts compared.
        num_diverged: Of these, how many differ.
        num_at_once: Of these, how many differ in their first letter.
        first_divergence: Least number of characters after which two of them part; None if none do.
    """

    num_loglikelihoods: int = 0
    worst_nats: float = 0.0
    mean_nats: float = 0.0
    num_documents: int = 0
    num_flips: int = 0
    num_greedy_flips: int = 0
    num_texts: int = 0
    num_diverged: int = 0
    num_at_once: int = 0
    first_divergence: int | None = None


def certificate_sets(
    request_sets: Iterable[RequestSet], *, num_documents: int
) -> tuple[RequestSet, ...]:
    """Return what both engines answer: of each request type the first documents of one task.

    Texts that the sweep samples are asked for greedily here.

    Args:
        request_sets: The sweep's, with their requests.
        num_documents: How many documents of each request type.
    """
    chosen: dict[RequestType, RequestSet] = {}
    for request_set in request_sets:
        for kind in {request.request_type for request in request_set.requests}:
            if kind not in chosen:
                chosen[kind] = _first_documents(request_set, kind, num_documents)
    return tuple(chosen[kind] for kind in sorted(chosen))


def _first_documents(request_set: RequestSet, kind: RequestType, number: int) -> RequestSet:
    own = [request for request in request_set.requests if request.request_type == kind]
    first = set(list(dict.fromkeys(request.doc_id for request in own))[:number])
    taken = tuple(
        replace(_greedily(request), index=index)
        for index, request in enumerate(request for request in own if request.doc_id in first)
    )
    documents = tuple(doc for doc in request_set.documents if doc.doc_id in first)
    digest = request_set_digest(
        task=request_set.task,
        version=request_set.version,
        output_type=kind,
        requests=taken,
        documents=documents,
        tokenizer_digest=request_set.tokenizer_digest,
    )
    return replace(
        request_set, digest=digest, output_type=kind, requests=taken, documents=documents
    )


def _greedily(request: Request) -> Request:
    """Return a request that draws nothing at random: two engines never draw alike."""
    if request.request_type != "generate_until":
        return request
    context, settings = request.arguments
    if not isinstance(settings, Mapping) or not _SAMPLING & settings.keys():
        return request
    greedy = {name: value for name, value in settings.items() if name not in _SAMPLING}
    return replace(request, arguments=(context, {**greedy, "do_sample": False}))


def compare(
    requests: Sequence[Request], reference: Sequence[Answer], found: Sequence[Answer]
) -> Certificate:
    """Measure how far two engines lie apart.

    Args:
        requests: What both were asked.
        reference: The reference engine's answers, one for each request.
        found: The other engine's.

    Raises:
        ValueError: If the answers are not those to the requests.
    """
    pairs = _pairs(requests, reference, found)
    differences = [
        _difference(ours, theirs) / _num_words(request)
        for request, ours, theirs in pairs
        if ours.logprob is not None or theirs.logprob is not None
    ]
    scored = [pair for pair in pairs if pair[0].request_type == "loglikelihood"]
    num_documents, num_flips = _flips(scored)
    texts = [
        (ours.text or "", theirs.text or "")
        for _, ours, theirs in pairs
        if ours.text is not None or theirs.text is not None
    ]
    partings = [_common_length(ours, theirs) for ours, theirs in texts if ours != theirs]
    is_number = all(difference == difference for difference in differences)
    return Certificate(
        num_loglikelihoods=len(differences),
        worst_nats=max(differences, default=0.0) if is_number else float("nan"),
        mean_nats=sum(differences) / max(1, len(differences)),
        num_documents=num_documents,
        num_flips=num_flips,
        num_greedy_flips=sum(ours.is_greedy != theirs.is_greedy for _, ours, theirs in scored),
        num_texts=len(texts),
        num_diverged=len(partings),
        num_at_once=sum(ours.lstrip()[:1] != theirs.lstrip()[:1] for ours, theirs in texts),
        first_divergence=min(partings, default=None),
    )


def why_refused(certificate: Certificate, *, tolerance_nats: float) -> str:
    """Return why an adapter must go to the reference engine; empty if it may stay.

    Args:
        certificate: What was measured.
        tolerance_nats: How far one log-likelihood may lie apart.
    """
    if not certificate.num_loglikelihoods and not certificate.num_texts:
        return "nothing was compared with the reference engine"
    # NaN is beyond every tolerance.
    if not certificate.worst_nats <= tolerance_nats:
        return (
            f"its answers lie up to {certificate.worst_nats:.3g} nats from those of hf, more than "
            f"{tolerance_nats:g}; {certificate.num_flips} of {certificate.num_documents} documents "
            "would choose otherwise"
        )
    if certificate.num_at_once > MOST_AT_ONCE * certificate.num_texts:
        return (
            f"{certificate.num_at_once} of {certificate.num_texts} texts begin otherwise than "
            "those of hf"
        )
    return ""


def _pairs(
    requests: Sequence[Request], reference: Sequence[Answer], found: Sequence[Answer]
) -> list[tuple[Request, Answer, Answer]]:
    ours = {answer.index: answer for answer in reference}
    theirs = {answer.index: answer for answer in found}
    asked = {request.index for request in requests}
    if not asked == ours.keys() == theirs.keys():
        raise ValueError(
            f"{len(asked)} requests, {len(ours)} and {len(theirs)} answers: not the same ones"
        )
    return [(request, ours[request.index], theirs[request.index]) for request in requests]


def _difference(ours: Answer, theirs: Answer) -> float:
    """Return the difference in nats; NaN where only one engine gave a number."""
    if ours.logprob is None or theirs.logprob is None:
        return float("nan")
    return abs(theirs.logprob - ours.logprob)


def _flips(scored: Iterable[tuple[Request, Answer, Answer]]) -> tuple[int, int]:
    """Return how many documents have a choice, and in how many the engines choose otherwise."""
    choices: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for request, ours, theirs in scored:
        if ours.logprob is not None and theirs.logprob is not None:
            choices[request.doc_id, request.repeat].append((ours.logprob, theirs.logprob))
    several = [pairs for pairs in choices.values() if len(pairs) > 1]
    flips = sum(_best(ours for ours, _ in pairs) != _best(t for _, t in pairs) for pairs in several)
    return len(several), flips


def _best(values: Iterable[float]) -> int:
    """Return the first of the largest, as lm-eval takes it."""
    numbers = list(values)
    return max(range(len(numbers)), key=lambda at: (numbers[at], -at))


def _num_words(request: Request) -> int:
    """Return by how many words a log-likelihood is divided: only whole texts are long."""
    if request.request_type != "loglikelihood_rolling":
        return 1
    return max(1, len(str(request.arguments[0]).split()))


def _common_length(left: str, right: str) -> int:
    pairs = zip(left, right, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))
