"""Attention masks of packed rows: which token sees which, in each kind of layer.

Decides: what a transformers model is given as attention mask so that each branch of a row sees
the prefix, the trunk and itself, within the layer's window. Leaves to others: running it
(`hf_shared`), and whether the model obeys (`sharing_check`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from raypeft.engines.hf_batches import TokenArray
from raypeft.engines.packing import Row

KNOWN_KINDS = {"full_attention", "sliding_attention"}
"""Kinds of layers that a mask is built for."""


def attention_mask(
    model: Any, rows: Sequence[Row], prefix_tokens: int, device: torch.device
) -> Any:
    """Return what the model takes as attention mask; None if causal attention is all it needs.

    Args:
        model: The model, for its dtype and its kinds of layers.
        rows: The rows of one batch, which have the prefix or do not.
        prefix_tokens: Length of the prefix in front of each; 0 without one.
        device: Where the mask is needed.
    """
    if not prefix_tokens and not any(row.has_branches for row in rows):
        return None
    config = model.config.get_text_config()
    length = max(len(row.tokens) for row in rows)
    branches = padded([row.branches for row in rows], length, device)
    sizes = torch.tensor([len(row.tokens) for row in rows], device=device)
    visible = _visible(branches, sizes, prefix_tokens)
    # Padding looks at itself, so that no row of the softmax is empty.
    at = torch.arange(length, device=device)
    visible[:, at, at + prefix_tokens] = True
    windows = attention_windows(config)
    distance: torch.Tensor | None = None
    if any(window is not None for window in windows.values()):
        distance = _distance(padded([row.depths for row in rows], length, device), prefix_tokens)
        distance[:, at, at + prefix_tokens] = 0
    masks = {}
    for name, window in windows.items():
        seen = visible
        if window is not None and distance is not None:
            seen = visible & (distance < window)
        masks[name] = _additive(seen, model.dtype)
    # Models with kinds of layers take a mask for each kind; one that sees everything does for all.
    takes_kinds = getattr(config, "layer_types", None) and distance is not None
    return masks if len(masks) > 1 or takes_kinds else next(iter(masks.values()))


def attention_windows(config: Any) -> dict[str, int | None]:
    """Return the attention window of each kind of layer; None sees everything."""
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds:
        return {kind: window if kind == "sliding_attention" else None for kind in sorted(kinds)}
    return {"sliding_attention": window} if window is not None else {"full_attention": None}


def padded(values: Sequence[TokenArray], length: int, device: torch.device) -> torch.Tensor:
    """Return arrays as the rows of one tensor, padded with 0 on the right."""
    result = np.zeros((len(values), length), dtype=np.int64)
    for at, value in enumerate(values):
        result[at, : len(value)] = value
    return torch.from_numpy(result).to(device)


def _visible(branches: torch.Tensor, sizes: torch.Tensor, prefix_tokens: int) -> torch.Tensor:
    """Return which keys each token sees: [rows, length] → [rows, length, prefix + length]."""
    num_rows, length = branches.shape
    order = torch.arange(length, device=branches.device)
    causal = order.unsqueeze(1) >= order.unsqueeze(0)
    own = (branches.unsqueeze(1) == 0) | (branches.unsqueeze(1) == branches.unsqueeze(2))
    real = (order < sizes.unsqueeze(1)).unsqueeze(1)
    visible = causal & own & real
    if not prefix_tokens:
        return visible
    return torch.cat([visible.new_ones(num_rows, length, prefix_tokens), visible], 2)


def _distance(depths: torch.Tensor, prefix_tokens: int) -> torch.Tensor:
    """Return how far back each key lies in the text of each token; shapes as `_visible`."""
    distance = depths.unsqueeze(2) - depths.unsqueeze(1)
    if not prefix_tokens:
        return distance
    far = depths.unsqueeze(2) - torch.arange(prefix_tokens, device=depths.device)
    return torch.cat([far, distance], 2)


def _additive(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    low = torch.finfo(dtype).min
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(~seen, low).unsqueeze(1)
