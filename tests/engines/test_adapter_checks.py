"""LoRA tensors that do not fit, are not finite or do nothing are found in the files alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raypeft.core.records import FailureKind
from raypeft.engines.adapters import read_adapter
from raypeft.errors import CellError
from tests.engines.samples import (
    HIDDEN,
    VOCAB,
    Arrays,
    hand_made_adapter,
    hand_made_base,
    lora_key,
    lora_tensors,
)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return hand_made_base(tmp_path / "base")


def refusal(folder: Path, base: Path | None = None) -> CellError:
    with pytest.raises(CellError) as raised:
        read(folder, base)
    return raised.value


def read(folder: Path, base: Path | None = None) -> None:
    read_adapter(str(folder), name="mine", base_path=None if base is None else str(base))


def without(tensors: Arrays, *names: str) -> Arrays:
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def moved(tensors: Arrays, old: str, new: str) -> Arrays:
    return {name.replace(old, new): tensor for name, tensor in tensors.items()}


def test_a_fitting_adapter_passes_with_and_without_its_base(tmp_path: Path, base: Path) -> None:
    folder = hand_made_adapter(tmp_path / "adapter")

    read(folder)
    read(folder, base)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(tmp_path: Path, value: float) -> None:
    tensors = lora_tensors()
    tensors[lora_key(1, "v_proj", "lora_A")][0, 3] = value

    error = refusal(hand_made_adapter(tmp_path / "adapter", tensors))

    assert error.kind == FailureKind.NOT_FINITE
    assert "1 of 8 tensors" in error.message
    assert "layers.1.self_attn.v_proj.lora_A" in error.message


@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
def test_a_lora_that_is_zero_everywhere_changes_nothing(tmp_path: Path, part: str) -> None:
    tensors = {name: tensor * (part not in name) for name, tensor in lora_tensors().items()}

    error = refusal(hand_made_adapter(tmp_path / "adapter", tensors))

    assert error.kind == FailureKind.NO_EFFECT
    assert "changes nothing" in error.message


@pytest.mark.parametrize("setting", [{"use_dora": True}, {"init_lora_weights": "pissa"}])
def test_zero_is_no_proof_where_something_else_can_have_an_effect(
    tmp_path: Path, setting: dict[str, Any]
) -> None:
    tensors = {name: tensor * ("lora_B" not in name) for name, tensor in lora_tensors().items()}
    bias = tensors | {"base_model.model.model.norm.bias": np.ones(HIDDEN, np.float32)}

    read(hand_made_adapter(tmp_path / "setting", tensors, **setting))
    read(hand_made_adapter(tmp_path / "bias", bias))


def test_tensors_without_a_lora_name(tmp_path: Path) -> None:
    tensors = moved(moved(lora_tensors(), "lora_A", "down"), "lora_B", "up")

    error = refusal(hand_made_adapter(tmp_path / "adapter", tensors))

    assert error.kind == FailureKind.DOES_NOT_FIT
    assert "no tensor has a LoRA name" in error.message


@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
def test_a_lora_tensor_without_its_partner(tmp_path: Path, part: str) -> None:
    tensors = without(lora_tensors(), lora_key(0, "q_proj", part))

    error = refusal(hand_made_adapter(tmp_path / "adapter", tensors))

    assert error.kind == FailureKind.DOES_NOT_FIT
    assert f"without {part}" in error.message


def test_a_rank_that_is_not_the_configs(tmp_path: Path) -> None:
    error = refusal(hand_made_adapter(tmp_path / "adapter", lora_tensors(rank=4)))

    assert error.kind == FailureKind.DOES_NOT_FIT
    assert "says r=2" in error.message
    assert "and 5 more" in error.message


def test_a_rank_pattern_is_respected(tmp_path: Path) -> None:
    tensors = lora_tensors(rank=2) | {
        name: tensor for name, tensor in lora_tensors(rank=3).items() if "1.self_attn.q_" in name
    }
    pattern = {"layers.1.self_attn.q_proj": 3}

    read(hand_made_adapter(tmp_path / "adapter", tensors, rank_pattern=pattern))
    error = refusal(hand_made_adapter(tmp_path / "without", tensors))

    assert "layers.1.self_attn.q_proj" in error.message


@pytest.mark.parametrize("targets", [["q_proj"], r".*\.q_proj"])
def test_tensors_that_the_config_does_not_target(tmp_path: Path, targets: Any) -> None:
    error = refusal(hand_made_adapter(tmp_path / "adapter", target_modules=targets))

    assert error.kind == FailureKind.DOES_NOT_FIT
    assert "ignore without a word" in error.message
    assert "v_proj" in error.message


@pytest.mark.parametrize(
    "targets", ["all-linear", r".*\.(q|v)_proj", ["self_attn.q_proj", "v_proj"]]
)
def test_all_ways_to_name_targets_are_understood(tmp_path: Path, targets: Any) -> None:
    read(hand_made_adapter(tmp_path / "adapter", target_modules=targets))


def test_targets_that_the_base_has_and_the_weights_lack(tmp_path: Path, base: Path) -> None:
    folder = hand_made_adapter(
        tmp_path / "adapter", target_modules=["q_proj", "v_proj", "o_proj", "query_key_value"]
    )

    error = refusal(folder, base)

    assert error.kind == FailureKind.DOES_NOT_FIT
    assert "o_proj" in error.message
    assert "query_key_value" not in error.message  # no module of this base


def test_more_layers_than_the_base(tmp_path: Path, base: Path) -> None:
    tensors = moved(lora_tensors(), "layers.1.", "layers.7.")

    error = refusal(hand_made_adapter(tmp_path / "adapter", tensors), base)

    assert error.kind == FailureKind.DOES_NOT_FIT
    assert "another base" in error.message
    assert "layers.7" in error.message


def test_another_hidden_size(tmp_path: Path, base: Path) -> None:
    folder = hand_made_adapter(tmp_path / "adapter", lora_tensors(hidden=2 * HIDDEN))

    error = refusal(folder, base)

    assert error.kind == FailureKind.DOES_NOT_FIT
    assert "16→16 at a weight (8, 8)" in error.message


def test_names_that_do_not_map_to_the_base_are_left_to_the_engine(
    tmp_path: Path, base: Path
) -> None:
    read(hand_made_adapter(tmp_path / "a", moved(lora_tensors(), "self_attn", "attn")), base)


def test_a_saved_head_of_a_smaller_vocabulary(tmp_path: Path, base: Path) -> None:
    head = {"base_model.model.lm_head.weight": np.ones((VOCAB - 2, HIDDEN), np.float32)}
    folder = hand_made_adapter(
        tmp_path / "adapter", lora_tensors() | head, modules_to_save=["lm_head"]
    )

    error = refusal(folder, base)

    assert error.kind == FailureKind.DOES_NOT_FIT
    assert "a copy of the base is enlarged; fewer tokens" in error.message


def test_embeddings_are_compared_with_the_bases(tmp_path: Path, base: Path) -> None:
    def tensors(vocab: int) -> Arrays:
        name = "base_model.model.model.embed_tokens"
        return {
            f"{name}.lora_embedding_A": np.ones((2, vocab), np.float32),
            f"{name}.lora_embedding_B": np.ones((HIDDEN, 2), np.float32),
        }

    targets = ["embed_tokens"]
    read(hand_made_adapter(tmp_path / "a", tensors(VOCAB), target_modules=targets), base)
    other = hand_made_adapter(tmp_path / "b", tensors(VOCAB + 1), target_modules=targets)

    assert "embed_tokens" in refusal(other, base).message


def test_types_other_than_lora_are_left_to_the_engine(tmp_path: Path, base: Path) -> None:
    tensors = {"prompt_embeddings": np.ones((3, HIDDEN), np.float32)}
    settings = {"peft_type": "PROMPT_TUNING", "r": None, "lora_alpha": None, "target_modules": None}

    read(hand_made_adapter(tmp_path / "adapter", tensors, **settings), base)
