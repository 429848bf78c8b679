from dataclasses import replace

import pytest

from raypeft.core.cost import BaseSize
from raypeft.core.memory import GIB, MemoryNeed, check_memory, memory_need
from raypeft.core.records import LoraRoom

EIGHT_BILLION = BaseSize(num_parameters=8 * 10**9, weight_bytes=16 * 10**9)
NEED = MemoryNeed(weights=15 * GIB, adapters=GIB, working=2 * GIB)


def test_what_is_needed_is_of_a_real_size() -> None:
    need = memory_need(EIGHT_BILLION, kind="hf", max_length=8192)
    assert need.weights == 16 * 10**9
    # A LoRA of rank 16 on all matrices of an 8B Llama has 42 million values.
    assert 0.05 < need.adapters / GIB < 0.12
    assert 1.0 < need.working / GIB < 6.0


def test_adapters_count_by_their_number_and_rank_where_they_are_held_together() -> None:
    room = LoraRoom(max_rank=64, num_adapters=10, target_modules=("q_proj",))
    one = memory_need(EIGHT_BILLION, kind="vllm", max_length=8192)
    ten = memory_need(EIGHT_BILLION, kind="vllm", max_length=8192, lora=room)
    assert ten.adapters == pytest.approx(one.adapters * 40, rel=0.01)
    assert memory_need(EIGHT_BILLION, kind="hf", max_length=8, has_adapters=False).adapters == 0


def test_longer_rows_and_larger_batches_need_more() -> None:
    short, long = (
        memory_need(EIGHT_BILLION, kind="vllm", max_length=length).working
        for length in (8192, 131_072)
    )
    assert long > 5 * short
    few, many = (
        memory_need(EIGHT_BILLION, kind="hf", max_length=8192, batch_tokens=tokens).working
        for tokens in (1024, 16_384)
    )
    assert many > few


@pytest.mark.parametrize(
    ("have", "refused", "tight"),
    [
        (14, True, True),
        (16, False, True),
        (17, False, True),
        (18, False, False),
        (80, False, False),
    ],
)
def test_only_weights_that_are_too_large_are_refused(have: int, refused: bool, tight: bool) -> None:
    verdict = check_memory(NEED, kind="hf", device_bytes=have * GIB)
    assert (verdict.refused, verdict.is_tight) == (refused, tight)


def test_a_memory_that_is_not_known_refuses_nothing_and_says_so() -> None:
    verdict = check_memory(NEED, kind="hf", device_bytes=None)
    assert not verdict.refused
    assert not verdict.is_tight
    assert "is not known, so nothing was checked" in verdict.sentence()


def test_several_devices_hold_more_and_a_share_of_one_holds_less() -> None:
    def refused(num_devices: float) -> bool:
        return check_memory(NEED, kind="hf", device_bytes=16 * GIB, num_devices=num_devices).refused

    assert [refused(number) for number in (0.5, 1, 2)] == [True, False, False]


def test_vllm_has_the_share_that_it_is_given() -> None:
    def have(share: float | None) -> int | None:
        return check_memory(NEED, kind="vllm", device_bytes=100 * GIB, vllm_share=share).have

    assert have(None) == 92 * GIB
    assert have(0.5) == 50 * GIB


def test_the_verdict_says_its_numbers_and_where_they_are_from() -> None:
    verdict = check_memory(
        replace(NEED, weights=90 * GIB), kind="hf", device_bytes=80 * GIB, source="H100"
    )
    assert verdict.sentence() == (
        "needs about 93.0 GiB (weights 90.0, adapters 1.0, keys, values and computing 2.0); "
        "a slot has 80.0 GiB for it (H100)"
    )
