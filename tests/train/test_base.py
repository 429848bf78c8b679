from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from raypeft.errors import CellError
from raypeft.train.artifact import file_digests
from raypeft.train.base import train_base
from tests.train.conftest import SMALL_BASE, TEXTS

pytestmark = pytest.mark.torch


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    losses = train_base(tmp_path / "base", recipe=SMALL_BASE, texts=TEXTS)
    assert len(losses) == SMALL_BASE.trainer.steps
    assert losses[-1] < losses[0] - 1.0


def test_the_same_seed_gives_the_same_bytes(small_base: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)  # whatever happened before must not matter
    train_base(tmp_path / "again", recipe=SMALL_BASE, texts=TEXTS)
    assert file_digests(tmp_path / "again") == file_digests(small_base)


def test_another_seed_gives_other_weights(small_base: Path, tmp_path: Path) -> None:
    recipe = replace(SMALL_BASE, trainer=replace(SMALL_BASE.trainer, seed=1))
    train_base(tmp_path / "other", recipe=recipe, texts=TEXTS)
    ours, others = file_digests(small_base), file_digests(tmp_path / "other")
    assert ours["model.safetensors"] != others["model.safetensors"]


def test_training_leaves_the_callers_random_state_alone(tmp_path: Path) -> None:
    recipe = replace(SMALL_BASE, trainer=replace(SMALL_BASE.trainer, steps=1))
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    train_base(tmp_path / "base", recipe=recipe, texts=TEXTS)
    assert torch.equal(torch.rand(1), expected)


def test_transformers_loads_the_base_with_its_declared_shape(small_base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(small_base)
    assert model.config.num_hidden_layers == SMALL_BASE.num_layers
    assert model.config.max_position_embeddings == SMALL_BASE.context_tokens
    assert model.dtype == torch.float32


def test_the_tokenizer_gives_any_text_back(small_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(small_base)
    for text in (*TEXTS, "  two spaces, Größe, 日本語, 🙂\n\n"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.model_max_length == SMALL_BASE.context_tokens


def test_the_tokenizer_ends_each_turn_of_a_conversation(small_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(small_base)
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False)
    assert text == "<|user|>Hi<|end|><|assistant|>Ho<|end|>"
    ids = tokenizer(text)["input_ids"]
    assert ids.count(tokenizer.eos_token_id) == 2


def test_every_step_is_reported(tmp_path: Path) -> None:
    recipe = replace(SMALL_BASE, trainer=replace(SMALL_BASE.trainer, steps=3))
    told: list[tuple[int, float]] = []
    losses = train_base(
        tmp_path / "base",
        recipe=recipe,
        texts=TEXTS,
        on_step=lambda step, loss: told.append((step, loss)),
    )
    assert told == list(zip((1, 2, 3), losses, strict=True))


def test_a_diverging_run_stops_and_leaves_nothing(tmp_path: Path) -> None:
    trainer = replace(SMALL_BASE.trainer, learning_rate=1e20, warmup_steps=0)
    with pytest.raises(CellError, match=r"not_finite: .*lower the learning rate"):
        train_base(tmp_path / "base", recipe=replace(SMALL_BASE, trainer=trainer), texts=TEXTS)
    assert list(tmp_path.iterdir()) == []
