"""Answers to request sets by lm-eval's own `HFLM`: the reference way, for tests."""

from collections import defaultdict
from typing import Any

from raypeft.core.records import Answer, Request, RequestSet


def answer_with(lm: Any, *request_sets: RequestSet) -> list[tuple[Answer, ...]]:
    """Answer request sets as one `evaluate` would: one call for each request type.

    Args:
        lm: A model of lm-eval.
        *request_sets: What to answer together, in lm-eval's order of tasks.
    """
    from lm_eval.api.instance import Instance

    calls: dict[str, list[tuple[int, Request]]] = defaultdict(list)
    for position, request_set in enumerate(request_sets):
        for request in request_set.requests:
            calls[request.request_type].append((position, request))
    answers: list[list[Answer]] = [[] for _ in request_sets]
    for request_type, asked in calls.items():
        instances = [
            Instance(request_type, {}, request.arguments, request.idx) for _, request in asked
        ]
        values = getattr(lm, request_type)(instances, disable_tqdm=True)
        for (position, request), value in zip(asked, values, strict=True):
            answers[position].append(_answer(request, value))
    return [tuple(sorted(one, key=lambda answer: answer.index)) for one in answers]


def _answer(request: Request, value: Any) -> Answer:
    match request.request_type:
        case "loglikelihood":
            return Answer(request.index, logprob=value[0], is_greedy=value[1])
        case "loglikelihood_rolling":
            return Answer(request.index, logprob=value)
        case "generate_until":
            return Answer(request.index, text=value)


def made_up_answers(request_set: RequestSet) -> tuple[Answer, ...]:
    """Return answers that no model gave: different for each request and the same every time."""
    return tuple(
        Answer(request.index, text=f"red {request.index}")
        if request.request_type == "generate_until"
        else Answer(
            request.index,
            logprob=-1.0 - (request.index * 7919 % 101) / 16,
            is_greedy=request.index % 3 == 0,
        )
        for request in request_set.requests
    )
