"""What vLLM cannot do, or would get wrong without a word, is told before anything is loaded."""

from dataclasses import replace
from typing import Any

import pytest

from raypeft.core.records import LoraRoom
from raypeft.core.routing import ROUTED_TYPES
from raypeft.core.vllm_routing import (
    ALLOWED_RANKS,
    LORA_MODULES,
    AdapterFacts,
    BaseSettings,
    config_rank,
    lora_room,
    why_base_not_vllm,
    why_not_vllm,
)

CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 8,
    "lora_alpha": 16,
    "target_modules": ["q_proj", "v_proj"],
    "bias": "none",
    "init_lora_weights": True,
    "use_dora": False,
    "lora_dropout": 0.1,
    "megatron_core": "megatron.core",
    "qalora_group_size": 16,
    "modules_to_save": None,
    "loftq_config": {},
}
"""As PEFT writes it."""

QUERY = "model.layers.0.self_attn.q_proj"
FACTS = AdapterFacts(ranks={QUERY: 8, "model.layers.0.self_attn.v_proj": 8})
BASE = BaseSettings(model_type="llama", dtype="bfloat16", on_gpu=True, has_adapters=True)


def why(facts: AdapterFacts = FACTS, model_type: str = "llama", **settings: Any) -> str:
    return why_not_vllm(CONFIG | settings, facts, model_type)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 8}},
        {"layers_to_transform": [0], "layers_pattern": "layers"},
        {"exclude_modules": ["o_proj"]},
        {"target_modules": "all-linear"},
        {"target_modules": ".*q_proj"},
        *({"init_lora_weights": name} for name in (False, None, "gaussian", "orthogonal", "eva")),
        {"bias": None, "fan_in_fan_out": False, "modules_to_save": []},
    ],
    ids=str,
)
def test_what_vllm_computes_as_peft_does_has_no_reason(settings: dict[str, Any]) -> None:
    assert why(**settings) == ""


@pytest.mark.parametrize("peft_type", sorted(ROUTED_TYPES - {"LORA"}))
def test_every_other_type_has_its_name_in_the_reason(peft_type: str) -> None:
    assert peft_type in why(peft_type=peft_type)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"lora_bias": True},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [3]},
        {"layer_replication": [[0, 2], [1, 2]]},
        {"alora_invocation_tokens": [5, 6]},
        {"use_bdlora": {"nblocks": 2}},
        {"use_qalora": True},
        {"fan_in_fan_out": True},
        {"target_parameters": ["mlp.experts"]},
        {"ensure_weight_tying": True},
        {"kasa_config": {"beta": 1.0}},
        {"velora_config": {"scale": 1.0}},
        {"monteclora_config": {"num_samples": 2}},
        {"setting_of_a_later_peft": 1},
        *({"init_lora_weights": name} for name in ("pissa", "olora", "OLoRA", "corda", "loftq")),
        *({"init_lora_weights": name} for name in ("pissa_niter_4", "lora_ga", "mica", "other")),
    ],
    ids=str,
)
def test_a_setting_that_vllm_refuses_or_never_reads_is_named(settings: dict[str, Any]) -> None:
    assert next(iter(settings)) in why(**settings)


@pytest.mark.parametrize("setting", ["r", "lora_alpha", "target_modules"])
def test_a_setting_that_vllm_requires_is_named_where_it_is_missing(setting: str) -> None:
    lacking: dict[str, Any] = {setting: None}
    assert setting in why(**lacking)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"is_merged": True}, "merge"),
        ({"vocab_size": 410}, "410 tokens"),
        ({"has_own_tokenizer": True}, "tokenizer"),
        ({"is_pickled": True}, "pickled"),
        ({"ranks": {}}, "none of its tensors"),
        ({"ranks": {QUERY: 8, "lm_head": 8}}, "lm_head wrong"),
        ({"ranks": {"model.embed_tokens": 8}}, "model.embed_tokens wrong"),
        ({"ranks": {"model.layers.0.mlp.experts.w1": 8}}, "not on model.layers.0.mlp.experts.w1"),
        ({"ranks": {QUERY: 513}}, f"rank 513 of {QUERY} is above 512"),
        # Tensors under another prefix, or of layers that the base lacks: vLLM's answer is the base.
        ({"strangers": ("language_model.layers.0.self_attn.q_proj",)}, "language_model.layers.0"),
        ({"others": (f"base_model.model.{QUERY}.lora_A.default.weight",)}, "lora_A.default"),
    ],
    ids=str,
)
def test_what_the_adapter_is_beside_its_config_is_named(change: dict[str, Any], words: str) -> None:
    assert words in why(replace(FACTS, **change))


def test_many_modules_are_counted_and_not_all_listed() -> None:
    ranks = {f"model.layers.{number}.mlp.router": 8 for number in range(32)}
    assert "and 29 more" in why(replace(FACTS, ranks=ranks))


def test_fused_projections_are_those_of_the_model_type() -> None:
    fused = AdapterFacts(ranks={"model.layers.0.self_attn.qkv_proj": 8})
    assert why(fused, "phi3") == ""
    assert "qkv_proj" in why(fused, "llama")
    assert "q_proj" in why(FACTS, "phi3")


@pytest.mark.parametrize("model_type", sorted(LORA_MODULES))
def test_a_base_of_a_known_type_has_no_reason(model_type: str) -> None:
    assert why_base_not_vllm(replace(BASE, model_type=model_type)) == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"quantization": "bnb-4bit"}, "bnb-4bit"),
        ({"softmax_dtype": None}, "softmax_dtype"),
        ({"attn_implementation": "eager"}, "'eager'"),
        ({"trust_remote_code": True}, "trust_remote_code"),
        ({"model_type": "gpt2"}, "takes no LoRA"),
        ({"model_type": "mixtral"}, "experts"),
        ({"model_type": "olmo2"}, "transformers' class"),
        ({"model_type": "of_next_year"}, "'of_next_year': it was not tried"),
        ({"dtype": "float32"}, "16 bits"),
    ],
    ids=str,
)
def test_a_base_that_vllm_cannot_do_has_a_reason(change: dict[str, Any], words: str) -> None:
    assert words in why_base_not_vllm(replace(BASE, **change))


def test_float32_is_done_on_cpus_and_without_adapters() -> None:
    exact = replace(BASE, dtype="float32")
    assert why_base_not_vllm(replace(exact, on_gpu=False)) == ""
    assert why_base_not_vllm(replace(exact, has_adapters=False)) == ""


@pytest.mark.parametrize(
    ("rank", "room"),
    [(1, 1), (2, 8), (5, 8), (8, 8), (9, 16), (65, 128), (129, 256), (257, 320), (512, 512)],
)
def test_room_is_made_for_the_next_rank_that_vllm_takes(rank: int, room: int) -> None:
    facts = AdapterFacts(ranks={QUERY: rank})
    assert room in ALLOWED_RANKS
    assert lora_room([facts]) == LoraRoom(max_rank=room, num_adapters=1, target_modules=("q_proj",))


def test_room_is_made_for_all_adapters_together() -> None:
    wide = AdapterFacts(ranks={"model.layers.3.mlp.down_proj": 4, QUERY: 64})
    assert lora_room([FACTS, wide, FACTS]) == LoraRoom(
        max_rank=64, num_adapters=3, target_modules=("down_proj", "q_proj", "v_proj")
    )
    assert lora_room([]) is None


@pytest.mark.parametrize(
    "settings",
    [{"r": 64, "rank_pattern": {"q_proj": 8, "v_proj": 8}}, {"rank_pattern": {"o_proj": 64}}],
)
def test_room_is_made_for_the_rank_that_the_config_speaks_of(settings: dict[str, Any]) -> None:
    # vLLM compares these with its limit, though no tensor has that rank.
    facts = replace(FACTS, config_rank=config_rank(CONFIG | settings))
    room = lora_room([FACTS, facts])

    assert why(facts, **settings) == ""
    assert room is not None
    assert room.max_rank == 64
    too_high = replace(FACTS, config_rank=1024)
    assert "its config speaks of rank 1024" in why(too_high, r=1024, rank_pattern={".*": 8})
