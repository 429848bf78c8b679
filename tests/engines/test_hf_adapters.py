"""Attaching finds what PEFT passes over: tensors that are missing, too many or of other sizes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from raypeft.core.records import FailureKind
from raypeft.engines.adapters import CONFIG_FILE, SAFE_WEIGHTS_FILE, read_adapter_files
from raypeft.engines.hf_adapters import attach, detach, probe_rows, probe_tokens
from raypeft.engines.hf_snapshot import take_snapshot
from raypeft.errors import CellError
from tests.engines.zoo import CLEAN, make_adapter
from tests.support.tiny import tiny_llama

pytestmark = pytest.mark.torch

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(str(tiny_base)).eval()


@pytest.fixture(scope="module")
def good(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tiny_base, tmp_path_factory.mktemp("good") / "lora", "lora_r4")


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    shutil.copytree(good, tmp_path / "adapter")
    return tmp_path / "adapter"


def edit_weights(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    file = folder / SAFE_WEIGHTS_FILE
    save_file(change(load_file(file)), file)


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / CONFIG_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def attach_folder(model: Any, folder: Path, **reading: Any) -> Any:
    files = read_adapter_files(str(folder), what="adapter 'mine'", **reading)
    return attach(model, files, name="mine", device="cpu")


def refusal(model: Any, folder: Path) -> CellError:
    """Return why an adapter is refused, after checking that the base was left clean."""
    before = take_snapshot(model)
    with pytest.raises(CellError) as raised:
        attach_folder(model, folder)
    assert before.difference(take_snapshot(model)) == ""
    assert "adapter 'mine'" in raised.value.message
    return raised.value


def test_renamed_tensors(model: Any, folder: Path) -> None:
    edit_weights(
        folder,
        lambda tensors: {f"renamed.{name}": tensor for name, tensor in tensors.items()},
    )

    error = refusal(model, folder)

    assert error.kind == FailureKind.DOES_NOT_FIT
    assert "8 missing from the file" in error.message
    assert "8 in the file that nothing uses" in error.message
    assert "renamed." in error.message


def test_missing_layers(model: Any, folder: Path) -> None:
    edit_weights(
        folder, lambda tensors: {name: one for name, one in tensors.items() if ".1." not in name}
    )

    error = refusal(model, folder)

    assert error.kind == FailureKind.DOES_NOT_FIT
    assert "4 missing from the file" in error.message
    assert "layers.1.self_attn.q_proj.lora_A.weight" in error.message


def test_layers_the_base_lacks(model: Any, folder: Path) -> None:
    edit_weights(
        folder,
        lambda tensors: (
            tensors | {name.replace(".1.", ".2."): one.clone() for name, one in tensors.items()}
        ),
    )

    error = refusal(model, folder)

    assert error.kind == FailureKind.DOES_NOT_FIT
    assert "4 in the file that nothing uses" in error.message
    assert "missing" not in error.message


def test_fewer_targets_than_tensors(model: Any, folder: Path) -> None:
    edit_config(folder, target_modules=["q_proj"])

    assert "4 in the file that nothing uses" in refusal(model, folder).message


def test_another_rank(model: Any, folder: Path) -> None:
    edit_config(folder, r=2)

    error = refusal(model, folder)

    assert error.kind == FailureKind.DOES_NOT_FIT
    assert "size mismatch" in error.message


def test_targets_the_base_lacks(model: Any, folder: Path) -> None:
    edit_config(folder, target_modules=["query_key_value"])

    error = refusal(model, folder)

    assert error.kind == FailureKind.DOES_NOT_FIT
    assert "query_key_value" in error.message


def test_a_saved_module_without_its_weights(model: Any, folder: Path) -> None:
    edit_config(folder, modules_to_save=["lm_head"])

    before = take_snapshot(model)
    with pytest.raises(CellError, match=r"lacks the tensor .*lm_head") as raised:
        attach_folder(model, folder)
    assert raised.value.kind == FailureKind.DOES_NOT_FIT
    assert before.difference(take_snapshot(model)) == ""


def test_values_that_are_not_finite(model: Any, folder: Path) -> None:
    edit_weights(folder, lambda tensors: {n: t / 0.0 for n, t in tensors.items()})

    assert refusal(model, folder).kind == FailureKind.NOT_FINITE


def test_settings_this_peft_does_not_know(model: Any, folder: Path) -> None:
    edit_config(folder, use_future_maths=True, future_default=None, other_future=False)

    error = refusal(model, folder)

    assert error.kind == FailureKind.UNSUPPORTED
    assert "use_future_maths=true" in error.message
    assert "future_default" not in error.message
    assert "other_future" not in error.message


def test_a_prompt_for_another_base(model: Any, tmp_path: Path) -> None:
    narrow = tiny_llama(tmp_path / "narrow", hidden=32)
    folder = make_adapter(narrow, tmp_path / "prefix", "prefix_tuning")
    edit_config(folder, token_dim=None, num_layers=None, num_attention_heads=None)

    error = refusal(model, folder)

    assert error.kind == FailureKind.DOES_NOT_FIT
    assert "size mismatch" in error.message


def test_pickled_weights_are_compared_once_they_are_loaded(
    model: Any, folder: Path, tmp_path: Path
) -> None:
    tensors = load_file(folder / SAFE_WEIGHTS_FILE)
    (folder / SAFE_WEIGHTS_FILE).unlink()
    torch.save(tensors, folder / "adapter_model.bin")
    detach(attach_folder(model, folder, allow_pickle=True))
    first = next(iter(tensors))
    torch.save(
        {name: one for name, one in tensors.items() if name != first}, folder / "adapter_model.bin"
    )

    with pytest.raises(CellError, match="1 missing from the file"):
        attach_folder(model, folder, allow_pickle=True)


def test_detaching_gives_the_base_back(model: Any, folder: Path) -> None:
    before = take_snapshot(model)
    attached = attach_folder(model, folder)
    assert before.difference(take_snapshot(model)) != ""

    assert detach(attached) is model
    assert before.difference(take_snapshot(model)) == ""


@pytest.mark.parametrize("name", ["lora_r4", "prompt_tuning"])
def test_an_attached_adapter_does_not_train_and_has_no_dropout(
    model: Any, tiny_base: Path, tmp_path: Path, name: str
) -> None:
    assert name in CLEAN
    attached = attach_folder(model, make_adapter(tiny_base, tmp_path / name, name))

    assert not any(module.training for module in attached.modules())
    detach(attached)


def test_the_probe_is_fixed_and_holds_what_an_adapter_waits_for() -> None:
    rows = probe_rows(400, (), torch.device("cpu"))
    waiting = probe_rows(400, (7, 3), torch.device("cpu"))

    assert rows.shape == (2, 16)
    assert torch.equal(rows, probe_rows(400, (), torch.device("cpu")))
    assert not torch.equal(rows[0], rows[1])
    assert waiting[0, 16:18].tolist() == [7, 3]
    assert int(probe_rows(5, (7,), torch.device("cpu")).max()) < 5


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, ()),
        ({"alora_invocation_tokens": [5, 6]}, (5, 6)),
        ({"trainable_token_indices": [1]}, (1,)),
        ({"trainable_token_indices": {"embed_tokens": [1, 2], "lm_head": [3]}}, (1, 2, 3)),
        ({"token_indices": [9]}, (9,)),
    ],
)
def test_tokens_an_adapter_waits_for_are_read_from_its_config(
    config: dict[str, Any], expected: tuple[int, ...]
) -> None:
    assert probe_tokens(config) == expected
