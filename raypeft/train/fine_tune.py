"""Fine-tuning: a base, a recipe and examples become an adapter folder that PEFT loads.

Decides that loss is computed on answers only and how an adapter is saved. Which PEFT method, how
long and on what is the recipe's and the caller's.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from raypeft.errors import Problem, SpecError
from raypeft.train.artifact import making
from raypeft.train.loop import (
    IGNORED_LABEL,
    OnStep,
    Row,
    fit,
    quiet,
    reproducible,
    shuffled_forever,
)
from raypeft.train.recipes import AdapterRecipe, Example, adapter_seal


def fine_tune(
    base_path: Path,
    out_path: Path,
    *,
    recipe: AdapterRecipe,
    examples: Sequence[Example],
    device: str = "cpu",
    on_step: OnStep | None = None,
) -> list[float]:
    """Train an adapter and save it with its recipe beside it.

    Args:
        base_path: Folder of the base; it is read and not changed.
        out_path: The adapter folder to make; replaced as a whole at the end.
        recipe: What to make.
        examples: What to train on, in an order of the recipe's seed.
        device: Where to train. On `cpu` the same input gives the same weights bit for bit.
        on_step: Called after each step.

    Returns:
        The loss of each step.

    Raises:
        SpecError: If PEFT refuses the recipe's settings; nothing was loaded yet.
    """
    config = _peft_config(recipe)
    stored = adapter_seal(recipe, examples, base_path)
    with making(out_path, stored) as folder, reproducible(recipe.trainer), quiet():
        tokenizer = AutoTokenizer.from_pretrained(base_path)
        base = AutoModelForCausalLM.from_pretrained(base_path, dtype=torch.float32).to(device)
        model = peft.get_peft_model(base, config)
        rows = [encode_example(example, tokenizer) for example in examples]
        losses = fit(
            model,
            shuffled_forever(rows, random.Random(recipe.trainer.seed)),
            recipe.trainer,
            pad_token_id=_padding_of(tokenizer),
            on_step=on_step,
        )
        _sort_sets(config)
        model.save_pretrained(str(folder))
    return losses


def encode_example(example: Example, tokenizer: Any) -> Row:
    """Return an example's tokens, and labels that leave the prompt out.

    Prompt and answer are encoded as one text, then cut where the prompt's own tokens end, as
    lm-eval does it: so the answer's tokens are those that an evaluation asks for.
    """
    prompt = tokenizer(example.prompt, add_special_tokens=False)["input_ids"]
    whole = tokenizer(example.prompt + example.answer, add_special_tokens=False)["input_ids"]
    ids = [*whole, tokenizer.eos_token_id]
    return ids, [*[IGNORED_LABEL] * len(prompt), *ids[len(prompt) :]]


def _padding_of(tokenizer: Any) -> int:
    """Return a token to pad with; which one does not matter, since padding is masked."""
    padding = tokenizer.pad_token_id
    return int(tokenizer.eos_token_id if padding is None else padding)


def _peft_config(recipe: AdapterRecipe) -> Any:
    """Return the recipe's PEFT configuration.

    Raises:
        SpecError: If PEFT knows no such type, or no such setting of it.
    """
    peft_type = recipe.peft["peft_type"]
    known = sorted(kind.value for kind in peft.PeftType)
    if peft_type not in known:
        problem = Problem(
            "peft.peft_type", f"is {peft_type!r}; PEFT {peft.__version__} knows {', '.join(known)}"
        )
        raise SpecError((problem,), "adapter recipe")
    try:
        return peft.get_peft_config({"task_type": "CAUSAL_LM", **recipe.peft})
    except (TypeError, ValueError) as error:
        problem = Problem("peft", f"is refused by PEFT as settings of {peft_type}: {error}")
        raise SpecError((problem,), "adapter recipe") from error


def _sort_sets(config: Any) -> None:
    """Give the config's sets an order: PEFT writes them as lists, ordered by the hash seed."""
    for name, value in vars(config).items():
        if isinstance(value, set):
            setattr(config, name, sorted(value))
