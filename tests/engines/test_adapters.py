"""An adapter folder is read, or refused for a named reason, before anything is loaded."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from raypeft.core.records import FailureKind
from raypeft.engines.adapters import (
    CONFIG_FILE,
    PICKLED_WEIGHTS_FILE,
    SAFE_WEIGHTS_FILE,
    adapter_digest,
    open_adapter,
    read_adapter,
)
from raypeft.errors import CellError
from tests.engines.samples import hand_made_adapter, lora_tensors


def refusal(folder: Path | str, **reading: Any) -> CellError:
    with pytest.raises(CellError) as raised:
        read_adapter(str(folder), name="mine", **reading)
    assert "adapter 'mine'" in raised.value.message
    assert not raised.value.retryable
    return raised.value


def digest_of(folder: Path) -> str:
    return read_adapter(str(folder), name="mine", allow_pickle=True).digest


def test_a_good_adapter_is_described(tmp_path: Path) -> None:
    folder = hand_made_adapter(tmp_path / "adapter")

    adapter = read_adapter(str(folder), name="mine", revision="abc")

    assert (adapter.name, adapter.path, adapter.revision) == ("mine", str(folder), "abc")
    assert adapter.peft_type == "LORA"
    assert adapter.config["r"] == 2
    assert len(adapter.digest) == 32


def test_a_missing_folder(tmp_path: Path) -> None:
    error = refusal(tmp_path / "missing")

    assert error.kind == FailureKind.SPEC
    assert "no such folder" in error.message


def test_a_missing_config(tmp_path: Path) -> None:
    folder = hand_made_adapter(tmp_path / "adapter")
    (folder / CONFIG_FILE).unlink()

    error = refusal(folder)

    assert error.kind == FailureKind.UNREADABLE
    assert "holds no adapter_config.json" in error.message


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("{nonsense", FailureKind.UNREADABLE, "not JSON"),
        ("", FailureKind.UNREADABLE, "not JSON"),
        ("[1]", FailureKind.UNREADABLE, "holds a list"),
        ("{}", FailureKind.UNREADABLE, "names no peft_type"),
        ('{"peft_type": 3}', FailureKind.UNREADABLE, "names no peft_type"),
        ('{"peft_type": "LORO"}', FailureKind.UNSUPPORTED, "adapters of type 'LORO'"),
        ('{"peft_type": "XLORA"}', FailureKind.UNSUPPORTED, "further adapters"),
        ('{"peft_type": "LORA", "task_type": "SEQ_CLS"}', FailureKind.UNSUPPORTED, "SEQ_CLS"),
    ],
)
def test_a_config_that_cannot_be_used(
    tmp_path: Path, text: str, kind: FailureKind, message: str
) -> None:
    folder = hand_made_adapter(tmp_path / "adapter")
    (folder / CONFIG_FILE).write_text(text)

    error = refusal(folder)

    assert error.kind == kind
    assert message in error.message


def test_a_config_in_another_encoding(tmp_path: Path) -> None:
    folder = hand_made_adapter(tmp_path / "adapter")
    (folder / CONFIG_FILE).write_bytes(b"\xff\xfe{}")

    assert "not UTF-8" in refusal(folder).message


def test_missing_weights_list_what_is_there(tmp_path: Path) -> None:
    folder = hand_made_adapter(tmp_path / "adapter")
    (folder / SAFE_WEIGHTS_FILE).rename(folder / "weights.safetensors")

    error = refusal(folder)

    assert error.kind == FailureKind.UNREADABLE
    assert "weights.safetensors" in error.message


def test_pickled_weights_need_permission(tmp_path: Path) -> None:
    folder = hand_made_adapter(tmp_path / "adapter")
    (folder / SAFE_WEIGHTS_FILE).rename(folder / PICKLED_WEIGHTS_FILE)

    error = refusal(folder)

    assert error.kind == FailureKind.UNSAFE
    assert "allow_pickle: true" in error.message
    assert read_adapter(str(folder), name="mine", allow_pickle=True).allow_pickle


def test_safetensors_are_preferred_to_pickled_weights(tmp_path: Path) -> None:
    folder = hand_made_adapter(tmp_path / "adapter")
    before = digest_of(folder)
    (folder / PICKLED_WEIGHTS_FILE).write_bytes(b"anything")

    assert digest_of(folder) == before


@pytest.mark.parametrize("kept", [0, 5, 200, -1])
def test_truncated_weights(tmp_path: Path, kept: int) -> None:
    folder = hand_made_adapter(tmp_path / "adapter")
    weights = folder / SAFE_WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:kept])

    error = refusal(folder)

    assert error.kind == FailureKind.UNREADABLE
    assert "not a whole safetensors file" in error.message


def test_weights_without_tensors(tmp_path: Path) -> None:
    assert "holds no tensors" in refusal(hand_made_adapter(tmp_path / "adapter", {})).message


def test_weights_that_are_a_loop_of_links(tmp_path: Path) -> None:
    folder = hand_made_adapter(tmp_path / "adapter")
    weights = folder / SAFE_WEIGHTS_FILE
    weights.unlink()
    weights.symlink_to(weights)

    error = refusal(folder)

    assert error.kind == FailureKind.UNREADABLE
    assert "symbolic links" in error.message


def test_the_digest_is_that_of_the_content(tmp_path: Path) -> None:
    one = hand_made_adapter(tmp_path / "one")
    copy = hand_made_adapter(tmp_path / "copy")
    other = hand_made_adapter(tmp_path / "other", lora_tensors() | {"x": np.ones(1, np.float32)})

    assert digest_of(one) == digest_of(copy)
    assert digest_of(one) != digest_of(other)


@pytest.mark.parametrize(
    "change",
    [
        {"base_model_name_or_path": "/somewhere/else"},
        {"inference_mode": True},
        {"peft_version": "0.99"},
        {"revision": "main"},
        {"lora_dropout": 0.1},
        {"use_dora": False},
        {"rank_pattern": {}},
        {"modules_to_save": None},
        {"target_modules": ["v_proj", "q_proj"]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_settings_that_cannot_change_a_score_are_not_in_the_digest(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    plain = hand_made_adapter(tmp_path / "plain")
    changed = hand_made_adapter(tmp_path / "changed", **change)

    assert digest_of(plain) == digest_of(changed)


@pytest.mark.parametrize(
    "change",
    [
        {"lora_alpha": 8},
        {"use_rslora": True},
        {"use_dora": True},
        {"fan_in_fan_out": True},
        {"alpha_pattern": {"q_proj": 3}},
        {"init_lora_weights": "pissa"},
        {"bias": "all"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_settings_that_can_change_a_score_are_in_the_digest(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    plain = hand_made_adapter(tmp_path / "plain")
    changed = hand_made_adapter(tmp_path / "changed", **change)

    assert digest_of(plain) != digest_of(changed)


def test_the_digest_is_pinned() -> None:
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["v_proj", "q_proj"],
        "bias": "none",
        "use_dora": False,
        "peft_version": "0.21.2",
    }

    assert adapter_digest("0" * 64, config) == "1205b105e4dbfc5f966154f0b9166bf5"


def test_an_adapter_is_opened_again_only_with_the_same_content(tmp_path: Path) -> None:
    folder = hand_made_adapter(tmp_path / "adapter")
    adapter = read_adapter(str(folder), name="mine")
    assert open_adapter(adapter).folder == folder.resolve()

    weights = folder / SAFE_WEIGHTS_FILE
    save_file({name: tensor * 2 for name, tensor in load_file(weights).items()}, weights)

    with pytest.raises(CellError, match="other content than when the sweep was planned"):
        open_adapter(adapter)


def test_an_adapter_whose_settings_changed_is_not_opened_again(tmp_path: Path) -> None:
    folder = hand_made_adapter(tmp_path / "adapter")
    adapter = read_adapter(str(folder), name="mine")
    config = json.loads((folder / CONFIG_FILE).read_text()) | {"lora_alpha": 99}
    (folder / CONFIG_FILE).write_text(json.dumps(config))

    with pytest.raises(CellError, match="other content"):
        open_adapter(adapter)
