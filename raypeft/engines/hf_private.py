"""A private copy of a base, for subjects that change what all others share.

Decides: how a copy is enlarged to a larger vocabulary, how an adapter is merged into it, and what
merging cost in this dtype. Leaves to others: when a copy is made and thrown away (`hf_model`).

Merging and unmerging on the shared base would leave rounding behind (1e-3 nats in bfloat16) that
every later subject is measured on; a copy is answered from and dropped.
"""

import copy
import math
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import TrainableTokensWrapper

from raypeft.core.records import FailureKind, Subject
from raypeft.engines.hf_failures import free_memory, is_out_of_memory
from raypeft.errors import CellError

MOST_NATS_IN_FLOAT32 = 1e-2
"""How far a merge may move log-probabilities in float32. Rounding moves them by 1e-5, of the
types tried RandLoRA most, by 3e-4; more means that PEFT merged something else."""

MOST_MEAN_NATS = 0.25
"""The same on average in the 16-bit dtypes, whose rounding reaches 0.01 on a toy."""


class Variant(NamedTuple):
    """What a private copy is made for; equal variants answer alike.

    Attributes:
        adapter: The adapter's digest; None is the base alone.
        merged: Whether it is merged.
        vocab_size: Tokens the copy is enlarged to; None keeps the base's.
    """

    adapter: str | None
    merged: bool
    vocab_size: int | None

    def __str__(self) -> str:
        return f"{self.adapter}, merged {self.merged}, {self.vocab_size} tokens"


class Deviation(NamedTuple):
    """How far log-probabilities lie apart, over all tokens of the probe, in nats."""

    largest: float
    mean: float


def variant_of(subject: Subject) -> Variant | None:
    """Return what private copy a subject needs; None if the shared base serves it."""
    adapter = subject.adapter
    merged = adapter is not None and adapter.merge
    if not merged and subject.vocab_size is None:
        return None
    return Variant(None if adapter is None else adapter.digest, merged, subject.vocab_size)


def copy_of(base: Any, what: str) -> Any:
    """Return a private copy of a loaded base, on the same device.

    Raises:
        CellError: `out_of_memory` where there is no room for a second one, `unsupported` if it
            would have memory in common with the base.
    """
    try:
        copied = copy.deepcopy(base)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    else:
        _check_private(copied, base, what)
        return copied
    free_memory()
    raise CellError(
        FailureKind.OUT_OF_MEMORY,
        f"{what}: it needs a private copy of the base, for which there is no memory left beside "
        "the base; use a device with room for the base twice, or leave out `merge: true` "
        "(a larger vocabulary always needs the copy)",
        retryable=True,
    )


def _check_private(copied: Any, base: Any, what: str) -> None:
    """Refuse a copy that has memory in common with the base; no value is read."""
    owners = {_storage(tensor): name for name, tensor in _tensors(base)}
    common = [
        f"{name} with {owners[place]}"
        for name, tensor in _tensors(copied)
        # Tensors without memory of their own (empty, meta) all lie at 0.
        if (place := _storage(tensor)) in owners and place[1]
    ]
    if common:
        raise CellError(
            FailureKind.UNSUPPORTED,
            f"{what}: it needs a private copy of the base, and {len(common)} tensors of the copy "
            f"lie in the base's own memory ({', '.join(common[:3])}), so that what changes the "
            "copy would change the base; leave out `merge: true` (a larger vocabulary always needs "
            "the copy)",
        )


def _tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _storage(tensor: torch.Tensor) -> tuple[str, int]:
    # The whole allocation: a view into the base's memory starts elsewhere.
    return str(tensor.device), tensor.untyped_storage().data_ptr()


def enlarge(model: Any, vocab_size: int, what: str) -> None:
    """Give a model more tokens, in place. The new rows are the mean of the old ones.

    Not drawn: their values would be part of every log-probability, and two slots must agree. Not
    zero: a logit of 0 takes all probability where ordinary logits are far below (GPT-2). With
    the mean a new token is as likely as an average one, so k new ones move log-probabilities by
    at most about log(1 + k/V). An adapter that brings the embedding replaces the rows.
    """
    old = model.get_input_embeddings().weight.shape[0]
    if vocab_size <= old:
        raise CellError(
            FailureKind.DOES_NOT_FIT,
            f"{what}: it is to be evaluated with {vocab_size} tokens, and the base has {old} "
            "already; plan again",
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.resize_token_embeddings(vocab_size, mean_resizing=False)
    with torch.no_grad():
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            if module is None:
                continue
            module.weight[old:] = module.weight[:old].float().mean(0).to(module.weight.dtype)
            if getattr(module, "bias", None) is not None:
                module.bias[old:] = module.bias[:old].float().mean().to(module.bias.dtype)


def merge(model: PeftModel, what: str) -> Any:
    """Merge what is attached into the model's weights and return the model without PEFT.

    Raises:
        CellError: `unsupported` or `not_finite`.
    """
    _refuse_tied(model, what)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            merged = model.base_model.merge_and_unload(safe_merge=True)
    except (AttributeError, NotImplementedError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        # With `safe_merge` PEFT looks at the sum before it takes the weight's place.
        broken = "nan" in str(error).lower()
        kind = FailureKind.NOT_FINITE if broken else FailureKind.UNSUPPORTED
        raise CellError(kind, f"{what}: PEFT cannot merge it: {error}") from error
    return merged.eval()


def _refuse_tied(model: PeftModel, what: str) -> None:
    base = model.get_base_model()
    layers = [base.get_input_embeddings(), base.get_output_embeddings()]
    if None in layers:
        return
    if _whole(layers[0]).weight is not _whole(layers[1]).weight:
        return
    adapted = [isinstance(layer, BaseTunerLayer | TrainableTokensWrapper) for layer in layers]
    # Trained rows are tied by PEFT itself, and written into the weight once.
    is_by_rows = all(
        isinstance(one, TrainableTokensWrapper | TrainableTokensLayer) for one in layers
    )
    if not any(adapted) or is_by_rows:
        return
    changed = "input and the output" if all(adapted) else "input" if adapted[0] else "output"
    once = "the sum of both changes would be in each" if all(adapted) else "it would change both"
    raise CellError(
        FailureKind.UNSUPPORTED,
        f"{what}: it changes the {changed} embedding of a base whose input and output embeddings "
        f"are one weight; merged, {once}. Leave out `merge: true`",
    )


def _whole(layer: Any) -> Any:
    """Return the base's own layer; a whole saved one stands for itself, with its own weight."""
    if isinstance(layer, TrainableTokensWrapper):
        return layer.token_adapter.base_layer
    return layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer


def deviation(left: torch.Tensor, right: torch.Tensor) -> Deviation:
    """Return how far the log-probabilities of two sets of logits lie apart."""
    difference = (left.float().log_softmax(-1) - right.float().log_softmax(-1)).abs()
    return Deviation(float(difference.max()), float(difference.mean()))


def check_merge(cost: Deviation, dtype: torch.dtype, what: str) -> None:
    """Refuse a merge that moved more than rounding can.

    Raises:
        CellError: `unsupported`.
    """
    is_exact = dtype is torch.float32
    found, limit = (cost.largest, MOST_NATS_IN_FLOAT32) if is_exact else (cost.mean, MOST_MEAN_NATS)
    if math.isfinite(cost.largest) and found <= limit:
        return
    raise CellError(
        FailureKind.UNSUPPORTED,
        f"{what}: merged, its log-probabilities deviate by up to {cost.largest:.1e} nats (mean "
        f"{cost.mean:.1e}) in {dtype}, which is more than rounding; PEFT's merge of it is "
        "another model. Leave out `merge: true`",
    )


def merging_note(cost: Deviation, effect: Deviation) -> str:
    """Return what merging cost, for the tables."""
    return (
        f"merged, deviates by at most {cost.largest:.1e} nats on the probe (mean {cost.mean:.1e}; "
        f"the adapter itself moves {effect.largest:.1e}, mean {effect.mean:.1e})"
    )
