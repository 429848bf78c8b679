"""Batches are those lm-eval forms, and shards are whole batches."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.models.utils import Collator

from raypeft.core.records import Json
from raypeft.engines.hf_batches import (
    Pair,
    RollingPlan,
    batch_seed,
    generation_batches,
    is_sampled,
    pair_batches,
    shard_range,
    to_array,
)

pytestmark = pytest.mark.torch

TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=4)
PAIRS = st.lists(st.tuples(TOKENS, TOKENS), max_size=30)
COUNTS = st.integers(1, 9)


def rows_of_lm_eval(
    pairs: Sequence[tuple[list[int], list[int]]], batch_size: int
) -> list[list[list[int]]]:
    """Return the token rows of each batch, as `HFLM._loglikelihood_tokens` puts them together."""
    collator = Collator(
        [(None, *pair) for pair in pairs],
        sort_fn=lambda req: (-len(req[1] + req[2]), tuple(req[1] + req[2])),
        group_by="contexts",
        group_fn=lambda req: req[-2] + req[-1][:-1],
    )
    return [
        [given + scored for _, given, scored in chunk]
        for chunk in collator.get_batched(n=batch_size)
    ]


@given(num_items=st.integers(0, 50), count=COUNTS)
def test_shards_partition_in_order(num_items: int, count: int) -> None:
    parts = [shard_range(num_items, index, count) for index in range(count)]

    assert [item for part in parts for item in part] == list(range(num_items))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@settings(deadline=None)
@given(pairs=PAIRS, batch_size=st.integers(1, 5), count=COUNTS)
def test_a_shard_sorted_again_by_lm_eval_is_the_same_batches(
    pairs: list[tuple[list[int], list[int]]], batch_size: int, count: int
) -> None:
    batches = pair_batches(pairs, batch_size=batch_size, by_context=True)
    whole = rows_of_lm_eval(pairs, batch_size)
    assert sorted(position for batch in batches for position in batch) == list(range(len(pairs)))

    for index in range(count):
        own = shard_range(len(batches), index, count)
        positions = sorted(position for at in own for position in batches[at])
        again = rows_of_lm_eval([pairs[position] for position in positions], batch_size)
        assert again == whole[own.start : own.stop]


def test_choices_of_one_token_share_a_row() -> None:
    pairs = [([1, 2], [token]) for token in (5, 6, 7)] + [([1, 2], [5, 6])]

    assert pair_batches(pairs, batch_size=1, by_context=True) == ((3,), (0, 1, 2))
    assert len(pair_batches(pairs, batch_size=1, by_context=False)) == 4


GREEDY: dict[str, Json] = {"until": ["\n"], "max_gen_toks": 3}
SAMPLED: dict[str, Json] = GREEDY | {"do_sample": True, "temperature": 0.7}


@settings(deadline=None)
@given(
    texts=st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), max_size=20),
    batch_size=st.integers(1, 4),
)
def test_generation_batches_hold_one_kind_of_settings_sorted_by_length(
    texts: list[tuple[str, bool]], batch_size: int
) -> None:
    requests = [(text, SAMPLED if is_random else GREEDY) for text, is_random in texts]
    lengths = [ord(text) - ord("a") for text, _ in requests]

    batches = generation_batches(requests, lengths, batch_size=batch_size)

    assert sorted(at for batch in batches for at in batch.positions) == list(range(len(texts)))
    assert [batch.number for batch in batches] == list(range(len(batches)))
    for batch in batches:
        assert {texts[at][1] for at in batch.positions} == {batch.is_sampled}
        assert len(batch.positions) <= batch_size
    for kind in (True, False):
        longest = [
            [lengths[at] for at in batch.positions] for batch in batches if batch.is_sampled == kind
        ]
        assert all(min(one) >= max(two) for one, two in itertools.pairwise(longest))


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, False),
        ({"temperature": 0.0}, False),
        ({"temperature": 0.5}, True),
        ({"do_sample": True, "temperature": 0.5}, True),
        ({"do_sample": False, "temperature": 0.5}, False),
    ],
)
def test_sampling_is_what_lm_eval_takes_for_it(asked: dict[str, Json], expected: bool) -> None:
    assert is_sampled(asked) == expected


def test_seeds_differ_by_everything_they_come_from_and_are_pinned() -> None:
    seeds = {
        batch_seed(seed, request_set, number)
        for seed in (1, 2)
        for request_set in ("a", "b")
        for number in (0, 1)
    }

    assert len(seeds) == 8
    assert all(0 <= seed < 1 << 63 for seed in seeds)
    assert batch_seed(1234, "a", 0) == 4607007889691262992


def windows_of(lengths: Sequence[int]) -> list[list[Pair]]:
    return [[Pair(to_array([1]), to_array([2, 3]))] * length for length in lengths]


@given(lengths=st.lists(st.integers(0, 5), max_size=12), batch_size=st.integers(1, 4), count=COUNTS)
def test_rolling_shards_partition_requests_and_run_every_batch_they_need(
    lengths: list[int], batch_size: int, count: int
) -> None:
    plan = RollingPlan.of(windows_of(lengths), batch_size)

    parts = [plan.positions(index, count) for index in range(count)]

    assert [position for part in parts for position in part] == list(range(len(lengths)))
    for part in parts:
        batches = plan.batches(part)
        computed = {window for batch in batches for window in batch}
        own = range(plan.starts[part.start], plan.starts[part.stop]) if part else range(0)
        assert set(own) <= computed
        assert all(batch.start % batch_size == 0 for batch in batches)
        assert all(len(batch) == batch_size or batch.stop == len(plan.windows) for batch in batches)


def test_rolling_windows_are_added_up_in_order() -> None:
    plan = RollingPlan.of(windows_of([2, 0, 1]), batch_size=2)
    logprobs = {0: 1e16, 1: 1.0, 2: -3.0}

    assert plan.sums(range(3), logprobs) == [float(1e16 + 1.0), 0.0, -3.0]


def test_pairs_are_given_to_lm_eval_as_lists() -> None:
    pair = Pair(to_array([1, 2]), to_array([3]))

    assert pair.context.dtype == np.int32
    assert pair.as_lm_eval() == (None, [1, 2], [3])
