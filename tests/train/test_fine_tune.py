import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from raypeft.errors import SpecError
from raypeft.train.artifact import RECIPE_FILE, file_digests, is_intact
from raypeft.train.fine_tune import encode_example, fine_tune
from raypeft.train.loop import IGNORED_LABEL
from raypeft.train.recipes import AdapterRecipe, Example, TrainerSettings, adapter_seal

pytestmark = pytest.mark.torch

EXAMPLES = (
    Example("Question: What does the miller eat?\nAnswer:", " warm bread"),
    Example("Question: What is the baker?\nAnswer:", " a miller"),
)
TRAINER = TrainerSettings(steps=12, batch_size=2, learning_rate=2e-2, warmup_steps=1)
LORA = AdapterRecipe(
    trainer=TRAINER, peft={"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "v_proj"]}
)
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"peft_type": "LORA", "r": 4, "lora_dropout": 0.1, "target_modules": ["q_proj"]},
    "dora": {"peft_type": "LORA", "r": 2, "use_dora": True, "target_modules": ["v_proj"]},
    "ia3": {
        "peft_type": "IA3",
        "target_modules": ["k_proj", "v_proj", "down_proj"],
        "feedforward_modules": ["down_proj"],
    },
}


@pytest.mark.parametrize("method", METHODS)
def test_peft_loads_the_adapter_with_no_tensor_missing_or_left_over(
    small_base: Path, tmp_path: Path, method: str
) -> None:
    recipe = AdapterRecipe(trainer=TRAINER, peft=METHODS[method])
    losses = fine_tune(small_base, tmp_path / "a", recipe=recipe, examples=EXAMPLES)
    assert losses[-1] < losses[0]

    base = AutoModelForCausalLM.from_pretrained(small_base)
    ids = AutoTokenizer.from_pretrained(small_base)("the miller", return_tensors="pt")
    plain = base(**ids).logits
    model = peft.PeftModel.from_pretrained(base, str(tmp_path / "a"), adapter_name="first")
    report = model.load_adapter(str(tmp_path / "a"), "second")
    assert not report.unexpected_keys
    assert not [key for key in report.missing_keys if ".second" in key]
    assert not torch.equal(model.eval()(**ids).logits, plain)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_bytes(small_base: Path, tmp_path: Path, method: str) -> None:
    recipe = AdapterRecipe(trainer=replace(TRAINER, steps=3), peft=METHODS[method])
    for name in ("a", "b"):
        fine_tune(small_base, tmp_path / name, recipe=recipe, examples=EXAMPLES)
    assert file_digests(tmp_path / "a") == file_digests(tmp_path / "b")

    other = replace(recipe, trainer=replace(recipe.trainer, seed=7))
    fine_tune(small_base, tmp_path / "c", recipe=other, examples=EXAMPLES[:1] * 2)
    weights = "adapter_model.safetensors"
    assert file_digests(tmp_path / "a")[weights] != file_digests(tmp_path / "c")[weights]


def test_the_base_is_not_changed(small_base: Path, tmp_path: Path) -> None:
    before = file_digests(small_base)
    fine_tune(small_base, tmp_path / "a", recipe=LORA, examples=EXAMPLES)
    assert file_digests(small_base) == before


def test_the_recipe_lies_beside_the_adapter(small_base: Path, tmp_path: Path) -> None:
    fine_tune(small_base, tmp_path / "a", recipe=LORA, examples=EXAMPLES)
    assert is_intact(tmp_path / "a", adapter_seal(LORA, EXAMPLES, small_base))
    stored = json.loads((tmp_path / "a" / RECIPE_FILE).read_text())["recipe"]
    assert stored["peft"]["r"] == 4
    assert stored["trainer"]["steps"] == TRAINER.steps


def test_loss_is_computed_on_the_answer_and_its_end_only(small_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(small_base)
    ids, labels = encode_example(EXAMPLES[0], tokenizer)
    learned = [label for label in labels if label != IGNORED_LABEL]
    assert tokenizer.decode(learned) == " warm bread<|end|>"
    assert tokenizer.decode(ids) == EXAMPLES[0].prompt + " warm bread<|end|>"
    assert ids[-len(learned) :] == learned


def test_an_example_without_a_prompt_is_learned_as_a_whole(small_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(small_base)
    ids, labels = encode_example(Example("", "The miller"), tokenizer)
    assert list(labels) == list(ids)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "NOT_A_TYPE"}, r"peft\.peft_type: is 'NOT_A_TYPE'; PEFT .* knows .*LORA"),
        ({"peft_type": "LORA", "rank": 4}, "peft: is refused by PEFT as settings of LORA: .*rank"),
        ({"peft_type": "LORA", "r": 4, "layers_pattern": "h"}, "peft: is refused .*layers_pattern"),
    ],
)
def test_settings_that_peft_refuses_are_named_and_leave_nothing(
    small_base: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        fine_tune(
            small_base,
            tmp_path / "a",
            recipe=replace(LORA, peft=settings),
            examples=EXAMPLES,
        )
    assert list(tmp_path.iterdir()) == []
