"""Adapters that bring an embedding of their base, for a base whose two embeddings are one weight.

PEFT trains a LoRA on `lm_head` beside the weight, so that the head of a tied base moves and its
input embedding does not; attached again it does the same, and nothing is to be refused. But PEFT
also saves the base's own weight with it (`lm_head.base_layer.weight`). Where base and training
agree, that weight is the base's. Where they do not (the adapter was trained on an untied sibling
of the base, or on one that was trained further), PEFT writes it into the weight that the input
embedding reads as well, without a word, and the model is one that nobody trained.

Decides: whether that is the case. Leaves to others: everything else of attaching (`hf_adapters`).
"""

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from peft.utils.save_and_load import load_peft_weights

from raypeft.core.records import FailureKind
from raypeft.engines.adapters import AdapterFiles
from raypeft.errors import CellError

_PREFIX = "base_model.model."


def check_tied(
    model: PeftModel, files: AdapterFiles, *, what: str, num_tokens: int | None = None
) -> None:
    """Refuse an adapter whose file would change an embedding that it does not name.

    Args:
        model: The base with the adapter's layers, before its weights are loaded.
        files: The adapter's files.
        what: The adapter, for the message.
        num_tokens: How many rows of the embeddings are the base's own; None is all.

    Raises:
        CellError: `does_not_fit`.
    """
    base = model.get_base_model()
    layers = [base.get_input_embeddings(), base.get_output_embeddings()]
    # A saved copy (modules_to_save) has a weight of its own and is no part of the tie.
    if any(layer is None or isinstance(layer, ModulesToSaveWrapper) for layer in layers):
        return
    own = _inner(layers[0]).weight
    if own is not _inner(layers[1]).weight:
        return
    brought = _brought(base, layers, files)
    values = list(brought.values())
    if len(values) == 2 and torch.equal(*values):
        return  # one weight, as here: it takes the place of the base's on both sides
    rows = slice(0, num_tokens)
    others = [name for name, value in brought.items() if not _is_same(value[rows], own[rows])]
    if not others:
        return
    raise CellError(
        FailureKind.DOES_NOT_FIT,
        f"{what}: its file brings {', '.join(others)} with other values than this base's, and in "
        "this base the input and the output embedding are one weight: loading it would change "
        "both, which is not what was trained; it belongs to a base whose embeddings are two "
        "weights (tie_word_embeddings: false), or to another base",
    )


def _inner(layer: Any) -> Any:
    return layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer


def _brought(base: Any, layers: list[Any], files: AdapterFiles) -> dict[str, torch.Tensor]:
    """Return the whole embeddings in an adapter's file, by their names there."""
    names = {id(module): name for name, module in base.named_modules()}
    wanted = {
        f"{_PREFIX}{names[id(layer)]}.{ending}"
        for layer in layers
        if id(layer) in names
        for ending in ("weight", "base_layer.weight")
    }
    if files.tensors is not None and not wanted & files.tensors.keys():
        return {}
    weights = load_peft_weights(str(files.folder), device="cpu")
    return {name: weights[name] for name in sorted(wanted & weights.keys())}


def _is_same(brought: torch.Tensor, own: torch.Tensor) -> bool:
    own = own.detach().cpu()
    if brought.shape != own.shape:
        return True  # of another size: the comparison of shapes has a better message
    # Saved from a base loaded in another dtype it is the same weight, rounded.
    return torch.equal(brought.to(own.dtype), own) or torch.equal(brought, own.to(brought.dtype))
