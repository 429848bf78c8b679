"""Loading a base: what is refused, and in which words."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from raypeft.core.records import EngineSpec, FailureKind
from raypeft.engines.adapters import read_adapter
from raypeft.engines.hf_model import HFModel
from raypeft.errors import CellError
from tests.engines.zoo import make_adapter
from tests.support.tiny import tiny_llama

pytestmark = pytest.mark.torch


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_base, tmp_path / "base")
    return tmp_path / "base"


def refusal(base: Path | str, **settings: Any) -> CellError:
    with pytest.raises(CellError) as raised:
        HFModel(EngineSpec(kind="hf", base=str(base), base_digest="0", **settings))
    assert repr(str(base)) in raised.value.message
    return raised.value


def edit_weights(base: Path, **changes: torch.Tensor | None) -> None:
    tensors = load_file(base / "model.safetensors") | changes
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, base / "model.safetensors", metadata={"format": "pt"})


def test_a_missing_folder(tmp_path: Path) -> None:
    error = refusal(tmp_path / "missing")

    assert error.kind == FailureKind.LOAD_FAILED
    assert "no such folder" in error.message


def test_truncated_weights(base: Path) -> None:
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])

    error = refusal(base)

    assert error.kind == FailureKind.LOAD_FAILED
    assert "not a whole safetensors file" in error.message


def test_weights_that_lack_a_tensor_are_not_filled_with_random_numbers(base: Path) -> None:
    edit_weights(base, **{"model.layers.0.mlp.up_proj.weight": None})

    error = refusal(base)

    assert error.kind == FailureKind.LOAD_FAILED
    assert "model.layers.0.mlp.up_proj.weight" in error.message
    assert "random numbers" in error.message


def test_weights_of_another_shape(base: Path) -> None:
    edit_weights(base, **{"model.norm.weight": torch.ones(7)})

    assert refusal(base).kind == FailureKind.LOAD_FAILED


def test_weights_that_are_not_finite(base: Path) -> None:
    edit_weights(base, **{"model.norm.weight": torch.full((64,), float("nan"))})

    error = refusal(base)

    assert error.kind == FailureKind.LOAD_FAILED
    assert "NaN" in error.message


def test_a_missing_tokenizer(base: Path) -> None:
    for file in base.glob("tokenizer*"):
        file.unlink()

    assert refusal(base).kind == FailureKind.LOAD_FAILED


def test_own_code_without_permission_is_unsafe_and_does_not_run(base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    config |= {"model_type": "house", "auto_map": {"AutoConfig": "house.HouseConfig"}}
    (base / "config.json").write_text(json.dumps(config))
    (base / "house.py").write_text(f"open({str(base / 'ran')!r}, 'w')")

    error = refusal(base)

    assert error.kind == FailureKind.UNSAFE
    assert "trust_remote_code: true" in error.message
    assert not (base / "ran").exists()


def test_an_unknown_architecture(base: Path) -> None:
    config = json.loads((base / "config.json").read_text()) | {"model_type": "house"}
    (base / "config.json").write_text(json.dumps(config))

    error = refusal(base)

    assert error.kind in (FailureKind.LOAD_FAILED, FailureKind.UNSAFE)
    assert "house" in error.message


def test_a_device_that_is_not_there(base: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")

    error = refusal(base, device="cuda")

    assert error.kind == FailureKind.LOAD_FAILED
    assert error.retryable
    assert "sees no GPU" in error.message


def test_options_are_refused(base: Path) -> None:
    error = refusal(base, options={"speed": 11})

    assert error.kind == FailureKind.SPEC
    assert "speed" in error.message


def test_an_attached_adapter_makes_it_an_lm_eval_model_of_that_adapter(
    base: Path, tiny_spec: EngineSpec, tmp_path: Path
) -> None:
    from lm_eval.api.instance import Instance

    model = HFModel(replace(tiny_spec, base=str(base)))
    folder = make_adapter(base, tmp_path / "lora", "lora_r4")
    call = Instance(request_type="loglikelihood", doc={}, arguments=("The cat", " sleeps"), idx=0)

    plain = model.loglikelihood([call], disable_tqdm=True)
    model.switch(read_adapter(str(folder), name="lora"))
    adapted = model.loglikelihood([call], disable_tqdm=True)
    model.switch(None)

    assert adapted != plain
    assert model.loglikelihood([call], disable_tqdm=True) == plain


@pytest.mark.parametrize("tied", [False, True])
def test_vocabulary_and_ties_of_the_base_are_kept(tmp_path: Path, tied: bool) -> None:
    base = tiny_llama(tmp_path / "base", vocab_size=450, tie_word_embeddings=tied)
    folder = make_adapter(base, tmp_path / "lora", "saved_lm_head")

    model = HFModel(EngineSpec(kind="hf", base=str(base), base_digest="0"))
    assert model.model.config.vocab_size == 450
    assert model.model.get_input_embeddings().num_embeddings == 450

    model.switch(read_adapter(str(folder), name="lora", base_path=str(base)))
    model.switch(None)
    assert model.model.get_input_embeddings().num_embeddings == 450
    same = model.model.lm_head.weight is model.model.get_input_embeddings().weight
    assert same == tied
