"""Packed rows through a transformers model: masks, the shared prefix, and reading answers.

Decides: how a batch of packed rows becomes one forward pass, and whether a loaded model computes
packed rows exactly (`why_not_shared`, asked of the model itself). Leaves to others: what shares a
row (`packing`), what is done where sharing is not exact (`hf`).

Logits are computed only where they are read: a hook in front of the output embedding hands it
those positions alone, so whatever the model does to its logits afterwards (scaling, soft caps)
still happens.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from raypeft.engines.hf_batches import Pair, TokenArray
from raypeft.engines.hf_failures import free_memory, is_out_of_memory
from raypeft.engines.packing import Packed, Row, pack

PLAIN_ATTENTION = ("sdpa", "eager")
"""Attention implementations that take a mask for each pair of tokens."""

MOST_LOGITS = 1 << 28
"""Logits computed at once: 1 GiB in float32, whatever the vocabulary."""

TESTED_TYPES = frozenset(
    {"llama", "qwen2", "qwen3", "mistral", "mixtral", "gemma2", "gemma3_text", "gpt2", "gpt_neox"}
    | {"phi", "opt"}
)
"""Model types whose packed rows are tested against lm-eval. The self-check alone is not enough:
a type may hide an attention window or a threshold that its short texts do not reach (GPT-Neo
passes it and is off by 0.9 nats on longer ones)."""

LEAST_TOLERANCE_NATS = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}
NOISE_FACTOR = 3.0
"""Packed and plain rows may lie apart by this many times what the model's own arithmetic moves
when a plain row is padded in a batch, and by the least tolerance in any case. In float32 the two
differ by about 4e-6."""

CPU_BATCH_TOKENS = 2048

LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}
"""Rotary positions whose frequencies follow from the longest row of a batch."""

CHECKED_WINDOW = 512
"""Attention windows up to this many tokens are reached past by the self-check."""

_CHECK_SEED = 5
_CHECK_TRUNK = 24
_CHECK_PREFIX = 40


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


def run_rows(shared: Shared, rows: Sequence[Row]) -> dict[int, tuple[float, bool]]:
    """Return (log-likelihood, is greedy) by request position for rows run as one batch.

    All rows must have the prefix or none.
    """
    has_prefix = rows[0].has_prefix
    length = max(len(row.tokens) for row in rows)
    places = torch.tensor(
        [
            at * length + place
            for at, row in enumerate(rows)
            for r in row.reads
            for place in r.places
        ]
    )
    targets = torch.tensor([target for row in rows for r in row.reads for target in r.targets])
    arguments: dict[str, Any] = {
        "input_ids": _padded([row.tokens for row in rows], length, shared.device),
        "position_ids": _padded([row.depths for row in rows], length, shared.device),
        "attention_mask": _masks(shared, rows, length, has_prefix),
        "use_cache": has_prefix,
    }
    if has_prefix:
        arguments["past_key_values"] = _expanded(shared, len(rows))
    if arguments["attention_mask"] is None:
        # Causal rows padded on the right: the model's own fast path, as lm-eval calls it.
        del arguments["attention_mask"], arguments["position_ids"]
    with torch.no_grad(), _reading(shared.model, places):
        logits = shared.model(**arguments).logits[0]
    return _read(shared, rows, logits, targets.to(shared.device))


def _read(
    shared: Shared, rows: Sequence[Row], logits: torch.Tensor, targets: torch.Tensor
) -> dict[int, tuple[float, bool]]:
    logprobs, greedy = [], []
    step = max(1, MOST_LOGITS // logits.shape[-1])
    for start in range(0, len(targets), step):
        part = torch.log_softmax(logits[start : start + step], -1, dtype=shared.softmax_dtype)
        wanted = targets[start : start + step]
        logprobs.append(part.gather(1, wanted.unsqueeze(1)).squeeze(1))
        greedy.append(part.argmax(-1) == wanted)
    sizes = [len(read.targets) for row in rows for read in row.reads]
    sums = [float(part.sum()) for part in torch.split(torch.cat(logprobs).cpu(), sizes)]
    hits = [bool(part.all()) for part in torch.split(torch.cat(greedy).cpu(), sizes)]
    reads = [read for row in rows for read in row.reads]
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


def _padded(values: Sequence[TokenArray], length: int, device: torch.device) -> torch.Tensor:
    padded = np.zeros((len(values), length), dtype=np.int64)
    for at, value in enumerate(values):
        padded[at, : len(value)] = value
    return torch.from_numpy(padded).to(device)


def _expanded(shared: Shared, num_rows: int) -> DynamicCache:
    """Return a cache that holds the prefix for each row; its memory is shared until it grows."""
    assert shared.prefix is not None
    cache = DynamicCache()
    for keys, values in shared.prefix:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys = keys.expand(num_rows, -1, -1, -1)
        layer.values = values.expand(num_rows, -1, -1, -1)
        cache.layers.append(layer)
    return cache


class RowLimit:
    """How much a device takes at once, learnt from running out of memory.

    A batch that does not fit is run in halves, and so are later ones of its size.
    """

    def __init__(self) -> None:
        self.most_tokens: int | None = None

    def run(self, shared: Shared, rows: Sequence[Row]) -> dict[int, tuple[float, bool]]:
        """Run rows, as one batch if they fit.

        Raises:
            torch.OutOfMemoryError: If a single row does not fit.
        """
        tokens = len(rows) * max(len(row.tokens) for row in rows)
        fits = self.most_tokens is None or tokens <= self.most_tokens
        if fits or len(rows) == 1:
            try:
                return run_rows(shared, rows)
            except Exception as error:
                if not is_out_of_memory(error) or len(rows) == 1:
                    raise
                self.most_tokens = tokens // 2
            # Outside the handler, whose frames hold the tensors that did not fit.
            free_memory()
        half = len(rows) // 2
        return self.run(shared, rows[:half]) | self.run(shared, rows[half:])


# --- masks ------------------------------------------------------------------------------------


def _masks(shared: Shared, rows: Sequence[Row], length: int, has_prefix: bool) -> Any:
    """Return what the model takes as attention mask; None if causal attention is all it needs."""
    config = shared.model.config.get_text_config()
    windows = _windows(config)
    is_causal = not has_prefix and not any(row.branches.any() for row in rows)
    if is_causal:
        return None
    prefix = shared.prefix_tokens if has_prefix else 0
    branches = _padded([row.branches for row in rows], length, shared.device)
    depths = _padded([row.depths for row in rows], length, shared.device)
    sizes = torch.tensor([len(row.tokens) for row in rows], device=shared.device)
    visible, distance = _tree(branches, depths, sizes, prefix)
    dtype = shared.model.dtype

    def mask(window: int | None) -> torch.Tensor:
        seen = visible if window is None else visible & (distance < window)
        # Padding looks at itself, so that no row of the softmax is empty.
        at = torch.arange(length, device=seen.device)
        seen[:, at, at + prefix] = True
        low = torch.finfo(dtype).min
        return (
            torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            .masked_fill_(~seen, low)
            .unsqueeze(1)
        )

    if len(windows) == 1 and None in windows.values():
        return mask(None)
    masks = {name: mask(window) for name, window in windows.items()}
    return masks if len(masks) > 1 or _takes_mapping(config) else next(iter(masks.values()))


def _tree(
    branches: torch.Tensor, depths: torch.Tensor, sizes: torch.Tensor, prefix: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which keys each token sees, and how far back they lie in its own text.

    Shapes: branches and depths [rows, length]; both results [rows, length, prefix + length].
    """
    num_rows, length = branches.shape
    device = branches.device
    order = torch.arange(length, device=device)
    causal = order.unsqueeze(1) >= order.unsqueeze(0)
    own = (branches.unsqueeze(1) == 0) | (branches.unsqueeze(1) == branches.unsqueeze(2))
    real = (order < sizes.unsqueeze(1)).unsqueeze(1)
    visible = causal & own & real
    distance = depths.unsqueeze(2) - depths.unsqueeze(1)
    if prefix:
        seen = torch.ones(num_rows, length, prefix, dtype=torch.bool, device=device)
        far = depths.unsqueeze(2) - torch.arange(prefix, device=device)
        visible, distance = torch.cat([seen, visible], 2), torch.cat([far, distance], 2)
    return visible, distance


def _windows(config: Any) -> dict[str, int | None]:
    """Return the attention window of each kind of layer; None sees everything."""
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds:
        return {kind: window if kind == "sliding_attention" else None for kind in sorted(kinds)}
    return {"sliding_attention": window} if window is not None else {"full_attention": None}


def longest_text(model: Any, max_length: int) -> int:
    """Return how long a text in packed rows may be, in tokens.

    The self-check reaches past short attention windows only: texts that reach past a longer one
    take the plain path, since nothing has shown that its edge is where the mask puts it.
    """
    windows = _windows(model.config.get_text_config()).values()
    return min([max_length, *(w for w in windows if w is not None and w > CHECKED_WINDOW)])


def _rope_types(config: Any) -> set[str]:
    """Return the kinds of rotary positions, which may differ between kinds of layers."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return {str(part.get("rope_type", "default")) for part in (parameters, *nested)}


def _takes_mapping(config: Any) -> bool:
    """Whether the model picks a mask for each layer by the layer's kind."""
    return bool(getattr(config, "layer_types", None))


# --- how much at once -------------------------------------------------------------------------


def choose_batch_tokens(model: Any, device: torch.device) -> int:
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


# --- is it exact? -----------------------------------------------------------------------------


def why_not_shared(shared: Shared, plain: Any, *, max_length: int) -> str:
    """Return why this model must not compute packed rows; empty if it may.

    The model is asked: made-up requests with branches, with and without a prefix, some longer
    than its attention window if that is short, are computed packed and plain.

    Args:
        shared: The model as it will be asked, adapters attached.
        plain: Returns the logits of token rows, as lm-eval calls the model.
        max_length: Longest row in tokens.
    """
    config = shared.model.config.get_text_config()
    if config.model_type not in TESTED_TYPES:
        return f"sharing is not tested for models of type {config.model_type}"
    implementation = getattr(config, "_attn_implementation", None)
    if implementation not in PLAIN_ATTENTION:
        return f"attention {implementation} takes no mask of its own"
    if shared.model.get_output_embeddings() is None:
        return "the model has no output embedding to read at"
    if rope := _rope_types(config) & LENGTH_DEPENDENT_ROPE:
        return f"positions of type {', '.join(sorted(rope))} depend on the length of the row"
    unknown = set(_windows(config)) - {"full_attention", "sliding_attention"}
    if unknown:
        return f"layers of kind {', '.join(sorted(unknown))}"
    pairs = _made_up(config, max_length)
    if not pairs:
        return f"the model's {max_length} tokens are too few to check it"
    packed = pack(pairs, max_length=max_length, batch_tokens=1 << 14)
    try:
        found = run_packed(shared, packed, range(len(packed.rows)))
    except (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError) as error:
        if is_out_of_memory(error):
            raise
        return f"the self-check failed: {type(error).__name__}: {error}"[:200]
    expected = [_plain_sum(shared, plain, pair) for pair in pairs]
    padded = [_plain_sum(shared, plain, pair, padding=7, copies=2) for pair in pairs]
    noise = max(abs(a - b) for a, b in zip(expected, padded, strict=True))
    worst = max(abs(found[at][0] - value) for at, value in enumerate(expected))
    limit = max(LEAST_TOLERANCE_NATS.get(shared.model.dtype, 1e-4), NOISE_FACTOR * noise)
    if not worst <= limit:
        return f"packed and plain rows differ by {worst:.2g} nats in the self-check"
    return ""


def run_packed(
    shared: Shared, packed: Packed, rows: range, limit: "RowLimit | None" = None
) -> dict[int, tuple[float, bool]]:
    """Run every batch that holds any of these rows; return the answers of these rows.

    A batch at the edge is run whole, so that no answer depends on where a shard ends.
    """
    limit = limit or RowLimit()
    answers: dict[int, tuple[float, bool]] = {}
    with_prefix: Shared | None = None
    for batch in packed.batches:
        if batch.stop <= rows.start or batch.start >= rows.stop:
            continue
        if packed.rows[batch.start].has_prefix and with_prefix is None:
            with_prefix = shared.with_prefix(packed.prefix)
        given = with_prefix if packed.rows[batch.start].has_prefix else shared
        assert given is not None
        found = limit.run(given, packed.rows[batch.start : batch.stop])
        own = range(max(batch.start, rows.start), min(batch.stop, rows.stop))
        wanted = (p for at in own for read in packed.rows[at].reads for p in read.positions)
        answers.update((position, found[position]) for position in wanted)
    return answers


def _plain_sum(
    shared: Shared, plain: Any, pair: Pair, *, padding: int = 0, copies: int = 1
) -> float:
    """Return a plain row's log-likelihood, alone or padded on the right beside copies of itself."""
    tokens = np.concatenate([pair.context, pair.continuation]).astype(np.int64)
    row = torch.from_numpy(np.pad(tokens[:-1], (0, padding))).to(shared.device)
    logits = plain(row.expand(copies, -1))[0, : len(tokens) - 1]
    logprobs = torch.log_softmax(logits, -1, dtype=shared.softmax_dtype)
    wanted = torch.from_numpy(pair.continuation.astype(np.int64)).to(logprobs.device)
    return float(logprobs[-len(wanted) :].gather(1, wanted.unsqueeze(1)).sum())


def _made_up(config: Any, max_length: int) -> list[Pair]:
    """Return requests that show a wrong mask, position or window."""
    window = min((w for w in _windows(config).values() if w is not None), default=0)
    trunk = max(_CHECK_TRUNK, min(window, CHECKED_WINDOW) + 8)
    if _CHECK_PREFIX + trunk + 8 > max_length:
        trunk = max_length - _CHECK_PREFIX - 8
    if trunk < 4:
        return []
    rng = np.random.default_rng(_CHECK_SEED)

    def draw(count: int) -> TokenArray:
        return rng.integers(0, config.vocab_size, count).astype(np.int32)

    prefix = draw(_CHECK_PREFIX)
    contexts = [np.concatenate([prefix, draw(trunk - 2 * i)]) for i in range(2)]
    contexts.append(draw(trunk))
    return [Pair(context, draw(size)) for context in contexts for size in (1, 3, 3, 5)]
