"""Rotary positions that a forward pass changes, and their way back.

Decides: which of a model's modules remember the longest row they saw, and what they hold when
they have seen none. Leaves to others: when that is asked for (`hf_model`, before every forward
pass and before a base is compared with what was loaded).

With `rope_type` dynamic a row longer than the original length changes `inv_freq`, and shorter
ones that exceed that length too are computed with the new frequencies from then on; `longrope`
leaves the long frequencies behind until the next row. The first makes answers depend on what was
answered before, so that shards and retries would move them (by several nats on a toy); both look
like a base that an adapter changed.
Every forward pass therefore starts as the first one after loading does. lm-eval's own model keeps
what it saw, so of these models only rows beyond the original length may answer otherwise there.
"""

from collections.abc import Iterator
from typing import Any

import torch

_CHANGING_TYPES = ("dynamic", "longrope")
_FREQUENCIES = "inv_freq"
_ORIGINAL = "original_inv_freq"
_LONGEST = "max_seq_len_cached"


def reset_rotary(model: Any) -> None:
    """Let every rotary embedding of a model forget the rows it saw."""
    for module in changing_rotary(model):
        _reset(module)


def changing_rotary(model: Any) -> Iterator[torch.nn.Module]:
    """Return the modules of a model whose frequencies depend on the rows they saw."""
    for module in model.modules():
        types = getattr(module, "rope_type", None)
        # One type for all layers, or one for each kind of layer.
        names = types.values() if isinstance(types, dict) else [types]
        if any(kind in str(name) for name in names for kind in _CHANGING_TYPES):
            yield module


def _reset(module: torch.nn.Module) -> None:
    for name, current in list(module.named_buffers(recurse=False)):
        if not name.endswith(_FREQUENCIES) or name.endswith(_ORIGINAL):
            continue
        prefix = name.removesuffix(_FREQUENCIES)
        original = getattr(module, f"{prefix}{_ORIGINAL}", None)
        if isinstance(original, torch.Tensor):
            # A copy: transformers lets both names stand for one tensor when it goes back itself.
            value = original.to(current.device, copy=True)
            module.register_buffer(name, value, persistent=False)
        longest = f"{prefix}{_LONGEST}"
        if longest in vars(module) and hasattr(module, "original_max_seq_len"):
            setattr(module, longest, module.original_max_seq_len)
