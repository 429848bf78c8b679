"""What an adapter's folder says about the precision it was trained in."""

import json
from pathlib import Path
from typing import Any

import pytest

from raypeft.engines.precision import TrainingPrecision, difference, training_precision

CARD = """---
base_model: org/base
library_name: peft
---
## Training procedure


The following `bitsandbytes` quantization config was used during training:
- quant_method: bitsandbytes
- _load_in_8bit: False
- _load_in_4bit: True
- bnb_4bit_quant_type: nf4
- bnb_4bit_compute_dtype: bfloat16
"""
AXOLOTL = "```yaml\nadapter: qlora\nload_in_8bit: true\n```\n"


@pytest.mark.parametrize(
    ("files", "config", "expected"),
    [
        ({"README.md": CARD}, {}, ("bnb-4bit", "bfloat16", "README.md")),
        ({"README.md": AXOLOTL}, {}, ("bnb-8bit", None, "README.md")),
        (
            {"README.md": CARD.replace("nf4", "fp4")},
            {},
            ("bnb-4bit (fp4)", "bfloat16", "README.md"),
        ),
        (
            {"README.md": CARD.replace("method: bitsandbytes", "method: gptq")},
            {},
            ("gptq", "bfloat16", "README.md"),
        ),
        (
            {"training_args.json": {"load_in_4bit": False, "torch_dtype": "float16"}},
            {},
            (None, "float16", "training_args.json"),
        ),
        (
            {"training_args.json": {"quantization_bit": 4}},
            {},
            ("bnb-4bit", None, "training_args.json"),
        ),
        (
            {"training_args.json": {"quantization_config": {"load_in_8bit": True}}},
            {},
            ("bnb-8bit", None, "training_args.json"),
        ),
        (
            {},
            {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}},
            ("bnb-4bit", None, "adapter_config.json"),
        ),
        (
            {},
            {"base_model_name_or_path": "unsloth/llama-3-8b-bnb-4bit"},
            ("bnb-4bit", None, "adapter_config.json (base_model_name_or_path)"),
        ),
        ({"recipe.json": {"recipe": {"kind": "adapter"}}}, {}, (None, "float32", "recipe.json")),
        ({"recipe.json": {"recipe": {"kind": "base"}}}, {}, None),
        ({"training_args.json": {"bf16": True}}, {}, None),
        ({"training_args.json": "[broken"}, {}, None),
        ({}, {"base_model_name_or_path": "org/base"}, None),
    ],
)
def test_the_folder_tells(
    tmp_path: Path, files: dict[str, Any], config: dict[str, Any], expected: tuple[Any, ...] | None
) -> None:
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text)

    found = training_precision(tmp_path, config)

    if expected is None:
        assert found is None
    else:
        quantization, dtype, source = expected
        assert found == TrainingPrecision(quantization=quantization, dtype=dtype, source=source)


def test_a_difference_names_the_file_both_precisions_and_the_setting() -> None:
    trained = TrainingPrecision(quantization="bnb-4bit", dtype="bfloat16", source="README.md")

    assert difference(trained, dtype="bfloat16", quantization="bnb-4bit") == ""
    text = difference(trained, dtype="bfloat16", quantization=None)
    for word in ("README.md", "bnb-4bit", "none", "`quantization`"):
        assert word in text
    other = difference(trained, dtype="float16", quantization="bnb-4bit")
    assert "bfloat16" in other
    assert "`dtype`" in other
