"""A spec becomes vLLM's arguments; what vLLM would not follow is refused."""

from dataclasses import replace
from typing import Any

import pytest

from raypeft.core.records import EngineSpec, FailureKind, LoraRoom
from raypeft.engines.vllm_settings import check_settings, model_arguments, wrapped_modules
from raypeft.errors import CellError

SPEC = EngineSpec(kind="vllm", base="b", base_digest="0", dtype="bfloat16", device="cuda")
ROOM = LoraRoom(max_rank=20, num_adapters=16, target_modules=("q_proj", "lm_head", "embed_tokens"))


def test_room_for_adapters_never_has_the_head_or_the_embeddings() -> None:
    arguments = model_arguments(replace(SPEC, lora=ROOM))

    assert arguments["lora_target_modules"] == ["q_proj"] == list(wrapped_modules(ROOM))
    assert arguments["max_lora_rank"] == 32
    assert (arguments["max_loras"], arguments["max_cpu_loras"]) == (8, 16)


@pytest.mark.parametrize(
    ("num_adapters", "options", "held"), [(1, {}, 1), (500, {}, 64), (500, {"max_loras": 80}, 80)]
)
def test_the_hosts_memory_holds_many_adapters_and_not_any_number(
    num_adapters: int, options: dict[str, Any], held: int
) -> None:
    room = replace(ROOM, num_adapters=num_adapters)
    arguments = model_arguments(replace(SPEC, lora=room, options=options))
    assert arguments["max_cpu_loras"] == held
    assert arguments["max_loras"] <= held


def test_a_base_alone_has_no_room() -> None:
    assert not any("lora" in name for name in model_arguments(SPEC))


def test_several_gpus_name_the_executor() -> None:
    assert "distributed_executor_backend" not in model_arguments(SPEC)

    arguments = model_arguments(replace(SPEC, tensor_parallel=4))

    assert arguments["tensor_parallel_size"] == 4
    assert arguments["distributed_executor_backend"] == "mp"
    across = model_arguments(replace(SPEC, tensor_parallel=4, spans_nodes=True))
    assert across["distributed_executor_backend"] == "ray"


def test_options_reach_vllm_and_our_own_do_not() -> None:
    options = {"block_size": 16, "max_num_seqs": 4, "batch_invariant": True, "max_loras": 2}

    arguments = model_arguments(replace(SPEC, options=options, lora=ROOM, max_length=99))

    assert (arguments["block_size"], arguments["max_num_seqs"]) == (16, 4)
    assert arguments["max_model_len"] == 99
    assert arguments["max_loras"] == 2
    assert "batch_invariant" not in arguments


@pytest.mark.parametrize(
    ("changes", "kind", "text"),
    [
        ({"options": {"blocksize": 16}}, FailureKind.SPEC, "did you mean 'block_size'"),
        ({"options": {"block_size": True}}, FailureKind.SPEC, "whole number"),
        ({"options": {"gpu_memory_utilization": 1.5}}, FailureKind.SPEC, "at most 1"),
        ({"softmax_dtype": None}, FailureKind.UNSUPPORTED, "log-softmax"),
        ({"attn_implementation": "eager"}, FailureKind.UNSUPPORTED, "attn_implementation"),
        ({"quantization": "bnb-4bit"}, FailureKind.UNSUPPORTED, "quantization"),
        ({"lora": ROOM, "dtype": "float32"}, FailureKind.UNSUPPORTED, "16 bits"),
        ({"lora": replace(ROOM, max_rank=513)}, FailureKind.UNSUPPORTED, "rank 513"),
    ],
)
def test_what_vllm_would_not_follow_is_refused(
    changes: dict[str, Any], kind: FailureKind, text: str
) -> None:
    with pytest.raises(CellError, match=text) as raised:
        check_settings(replace(SPEC, **changes))
    assert raised.value.kind == kind


def test_of_the_options_batch_invariance_alone_is_identity() -> None:
    numerics = SPEC.numerics()

    assert replace(SPEC, options={"max_num_seqs": 3}, lora=ROOM).numerics() == numerics
    assert replace(SPEC, options={"batch_invariant": True}).numerics() != numerics
