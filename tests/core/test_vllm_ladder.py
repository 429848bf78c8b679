"""The ladder: what is lowered after vLLM's memory ran out, told by vLLM's own words."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypeft.core.failures import Failure, FailureKind
from raypeft.core.records import Hardware
from raypeft.core.vllm_ladder import (
    LEAST_SEQS,
    LEAST_SHARE,
    Bottom,
    Cause,
    MemorySettings,
    Rung,
    after_loss,
    cause_of,
    described,
    memory_key,
    next_rung,
)

# Verbatim, numbers filled in.
TAKEN = (
    "ValueError: Free memory on device cuda:0 (40.2/79.25 GiB) on startup is less than desired GPU "
    "memory utilization (0.92, 72.91 GiB). Decrease GPU memory utilization or reduce GPU memory "
    "used by other processes."
)
TAKEN_ON_CPU = (
    "ValueError: Available memory on node 0 (3.1/31.0 GiB) on startup is less than desired CPU "
    "memory utilization (0.92, 28.52 GiB). On the CPU backend, the `--gpu-memory-utilization` flag "
    "controls the fraction of CPU memory reserved (despite its name). To resolve: decrease "
    "`--gpu-memory-utilization` (e.g. `--gpu-memory-utilization 0.5`) or reduce CPU memory used by "
    "other processes."
)
BYTES_TAKEN = (
    "ValueError: Available memory on node 0 (3.1/31.0 GiB) on kv cache allocation is less than "
    "requested memory for kv (16.0 GiB). Decrease --kv-cache-memory-bytes, VLLM_CPU_KVCACHE_SPACE, "
    "or reduce CPU memory used by other processes."
)
NOTHING_LEFT_ON_CPU = (
    "ValueError: Available memory on node 0 (20.0/31.0 GiB) on kv cache allocation is less than "
    "requested memory for kv (-1.55/0.31 GiB). Reduce CPU memory used by other processes."
)
NO_CACHE = (
    "ValueError: No available memory for the cache blocks. Try increasing "
    "`gpu_memory_utilization` when initializing the engine (this flag also controls CPU memory "
    "reservation on the CPU backend, despite its name). See "
    "https://docs.vllm.ai/en/latest/configuration/conserving_memory/ for more details."
)
TOO_LONG = (
    "ValueError: To serve at least one request with the model's max seq len (131072), (16.0 GiB KV "
    "cache is needed, which is larger than the available KV cache memory (9.1 GiB). Based on the "
    "available memory, the estimated maximum model length is 74544. Try increasing "
    "`gpu_memory_utilization` (which also controls CPU memory on the CPU backend) or decreasing "
    "`max_model_len` when initializing the engine."
)
WEIGHTS = (
    "Failed to load model - not enough GPU memory. Try lowering --gpu-memory-utilization to free "
    "memory for weights, increasing --tensor-parallel-size, or using --quantization."
)
SAMPLER = (
    "RuntimeError: CUDA out of memory occurred when warming up sampler with 1024 dummy requests. "
    "Please try lowering `max_num_seqs` or `gpu_memory_utilization` when initializing the engine."
)
TORCH = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total"
SAID = {
    TAKEN: Cause.TAKEN,
    TAKEN_ON_CPU: Cause.TAKEN,
    BYTES_TAKEN: Cause.TAKEN,
    NOTHING_LEFT_ON_CPU: Cause.NO_CACHE,
    NO_CACHE: Cause.NO_CACHE,
    TOO_LONG: Cause.NO_CACHE,
    f"{WEIGHTS} (original error: {TORCH})": Cause.WEIGHTS,
    SAMPLER: Cause.RAN_OUT,
    TORCH: Cause.RAN_OUT,
}
OWN = MemorySettings(max_loras=8)


def walk(settings: MemorySettings, words: str) -> tuple[list[Rung], Bottom]:
    """Return every rung down to the bottom."""
    asked, rungs = settings, list[Rung]()
    while True:
        following = next_rung(settings, words, asked=asked)
        assert following is not None
        if isinstance(following, Bottom):
            return rungs, following
        rungs.append(following)
        settings = following.settings


@pytest.mark.parametrize(("words", "cause"), SAID.items())
def test_vllms_own_words_tell_the_cause(words: str, cause: Cause) -> None:
    assert cause_of(words) is cause


@pytest.mark.parametrize(
    "words",
    [
        "",
        "RuntimeError: Engine core initialization failed. See root cause above.",
        "ValueError: Tokenizer class X does not exist",
        "AssertionError: memory profiling: initial free memory 10.0 GiB, current 12.0 GiB",
    ],
)
def test_anything_else_is_no_matter_of_memory(words: str) -> None:
    assert next_rung(OWN, words, asked=OWN) is None


def test_a_share_goes_down_to_what_is_free() -> None:
    following = next_rung(OWN, TAKEN, asked=OWN)

    assert isinstance(following, Rung)
    assert following.settings == MemorySettings(max_loras=8, gpu_memory_utilization=0.487)
    assert following.step == (
        "gpu_memory_utilization vLLM's own -> 0.487, since less memory is free than it asks for"
    )


def test_what_others_hold_may_be_free_later_and_says_so() -> None:
    end = next_rung(OWN, TAKEN_ON_CPU, asked=OWN)

    assert isinstance(end, Bottom)
    assert end.may_pass
    assert "end what else holds the device's memory" in end.reason


def test_no_room_for_keys_and_values_makes_the_batch_smaller_and_then_the_adapters() -> None:
    rungs, end = walk(MemorySettings(max_num_seqs=32, max_loras=4), NO_CACHE)

    assert [rung.settings for rung in rungs] == [
        MemorySettings(max_num_seqs=16, max_loras=4),
        MemorySettings(max_num_seqs=8, max_loras=4),
        MemorySettings(max_num_seqs=8, max_loras=2),
        MemorySettings(max_num_seqs=8, max_loras=1),
    ]
    # What the sweep file says is lowered with a note.
    assert rungs[1].step.startswith("max_num_seqs 16 -> 8 (32 was asked for), since")
    assert "max_length" in end.reason
    assert not end.may_pass


def test_bytes_too_few_for_one_request_end_at_once() -> None:
    settings = MemorySettings(kv_cache_memory_bytes=1 << 20, max_num_seqs=32)
    end = next_rung(settings, TOO_LONG, asked=settings)

    assert isinstance(end, Bottom)
    assert "kv_cache_memory_bytes is 1048576" in end.reason


def test_bytes_that_are_not_free_are_halved_and_the_share_is_compared_all_the_same() -> None:
    settings = MemorySettings(kv_cache_memory_bytes=16 << 30)
    halved = next_rung(settings, BYTES_TAKEN, asked=settings)
    shared = next_rung(settings, TAKEN, asked=settings)

    assert isinstance(halved, Rung)
    assert isinstance(shared, Rung)
    assert halved.settings == MemorySettings(kv_cache_memory_bytes=8 << 30)
    assert shared.settings.gpu_memory_utilization == 0.487
    assert shared.settings.kv_cache_memory_bytes == 16 << 30


def test_weights_that_do_not_fit_are_not_helped_by_smaller_batches() -> None:
    rungs, end = walk(MemorySettings(max_num_seqs=32, max_loras=2), WEIGHTS)

    assert [rung.settings.max_loras for rung in rungs] == [1]
    assert "tensor_parallel" in end.reason


SETTINGS = st.builds(
    MemorySettings,
    max_num_seqs=st.none() | st.integers(1, 4096),
    gpu_memory_utilization=st.none() | st.floats(0.01, 1.0),
    kv_cache_memory_bytes=st.none() | st.integers(1, 1 << 40),
    max_loras=st.none() | st.integers(1, 64),
)
OF_VLLM: dict[str, Any] = {"max_num_seqs": 256, "gpu_memory_utilization": 0.9}


@given(SETTINGS, st.lists(st.sampled_from(list(SAID)), min_size=1, max_size=8))
def test_every_walk_ends_and_each_step_lowers_one_setting(
    settings: MemorySettings, words: list[str]
) -> None:
    asked, seen = settings, {settings}
    for at in range(200):
        following = next_rung(settings, words[at % len(words)], asked=asked)
        assert following is not None
        if isinstance(following, Bottom):
            return
        before, after = OF_VLLM | settings.values(), OF_VLLM | following.settings.values()
        changed = [name for name in after if after[name] != before[name]]
        assert len(changed) == 1
        assert after[changed[0]] < before[changed[0]]
        assert (changed[0] in asked.values()) == ("was asked for" in following.step)
        settings = following.settings
        assert settings not in seen
        seen.add(settings)
    pytest.fail("no end")


def test_a_lost_slot_of_any_other_reason_lowers_nothing() -> None:
    assert after_loss(OWN, Failure(FailureKind.SLOT_LOST, "gone", True)) is None


def test_losses_lower_one_setting_after_another_to_the_least() -> None:
    failure = Failure(FailureKind.OUT_OF_MEMORY, "gone", True)
    settings, rungs = OWN, 0
    while (lowered := after_loss(settings, failure)) is not None:
        settings, rungs = lowered, rungs + 1

    assert settings.max_num_seqs == LEAST_SEQS
    assert settings.gpu_memory_utilization == pytest.approx(LEAST_SHARE)
    assert settings.max_loras == 1
    assert rungs == 5 + 6 + 3


def test_limits_lower_and_never_raise() -> None:
    limits = {"max_num_seqs": 64, "max_loras": 2, "gpu_memory_utilization": 0.5}
    settings = MemorySettings(max_num_seqs=16, gpu_memory_utilization=0.9)

    assert settings.lowered_to(limits) == MemorySettings(
        max_num_seqs=16, gpu_memory_utilization=0.5
    )
    assert described(limits) == (
        "begun with gpu_memory_utilization 0.5, max_loras 2, max_num_seqs 64, since memory ran out "
        "before"
    )


def test_equal_cards_share_what_was_learnt_whatever_vllm_sets() -> None:
    card = Hardware(fingerprint="a", device="H100", num_devices=2, memory_gib=79.2)
    other = Hardware(fingerprint="b", device="H100", num_devices=2, memory_gib=79.1)

    assert memory_key(card) == memory_key(other) == "2 x H100, 79 GiB"
