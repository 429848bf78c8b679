"""Which requests vLLM is given: everything is asked once, in an order that meets the cache."""

import random

import pytest

from raypeft.core.records import Request
from raypeft.engines.hf_batches import Pair, to_array
from raypeft.engines.vllm_requests import plan_asks, request_seed, shard_requests, split_calls

pytestmark = pytest.mark.torch


def random_pairs(seed: int) -> list[Pair]:
    """Return pairs of few tokens, so that contexts, continuations and prefixes often agree."""
    chance = random.Random(seed)

    def tokens(most: int) -> list[int]:
        return [chance.randrange(3) for _ in range(chance.randint(1, most))]

    return [Pair(to_array(tokens(6)), to_array(tokens(3))) for _ in range(chance.randint(0, 40))]


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("most_choices", [0, 1, 2, 128])
def test_every_pair_is_answered_once_by_what_was_asked(seed: int, most_choices: int) -> None:
    pairs, longest = random_pairs(seed), 5

    reading, tails = plan_asks(pairs, longest=longest, most_choices=most_choices)

    answered: dict[int, tuple[list[int], list[int]]] = {}
    for ask in reading:
        assert 0 < len(ask.choices) <= most_choices
        for choice, owners in zip(ask.choices, ask.owners, strict=True):
            answered |= {at: (ask.context.tolist(), [choice]) for at in owners}
    for ask in tails:
        (owners,) = ask.owners
        answered |= {at: (ask.context.tolist(), list(ask.tail)) for at in owners}
    owned = [at for ask in (*reading, *tails) for owners in ask.owners for at in owners]
    assert sorted(owned) == list(range(len(pairs)))
    for at, pair in enumerate(pairs):
        row = (pair.context.tolist() + pair.continuation.tolist())[-longest:]
        size = len(pair.continuation)
        assert answered[at] == (row[:-size], row[-size:])


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_asked_twice_and_prompts_come_sorted(seed: int) -> None:
    reading, tails = plan_asks(random_pairs(seed), longest=9, most_choices=128)

    asked = [(ask.prompt(), len(ask.context)) for ask in tails]
    contexts = [ask.prompt() for ask in reading]

    assert len({(tuple(prompt), size) for prompt, size in asked}) == len(asked)
    assert contexts == sorted(contexts)
    assert [prompt for prompt, _ in asked] == sorted(prompt for prompt, _ in asked)
    assert len({tuple(context) for context in contexts}) == len(contexts)


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_shards_are_ranges_of_whole_documents(count: int) -> None:
    requests = [
        Request(index, index // 3, index % 3, 0, "loglikelihood", ()) for index in range(21)
    ]

    shards = [shard_requests(requests, at, count) for at in range(count)]

    assert [request for shard in shards for request in shard] == requests
    documents = [{request.doc_id for request in shard} for shard in shards]
    assert sum(map(len, documents)) == 7


def test_calls_hold_so_many_tokens_and_one_request_at_least() -> None:
    assert split_calls([], 10) == []
    assert split_calls([4, 4, 4, 30, 1], 10) == [range(2), range(2, 3), range(3, 4), range(4, 5)]


def test_a_seed_is_of_one_request() -> None:
    first = Request(0, 0, 0, 0, "generate_until", ())
    repeated = Request(1, 0, 0, 1, "generate_until", ())

    seeds = [
        request_seed(seed, digest, request)
        for seed in (1, 2)
        for digest in ("a", "b")
        for request in (first, repeated)
    ]

    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 1 << 63 for seed in seeds)
