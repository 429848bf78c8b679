"""Whether a loaded model computes packed rows exactly: asked of the model itself.

Decides: which models may share contexts at all, which rows are computed packed and plain for
comparison, and how far the two may lie apart. Leaves to others: running rows (`hf_shared`), the
copy of a model's structure (`structure_copy`), remembering what was found (`hf`).

Two questions. Of each standing (the base, or the base with an adapter): are made-up texts, some of
which reach past a short attention window, the same packed and plain? And of each request set: are
its longest rows and the one with most branches? So no length, window or number of branches is
relied on that was not computed both ways.

In 16 bits rounding alone moves answers by tenths of a nat, which would hide a wrong mask. There a
float32 copy of the model's structure must agree within the tolerance of float32, and the model
itself within some units in the last place of its largest logit.
"""

import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from raypeft.engines.hf_batches import Pair, TokenArray
from raypeft.engines.hf_failures import free_memory, is_fatal, is_out_of_memory
from raypeft.engines.hf_shared import RowLimit, Shared, try_prefix
from raypeft.engines.packing import Packed, Packing, Read, Row, pack
from raypeft.engines.structure_copy import structure_copy
from raypeft.engines.tree_masks import KNOWN_KINDS, attention_windows

Plain = Callable[[torch.Tensor], torch.Tensor]
"""Token rows → logits at every place, as lm-eval calls the model."""

PLAIN_ATTENTION = ("sdpa", "eager")
"""Attention implementations that take a mask for each pair of tokens."""

TESTED_TYPES = frozenset(
    {"llama", "qwen2", "qwen3", "mistral", "mixtral", "gemma2", "gemma3_text", "gpt2", "gpt_neox"}
    | {"phi", "opt"}
)
"""Model types whose packed rows are tested against lm-eval. The self-check alone is not enough:
a type may hide an attention window or a threshold that its texts do not reach (GPT-Neo passes it
on short ones and is off by 0.9 nats on longer ones)."""

LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}
"""Rotary positions whose frequencies follow from the longest row of a batch."""

ALIBI_TYPES = {"bloom", "mpt"}

LEAST_TOLERANCE_NATS = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}

MOST_TOLERANCE_NATS = {torch.float32: 0.05, torch.float16: 0.5, torch.bfloat16: 4.0}

MOST_ULPS = 4
"""Packed and plain rows may lie apart by so many units in the last place of the logits that decide,
times the root of the number of tokens that are read, between the least tolerance and the most: a
token suppressed by -1e9 must not make every difference small."""

_SEED = 5
_TRUNK_TOKENS = 24
_PREFIX_TOKENS = 40
_LONGEST_MADE_UP = 512
_REASON_LENGTH = 200
_IN_THE_COPY = "in a float32 copy of the model's structure"


class Verdict(NamedTuple):
    """What a check found.

    Attributes:
        why: Why rows must not be packed; empty if they may be.
        is_memory: Whether that is only because memory ran out here and now.
    """

    why: str = ""
    is_memory: bool = False

    def at(self, place: str) -> "Verdict":
        """Return this with where it was found, if anything was."""
        return self._replace(why=f"{self.why} {place}") if self.why else self


class SharingCheck:
    """Checks of one loaded base and its adapters; keeps the float32 copy of its structure.

    Args:
        base: The base, no adapter attached.
        device: Where it is.
        max_length: Longest row in tokens.
    """

    def __init__(self, base: Any, device: torch.device, max_length: int) -> None:
        self._max_length = max_length
        self._copy: Shared | None = None
        self._of_structure: dict[Hashable, Verdict] = {}
        self._of_base = Verdict(why_never(base))
        if not self._of_base.why and base.dtype is not torch.float32:
            self._of_base = self._check_copy(base, device)

    def of_model(self, shared: Shared, plain: Plain) -> Verdict:
        """Return why the model as it stands now must not share contexts, if so.

        Args:
            shared: The model as it will be asked, adapters attached.
            plain: How lm-eval calls it.
        """
        if self._of_base.why:
            return self._of_base
        if why := why_never(shared.model):
            return Verdict(why)
        packed = _made_up(shared.model.config.get_text_config(), self._max_length)
        if not packed.rows:
            return Verdict(f"the model's {self._max_length} tokens are too few to check it")
        return _compare(shared, plain, packed, lambda row: row.reads).at("in the self-check")

    def of_requests(self, shared: Shared, plain: Plain, packed: Packed, key: Hashable) -> Verdict:
        """Return why the rows of a request set must not be packed, by a few of them.

        Args:
            shared: The model as it will be asked, adapters attached.
            plain: How lm-eval calls it.
            packed: All rows of the request set.
            key: Names the request set and its tokens.
        """
        sample = _sample(packed)
        if self._copy is not None:
            if key not in self._of_structure:
                self._of_structure[key] = self._sample_of_copy(sample)
            if self._of_structure[key].why:
                return self._of_structure[key]
        return _compare(shared, plain, sample, _some_reads).at("on rows of this task")

    def _check_copy(self, base: Any, device: torch.device) -> Verdict:
        """Make the float32 copy and return what it says to made-up texts."""
        try:
            model = structure_copy(base, device)
        except ValueError as error:
            name = _name(base.dtype)
            return Verdict(f"a {name} model, whose structure cannot be checked in float32: {error}")
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            model = None
        if model is None:
            free_memory()
            return Verdict("memory ran out for a float32 copy of its structure", is_memory=True)
        self._copy = Shared(model, device, torch.float32)
        packed = _made_up(model.config, self._max_length)
        verdict = _compare(self._copy, _plain_of(self._copy), packed, lambda row: row.reads)
        return verdict.at(_IN_THE_COPY)

    def _sample_of_copy(self, sample: Packed) -> Verdict:
        assert self._copy is not None
        size = int(self._copy.model.config.vocab_size)
        rows = tuple(_with_vocabulary(row, size) for row in sample.rows)
        folded = replace(sample, prefix=sample.prefix % size, rows=rows)
        verdict = _compare(self._copy, _plain_of(self._copy), folded, _some_reads)
        return verdict.at(f"on rows of this task {_IN_THE_COPY}")


def why_never(model: Any) -> str:
    """Return why contexts must not be shared whatever the weights are; empty if nothing is known.

    Args:
        model: The model, adapters attached or not.
    """
    config = model.config.get_text_config()
    if config.model_type in ALIBI_TYPES or getattr(config, "alibi", False):
        return (
            f"models of type {config.model_type} weigh tokens by their distance in the row (ALiBi) "
            "and take no positions of their own"
        )
    if config.model_type not in TESTED_TYPES:
        return f"sharing is not tested for models of type {config.model_type}"
    implementation = getattr(config, "_attn_implementation", None)
    if implementation not in PLAIN_ATTENTION:
        return f"attention {implementation} takes no mask of its own"
    if model.get_output_embeddings() is None:
        return "the model has no output embedding to read at"
    if rope := _rope_types(config) & LENGTH_DEPENDENT_ROPE:
        return f"positions of type {', '.join(sorted(rope))} depend on the length of the row"
    if unknown := set(attention_windows(config)) - KNOWN_KINDS:
        return f"layers of kind {', '.join(sorted(unknown))}"
    return ""


def _compare(
    shared: Shared, plain: Plain, packed: Packed, reads: Callable[[Row], Iterable[Read]]
) -> Verdict:
    """Compute rows packed and plain and return how they differ, if they do.

    Args:
        shared: The model.
        plain: How lm-eval calls it.
        packed: The rows; those of one batch are computed together.
        reads: What of a row is compared.
    """
    try:
        found = _run(shared, packed)
        if found is None:
            return Verdict("memory ran out", is_memory=True)
        for row in packed.rows:
            for read in reads(row):
                expected, largest = _plain_sum(shared, plain, packed.prefix, row, read)
                difference = abs(found[read.positions[0]] - expected)
                # NaN is a difference too.
                if not difference <= tolerance(shared.model.dtype, largest, len(read.targets)):
                    return Verdict(f"packed and plain rows differ by {difference:.2g} nats")
    except (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError) as error:
        if is_out_of_memory(error) or is_fatal(error):
            raise
        return Verdict(f"packed rows fail ({type(error).__name__}: {error}"[:_REASON_LENGTH] + ")")
    return Verdict()


def tolerance(dtype: torch.dtype, largest_logit: float, num_tokens: int) -> float:
    """Return how far the log-likelihoods of a continuation may lie apart, in nats."""
    rounding = torch.finfo(dtype).eps * largest_logit * MOST_ULPS * math.sqrt(num_tokens)
    most = MOST_TOLERANCE_NATS.get(dtype, 0.05)
    return max(LEAST_TOLERANCE_NATS.get(dtype, 1e-4), min(most, rounding))


def _run(shared: Shared, packed: Packed) -> dict[int, float] | None:
    """Return the packed log-likelihoods by request position; None if memory ran out."""
    found: dict[int, float] = {}
    with_prefix = try_prefix(shared, packed.prefix) if len(packed.prefix) else shared
    if with_prefix is None:
        return None
    for batch in packed.batches:
        rows = packed.rows[batch.start : batch.stop]
        result = RowLimit().run(with_prefix if rows[0].has_prefix else shared, rows)
        if result.unfit:
            return None
        found.update((position, logprob) for position, (logprob, _) in result.answers.items())
    return found


def _plain_sum(
    shared: Shared, plain: Plain, prefix: TokenArray, row: Row, read: Read
) -> tuple[float, float]:
    """Return a request's log-likelihood from a row of its own, and the largest logit in it.

    That is of the tokens that are read and of the likeliest, whose difference it is.
    """
    front = prefix if row.has_prefix else prefix[:0]
    trunk = row.tokens[row.branches == 0]
    tokens = np.concatenate([front, trunk, np.array(read.targets[:-1], dtype=np.int32)])
    inputs = torch.from_numpy(tokens.astype(np.int64)).to(shared.device).unsqueeze(0)
    with torch.no_grad():
        logits = plain(inputs)[0, -len(read.targets) :]
    logprobs = torch.log_softmax(logits, -1, dtype=shared.softmax_dtype)
    wanted = torch.tensor(read.targets, device=logprobs.device).unsqueeze(1)
    deciding = torch.cat([logits.gather(1, wanted), logits.max(-1, keepdim=True).values])
    return float(logprobs.gather(1, wanted).sum()), float(deciding.abs().max())


def _sample(packed: Packed) -> Packed:
    """Return the longest row of each kind and the one with most branches, each a batch."""
    chosen: dict[object, int] = {}
    most_branches = 0
    for at, row in enumerate(packed.rows):
        kind = (row.has_prefix, row.has_branches)
        if kind not in chosen or row.depths.max() > packed.rows[chosen[kind]].depths.max():
            chosen[kind] = at
        if row.branches[-1] > packed.rows[most_branches].branches[-1]:
            most_branches = at
    rows = tuple(packed.rows[at] for at in sorted({*chosen.values(), most_branches}))
    return Packed(packed.prefix, rows, tuple(range(at, at + 1) for at in range(len(rows))), ())


def _some_reads(row: Row) -> list[Read]:
    """Return the longest continuation of a row and the last, behind all other branches."""
    longest = max(row.reads, key=lambda read: len(read.targets))
    return [longest] if longest is row.reads[-1] else [longest, row.reads[-1]]


def _with_vocabulary(row: Row, size: int) -> Row:
    reads = tuple(
        read._replace(targets=tuple(target % size for target in read.targets)) for read in row.reads
    )
    return replace(row, tokens=row.tokens % size, targets=row.targets % size, reads=reads)


def _made_up(config: Any, max_length: int) -> Packed:
    """Return rows that show a wrong mask, position or short window; none if none fit the model."""
    windows = [window for window in attention_windows(config).values() if window is not None]
    trunk = max(_TRUNK_TOKENS, min([*windows, _LONGEST_MADE_UP]) + 8 if windows else 0)
    trunk = min(trunk, max_length - _PREFIX_TOKENS - 8)
    packing = Packing(max_length=max_length, batch_tokens=1 << 14)
    if trunk < 4:
        return pack([], packing)
    rng = np.random.default_rng(_SEED)

    def draw(count: int) -> TokenArray:
        return rng.integers(0, config.vocab_size, count).astype(np.int32)

    prefix = draw(_PREFIX_TOKENS)
    contexts = [np.concatenate([prefix, draw(trunk - 2 * i)]) for i in range(2)]
    contexts.append(draw(trunk))
    pairs = [Pair(context, draw(size)) for context in contexts for size in (1, 3, 3, 5)]
    return pack(pairs, packing)


def _plain_of(shared: Shared) -> Plain:
    def plain(rows: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = shared.model(rows).logits
        return logits

    return plain


def _rope_types(config: Any) -> set[str]:
    """Return the kinds of rotary positions, which may differ between kinds of layers."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return {str(part.get("rope_type", "default")) for part in (parameters, *nested)}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
