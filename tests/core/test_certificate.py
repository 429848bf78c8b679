import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypeft.core.certificate import (
    TOLERANCE_NATS,
    Certificate,
    certificate_sets,
    compare,
    why_refused,
)
from raypeft.core.records import Answer, Request, RequestType
from tests.support.plans import make_request_set


def choices(doc_id: int, first: int, count: int = 2) -> list[Request]:
    return [
        Request(first + at, doc_id, at, 0, "loglikelihood", ("context", f" {at}"))
        for at in range(count)
    ]


def one(kind: RequestType, *arguments: object) -> list[Request]:
    return [Request(0, 0, 0, 0, kind, arguments)]


def logprobs(*values: float, greedy: bool = False) -> list[Answer]:
    return [Answer(at, logprob=value, is_greedy=greedy) for at, value in enumerate(values)]


def test_equal_answers_are_certified() -> None:
    requests = [*choices(0, 0), *choices(1, 2)]
    found = compare(requests, logprobs(-1, -2, -3, -4), logprobs(-1, -2, -3, -4))
    assert found == Certificate(num_loglikelihoods=4, num_documents=2)
    assert why_refused(found, tolerance_nats=TOLERANCE_NATS["float32"]) == ""


def test_a_difference_beyond_the_tolerance_is_refused_with_its_size_and_the_flips() -> None:
    found = compare(
        [*choices(0, 0), *choices(1, 2)], logprobs(-1, -2, -3, -4), logprobs(-1, -2, -3, -2.5)
    )
    assert (found.worst_nats, found.num_flips) == (1.5, 1)
    why = why_refused(found, tolerance_nats=0.5)
    assert "1.5 nats" in why
    assert "1 of 2 documents" in why
    assert why_refused(found, tolerance_nats=1.5) == ""


def test_a_tie_goes_to_the_first_as_in_lm_eval() -> None:
    found = compare(choices(0, 0), logprobs(-1, -1), logprobs(-1, -1 - 1e-9))
    assert found.num_flips == 0


def test_a_number_that_is_none_is_beyond_every_tolerance() -> None:
    found = compare(choices(0, 0), logprobs(-1, -2), logprobs(-1, math.nan))
    assert math.isnan(found.worst_nats)
    assert why_refused(found, tolerance_nats=math.inf) != ""


def test_an_answer_of_another_kind_is_no_agreement() -> None:
    found = compare(choices(0, 0), logprobs(-1, -2), [Answer(0, logprob=-1), Answer(1, text="x")])
    assert why_refused(found, tolerance_nats=1.0) != ""


def test_whole_texts_are_compared_by_the_word() -> None:
    text = " ".join(["word"] * 100)
    found = compare(one("loglikelihood_rolling", text), logprobs(-500), logprobs(-501))
    assert found.worst_nats == pytest.approx(0.01)
    assert found.num_documents == 0


def test_greedy_flags_that_differ_are_counted() -> None:
    found = compare(choices(0, 0), logprobs(-1, -2, greedy=True), logprobs(-1, -2))
    assert found.num_greedy_flips == 2


def texts(*values: str) -> list[Answer]:
    return [Answer(at, text=value) for at, value in enumerate(values)]


def generations(count: int) -> list[Request]:
    return [Request(at, at, 0, 0, "generate_until", ("context", {})) for at in range(count)]


def test_texts_may_part_later_but_most_must_begin_alike() -> None:
    same = texts("a b c", "a b c", "a b c")
    later = compare(generations(3), same, texts("a b X", "a X c", "a X"))
    assert (later.num_texts, later.num_diverged, later.num_at_once) == (3, 3, 0)
    assert later.first_divergence == 2
    assert why_refused(later, tolerance_nats=0.1) == ""
    other = compare(generations(3), same, texts("X b c", "", "a b c"))
    assert (other.num_diverged, other.num_at_once, other.first_divergence) == (2, 2, 0)
    assert "2 of 3 texts begin otherwise" in why_refused(other, tolerance_nats=0.1)


def test_nothing_compared_certifies_nothing() -> None:
    assert why_refused(compare([], [], []), tolerance_nats=1.0) != ""


def test_answers_to_other_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="not the same ones"):
        compare(choices(0, 0), logprobs(-1, -2), logprobs(-1))


def test_the_sample_is_the_first_documents_of_one_task_for_each_request_type() -> None:
    large, other = make_request_set("requests0", 20), make_request_set("requests1", 20)
    (sample,) = certificate_sets([large, other], num_documents=3)
    assert {request.doc_id for request in sample.requests} == {
        request.doc_id for request in large.requests[: len(sample.requests)]
    }
    assert len({request.doc_id for request in sample.requests}) == 3
    assert [request.index for request in sample.requests] == list(range(len(sample.requests)))
    assert [request.arguments for request in sample.requests] == [
        request.arguments for request in large.requests[: len(sample.requests)]
    ]
    assert sample.digest not in (large.digest, other.digest)


def test_texts_that_are_sampled_are_compared_greedily() -> None:
    sampled = {
        "until": ["."],
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.9,
        "max_gen_toks": 5,
    }
    greedy = {"until": ["."], "do_sample": False, "temperature": 0.0, "max_gen_toks": 5}
    requests = tuple(
        Request(at, at, 0, 0, "generate_until", (f"context {at}", own))
        for at, own in enumerate([sampled, greedy, {"until": ["."]}])
    )
    whole = replace(make_request_set("requests0", 3), requests=requests)

    (sample,) = certificate_sets([whole], num_documents=3)

    asked: list[Any] = [request.arguments[1] for request in sample.requests]
    assert asked[0] == {"until": ["."], "do_sample": False, "max_gen_toks": 5}
    assert all(not own.get("do_sample") and not own.get("temperature") for own in asked)
    assert sample.digest != whole.digest


@settings(deadline=None)
@given(st.lists(st.floats(-50, 0), min_size=2, max_size=20), st.floats(0, 1))
def test_no_shift_beyond_the_tolerance_gets_through(values: list[float], tolerance: float) -> None:
    requests = choices(0, 0, len(values))
    moved = [*values[:-1], values[-1] - tolerance - 1e-3]
    assert why_refused(
        compare(requests, logprobs(*values), logprobs(*moved)), tolerance_nats=tolerance
    )
