"""Every adapter type of PEFT is decided on by name, and values count as much as types."""

import dataclasses
from typing import Any

import pytest

from raypeft.core.peft_settings import SETTINGS, is_unset, unknown_settings
from raypeft.core.routing import ROUTED_TYPES, Lane, NotRoutable, Route, route

PLAIN = {"peft_type": "LORA", "bias": "none", "init_lora_weights": True, "use_dora": False}

EXPECTED = {
    **dict.fromkeys(
        (
            *("ADALORA", "ADAMSS", "BEFT", "BOFT", "C3A", "CARTRIDGE", "CPT", "DEFT", "DELORA"),
            *("FOURIERFT", "FROD", "GLORA", "GRALORA", "HIRA", "HRA", "IA3", "LN_TUNING"),
            *("LOHA", "LOKR", "MISS", "OFT", "OSF", "PEANUT", "PREFIX_TUNING", "PROMPT_TUNING"),
            *("PSOFT", "PVERA", "P_TUNING", "RANDLORA", "ROAD", "SHADOW", "SHIRA", "SUPERTUNING"),
            *("TINYLORA", "TRAINABLE_TOKENS", "UNILORA", "VBLORA", "VERA", "WAVEFT"),
        ),
        Lane.ONE_TYPE,
    ),
    "LORA": Lane.SHARED,
    "ADAPTION_PROMPT": Lane.ISOLATED,
    "LILY": None,
    "MULTITASK_PROMPT_TUNING": None,
    "POLY": None,
    "XLORA": None,
}
"""The lane of each type with its default settings; None is refused."""


def routed(config: dict[str, Any]) -> Route:
    found = route(config)
    assert isinstance(found, Route), found
    return found


def refused(config: dict[str, Any]) -> str:
    found = route(config)
    assert isinstance(found, NotRoutable), found
    return found.reason


@pytest.mark.torch
def test_every_type_of_the_installed_peft_is_decided_on() -> None:
    from peft import PeftType

    # A later PEFT with a new type fails here: attach and detach one, then enter it on purpose.
    assert {kind.value for kind in PeftType} == set(EXPECTED) == ROUTED_TYPES == SETTINGS.keys()


@pytest.mark.torch
def test_the_known_settings_of_every_type_are_those_of_the_installed_peft() -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        fields = {field.name for field in dataclasses.fields(config)}
        assert SETTINGS[kind.value] == fields, kind.value


@pytest.mark.parametrize("peft_type", EXPECTED)
def test_the_lane_of_a_type_with_default_settings(peft_type: str) -> None:
    config = {"peft_type": peft_type}
    if EXPECTED[peft_type] is None:
        assert peft_type in refused(config)
    else:
        assert routed(config).lane is EXPECTED[peft_type]
        assert peft_type in routed(config).reason


@pytest.mark.parametrize("peft_type", ["LORO", "lora", None, 3])
def test_an_unknown_type_is_refused_by_name(peft_type: Any) -> None:
    reason = refused({"peft_type": peft_type})
    assert repr(peft_type) in reason
    assert "VERA" in reason
    assert "XLORA" not in reason


@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"lora_bias": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 4}},
        {"layers_to_transform": [1], "exclude_modules": ["o_proj"]},
        {"target_modules": ["lm_head", "embed_tokens"]},
        {"init_lora_weights": False},
        {"init_lora_weights": None},
        *({"init_lora_weights": name} for name in ("gaussian", "orthogonal", "eva", "mica")),
        {"trainable_token_indices": None, "modules_to_save": [], "layer_replication": None},
        {"bias": None},
    ],
    ids=str,
)
def test_plain_lora_shares_its_base(setting: dict[str, Any]) -> None:
    found = routed(PLAIN | setting)
    assert found.lane is Lane.SHARED
    assert found.may_share_context


@pytest.mark.parametrize(
    "setting",
    [
        {"trainable_token_indices": [3]},
        {"target_parameters": ["mlp.experts"]},
        {"ensure_weight_tying": True},
        {"use_qalora": True},
        {"use_bdlora": {"nblocks": 2}},
        {"velora_config": {"scale": 1.0}},
        {"monteclora_config": {"num_samples": 2}},
    ],
    ids=str,
)
def test_lora_that_peft_cannot_hold_beside_others_is_alone(setting: dict[str, Any]) -> None:
    found = routed(PLAIN | setting)
    assert found.lane is Lane.ONE_TYPE
    assert next(iter(setting)) in found.reason


@pytest.mark.parametrize(
    "setting",
    [
        {"bias": "all"},
        {"bias": "lora_only"},
        {"modules_to_save": ["lm_head"]},
        {"layer_replication": [[0, 2], [1, 2]]},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "OLoRA"},
        {"init_lora_weights": "loftq"},
        {"kasa_config": {"beta": 1.0}},
    ],
    ids=str,
)
def test_lora_that_changes_the_base_is_isolated(setting: dict[str, Any]) -> None:
    found = routed(PLAIN | setting)
    assert found.lane is Lane.ISOLATED
    assert next(iter(setting)) in found.reason


@pytest.mark.parametrize("peft_type", ["OFT", "BOFT", "VERA", "IA3", "ADALORA"])
@pytest.mark.parametrize("setting", [{"bias": "all"}, {"modules_to_save": ["norm"]}], ids=str)
def test_what_changes_the_base_isolates_adapters_of_every_type(
    peft_type: str, setting: dict[str, Any]
) -> None:
    assert routed({"peft_type": peft_type} | setting).lane is Lane.ISOLATED


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"init_lora_weights": "corda"}, "covariances"),
        ({"init_lora_weights": "lora_ga"}, "gradients"),
        ({"init_lora_weights": "pissa_niter_4"}, "drawn at random"),
        ({"init_lora_weights": "zeros"}, "'zeros' is unknown"),
        ({"init_lora_weights": "pissa_4"}, "'pissa_4' is unknown"),
        ({"arrow_config": {"top_k": 3}}, "further adapters"),
        ({"megatron_config": {"x": 1}}, "Megatron"),
        ({"peft_type": "PVERA", "sample_at_inference": True}, "drawn at random"),
        ({"peft_type": "SHADOW", "shadow_model": "org/model"}, "second model"),
    ],
    ids=str,
)
def test_what_would_give_a_wrong_or_random_number_is_refused(
    config: dict[str, Any], words: str
) -> None:
    assert words in refused(PLAIN | config)


@pytest.mark.parametrize(
    "config",
    [
        *({"peft_type": kind} for kind in ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")),
        *({"peft_type": kind} for kind in ("CPT", "CARTRIDGE", "ADAPTION_PROMPT", "SHADOW")),
        PLAIN | {"alora_invocation_tokens": [5, 6]},
    ],
    ids=str,
)
def test_types_that_read_whole_rows_share_no_context(config: dict[str, Any]) -> None:
    found = routed(config)
    assert not found.may_share_context
    assert found.why_plain


@pytest.mark.parametrize("value", [None, False, [], {}])
def test_unset_values_of_unknown_settings_are_nothing(value: Any) -> None:
    assert is_unset(value)
    assert unknown_settings(PLAIN | {"new": value}, SETTINGS["LORA"]) == {}


@pytest.mark.parametrize("value", [0, 0.0, True, "", "none", [1]])
def test_any_other_value_of_an_unknown_setting_is_something(value: Any) -> None:
    assert unknown_settings(PLAIN | {"new": value}, SETTINGS["LORA"]) == {"new": value}


def test_a_dora_adapter_is_not_called_plain() -> None:
    found = route(PLAIN | {"use_dora": True})
    assert isinstance(found, Route)
    assert found.lane is Lane.SHARED
    assert found.reason.startswith("LORA with use_dora")
