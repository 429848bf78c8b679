"""vLLM's counts are those of one engine, and what is preempted answers as ever."""

from dataclasses import replace
from typing import Any

import pytest

from raypeft.core.records import Json, RequestType, Shard
from raypeft.engines.build import build_engine
from tests.engines.samples import mixed_calls, request_set
from tests.vllm.conftest import VLLMLab, in_this_process, subject_of

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore::Warning")]

# Two layers, keys and values, two heads of 32 numbers of 4 bytes, 32 tokens.
BLOCK_BYTES = 2 * 2 * 2 * 32 * 4 * 32
LONG: dict[str, Json] = {"until": ["\x00"], "max_gen_toks": 60, "do_sample": False}


def test_an_engine_counts_its_own_steps_beside_another_that_preempts(
    vllm_engine: Any, vllm_lab: VLLMLab
) -> None:
    # Room for one request of full length and little more: of eight some are thrown out again.
    options = {**vllm_lab.spec.options, "kv_cache_memory_bytes": 12 * BLOCK_BYTES}
    texts: list[tuple[RequestType, tuple[Json, ...]]] = [
        ("generate_until", (f"Story {number}:", LONG)) for number in range(8)
    ]
    requests = Shard(request_set([*texts, *mixed_calls()[:8]], task="crowded"))
    subjects = [vllm_lab.baseline, subject_of(vllm_lab.adapters[0])]
    with in_this_process():
        crowded: Any = build_engine(replace(vllm_lab.spec, options=options))
    before = vllm_engine.counters()

    found = crowded.answer(requests, subjects)
    between = vllm_engine.counters()
    expected = vllm_engine.answer(requests, subjects)
    after = vllm_engine.counters()
    preempted = crowded.counters().preemptions
    crowded.close()

    assert preempted > 0
    assert [one.answers for one in found] == [one.answers for one in expected]
    assert between == before
    assert after.preemptions == before.preemptions
    # It was made first, and goes on counting.
    assert after.cache_queries > before.cache_queries
    assert after.cache_hits > before.cache_hits
