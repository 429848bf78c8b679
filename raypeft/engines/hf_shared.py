"""Packed rows through a transformers model: the shared prefix, and reading answers.

Decides: how a batch of packed rows becomes one forward pass, how much goes through at once, and
what is done when memory runs out. Leaves to others: what shares a row (`packing`), the masks
(`tree_masks`), whether the model computes packed rows exactly (`sharing_check`), and what is done
where it does not (`hf`).

Logits are computed only where they are read: a hook in front of the output embedding hands it
those positions alone, so whatever the model does to its logits afterwards (scaling, soft caps)
still happens.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from raypeft.engines.hf_batches import TokenArray
from raypeft.engines.hf_failures import free_memory, is_out_of_memory
from raypeft.engines.packing import Packed, Packing, Row
from raypeft.engines.progress import got_on
from raypeft.engines.tree_masks import attention_mask, padded

MOST_LOGITS = 1 << 28
"""Logits computed at once: 1 GiB in float32, whatever the vocabulary."""

CPU_BATCH_TOKENS = 2048

CPU_CACHE_BYTES = 1 << 29
"""Memory on a CPU for the keys and values that one layer sees in a batch."""

MIN_CACHED_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Shared:
    """What one batch is computed on: the model and its prefix, if it has one.

    Attributes:
        model: The model as it is, adapters attached.
        device: Where it is.
        softmax_dtype: dtype of the log-softmax; None is the logits' own.
        prefix: Keys and values of the prefix by layer; None without a prefix.
        prefix_tokens: Its length.
    """

    model: Any
    device: torch.device
    softmax_dtype: torch.dtype | None
    prefix: tuple[tuple[torch.Tensor, torch.Tensor], ...] | None = None
    prefix_tokens: int = 0

    def with_prefix(self, tokens: TokenArray) -> "Shared":
        """Return this with a prefix computed."""
        ids = torch.from_numpy(tokens.astype(np.int64)).to(self.device).unsqueeze(0)
        cache = DynamicCache()
        with torch.no_grad(), _reading(self.model, torch.zeros(1, dtype=torch.long)):
            self.model(input_ids=ids, past_key_values=cache, use_cache=True)
        layers = tuple((layer.keys, layer.values) for layer in cache.layers)
        return Shared(self.model, self.device, self.softmax_dtype, layers, len(tokens))


Sums = dict[int, tuple[float, bool]]
"""(log-likelihood, is greedy) by request position."""


@dataclass(slots=True)
class Found:
    """What running packed rows gave.

    Attributes:
        answers: By request position.
        unfit: Requests of rows for which memory ran out even alone; the plain path may do.
    """

    answers: Sums = field(default_factory=dict)
    unfit: list[int] = field(default_factory=list)


def run_rows(shared: Shared, rows: Sequence[Row]) -> Sums:
    """Return the answers of rows run as one batch; all must have the prefix or none."""
    has_prefix = rows[0].has_prefix
    length = max(len(row.tokens) for row in rows)
    prefix_tokens = shared.prefix_tokens if has_prefix else 0
    arguments: dict[str, Any] = {
        "input_ids": padded([row.tokens for row in rows], length, shared.device),
        "use_cache": has_prefix,
    }
    mask = attention_mask(shared.model, rows, prefix_tokens, shared.device)
    # Causal rows padded on the right take the model's own fast path, as lm-eval calls it.
    if mask is not None:
        arguments["attention_mask"] = mask
        arguments["position_ids"] = padded([row.depths for row in rows], length, shared.device)
    if has_prefix:
        arguments["past_key_values"] = _expanded(shared, len(rows))
    places = np.concatenate([row.places + at * length for at, row in enumerate(rows)])
    with torch.no_grad(), _reading(shared.model, torch.from_numpy(places.astype(np.int64))):
        logits = shared.model(**arguments).logits[0]
    got_on()
    return _read(shared, rows, logits)


def _read(shared: Shared, rows: Sequence[Row], logits: torch.Tensor) -> Sums:
    """Return the answers from the logits at the rows' distinct places, laid end to end."""
    starts = np.cumsum([0, *(len(row.places) for row in rows)])
    picks = np.concatenate([row.picks + start for row, start in zip(rows, starts, strict=False)])
    targets = np.concatenate([row.targets for row in rows])
    logprobs = np.empty(len(picks), dtype=np.float64)
    greedy = np.empty(len(picks), dtype=np.bool_)
    step = max(1, MOST_LOGITS // logits.shape[-1])
    for start in range(0, len(logits), step):
        part = torch.log_softmax(logits[start : start + step], -1, dtype=shared.softmax_dtype)
        inside = np.flatnonzero((picks >= start) & (picks < start + step))
        at = torch.from_numpy(picks[inside] - start).to(part.device)
        wanted = torch.from_numpy(targets[inside].astype(np.int64)).to(part.device)
        logprobs[inside] = part[at, wanted].double().cpu().numpy()
        greedy[inside] = (part.argmax(-1)[at] == wanted).cpu().numpy()
    reads = [read for row in rows for read in row.reads]
    ends = np.cumsum([len(read.targets) for read in reads])
    firsts = np.concatenate([[0], ends[:-1]])
    # Added up exactly, then rounded to the dtype in which lm-eval adds them up.
    dtype = shared.softmax_dtype or logits.dtype
    sums = torch.from_numpy(np.add.reduceat(logprobs, firsts)).to(dtype).tolist()
    hits = np.logical_and.reduceat(greedy, firsts).tolist()
    return {
        position: answer
        for read, answer in zip(reads, zip(sums, hits, strict=True), strict=True)
        for position in read.positions
    }


@contextlib.contextmanager
def _reading(model: Any, places: torch.Tensor) -> Iterator[None]:
    """Let the output embedding see only these places of the batch, laid end to end."""

    def keep(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = inputs[0]
        flat = hidden.reshape(-1, hidden.shape[-1])
        return (flat[places.to(flat.device)].unsqueeze(0), *inputs[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        yield
    finally:
        hook.remove()


class _PrefixLayer(DynamicLayer):  # type: ignore[misc]  # transformers is untyped
    """Lays the prefix in front of a batch's keys and values, and keeps nothing of the batch.

    An ordinary cache would hold the copies of all layers until the end of the forward pass.
    """

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return (
            torch.cat([self.keys, key_states], dim=-2),
            torch.cat([self.values, value_states], dim=-2),
        )


def _expanded(shared: Shared, num_rows: int) -> DynamicCache:
    """Return a cache that holds the prefix for each row, in the memory of one."""
    assert shared.prefix is not None
    cache = DynamicCache()
    for keys, values in shared.prefix:
        layer = _PrefixLayer()
        layer.lazy_initialization(keys, values)
        layer.keys = keys.expand(num_rows, -1, -1, -1)
        layer.values = values.expand(num_rows, -1, -1, -1)
        cache.layers.append(layer)
    return cache


class RowLimit:
    """How much a device takes at once, learnt from running out of memory.

    A batch that does not fit is run in halves, and so are later ones of its size.

    Attributes:
        most_tokens: Most tokens at once, by the length of the prefix before them.
    """

    def __init__(self) -> None:
        self.most_tokens: dict[int, int] = {}

    def run(self, shared: Shared, rows: Sequence[Row]) -> Found:
        """Run rows, as one batch if they fit; what does not fit alone is named and left."""
        tokens = len(rows) * max(len(row.tokens) for row in rows)
        prefix = shared.prefix_tokens if rows[0].has_prefix else 0
        if tokens <= self.most_tokens.get(prefix, tokens) or len(rows) == 1:
            try:
                return Found(run_rows(shared, rows))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the handler, whose frames hold the tensors that did not fit.
            free_memory()
            if len(rows) == 1:
                return Found(unfit=rows[0].positions)
            self.most_tokens[prefix] = tokens // 2
        half = len(rows) // 2
        first, second = self.run(shared, rows[:half]), self.run(shared, rows[half:])
        return Found(first.answers | second.answers, first.unfit + second.unfit)


def run_packed(shared: Shared, packed: Packed, rows: range, limit: RowLimit | None = None) -> Found:
    """Run every batch that holds any of these rows; return the answers of these rows.

    A batch at the edge is run whole, so that no answer depends on where a shard ends.
    """
    limit = limit or RowLimit()
    result = Found()
    prepared: dict[bool, Shared | None] = {False: shared}
    for batch in packed.batches:
        own = packed.rows[max(batch.start, rows.start) : min(batch.stop, rows.stop)]
        if not own:
            continue
        wanted = {position for row in own for position in row.positions}
        has_prefix = own[0].has_prefix
        if has_prefix not in prepared:
            prepared[has_prefix] = try_prefix(shared, packed.prefix)
        given = prepared[has_prefix]
        if given is None:
            result.unfit.extend(sorted(wanted))
            continue
        found = limit.run(given, packed.rows[batch.start : batch.stop])
        result.answers.update(
            (position, answer) for position, answer in found.answers.items() if position in wanted
        )
        result.unfit.extend(position for position in found.unfit if position in wanted)
    return result


def try_prefix(shared: Shared, prefix: TokenArray) -> Shared | None:
    """Return the model with a prefix computed; None if memory ran out."""
    try:
        return shared.with_prefix(prefix)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    free_memory()
    return None


# --- how much at once -------------------------------------------------------------------------


def choose_packing(
    model: Any, device: torch.device, *, max_length: int, batch_tokens: int | None
) -> Packing:
    """Return how much packed rows and their batches may hold on this device.

    Args:
        model: The base.
        device: Where it is.
        max_length: Longest row in tokens.
        batch_tokens: Most tokens of a batch; None chooses.
    """
    config = model.config.get_text_config()
    return Packing(
        max_length=max_length,
        batch_tokens=batch_tokens or _choose_batch_tokens(model, device),
        batch_places=max(1, MOST_LOGITS // int(config.vocab_size)),
        batch_cached_tokens=_choose_cached_tokens(model, device),
    )


def _choose_cached_tokens(model: Any, device: torch.device) -> int:
    """Return for how many tokens the keys and values of one layer fit, in a power of two."""
    config = model.config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # Grouped keys and values are repeated for all heads where they are used.
    per_token = 2 * int(width) * int(config.num_attention_heads)
    per_token *= torch.finfo(model.dtype).bits // 8
    usable = CPU_CACHE_BYTES
    if device.type == "cuda":
        usable = torch.cuda.mem_get_info(device)[0] // 8
    return max(MIN_CACHED_TOKENS, 1 << (max(1, usable // per_token).bit_length() - 1))


def _choose_batch_tokens(model: Any, device: torch.device) -> int:
    """Return how many tokens go through a model at once on this device.

    On a GPU as many as fill half of what is free, in powers of two so that equal machines agree;
    `RowLimit` mends an estimate that was too large. On a CPU more than a few thousand tokens gain
    nothing: the weights are long amortised.
    """
    if device.type != "cuda":
        return CPU_BATCH_TOKENS
    config = model.config.get_text_config()
    hidden = int(config.hidden_size)
    inner = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    size = torch.finfo(model.dtype).bits // 8
    # Residual, attention and MLP activations of one layer, alive at the same time, and the masks.
    per_token = (12 * hidden + 4 * inner) * size + 4096
    free, _ = torch.cuda.mem_get_info(device)
    tokens = free // 2 // per_token
    return 1 << max(11, min(16, tokens.bit_length() - 1))
