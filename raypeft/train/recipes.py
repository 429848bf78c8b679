"""Recipes: everything that decides what a training run makes, as plain data.

A recipe holds settings only; the data it is applied to is given beside it. Importing this module
imports no torch, so that "is this already trained?" can be answered without it. How a recipe is
carried out is decided in `raypeft.train.base` and `raypeft.train.fine_tune`.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from raypeft.core.records import Json
from raypeft.errors import Problem, SpecError
from raypeft.train.artifact import content_of


@dataclass(frozen=True, slots=True)
class Example:
    """One thing to learn: what to say after a prompt.

    Attributes:
        prompt: Given to the model; no loss is computed on it.
        answer: What it should say, with the space that parts it from the prompt. The end-of-text
            token is added in training.
    """

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSettings:
    """How weights are moved: AdamW, a linear warm-up, then a linear decay.

    Attributes:
        steps: Optimizer steps.
        batch_size: Examples or rows in each step.
        learning_rate: The highest, reached after the warm-up.
        warmup_steps: Steps until then.
        final_share: What is left of the learning rate in the last step.
        weight_decay: As in AdamW.
        max_grad_norm: Gradients are clipped to this norm.
        seed: Decides initial weights, order of the data and dropout.
        threads: CPU threads to compute with; None is torch's own number. More of them add up
            numbers in another order, so the last bits of the weights depend on it.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int = 10
    final_share: float = 0.05
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        threads = self.threads
        problems = [
            Problem(name, f"is {value}; it must be {allowed}")
            for name, value, allowed, holds in (
                ("steps", self.steps, "1 or more", self.steps >= 1),
                ("batch_size", self.batch_size, "1 or more", self.batch_size >= 1),
                ("learning_rate", self.learning_rate, "above 0", self.learning_rate > 0),
                ("warmup_steps", self.warmup_steps, "0 or more", self.warmup_steps >= 0),
                ("final_share", self.final_share, "0 to 1", 0 <= self.final_share <= 1),
                ("weight_decay", self.weight_decay, "0 or more", self.weight_decay >= 0),
                ("max_grad_norm", self.max_grad_norm, "above 0", self.max_grad_norm > 0),
                ("threads", threads, "null, or 1 or more", threads is None or threads >= 1),
            )
            if not holds
        ]
        if problems:
            raise SpecError(tuple(problems), "trainer settings")

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        warm = min(1.0, (step + 1) / (self.warmup_steps + 1))
        left = 1 - (1 - self.final_share) * step / max(1, self.steps - 1)
        return self.learning_rate * warm * left


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseRecipe:
    """A small Llama-style base, trained from scratch together with its tokenizer.

    Attributes:
        trainer: How.
        hidden_size: Width of the model.
        intermediate_size: Width of its feed-forward layers.
        num_layers: Number of layers.
        num_heads: Attention heads.
        vocab_size: Most entries of the tokenizer, special tokens included.
        context_tokens: Longest row the model declares it can read.
        row_tokens: Length of a training row; texts are packed into rows.
    """

    trainer: TrainerSettings
    hidden_size: int = 128
    intermediate_size: int = 352
    num_layers: int = 4
    num_heads: int = 4
    vocab_size: int = 1024
    context_tokens: int = 512
    row_tokens: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRecipe:
    """A PEFT adapter, fine-tuned on the answers of examples.

    Attributes:
        trainer: How.
        peft: The PEFT configuration as in `adapter_config.json`: `peft_type` and its settings;
            what is left out has PEFT's default.
    """

    trainer: TrainerSettings
    peft: Mapping[str, Json] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if "peft_type" not in self.peft:
            problem = Problem("peft.peft_type", "is missing", "name a PEFT type, such as LORA")
            raise SpecError((problem,), "adapter recipe")


def base_seal(recipe: BaseRecipe, texts: Iterable[str]) -> dict[str, Json]:
    """Return what is stored beside a base: all that decided its weights."""
    return {
        "kind": "base",
        **asdict(recipe),
        "texts": texts_digest(texts),
    }


def adapter_seal(
    recipe: AdapterRecipe, examples: Iterable[Example], base_path: Path
) -> dict[str, Json]:
    """Return what is stored beside an adapter: all that decided its weights."""
    return {
        "kind": "adapter",
        **asdict(recipe),
        "examples": texts_digest(json.dumps([item.prompt, item.answer]) for item in examples),
        "base": content_of(base_path),
    }


def texts_digest(texts: Iterable[str]) -> str:
    """Return a digest of texts in their order."""
    hasher = hashlib.sha256()
    for text in texts:
        hasher.update(json.dumps(text).encode("ascii") + b"\n")
    return hasher.hexdigest()
