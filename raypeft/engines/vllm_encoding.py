"""Request sets as tokens for vLLM: encoded once, for all subjects and shards of an engine.

Decides: nothing about texts. How they become tokens, where they are cut, how long texts are split
into windows and where a generation stops is lm-eval's vLLM class's, by its own functions. Leaves
to others: which requests vLLM is given (`vllm_requests`).
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lm_eval.models.utils import maybe_truncate
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from raypeft.core.records import FailureKind, Json, Request, RequestSet
from raypeft.engines.hf_batches import Pair, TokenArray, is_sampled, to_array
from raypeft.engines.hf_requests import MOST_KEPT_TOKENS, compact, encode_pairs
from raypeft.errors import CellError


@dataclass(frozen=True, slots=True)
class Prompt:
    """A generation request, encoded and cut as lm-eval does.

    Attributes:
        tokens: Tokens given.
        stop: Texts that end it.
        settings: Further arguments of vLLM's `SamplingParams`.
        is_sampled: Whether its settings ask for sampling.
        key: Equal for requests that ask for the same.
    """

    tokens: TokenArray
    stop: tuple[str, ...]
    settings: Mapping[str, Json]
    is_sampled: bool
    key: str


@dataclass(frozen=True, slots=True)
class Encoded:
    """A request set, encoded; everything by the request's index.

    Attributes:
        requests: All requests.
        pairs: Of log-likelihood requests the context and continuation.
        windows: Of rolling requests the windows, in order.
        prompts: Of generation requests the prompt.
        num_tokens: Tokens kept.
    """

    requests: tuple[Request, ...]
    pairs: Mapping[int, Pair] = field(default_factory=dict)
    windows: Mapping[int, tuple[Pair, ...]] = field(default_factory=dict)
    prompts: Mapping[int, Prompt] = field(default_factory=dict)
    num_tokens: int = 0


class EncodedSets:
    """The encoded request sets of one engine, the least recently used dropped first.

    Args:
        model: lm-eval's vLLM class, loaded.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._kept: OrderedDict[str, Encoded] = OrderedDict()

    def get(self, request_set: RequestSet) -> Encoded:
        """Return a request set's tokens, encoding it if this is the first time."""
        digest = request_set.digest
        if digest not in self._kept:
            self._kept[digest] = encode(self._model, request_set)
        self._kept.move_to_end(digest)
        while len(self._kept) > 1 and self._num_tokens() > MOST_KEPT_TOKENS:
            self._kept.popitem(last=False)
        return self._kept[digest]

    def _num_tokens(self) -> int:
        return sum(encoded.num_tokens for encoded in self._kept.values())


def longest_pair(max_length: int) -> int:
    """Return how many tokens of context and continuation are kept, as lm-eval's vLLM class does.

    One place is left for the token that vLLM always generates.
    """
    return max_length - 1


def encode(model: Any, request_set: RequestSet) -> Encoded:
    """Encode a request set.

    Raises:
        CellError: `task_failed` if a request cannot be put to this model at all.
    """
    by_type: dict[str, list[Request]] = {}
    for request in request_set.requests:
        by_type.setdefault(request.request_type, []).append(request)
    scored = by_type.get("loglikelihood", [])
    # A row holds one token of context at least.
    longest = longest_pair(model.max_length) - 1
    pairs, num_tokens = compact(encode_pairs(model, scored, longest=longest))
    rolling = by_type.get("loglikelihood_rolling", [])
    windows = {request.index: _windows(model, request) for request in rolling}
    generated = by_type.get("generate_until", [])
    prompts = {request.index: _prompt(model, request) for request in generated}
    num_tokens += sum(len(pair.continuation) for own in windows.values() for pair in own)
    num_tokens += sum(len(prompt.tokens) for prompt in prompts.values())
    return Encoded(
        requests=request_set.requests,
        pairs=dict(zip((request.index for request in scored), pairs, strict=True)),
        windows=windows,
        prompts=prompts,
        num_tokens=num_tokens,
    )


def _windows(model: Any, request: Request) -> tuple[Pair, ...]:
    (text,) = request.arguments
    windows = get_rolling_token_windows(
        token_list=model.tok_encode(text),
        prefix_token=model.prefix_token_id,
        # One for the context and one for the token that vLLM always generates.
        max_seq_len=model.max_length - 2,
        context_len=1,
    )
    pairs = map(make_disjoint_window, windows)
    return tuple(Pair(to_array(given), to_array(scored)) for given, scored in pairs)


def _prompt(model: Any, request: Request) -> Prompt:
    context, settings = request.arguments
    place = f"request {request.index} (document {request.doc_id})"
    tokens = model.tok_encode(context)
    if not tokens:
        raise CellError(
            FailureKind.TASK_FAILED,
            f"{place}: its context {context!r} encodes to no tokens, and vLLM needs one to go on "
            "from (lm-eval's own class for it fails as well); give the task's prompt a text, or "
            "answer the task by `engine: {kind: hf}` in a sweep of its own",
        )
    eos = model.tokenizer.decode(model.eot_token_id) or getattr(model.tokenizer, "eos_token", None)
    arguments, stop, longest = model.modify_gen_kwargs(
        dict(settings), eos=eos, default_max_gen_toks=model.max_gen_toks
    )
    if longest >= model.max_length:
        # lm-eval would cut the context to nothing, which in its way of cutting is not at all.
        raise CellError(
            FailureKind.TASK_FAILED,
            f"{place}: it generates up to {longest} tokens, and the model takes "
            f"{model.max_length} with the prompt; lower max_gen_toks",
        )
    tokens, longest = maybe_truncate(
        tokens,
        max_gen_toks=longest,
        max_model_len=model.max_length,
        side=model.truncation_side,
        verbose=False,
    )
    arguments = {**arguments, "max_tokens": longest}
    sampled = is_sampled(settings)
    if not sampled:
        # lm-eval leaves it out where a task names neither do_sample nor temperature; vLLM's own
        # default is 1, so that such a task would be sampled here and be greedy in HFLM.
        arguments["temperature"] = 0.0
    return Prompt(
        tokens=to_array(tokens),
        stop=tuple(stop),
        settings=arguments,
        is_sampled=sampled,
        key=repr((tokens, stop, sorted(arguments.items(), key=str))),
    )
