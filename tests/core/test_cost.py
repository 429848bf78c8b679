from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypeft.core.cost import MIN_SHARD_TOKENS, estimate_tokens, shard_count
from raypeft.core.records import Json, Request, RequestSet, RequestType
from tests.support.plans import make_request_set


def of(*requests: tuple[RequestType, tuple[Json, ...]]) -> RequestSet:
    made = tuple(
        Request(index, index, 0, 0, kind, arguments)
        for index, (kind, arguments) in enumerate(requests)
    )
    return replace(make_request_set("x", 1), requests=made)


def test_a_log_likelihood_costs_its_context_and_its_continuation() -> None:
    assert estimate_tokens(of(("loglikelihood", ("c" * 396, "c" * 4)))) == 101


def test_a_generation_costs_what_it_may_write() -> None:
    prompt = "c" * 400
    limited = of(("generate_until", (prompt, {"until": ["\n"], "max_gen_toks": 32})))
    renamed = of(("generate_until", (prompt, {"max_new_tokens": 8})))
    unlimited = of(("generate_until", (prompt, {"until": ["\n"]})))
    assert estimate_tokens(limited) == 101 + 32
    assert estimate_tokens(renamed) == 101 + 8
    assert estimate_tokens(unlimited) == 101 + 256


def test_an_empty_request_still_costs_something() -> None:
    assert estimate_tokens(of(("loglikelihood_rolling", ("",)))) == 1


@pytest.mark.parametrize(
    ("tokens", "num_cells", "slots", "shards"),
    [
        (10**6, 8, 8, 1),
        (10**6, 100, 8, 1),
        (10**6, 1, 8, 8),
        (10**6, 3, 8, 3),
        (2 * MIN_SHARD_TOKENS, 1, 8, 2),
        (MIN_SHARD_TOKENS - 1, 1, 8, 1),
        (10**6, 0, 8, 1),
    ],
)
def test_a_request_set_is_cut_only_where_slots_would_idle(
    tokens: int, num_cells: int, slots: int, shards: int
) -> None:
    assert shard_count(tokens, num_cells, slots) == shards


@given(st.integers(0, 10**9), st.integers(0, 1000), st.integers(1, 1000))
def test_shards_are_never_small_and_never_more_than_slots(
    tokens: int, num_cells: int, slots: int
) -> None:
    shards = shard_count(tokens, num_cells, slots)
    assert 1 <= shards <= slots
    assert shards == 1 or tokens // shards >= MIN_SHARD_TOKENS
