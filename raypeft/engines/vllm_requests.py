"""Which requests vLLM is given for a shard, and in which order: pure.

Decides: which requests a shard holds; which log-likelihoods one request of vLLM answers; the order
in which what shares a prefix meets it in the cache. Leaves to others: tokens (`vllm_encoding`),
asking (`vllm_calls`), reading the answers (`vllm_answers`).

A request of vLLM is of one of two kinds. One reads, after a context, the log-probabilities of up to
128 tokens: all one-token continuations of a context at once. The other reads those of a
continuation that is part of the prompt.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from raypeft.core.records import Request
from raypeft.engines.hf_batches import Pair, TokenArray, shard_range


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of vLLM for log-likelihoods.

    Attributes:
        context: Tokens given.
        tail: The continuation, at the end of the prompt; empty where choices are read instead.
        choices: Tokens to be read after the context; empty where there is a tail.
        owners: For each choice, or for the one tail, the positions of the pairs it answers.
    """

    context: TokenArray
    tail: tuple[int, ...]
    choices: tuple[int, ...]
    owners: tuple[tuple[int, ...], ...]

    def prompt(self) -> list[int]:
        """Return the tokens that vLLM is given."""
        return [*self.context.tolist(), *self.tail]

    @property
    def num_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.context) + len(self.tail)


def shard_requests(requests: Sequence[Request], index: int, count: int) -> tuple[Request, ...]:
    """Return the requests of a shard: a range of documents, whose requests stay together.

    Batches are vLLM's business and change no answer, so any cut will do; this one keeps the
    choices of a document in one request.
    """
    documents = [tuple(group) for _, group in groupby(requests, key=lambda one: one.doc_id)]
    own = shard_range(len(documents), index, count)
    return tuple(request for at in own for request in documents[at])


def plan_asks(
    pairs: Sequence[Pair], *, longest: int, most_choices: int
) -> tuple[tuple[Ask, ...], tuple[Ask, ...]]:
    """Return the requests that answer these pairs: those that read choices, those with a tail.

    Args:
        pairs: Contexts and continuations; each may come several times.
        longest: Tokens of context and continuation that are kept, as lm-eval's vLLM class cuts
            them: from the left. Continuations are shorter than that.
        most_choices: Tokens that one request may read after a context; 0 reads none so.
    """
    choices: dict[bytes, tuple[TokenArray, dict[int, list[int]]]] = {}
    tails: dict[tuple[bytes, bytes], tuple[Pair, list[int]]] = {}
    for position, pair in enumerate(pairs):
        room = longest - len(pair.continuation)
        assert room > 0, f"pair {position}: a continuation of {len(pair.continuation)} tokens"
        context = pair.context[-room:]
        key = _sort_key(context)
        if most_choices and len(pair.continuation) == 1:
            _, wanted = choices.setdefault(key, (context, {}))
            wanted.setdefault(int(pair.continuation[0]), []).append(position)
        else:
            own = (key, _sort_key(pair.continuation))
            if own not in tails:
                tails[own] = (Pair(context, pair.continuation), [])
            tails[own][1].append(position)
    reading = [
        ask
        for key in sorted(choices)
        for ask in _choice_asks(*choices[key], most_choices=most_choices)
    ]
    # By the whole prompt: a context and a longer one that begins with it stand together.
    ordered = sorted(tails, key=lambda key: key[0] + key[1])
    return tuple(reading), tuple(_tail_ask(*tails[key]) for key in ordered)


def _choice_asks(
    context: TokenArray, wanted: dict[int, list[int]], *, most_choices: int
) -> Iterator[Ask]:
    tokens = sorted(wanted)
    for start in range(0, len(tokens), most_choices):
        part = tuple(tokens[start : start + most_choices])
        yield Ask(context, (), part, tuple(tuple(wanted[token]) for token in part))


def _tail_ask(pair: Pair, owners: list[int]) -> Ask:
    return Ask(pair.context, tuple(pair.continuation.tolist()), (), (tuple(owners),))


def _sort_key(tokens: TokenArray) -> bytes:
    # Bytes of big-endian numbers sort as the numbers do, in a ninth of the memory of a tuple.
    return np.asarray(tokens).astype(">i4").tobytes()


def split_calls(sizes: Sequence[int], most: int) -> list[range]:
    """Cut a row of requests into calls of at most so many tokens, and at least one request."""
    calls: list[range] = []
    start = total = 0
    for at, size in enumerate(sizes):
        if at > start and total + size > most:
            calls.append(range(start, at))
            start, total = at, 0
        total += size
    if start < len(sizes):
        calls.append(range(start, len(sizes)))
    return calls


def request_seed(seed: int, request_set: str, request: Request) -> int:
    """Return the seed of a sampled request: neither order nor company can change it."""
    text = f"{seed}/{request_set}/{request.index}/{request.repeat}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
