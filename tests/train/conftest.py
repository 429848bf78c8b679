"""A small base that every training test may read, and demo settings that take seconds."""

from dataclasses import replace
from pathlib import Path

import pytest

from raypeft.train.demo import DemoSettings
from raypeft.train.recipes import BaseRecipe, TrainerSettings

TEXTS = (
    "The miller lives in the old mill. The baker eats warm bread.",
    "Question: Where does the miller live?\nAnswer: in the old mill",
)

SMALL_BASE = BaseRecipe(
    trainer=TrainerSettings(steps=30, batch_size=4, learning_rate=5e-3, warmup_steps=2),
    hidden_size=16,
    intermediate_size=32,
    num_layers=2,
    num_heads=2,
    vocab_size=320,
    context_tokens=128,
    row_tokens=16,
)


def small_demo() -> DemoSettings:
    """Return a demo of the same parts that teaches next to nothing."""
    full = DemoSettings()
    trainer = TrainerSettings(steps=2, batch_size=2, learning_rate=1e-3)
    return DemoSettings(
        base=replace(SMALL_BASE, trainer=trainer),
        adapters={name: replace(made, trainer=trainer) for name, made in full.adapters.items()},
        readings=1,
        num_documents=6,
    )


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from raypeft.train.base import train_base

    folder = tmp_path_factory.mktemp("small") / "base"
    train_base(folder, recipe=SMALL_BASE, texts=TEXTS)
    return folder
