from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from raypeft.core.certificate_sets import certificate_sets, with_room
from raypeft.core.records import Request, RequestSet
from tests.support.plans import make_request_set


def task(name: str, requests: Iterable[Request]) -> RequestSet:
    return replace(make_request_set(name, 1), requests=tuple(requests))


def choosing(name: str, *choices: str, documents: int = 20) -> RequestSet:
    return task(
        name,
        (
            Request(doc * len(choices) + at, doc, at, 0, "loglikelihood", (f"{name} {doc}", choice))
            for doc in range(documents)
            for at, choice in enumerate(choices)
        ),
    )


def generating(*settings: dict[str, Any], context: str = "context") -> RequestSet:
    return task(
        "generating",
        (
            Request(at, at, 0, 0, "generate_until", (f"{context} {at}", own))
            for at, own in enumerate(settings)
        ),
    )


def test_the_sample_is_the_first_documents_as_they_are() -> None:
    whole = choosing("letters", " A", " B")
    (sample,) = certificate_sets([whole], num_documents=3)
    assert [request.arguments for request in sample.requests] == [
        request.arguments for request in whole.requests[:6]
    ]
    assert [request.index for request in sample.requests] == list(range(6))
    assert {request.doc_id for request in sample.requests} == {0, 1, 2}
    assert sample.digest != whole.digest


def test_tasks_of_a_type_take_turns_the_shortest_and_the_longest_continuations_first() -> None:
    offered = [
        choosing("middle", " yes", " no"),
        choosing("letters", " A", " B"),
        choosing("sentences", " and so it goes", " not"),
        choosing("words", " never", " always"),
    ]
    chosen = certificate_sets(offered, num_documents=3)
    assert [one.task for one in chosen] == ["letters", "sentences", "middle"]
    chosen = certificate_sets(offered, num_documents=6)
    counts = {one.task: len({request.doc_id for request in one.requests}) for one in chosen}
    assert counts == {"letters": 2, "sentences": 2, "middle": 1, "words": 1}


def test_what_small_tasks_lack_others_give() -> None:
    offered = [choosing("small", " A", documents=1), choosing("large", " long one")]
    chosen = certificate_sets(offered, num_documents=4)
    assert [(one.task, len(one.requests)) for one in chosen] == [("small", 1), ("large", 3)]
    few = certificate_sets([choosing("small", " A", documents=2)], num_documents=4)
    assert [len(one.requests) for one in few] == [2]


def test_each_request_type_has_documents_of_its_own() -> None:
    rolling = task("rolling", [Request(0, 0, 0, 0, "loglikelihood_rolling", ("text",))])
    offered = [choosing("letters", " A"), rolling, generating({}, {})]
    chosen = certificate_sets(offered, num_documents=1)
    assert [one.output_type for one in chosen] == [
        "generate_until",
        "loglikelihood",
        "loglikelihood_rolling",
    ]


def test_documents_that_an_engine_may_refuse_for_having_no_text_are_left_out() -> None:
    rolling = task(
        "rolling",
        (
            Request(at, at, 0, 0, "loglikelihood_rolling", (text,))
            for at, text in enumerate(["", " \n", "text"])
        ),
    )
    scored = task(
        "scored",
        (
            Request(at, at, 0, 0, "loglikelihood", (context, " A"))
            for at, context in enumerate([" ", "", "text"])
        ),
    )
    chosen = {one.task: one for one in certificate_sets([rolling, scored], num_documents=3)}
    assert [one.arguments[0] for one in chosen["rolling"].requests] == ["text"]
    # lm-eval itself puts a token in the place of a context that is empty.
    assert [one.arguments[0] for one in chosen["scored"].requests] == ["", "text"]
    empty = task("empty", [Request(0, 0, 0, 0, "generate_until", ("", {}))])
    assert certificate_sets([empty], num_documents=3) == ()


def test_texts_that_are_sampled_are_compared_greedily() -> None:
    sampled = {
        "until": ["."],
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.9,
        "max_gen_toks": 5,
    }
    greedy = {"until": ["."], "do_sample": False, "temperature": 0.0, "max_gen_toks": 5}
    whole = generating(sampled, greedy, {"until": ["."]})

    (sample,) = certificate_sets([whole], num_documents=3)

    asked: list[Any] = [request.arguments[1] for request in sample.requests]
    assert asked[0] == {"until": ["."], "do_sample": False, "max_gen_toks": 5}
    assert all(not own.get("do_sample") and not own.get("temperature") for own in asked)
    assert sample.digest != whole.digest


def test_prompts_that_may_be_too_long_are_cut_alike_by_asking_for_more_tokens() -> None:
    named = {"max_new_tokens": 120, "until": ["."]}
    whole = generating({"max_gen_toks": 10}, named, {}, {"max_gen_toks": "ten"})

    roomy, may_go_on = with_room(whole, longest=128, extra=2)

    asked: list[Any] = [request.arguments[1] for request in roomy.requests]
    # A short prompt, whatever its tokens, and 10 to generate fit; what is no number is refused.
    assert asked[0] == {"max_gen_toks": 10}
    assert asked[1] == {"max_gen_toks": 122, "until": ["."]}
    assert asked[2] == {"max_gen_toks": 258}
    assert asked[3] == {"max_gen_toks": "ten"}
    assert may_go_on == {1, 2}
    assert roomy.digest != whole.digest
    same, none = with_room(whole, longest=4096, extra=2)
    assert same is whole
    assert not none


def test_log_likelihoods_are_asked_as_they_are() -> None:
    whole = choosing("letters", " A", " B")
    assert with_room(whole, longest=1, extra=2) == (whole, frozenset())
