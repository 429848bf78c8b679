from dataclasses import replace
from pathlib import Path

import pytest

from raypeft.errors import SpecError
from raypeft.train.recipes import (
    AdapterRecipe,
    BaseRecipe,
    Example,
    TrainerSettings,
    adapter_seal,
    base_seal,
)

TRAINER = TrainerSettings(steps=100, batch_size=4, learning_rate=0.1, warmup_steps=9)


def test_the_learning_rate_warms_up_then_falls_to_its_final_share() -> None:
    rates = [TRAINER.learning_rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == rates[9] < 0.1
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[99] == pytest.approx(0.1 * 0.05)


def test_a_single_step_has_the_full_learning_rate() -> None:
    assert replace(TRAINER, steps=1, warmup_steps=0).learning_rate_at(0) == 0.1


def test_every_wrong_setting_is_reported_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        TrainerSettings(steps=0, batch_size=0, learning_rate=-1.0, final_share=2.0, threads=0)
    places = [problem.place for problem in caught.value.problems]
    assert places == ["steps", "batch_size", "learning_rate", "final_share", "threads"]
    assert "learning_rate: is -1.0; it must be above 0" in str(caught.value)


def test_an_adapter_recipe_names_its_peft_type() -> None:
    with pytest.raises(SpecError, match=r"peft\.peft_type: is missing"):
        AdapterRecipe(trainer=TRAINER, peft={"r": 4})


def test_a_seal_changes_with_everything_that_decides_the_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    recipe = AdapterRecipe(trainer=TRAINER, peft={"peft_type": "LORA", "r": 4})
    examples = [Example("a", "b")]
    seals = [
        adapter_seal(recipe, examples, tmp_path),
        adapter_seal(recipe, [Example("ab", "")], tmp_path),
        adapter_seal(replace(recipe, peft={"peft_type": "LORA", "r": 8}), examples, tmp_path),
        adapter_seal(replace(recipe, trainer=replace(TRAINER, seed=1)), examples, tmp_path),
    ]
    (tmp_path / "config.json").write_text("{ }")
    seals.append(adapter_seal(recipe, examples, tmp_path))
    assert all(seal not in seals[:i] for i, seal in enumerate(seals))


def test_a_base_is_sealed_with_its_texts() -> None:
    recipe = BaseRecipe(trainer=TRAINER)
    assert base_seal(recipe, ["a", "b"]) == base_seal(recipe, iter(("a", "b")))
    assert base_seal(recipe, ["a", "b"]) != base_seal(recipe, ["ab"])
    assert base_seal(recipe, ["a"]) != base_seal(replace(recipe, num_layers=1), ["a"])
