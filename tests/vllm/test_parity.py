"""What vLLM answers is what hf answers: every request type, all adapters and the base at once."""

from collections.abc import Sequence
from typing import Any

import pytest
from lm_eval.api.instance import Instance

from raypeft.core.records import Answer, FailureKind, Json, RequestSet, RequestType, Shard
from raypeft.errors import CellError
from tests.engines.samples import mixed_calls, request_set
from tests.vllm.conftest import BLOCK, VLLMLab, subject_of

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore::Warning")]

NATS = 2e-3

Calls = list[tuple[RequestType, tuple[Json, ...]]]


def text_of(engine: Any, num_tokens: int, start: str) -> str:
    """Return a text of exactly so many tokens."""
    text = start
    while len(engine.tok_encode(text)) < num_tokens:
        text += "~"
    assert len(engine.tok_encode(text)) == num_tokens
    return text


def one_token_words(engine: Any, context: str) -> list[str]:
    """Return the words that are one token after a context."""
    words = {engine.tokenizer.decode([token]) for token in range(5, 400)}
    return sorted(word for word in words if len(engine._encode_pair(context, word)[1]) == 1)


def boundary_calls(engine: Any) -> Calls:
    """Return calls around the blocks of the cache: contexts, stems and rows that end at one."""
    calls: Calls = []
    for number in range(-2, 3):
        for blocks in (1, 3):
            context = text_of(engine, blocks * BLOCK + number, f"Doc {blocks}")
            calls += [("loglikelihood", (context, choice)) for choice in ("A", "B", "A")]
            calls += [("loglikelihood", (context, f" {choice} dog")) for choice in ("big", "red")]
    stem = " and" * (BLOCK + 5)
    for context in ("Stem:", text_of(engine, BLOCK - 1, "Stem")):
        # The cache reaches into the continuation: what it holds must not be believed.
        calls += [("loglikelihood", (context, f"{stem} {end}")) for end in ("red", "blue", "red")]
        calls += [("loglikelihood", (context, f"{stem} {end} fox")) for end in ("red", "blue")]
    # More than one request may read at once.
    words = one_token_words(engine, "Which one?")
    assert len(words) > 128
    calls += [("loglikelihood", ("Which one?", word)) for word in words * 2]
    calls += [("loglikelihood", ("too long " * 60, choice)) for choice in (" A", " end of it")]
    return calls


def assert_same(found: Sequence[Answer], expected: Sequence[Answer]) -> None:
    assert [one.index for one in found] == [one.index for one in expected]
    for ours, theirs in zip(found, expected, strict=True):
        if theirs.logprob is not None:
            assert ours.logprob == pytest.approx(theirs.logprob, abs=NATS)
            assert ours.is_greedy == theirs.is_greedy
        else:
            assert_same_text(ours.text, theirs.text)


def assert_same_text(ours: str | None, theirs: str | None) -> None:
    """Compare texts but for a last token that ends within a character, which vLLM holds back."""
    assert ours is not None
    assert theirs is not None
    # lm-eval keeps special tokens in vLLM's texts and drops them from HFLM's.
    for token in ("<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"):
        ours = ours.replace(token, "")
    assert ours == theirs or (
        theirs.endswith("\ufffd") and theirs.startswith(ours.rstrip("\ufffd"))
    )


@pytest.fixture(scope="module")
def everything(vllm_engine: Any) -> RequestSet:
    calls = mixed_calls() + boundary_calls(vllm_engine)
    return request_set(calls[::2] + calls[1::2], task="everything")


@pytest.fixture(scope="module")
def expected(hf_engine: Any, vllm_lab: VLLMLab, everything: RequestSet) -> dict[str, Any]:
    answered = hf_engine.answer(Shard(everything), vllm_lab.subjects)
    return {one.subject: one.answers for one in answered}


def test_all_subjects_at_once_answer_as_hf(
    vllm_engine: Any, vllm_lab: VLLMLab, everything: RequestSet, expected: dict[str, Any]
) -> None:
    answered = vllm_engine.answer(Shard(everything), vllm_lab.subjects)

    assert len(answered) == 9
    for one in answered:
        assert one.failure is None
        assert_same(one.answers, expected[one.subject])
    assert any("asked again" in one.path for one in answered)


def test_each_alone_in_another_order_is_bit_for_bit_the_same(
    vllm_engine: Any, vllm_lab: VLLMLab, everything: RequestSet
) -> None:
    together = vllm_engine.answer(Shard(everything), vllm_lab.subjects)

    for subject, expected_one in list(zip(vllm_lab.subjects, together, strict=True))[::-1]:
        (alone,) = vllm_engine.answer(Shard(everything), [subject])
        assert alone.answers == expected_one.answers


def test_the_base_is_what_lm_evals_own_methods_compute(
    vllm_engine: Any, vllm_lab: VLLMLab, everything: RequestSet
) -> None:
    from lm_eval.models.vllm_causallms import VLLM

    (answered,) = vllm_engine.answer(Shard(everything), [vllm_lab.baseline])
    by_index = {answer.index: answer for answer in answered.answers}
    for kind in ("loglikelihood", "loglikelihood_rolling"):
        own = [one for one in everything.requests if one.request_type == kind]
        instances = [Instance(kind, doc={}, arguments=one.arguments, idx=0) for one in own]
        for request, theirs in zip(own, getattr(VLLM, kind)(vllm_engine, instances), strict=True):
            ours = by_index[request.index]
            value = theirs if kind == "loglikelihood_rolling" else theirs[0]
            assert ours.logprob == pytest.approx(value, abs=1e-5)
            if kind == "loglikelihood":
                assert ours.is_greedy == theirs[1]


def few_shot(engine: Any, name: str) -> RequestSet:
    context = text_of(engine, 3 * BLOCK + 4, f"Shots of {name}")
    calls: Calls = [("loglikelihood", (context, f" {end} fox")) for end in ("a", "b", "c", "d")]
    return request_set(calls, task=name)


def test_choices_read_their_context_from_the_cache_once_for_each_adapter(
    vllm_engine: Any, vllm_lab: VLLMLab
) -> None:
    requests = few_shot(vllm_engine, "cached")
    subjects = [subject_of(adapter) for adapter in vllm_lab.adapters[:2]]
    vllm_engine.answer(Shard(few_shot(vllm_engine, "warming")), subjects)

    (first,) = vllm_engine.answer(Shard(requests), subjects[:1])
    (second,) = vllm_engine.answer(Shard(requests), subjects[1:])

    # Three of four choices read three blocks; what the other adapter left there is not read. By
    # what vLLM says of each request: an engine's counters are lost where a later one was made.
    pairs = [vllm_engine._encode_pair(*request.arguments) for request in requests.requests]
    prompts = sum(len(context) + len(continuation) for context, continuation in pairs)
    # Each request also generates the one token without which vLLM answers nothing.
    assert first.tokens == prompts - 3 * 3 * BLOCK + len(pairs)
    assert first.tokens == second.tokens
    assert first.answers != second.answers


def test_one_token_choices_are_one_request(vllm_engine: Any, vllm_lab: VLLMLab) -> None:
    context = text_of(vllm_engine, 50, "Letters")
    calls: Calls = [("loglikelihood", (context, letter)) for letter in "ABCDABCD"]

    (answered,) = vllm_engine.answer(Shard(request_set(calls, "letters")), [vllm_lab.baseline])

    assert answered.tokens == 51  # the context, and the token that vLLM always generates


def test_sampled_texts_depend_on_seed_and_request_alone(
    vllm_engine: Any, vllm_lab: VLLMLab
) -> None:
    sampled = {"until": ["\n"], "max_gen_toks": 6, "do_sample": True, "temperature": 1.0}
    calls: Calls = [("generate_until", ("Roll:", sampled)) for _ in range(6)]
    requests = request_set(calls, task="dice")

    first, again = (vllm_engine.answer(Shard(requests), vllm_lab.subjects) for _ in range(2))
    (alone,) = vllm_engine.answer(Shard(requests, 1, 2), [vllm_lab.subjects[0]])

    assert [one.answers for one in first] == [one.answers for one in again]
    assert alone.answers == first[0].answers[3:]
    assert len({answer.text for answer in first[0].answers}) > 1


@pytest.mark.parametrize(
    "settings", [{"num_beams": 2}, {"max_gen_toks": 0}, {"do_sample": True, "top_p": 2.0}]
)
def test_settings_that_vllm_cannot_follow_are_the_tasks_failure(
    vllm_engine: Any, vllm_lab: VLLMLab, settings: dict[str, Json]
) -> None:
    calls: Calls = [("generate_until", ("Say:", {"until": ["."], "max_gen_toks": 4, **settings}))]

    with pytest.raises(CellError, match="generation_kwargs") as raised:
        vllm_engine.answer(Shard(request_set(calls, str(settings))), [vllm_lab.baseline])

    assert raised.value.kind is FailureKind.TASK_FAILED
    # Nothing was asked: the engine goes on.
    (after,) = vllm_engine.answer(Shard(request_set(mixed_calls())), [vllm_lab.baseline])
    assert after.failure is None
