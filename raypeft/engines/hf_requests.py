"""Request sets as one engine holds them: encoded once, batched once, for all its subjects.

Decides: how requests become tokens (exactly as lm-eval's `HFLM` does it) and how many request
sets are kept. Leaves to others: which batches a shard holds (`hf_batches`), running them (`hf`).

Encoding MMLU five-shot takes minutes of one processor, and would be the same for every adapter.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from raypeft.core.records import FailureKind, Json, Request, RequestSet, RequestType
from raypeft.engines.hf_batches import (
    Batch,
    GenerationBatch,
    Pair,
    RollingPlan,
    TokenArray,
    generation_batches,
    pair_batches,
    to_array,
)
from raypeft.engines.packing import Packed, Packing, pack
from raypeft.errors import CellError

MOST_KEPT_TOKENS = 64_000_000
"""256 MB: about twenty tasks of the size of MMLU without shots."""


class Encoder(Protocol):
    """What encoding needs from an lm-eval model."""

    backend: str

    @property
    def max_length(self) -> int: ...  # noqa: D102
    @property
    def prefix_token_id(self) -> int: ...  # noqa: D102

    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]: ...  # noqa: D102
    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]: ...


@dataclass(frozen=True, slots=True)
class Encoded:
    """A request set, encoded and batched. Positions count within one request type.

    Attributes:
        requests: By request type, in the request set's order.
        pairs: The encoded log-likelihood requests.
        pair_batches: Their batches where nothing is shared.
        packed: The same requests as rows that share; None if this engine shares nothing.
        left_out_batches: Batches of those requests that no row may hold.
        rolling: Windows and batches of the rolling requests.
        generations: (context, settings) of the generation requests.
        generation_batches: Their batches.
        num_tokens: Tokens kept.
    """

    requests: Mapping[RequestType, tuple[Request, ...]]
    pairs: tuple[Pair, ...] = ()
    pair_batches: tuple[Batch, ...] = ()
    packed: Packed | None = None
    left_out_batches: tuple[Batch, ...] = ()
    rolling: RollingPlan = field(default_factory=lambda: RollingPlan((), (0,), 1))
    generations: tuple[tuple[str, dict[str, Json]], ...] = ()
    generation_batches: tuple[GenerationBatch, ...] = ()
    num_tokens: int = 0


class EncodedSets:
    """The encoded request sets of one engine, the least recently used dropped first.

    Args:
        encoder: The model whose tokenizer encodes.
        batch_size: Rows per forward pass where nothing is shared.
        packing: How much packed rows may hold; None packs none.
        most_tokens: How many tokens to keep; one request set is kept in any case.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        batch_size: int,
        packing: Packing | None = None,
        most_tokens: int = MOST_KEPT_TOKENS,
    ) -> None:
        self._encoder = encoder
        self._batch_size = batch_size
        self._packing = packing
        self._most_tokens = most_tokens
        self._kept: OrderedDict[tuple[str, str], Encoded] = OrderedDict()

    def get(self, request_set: RequestSet, tokenizer: str = "") -> Encoded:
        """Return a request set's tokens and batches, encoding it if this is the first time.

        Args:
            request_set: What to encode.
            tokenizer: Names what the encoder's tokenizer is now, if not the base's.
        """
        digest = (request_set.digest, tokenizer)
        if digest not in self._kept:
            self._kept[digest] = encode(self._encoder, request_set, self._batch_size, self._packing)
        self._kept.move_to_end(digest)
        while len(self._kept) > 1 and self._num_tokens() > self._most_tokens:
            self._kept.popitem(last=False)
        return self._kept[digest]

    def _num_tokens(self) -> int:
        return sum(encoded.num_tokens for encoded in self._kept.values())


def encode(
    encoder: Encoder, request_set: RequestSet, batch_size: int, packing: Packing | None = None
) -> Encoded:
    """Encode a request set and form its batches; packed ones where a packing is given.

    Raises:
        CellError: `task_failed` if a request cannot be put to this model at all.
    """
    requests = _by_type(request_set.requests)
    pairs = encode_pairs(encoder, requests.get("loglikelihood", ()), longest=encoder.max_length)
    windows = [_windows(encoder, request) for request in requests.get("loglikelihood_rolling", ())]
    rolling = RollingPlan.of(windows, batch_size)
    generations = tuple(
        (str(request.arguments[0]), dict(request.arguments[1]))
        for request in requests.get("generate_until", ())
    )
    arrays, num_tokens = compact(pairs)
    by_context = encoder.backend == "causal"
    packed: Packed | None = None
    left_out: tuple[Batch, ...] = ()
    if packing is not None:
        packed = pack(arrays, packing)
        rest = [pairs[at] for at in packed.left_out]
        left_out = tuple(
            tuple(packed.left_out[at] for at in batch)
            for batch in pair_batches(rest, batch_size=batch_size, by_context=by_context)
        )
    return Encoded(
        requests=requests,
        pairs=arrays,
        pair_batches=pair_batches(pairs, batch_size=batch_size, by_context=by_context),
        packed=packed,
        left_out_batches=left_out,
        rolling=rolling,
        generations=generations,
        generation_batches=generation_batches(
            generations,
            [len(encoder.tok_encode(context)) for context, _ in generations],
            batch_size=batch_size,
        ),
        num_tokens=num_tokens
        + sum(len(pair.context) + len(pair.continuation) for pair in rolling.windows),
    )


def _by_type(requests: Iterable[Request]) -> dict[RequestType, tuple[Request, ...]]:
    found: dict[RequestType, list[Request]] = {}
    for request in requests:
        found.setdefault(request.request_type, []).append(request)
    return {request_type: tuple(members) for request_type, members in found.items()}


def encode_pairs(
    encoder: Encoder, requests: Sequence[Request], *, longest: int
) -> list[tuple[list[int], list[int]]]:
    """Encode log-likelihood requests; those of one context share the list of its tokens.

    Args:
        encoder: The model whose tokenizer encodes.
        requests: The requests.
        longest: The most tokens that it scores in one row.

    Raises:
        CellError: `task_failed` if a request cannot be put to this model at all.
    """
    pairs = []
    contexts: dict[str, list[int]] = {}
    for request in requests:
        context, continuation = request.arguments
        given, scored = _encode_pair(encoder, context, continuation)
        # The choices of a document have one context: keep its tokens once.
        given = contexts.setdefault(context, given) if context else given
        _check_pair(request, given, scored, longest)
        pairs.append((given, scored))
    return pairs


def _encode_pair(encoder: Encoder, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Encode a pair as `lm_eval.api.model.TemplateLM.loglikelihood` does."""
    if context != "":
        return encoder._encode_pair(context, continuation)
    scored = encoder.tok_encode(continuation, add_special_tokens=False)
    if not scored or encoder.prefix_token_id != scored[0]:
        return [encoder.prefix_token_id], scored
    return scored[:1], scored[1:]


def _check_pair(request: Request, given: list[int], scored: list[int], longest: int) -> None:
    place = f"request {request.index} (document {request.doc_id}, choice {request.idx})"
    if not scored:
        raise CellError(
            FailureKind.TASK_FAILED,
            f"{place}: its continuation {request.arguments[1]!r} encodes to no tokens, so there "
            "is nothing to score; correct the task's choices",
        )
    if not given:
        raise CellError(
            FailureKind.TASK_FAILED,
            f"{place}: its context {request.arguments[0]!r} encodes to no tokens; lm-eval cannot "
            "score a continuation without one",
        )
    if len(scored) > longest:
        raise CellError(
            FailureKind.TASK_FAILED,
            f"{place}: its continuation has {len(scored)} tokens, more than the {longest} of the "
            "model",
        )


def _windows(encoder: Encoder, request: Request) -> list[Pair]:
    (text,) = request.arguments
    windows: Iterable[Any] = get_rolling_token_windows(
        token_list=encoder.tok_encode(text),
        prefix_token=encoder.prefix_token_id,
        max_seq_len=encoder.max_length,
        context_len=1,
    )
    pairs = map(make_disjoint_window, windows)
    return [Pair(to_array(given), to_array(scored)) for given, scored in pairs]


def compact(pairs: Sequence[tuple[list[int], list[int]]]) -> tuple[tuple[Pair, ...], int]:
    """Return the pairs as arrays, contexts that are one list as one array, and their tokens."""
    arrays: dict[int, TokenArray] = {}
    compacted = []
    num_tokens = 0
    for given, scored in pairs:
        if id(given) not in arrays:
            arrays[id(given)] = to_array(given)
            num_tokens += len(given)
        compacted.append(Pair(arrays[id(given)], to_array(scored)))
        num_tokens += len(scored)
    return tuple(compacted), num_tokens
