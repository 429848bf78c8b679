"""How much work a request set is, before anything was measured.

Estimates only order and cut work; no score depends on them. Counting real tokens would need a
tokenizer, which planning must not load.
"""

from raypeft.core.records import Request, RequestSet

CHARS_PER_TOKEN = 4
"""English prose and code lie between 3 and 5 with the usual vocabularies."""

DEFAULT_GENERATED_TOKENS = 256
"""lm-eval's `max_gen_toks` where a task says nothing."""

MIN_SHARD_TOKENS = 20_000
"""Below this a shard is done sooner than it is handed out, stored and joined again."""

_GENERATION_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


def estimate_tokens(request_set: RequestSet) -> int:
    """Return about how many tokens go through the model for one subject."""
    return sum(_request_tokens(request) for request in request_set.requests)


def shard_count(tokens: int, num_cells: int, slots: int) -> int:
    """Return into how many shards each request set is cut when the sweep says `auto`.

    One, unless there are fewer cells than slots: then so many that every slot has a shard, but
    none below `MIN_SHARD_TOKENS`.

    Args:
        tokens: Estimated tokens of one cell.
        num_cells: Cells there are to answer.
        slots: Slots there are to answer them.
    """
    if num_cells < 1 or num_cells >= slots:
        return 1
    wanted = -(-slots // num_cells)
    return max(1, min(wanted, tokens // MIN_SHARD_TOKENS))


def _request_tokens(request: Request) -> int:
    texts = (argument for argument in request.arguments if isinstance(argument, str))
    tokens = sum(len(text) for text in texts) // CHARS_PER_TOKEN + 1
    if request.request_type == "generate_until":
        tokens += _generated_tokens(request)
    return tokens


def _generated_tokens(request: Request) -> int:
    settings = request.arguments[-1]
    if isinstance(settings, dict):
        for name in _GENERATION_LIMITS:
            limit = settings.get(name)
            if isinstance(limit, int):
                return limit
    return DEFAULT_GENERATED_TOKENS


def asks_for_sampling(request: Request) -> bool:
    """Whether a request may draw at random, so that the seed belongs to its answer's identity.

    On the safe side: what is greedy after all in the end only has the seed in its identity too.
    """
    settings = request.arguments[-1] if request.request_type == "generate_until" else None
    if not isinstance(settings, dict):
        return False
    return bool(settings.get("do_sample")) or (settings.get("temperature") or 0.0) > 0.0
