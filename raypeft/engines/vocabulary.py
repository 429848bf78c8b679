"""Adapters whose vocabulary is larger than their base's: how large, told from files.

Decides: to how many tokens a copy of the base must be enlarged before such an adapter fits.
Leaves to others: enlarging it (`hf_private`), and the baseline that is enlarged alike (`api`).

An adapter trained after tokens were added brings the whole embedding, or a tokenizer with more
tokens than the base has rows. A smaller vocabulary is never made: it would take tokens away.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from raypeft.core.records import FailureKind
from raypeft.engines.tensorfiles import TensorInfo
from raypeft.errors import CellError

_PREFIX = "base_model.model."


def base_vocabulary(folder: Path) -> int | None:
    """Return how many tokens a base's embedding has rows for, as its config says."""
    config: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = config.get("text_config")
    value = (text if isinstance(text, dict) else config).get("vocab_size")
    return value if isinstance(value, int) else None


def saved_vocabulary(
    tensors: Mapping[str, TensorInfo],
    base: Mapping[str, TensorInfo],
    vocab_size: int | None,
    *,
    what: str,
) -> int | None:
    """Return the size of the larger embeddings that an adapter brings; None if it brings none.

    Args:
        tensors: The adapter's tensors.
        base: The base's tensors.
        vocab_size: The base's vocabulary.
        what: The adapter, for the message.

    Raises:
        CellError: `does_not_fit` if it brings embeddings of several sizes.
    """
    sizes = {
        name: tensor.shape[0]
        for name, tensor in tensors.items()
        if (own := base.get(base_name(name))) is not None
        and len(own.shape) == len(tensor.shape) == 2
        and own.shape[0] == vocab_size
        and own.shape[1:] == tensor.shape[1:]
        and tensor.shape[0] > own.shape[0]
    }
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} with {size}" for name, size in sizes.items())
        raise CellError(
            FailureKind.DOES_NOT_FIT,
            f"{what}: it brings embeddings of several sizes, where a model has one vocabulary: "
            f"{listed}",
        )
    return next(iter(sizes.values()), None)


def enlarged(
    base: Mapping[str, TensorInfo], vocab_size: int | None, larger: int | None
) -> Mapping[str, TensorInfo]:
    """Return a base's tensors as they would be with a larger vocabulary."""
    if larger is None:
        return base
    return {
        name: replace(tensor, shape=(larger, *tensor.shape[1:]))
        if len(tensor.shape) == 2 and tensor.shape[0] == vocab_size and _is_embedding(name)
        else tensor
        for name, tensor in base.items()
    }


def base_name(name: str) -> str:
    """Return the base's name for a whole weight in an adapter's file."""
    return name.removeprefix(_PREFIX).replace(".base_layer.", ".")


def _is_embedding(name: str) -> bool:
    """Whether a weight stands outside the layers, where only embeddings have a row a token."""
    return not any(part.isdigit() for part in name.split("."))
