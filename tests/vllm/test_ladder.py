"""vLLM with too little memory: known by what its processes write, and started with less."""

from dataclasses import replace
from typing import Any

import pytest

from raypeft.core.records import EngineSpec, FailureKind, Shard
from raypeft.core.vllm_ladder import memory_key
from raypeft.engines.build import build_engine
from raypeft.engines.hardware import read_hardware
from raypeft.errors import CellError
from tests.engines.samples import mixed_calls, request_set
from tests.vllm.conftest import VLLMLab, in_this_process

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore::Warning")]


def limited(spec: EngineSpec, **options: Any) -> EngineSpec:
    return replace(spec, lora=None, options={**spec.options, **options})


def test_a_core_that_dies_for_memory_is_known_by_what_it_wrote(vllm_lab: VLLMLab) -> None:
    # One request of 256 tokens does not fit. The exception alone says "see root cause above".
    starved = limited(vllm_lab.spec, kv_cache_memory_bytes=200_000)

    with pytest.raises(CellError) as raised:
        build_engine(starved)

    assert raised.value.kind == FailureKind.OUT_OF_MEMORY
    assert not raised.value.retryable
    assert "kv_cache_memory_bytes is 200000, too little for one request" in raised.value.message
    assert "larger than the available KV cache" in raised.value.message


def test_every_rung_is_walked_before_it_is_given_up(vllm_lab: VLLMLab) -> None:
    # Of this share nothing is left beside what the process has already.
    options = {"gpu_memory_utilization": 1e-4, "max_num_seqs": 16, "max_loras": 2}
    own = {**vllm_lab.spec.options, **options}
    del own["kv_cache_memory_bytes"]

    with in_this_process(), pytest.raises(CellError) as raised:
        build_engine(replace(vllm_lab.spec, options=own))

    assert raised.value.kind == FailureKind.OUT_OF_MEMORY
    message = raised.value.message
    assert "tried before: max_num_seqs 16 -> 8 (16 was asked for)" in message
    assert "max_loras 2 -> 1 (2 was asked for)" in message
    assert "max_length" in message


def test_in_this_process_and_on_the_rung_that_a_loss_taught_the_numbers_are_the_same(
    vllm_lab: VLLMLab, vllm_engine: Any
) -> None:
    hardware = memory_key(read_hardware("cpu"))
    lowered = {hardware: {"max_num_seqs": 9, "max_loras": 1}, "another": {"max_num_seqs": 1}}
    requests = Shard(request_set(mixed_calls()))

    with in_this_process():
        engine = build_engine(replace(vllm_lab.spec, lowered=lowered))
        found = engine.answer(requests, vllm_lab.subjects)
        engine.close()

    # The numbers are those of every other rung.
    expected = vllm_engine.answer(requests, vllm_lab.subjects)
    assert [one.answers for one in found] == [one.answers for one in expected]
    assert "begun with max_loras 1, max_num_seqs 9, since memory ran out before" in found[0].path
    assert "begun with" not in expected[0].path
