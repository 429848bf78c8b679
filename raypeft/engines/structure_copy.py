"""A small random float32 model with the structure of a loaded one.

Decides: how a config is cut down so that each kind of layer, the windows, the positions and the
attention implementation stay. Leaves to others: what the copy is asked (`sharing_check`).

In 16 bits a model's rounding hides a small error of a mask or a position. Both are matters of
structure, not of weights, and in float32 they show.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch

from raypeft.engines.hf_failures import is_out_of_memory

MOST_VOCABULARY = 512
MOST_PARAMETERS = 100_000_000
"""400 MB. Where a config cannot be made narrower, its copy is as wide as the model."""

_SEED = 11
_WEIGHT_SCALE = 1.5
"""Weights of this scale over the square root of a layer's width make attention pointed, so that
what a token must not see would matter; those a model is initialised with make it nearly flat."""

_INNER_SIZES = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")


def structure_copy(base: Any, device: torch.device) -> Any:
    """Return a copy of a model's structure with few layers, random float32 weights.

    Args:
        base: A causal model of transformers, no adapter attached.
        device: Where to put the copy.

    Raises:
        ValueError: If none can be built that is small enough.
        torch.OutOfMemoryError: If there is no memory for it.
    """
    if base.config is not base.config.get_text_config():
        raise ValueError("its text model is a part of a larger model")
    reasons: list[str] = []
    for narrow in (True, False):
        try:
            config = _cut(base.config, narrow=narrow)
            return _build(base, config).to(device)
        except (ValueError, TypeError, AttributeError, KeyError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            reasons.append(f"{type(error).__name__}: {error}")
    raise ValueError(reasons[-1][:150])


def _build(base: Any, config: Any) -> Any:
    kind = type(base)
    with torch.device("meta"):
        size = sum(p.numel() for p in kind(copy.deepcopy(config)).parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"it would have {size:,} parameters, more than {MOST_PARAMETERS:,}")
    implementation = base.config._attn_implementation
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model = kind._from_config(
            config, dtype=torch.float32, attn_implementation=implementation
        ).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0.0, _WEIGHT_SCALE / parameter.shape[-1] ** 0.5)
    return model


def _cut(config: Any, *, narrow: bool) -> Any:
    """Return a config with few layers and a small vocabulary, and few heads if `narrow`."""
    cut = copy.deepcopy(config)
    if getattr(cut, "quantization_config", None) is not None:
        del cut.quantization_config
    kinds = getattr(config, "layer_types", None)
    if kinds:
        cut.layer_types = _few_kinds(kinds)
        cut.num_hidden_layers = len(cut.layer_types)
    else:
        cut.num_hidden_layers = min(2, config.num_hidden_layers)
    cut.vocab_size = min(MOST_VOCABULARY, config.vocab_size)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(cut, name, None)
    experts = getattr(config, "num_local_experts", None)
    if experts:
        cut.num_local_experts = min(4, experts)
    if narrow:
        _narrow(cut, config)
    return cut


def _few_kinds(kinds: Sequence[str]) -> list[str]:
    """Return at least two layers, one of each kind, in the order in which the kinds come."""
    first = list(dict.fromkeys(kinds))
    return first if len(first) > 1 else list(kinds[:2])


def _narrow(cut: Any, config: Any) -> None:
    """Keep the size of a head, and of the heads two groups."""
    heads = int(config.num_attention_heads)
    groups = int(getattr(config, "num_key_value_heads", None) or heads)
    kept_groups = min(2, groups)
    kept = kept_groups * (heads // groups)
    width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    old = int(config.hidden_size)
    if kept * width >= old:
        return
    cut.num_attention_heads = kept
    if getattr(config, "num_key_value_heads", None):
        cut.num_key_value_heads = kept_groups
    cut.hidden_size = kept * width
    if getattr(config, "word_embed_proj_dim", None) == old:
        cut.word_embed_proj_dim = cut.hidden_size
    for name in _INNER_SIZES:
        if getattr(config, name, None):
            setattr(cut, name, min(getattr(config, name), 2 * cut.hidden_size))
