from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypeft.engines.hf_batches import Pair, to_array
from raypeft.engines.packing import (
    MIN_PREFIX_TOKENS,
    MOST_BRANCH_TOKENS,
    Packed,
    Packing,
    common_prefix,
    pack,
)

pytestmark = pytest.mark.torch

tokens = st.integers(0, 5)
contexts = st.lists(tokens, min_size=1, max_size=12)
continuations = st.lists(tokens, min_size=1, max_size=6)


@st.composite
def request_lists(draw: st.DrawFn) -> list[Pair]:
    """Requests of few contexts and few tokens, so that much is shared; some begin alike."""
    starts = draw(st.lists(contexts, min_size=1, max_size=4))
    common = draw(st.sampled_from([[], [1] * MIN_PREFIX_TOKENS, list(range(6)) * 8]))
    pairs = []
    for _ in range(draw(st.integers(1, 14))):
        context = draw(st.sampled_from(starts))
        context = common + context if draw(st.booleans()) else context
        pairs.append(Pair(to_array(context), to_array(draw(continuations))))
    return pairs


def text_before(packed: Packed, row_number: int, place: int) -> list[int]:
    """Return the tokens that a place of a row sees, itself the last, as a row of its own."""
    row = packed.rows[row_number]
    seen = [
        (int(row.depths[at]), int(row.tokens[at]))
        for at in range(place + 1)
        if row.branches[at] in (0, row.branches[place])
    ]
    prefix = packed.prefix.tolist() if row.has_prefix else []
    # Depths are those of a plain row: 0, 1, 2, … without a gap.
    assert [depth for depth, _ in seen] == list(range(len(prefix), len(prefix) + len(seen)))
    return prefix + [token for _, token in seen]


@settings(deadline=None, max_examples=300)
@given(request_lists(), st.integers(8, 70), st.integers(1, 200))
def test_every_request_is_answered_once_from_the_tokens_lm_eval_would_use(
    pairs: list[Pair], max_length: int, batch_tokens: int
) -> None:
    packed = pack(pairs, Packing(max_length, batch_tokens))
    answered: list[int] = list(packed.left_out)
    for number, row in enumerate(packed.rows):
        for read in row.reads:
            assert len(read.places) == len(read.targets)
            for position in read.positions:
                answered.append(position)
                pair = pairs[position]
                assert list(read.targets) == pair.continuation.tolist()
                whole = pair.context.tolist() + pair.continuation.tolist()
                for step, place in enumerate(read.places):
                    expected = whole[: len(pair.context) + step]
                    assert text_before(packed, number, place) == expected
    assert sorted(answered) == list(range(len(pairs)))


@settings(deadline=None)
@given(request_lists(), st.integers(8, 70), st.integers(1, 200))
def test_requests_longer_than_the_model_are_left_out_and_no_others(
    pairs: list[Pair], max_length: int, batch_tokens: int
) -> None:
    packed = pack(pairs, Packing(max_length, batch_tokens))
    too_long = [
        at
        for at, pair in enumerate(pairs)
        # lm-eval cuts a row whose input, all but the last token, exceeds the model.
        if len(pair.context) + len(pair.continuation) - 1 > max_length
    ]
    assert list(packed.left_out) == too_long


@settings(deadline=None)
@given(request_lists(), st.integers(1, 200), st.integers(1, 9))
def test_shards_partition_the_rows_and_do_not_depend_on_the_batches(
    pairs: list[Pair], batch_tokens: int, count: int
) -> None:
    packed = pack(pairs, Packing(100, batch_tokens))
    parts = [packed.shard_rows(index, count) for index in range(count)]
    assert [at for part in parts for at in part] == list(range(len(packed.rows)))
    assert [at for batch in packed.batches for at in batch] == list(range(len(packed.rows)))


@settings(deadline=None)
@given(request_lists(), st.integers(1, 200))
def test_a_batch_keeps_to_its_tokens_unless_one_row_exceeds_them(
    pairs: list[Pair], batch_tokens: int
) -> None:
    packed = pack(pairs, Packing(100, batch_tokens))
    for batch in packed.batches:
        rows = packed.rows[batch.start : batch.stop]
        padded = len(rows) * max(len(row.tokens) for row in rows)
        assert padded <= batch_tokens or len(rows) == 1
        assert len({row.has_prefix for row in rows}) == 1


def make_pairs(context: Sequence[int], *choices: Sequence[int]) -> list[Pair]:
    return [Pair(to_array(list(context)), to_array(list(choice))) for choice in choices]


def test_letters_of_a_document_are_one_row_of_its_context() -> None:
    packed = pack(make_pairs([7, 8, 9], [1], [2], [3]), Packing(100, 100))
    (row,) = packed.rows
    assert row.tokens.tolist() == [7, 8, 9]
    assert [read.places for read in row.reads] == [(2,)] * 3


def test_choices_share_their_context_and_equal_requests_are_one() -> None:
    pairs = make_pairs([7, 8], [1, 2, 3], [4, 5], [4, 5], [1, 2, 6])
    (row,) = pack(pairs, Packing(100, 100)).rows
    # One branch for the two that differ in their last token only.
    assert row.tokens.tolist() == [7, 8, 1, 2, 4]
    assert [read.positions for read in row.reads] == [(0,), (1, 2), (3,)]


def test_shots_that_are_the_same_for_all_documents_are_left_out_of_the_rows() -> None:
    shots = list(range(100, 150))
    pairs = [p for at in range(5) for p in make_pairs([*shots, 200 + at, 9], [1], [2])]
    packed = pack(pairs, Packing(100, 1000))
    assert packed.prefix.tolist() == shots
    assert [len(row.tokens) for row in packed.rows] == [2] * 5


def test_a_document_that_begins_otherwise_keeps_its_whole_context() -> None:
    shots = list(range(100, 150))
    pairs = [p for at in range(5) for p in make_pairs([*shots, 200 + at], [1])]
    pairs += make_pairs([1, 2, 3], [1])
    packed = pack(pairs, Packing(100, 1000))
    assert [(row.has_prefix, len(row.tokens)) for row in packed.rows] == [(True, 1)] * 5 + [
        (False, 3)
    ]


def test_shots_that_differ_between_documents_give_no_prefix() -> None:
    rng = np.random.default_rng(0)
    contexts = [to_array(rng.integers(0, 100, 60)) for _ in range(8)]
    assert common_prefix(contexts) == (0, ())


def test_a_row_is_no_longer_than_the_model_though_its_texts_are_short() -> None:
    pairs = make_pairs(range(10), *([at] * 8 for at in range(9)))
    packed = pack(pairs, Packing(20, 1000))
    assert all(len(row.tokens) <= 20 for row in packed.rows)


def test_many_long_choices_are_spread_over_rows() -> None:
    pairs = make_pairs([1, 2, 3], *([9, at, at + 1, at + 2] for at in range(500)))
    packed = pack(pairs, Packing(10_000, 100_000))
    assert len(packed.rows) == 2
    assert all(len(row.tokens) <= 3 + MOST_BRANCH_TOKENS for row in packed.rows)


@settings(deadline=None)
@given(request_lists(), st.integers(1, 200), st.integers(1, 150))
def test_slots_with_less_memory_cut_the_same_shards(
    pairs: list[Pair], batch_tokens: int, cached: int
) -> None:
    small = pack(pairs, Packing(100, batch_tokens, batch_cached_tokens=cached))
    large = pack(pairs, Packing(100, 1 << 16))
    assert [row.positions for row in small.rows] == [row.positions for row in large.rows]
    assert small.shard_rows(1, 3) == large.shard_rows(1, 3)


@settings(deadline=None)
@given(request_lists(), st.integers(1, 12), st.integers(1, 150))
def test_a_batch_keeps_to_its_places_and_to_what_its_prefix_takes(
    pairs: list[Pair], batch_places: int, cached: int
) -> None:
    packed = pack(pairs, Packing(100, 200, batch_places, cached))
    for batch in packed.batches:
        rows = packed.rows[batch.start : batch.stop]
        places = sum(len(row.places) for row in rows)
        front = len(packed.prefix) if rows[0].has_prefix else 0
        copies = len(rows) * (front + max(len(row.tokens) for row in rows))
        assert places <= batch_places or len(rows) == 1
        assert copies <= cached or len(rows) == 1
        for row in rows:
            # One continuation alone may exceed what a row may hold.
            assert len(row.places) <= batch_places or len({r.targets[:-1] for r in row.reads}) == 1


@settings(deadline=None)
@given(request_lists())
def test_each_place_is_computed_once_and_every_token_picks_its_own(pairs: list[Pair]) -> None:
    for row in pack(pairs, Packing(100, 200)).rows:
        assert len(set(row.places.tolist())) == len(row.places)
        places = [place for read in row.reads for place in read.places]
        assert row.places[row.picks].tolist() == places
        assert row.targets.tolist() == [target for read in row.reads for target in read.targets]


def test_letters_are_read_at_one_place() -> None:
    (row,) = pack(make_pairs([7, 8, 9], [1], [2], [3]), Packing(100, 100)).rows
    assert row.places.tolist() == [2]
    assert row.targets.tolist() == [1, 2, 3]


def test_rows_without_branches_are_batched_apart_as_they_need_no_mask() -> None:
    pairs = make_pairs([7, 8], [1, 2], [3, 4]) + make_pairs([5, 6, 7, 8], [1], [2])
    packed = pack(pairs, Packing(100, 100))
    assert [[packed.rows[at].has_branches for at in batch] for batch in packed.batches] == [
        [False],
        [True],
    ]
