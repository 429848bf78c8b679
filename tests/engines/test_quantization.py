"""Quantised bases, as far as a machine without a GPU can tell."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from raypeft.core.records import EngineSpec, FailureKind
from raypeft.engines.hf import HFEngine
from raypeft.engines.merging import check_mergeable
from raypeft.engines.quantization import (
    bitsandbytes_settings,
    loading_arguments,
    quantization_problem,
)
from raypeft.errors import CellError

pytestmark = pytest.mark.torch


def test_a_base_is_quantised_as_qlora_trains_it() -> None:
    found = loading_arguments("bnb-4bit", dtype="bfloat16", device="cuda")

    config: Any = found["quantization_config"]
    assert config.load_in_4bit
    assert config.bnb_4bit_quant_type == "nf4"
    assert config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype is torch.bfloat16
    assert found["device_map"] == {"": "cuda"}
    assert bitsandbytes_settings("bnb-8bit", "float16") == {"load_in_8bit": True}
    assert loading_arguments(None, dtype="float32", device="cpu") == {}


def test_without_a_gpu_a_quantised_base_is_refused_by_name(tiny_spec: EngineSpec) -> None:
    with pytest.raises(CellError, match="bnb-8bit needs a GPU") as raised:
        HFEngine(replace(tiny_spec, quantization="bnb-8bit"))

    assert raised.value.kind == FailureKind.LOAD_FAILED


def test_a_missing_package_is_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.path", [str(tmp_path)])

    problem = quantization_problem("bnb-4bit", device="cuda")

    assert "bitsandbytes" in problem
    assert "pip install" in problem
    assert quantization_problem(None, device="cpu") == ""


def test_quantisation_is_part_of_the_identity_and_its_absence_is_not() -> None:
    plain = EngineSpec(kind="hf", base="b", base_digest="0")

    assert "quantization" not in plain.numerics()
    assert replace(plain, quantization="bnb-4bit").numerics()["quantization"] == "bnb-4bit"


def test_nothing_is_merged_into_a_quantised_base() -> None:
    with pytest.raises(CellError, match="quantised to bnb-4bit") as raised:
        check_mergeable({"peft_type": "LORA"}, what="adapter 'x'", quantization="bnb-4bit")

    assert raised.value.kind == FailureKind.UNSUPPORTED
