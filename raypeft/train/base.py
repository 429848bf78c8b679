"""A small base from scratch: its tokenizer, its model, its weights.

Decides the tokenizer (byte-level BPE, one token that ends a text, a chat template), the
architecture (Llama) and how texts are packed into rows. The texts are the caller's.
"""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from raypeft.train.artifact import making
from raypeft.train.loop import OnStep, Row, fit, quiet, reproducible
from raypeft.train.recipes import BaseRecipe, base_seal

END_OF_TEXT = "<|end|>"
PADDING = "<|pad|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_base(
    out_path: Path, *, recipe: BaseRecipe, texts: Sequence[str], on_step: OnStep | None = None
) -> list[float]:
    """Train a tokenizer and a model on texts; `transformers` loads the folder like any base.

    Args:
        out_path: The folder to make; replaced as a whole at the end.
        recipe: What to make.
        texts: What to train on, in an order of the recipe's seed.
        on_step: Called after each step.

    Returns:
        The loss of each step.
    """
    stored = base_seal(recipe, texts)
    with making(out_path, stored) as folder, reproducible(recipe.trainer), quiet():
        tokenizer = train_tokenizer(texts, recipe)
        model = _new_model(recipe, tokenizer)
        losses = fit(
            model,
            _packed(texts, tokenizer, recipe),
            recipe.trainer,
            pad_token_id=tokenizer.pad_token_id,
            on_step=on_step,
        )
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return losses


def train_tokenizer(texts: Sequence[str], recipe: BaseRecipe) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of the texts: any text goes in and comes back out."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        special_tokens=[END_OF_TEXT, PADDING, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=PADDING,
        model_max_length=recipe.context_tokens,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _new_model(recipe: BaseRecipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_heads,
        max_position_embeddings=recipe.context_tokens,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.float32,
    )
    return LlamaForCausalLM(config)


def _packed(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, recipe: BaseRecipe
) -> Iterator[Row]:
    """Yield rows of equal length cut from the texts, each text ended by its token."""
    encoded = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(list(texts))["input_ids"]]
    rng = random.Random(recipe.trainer.seed)
    tokens: list[int] = []
    while True:
        for text in rng.sample(encoded, len(encoded)):
            tokens += text
            while len(tokens) >= recipe.row_tokens:
                row, tokens = tokens[: recipe.row_tokens], tokens[recipe.row_tokens :]
                yield row, row
