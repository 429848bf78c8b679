import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypeft.core.certificate import (
    ROUNDING_NATS,
    TOLERANCE_NATS,
    Certificate,
    compare,
    measure_effect,
    why_refused,
)
from raypeft.core.records import Answer, Request, RequestType


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


@settings(deadline=None)
@given(st.lists(st.floats(-50, 0), min_size=2, max_size=20), st.floats(0, 1))
def test_no_shift_beyond_the_tolerance_gets_through(values: list[float], tolerance: float) -> None:
    requests = choices(0, 0, len(values))
    moved = [*values[:-1], values[-1] - tolerance - 1e-3]
    assert why_refused(
        compare(requests, logprobs(*values), logprobs(*moved)), tolerance_nats=tolerance
    )


# --- many small differences -------------------------------------------------------------------


def test_a_mean_that_rounding_does_not_reach_is_refused() -> None:
    hf = [-1.0, -2.0, -3.0, -4.0]
    found = compare(choices(0, 0, 4), logprobs(*hf), logprobs(*[one - 0.3 for one in hf]))
    assert "0.3 nats from those of hf in the mean of 4" in why_refused(found, tolerance_nats=0.5)
    few = compare(choices(0, 0), logprobs(-1, -2), logprobs(-1.3, -2.3))
    assert why_refused(few, tolerance_nats=0.5) == ""


@pytest.mark.parametrize(("num_flips", "is_refused"), [(2, False), (3, True)])
def test_most_documents_must_choose_alike(num_flips: int, is_refused: bool) -> None:
    found = Certificate(num_loglikelihoods=8, num_documents=4, num_flips=num_flips)
    assert ("3 of 4 documents" in why_refused(found, tolerance_nats=0.5)) is is_refused


# --- texts ------------------------------------------------------------------------------------


def test_special_tokens_that_one_engine_leaves_in_are_not_compared() -> None:
    hf, vllm = texts("er", "a b"), texts("<|pad|>er", "a<|pad|><|padding|> b")
    assert compare(generations(2), hf, vllm).num_at_once == 1
    found = compare(generations(2), hf, vllm, special=("<|pad|>", "<|padding|>", "<|pad"))
    assert (found.num_diverged, found.num_at_once) == (0, 0)


def test_only_a_text_that_was_let_go_on_may_be_longer() -> None:
    hf, vllm = texts("a b", "a b", ""), texts("a b c", "a b c", "a")
    found = compare(generations(3), hf, vllm, may_go_on={0, 2})
    assert (found.num_diverged, found.num_at_once) == (2, 1)


# --- an adapter's effect ----------------------------------------------------------------------

BFLOAT16 = ROUNDING_NATS["bfloat16"]


def judged(
    effects: Sequence[float],
    applied: Sequence[float],
    *,
    noise: float,
    seed: int = 0,
    rounding: float = BFLOAT16,
) -> Certificate:
    """Return the certificate of an adapter with some effects, of which others were applied."""
    draw = random.Random(seed)
    count = len(effects)
    requests = choices(0, 0, count)

    def answered(values: Sequence[float]) -> list[Answer]:
        return logprobs(*[value + draw.gauss(0, noise) for value in values])

    plain = [-1.0 - at % 7 for at in range(count)]
    base = answered(plain), answered(plain)
    adapted = (
        answered([one + effect for one, effect in zip(plain, effects, strict=True)]),
        answered([one + effect for one, effect in zip(plain, applied, strict=True)]),
    )
    measured = measure_effect(requests, base, adapted, rounding_nats=rounding)
    assert measured is not None
    return Certificate(num_loglikelihoods=count, effect=measured)


def effects_of(seed: int, count: int = 16, size: float = 0.2) -> list[float]:
    draw = random.Random(f"adapter {seed}")
    return [draw.gauss(0, size) for _ in range(count)]


SEEDS = list(range(200))


def test_an_adapter_that_is_applied_is_never_refused_for_the_noise_of_16_bits() -> None:
    for seed in SEEDS:
        own = effects_of(seed)
        rightly = judged(own, own, noise=0.02, seed=seed)
        assert why_refused(rightly, tolerance_nats=0.5) == "", seed


@pytest.mark.parametrize("share", [0.0, 0.5, 1.6, -1.0])
def test_an_adapter_that_is_applied_in_part_is_refused_though_no_answer_lies_far_away(
    share: float,
) -> None:
    for seed in SEEDS:
        own = effects_of(seed)
        wrongly = judged(own, [share * one for one in own], noise=0.01, seed=seed)
        assert "effect" in why_refused(wrongly, tolerance_nats=0.5), (share, seed)


def test_the_weights_of_another_adapter_are_refused() -> None:
    for seed in SEEDS:
        wrongly = judged(effects_of(seed), effects_of(-seed - 1), noise=0.02, seed=seed)
        assert "effect" in why_refused(wrongly, tolerance_nats=0.5), seed


def test_another_adapter_that_is_applied_as_well_is_refused_at_a_slope_of_1() -> None:
    own, other = [0.2, -0.2] * 8, [0.15, 0.15] * 8
    both = judged(own, [a + b for a, b in zip(own, other, strict=True)], noise=0.01)
    assert both.effect is not None
    assert both.effect.slope == pytest.approx(1, abs=0.1)
    assert "as well, or instead" in why_refused(both, tolerance_nats=0.5)


def test_in_32_bits_a_thousandth_of_a_nat_is_an_effect() -> None:
    own = effects_of(1, size=1e-3)
    rounding = ROUNDING_NATS["float32"]
    whole = judged(own, own, noise=1e-6, rounding=rounding)
    assert whole.effect is not None
    assert whole.effect.is_told
    assert why_refused(whole, tolerance_nats=2e-3) == ""
    half = judged(own, [one / 2 for one in own], noise=1e-6, rounding=rounding)
    assert "0.50 times" in why_refused(half, tolerance_nats=2e-3)


@pytest.mark.parametrize("size", [0.002, 0.02])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_an_effect_within_the_noise_refuses_nothing(size: float, share: float) -> None:
    refused = 0
    for seed in SEEDS:
        own = effects_of(seed, 16, size)
        found = judged(own, [share * one for one in own], noise=0.05, seed=seed)
        refused += bool(why_refused(found, tolerance_nats=0.5))
        assert found.effect is not None
        assert not found.effect.is_told, seed
    # Few requests may show less noise in the base than with the adapter, by chance.
    assert refused <= 0.01 * len(SEEDS)


def test_engines_that_agree_on_the_base_to_the_bit_are_not_taken_to_be_without_noise() -> None:
    exact = judged([0.02] * 4, [0.015] * 4, noise=0.0)
    assert exact.effect is not None
    assert exact.effect.slope_error > 0.2
    assert why_refused(exact, tolerance_nats=0.5) == ""


def test_without_log_likelihoods_or_without_effect_there_is_no_slope() -> None:
    nothing = texts("a")
    pairs = (nothing, nothing)
    assert measure_effect(generations(1), pairs, pairs, rounding_nats=1e-5) is None
    same = logprobs(-1, -2)
    assert measure_effect(choices(0, 0), (same, same), (same, same), rounding_nats=1e-5) is None
    broken = logprobs(math.nan, math.inf)
    assert measure_effect(choices(0, 0), (same, same), (same, broken), rounding_nats=1.0) is None
