from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypeft.core.accelerators import UNKNOWN_GPU, known_gpu, processor
from raypeft.core.cost import (
    MIN_SHARD_TOKENS,
    BaseSize,
    Expectation,
    Measured,
    Work,
    estimate_tokens,
    expectation,
    expected_load_seconds,
    expected_seconds,
    measured_load,
    shard_count,
    unit_seconds,
    work_of,
)
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


def test_requests_of_a_document_share_its_context_and_documents_do_not() -> None:
    four = [Request(n, n, 0, 0, "loglikelihood", ("c" * 400, "c" * 40)) for n in range(4)]
    apart = replace(make_request_set("x", 1), requests=tuple(four))
    assert (work_of(apart).tokens, work_of(apart).shared_tokens) == (4 * 111, 4 * 111)
    together = replace(apart, requests=tuple(replace(each, doc_id=0) for each in four))
    assert work_of(together) == Work(
        tokens=4 * 111, shared_tokens=111 + 3 * 11, generated_tokens=0, num_requests=4
    )


def test_what_is_written_is_counted_apart_from_what_is_read() -> None:
    work = work_of(of(("generate_until", ("c" * 400, {"max_gen_toks": 32}))))
    assert (work.tokens, work.generated_tokens) == (101, 32)


# --- what work is expected to take ------------------------------------------------------------

EIGHT_BILLION = BaseSize(num_parameters=8 * 10**9, weight_bytes=16 * 10**9)
MANY = Work(tokens=10**7, shared_tokens=10**7, num_requests=10**4)
H100 = known_gpu("NVIDIA H100 80GB HBM3")


def test_reading_is_bound_by_arithmetic() -> None:
    assert H100 is not None
    seconds = expected_seconds(MANY, EIGHT_BILLION, H100, "vllm")
    # 10^7 tokens, 16 * 10^9 operations each, 45 % of 990 * 10^12 a second; and the requests.
    assert seconds == pytest.approx(10**7 * 16e9 / (0.45 * 990e12) + 2.0)


def test_writing_is_bound_by_reading_the_weights_where_few_texts_are_written_at_once() -> None:
    assert H100 is not None
    writing = Work(generated_tokens=1000)
    seconds = expected_seconds(writing, EIGHT_BILLION, H100, "hf")
    assert seconds == pytest.approx(1000 * 16e9 / 3350e9 / 8)
    assert expected_seconds(writing, EIGHT_BILLION, H100, "vllm") < seconds / 4


def test_what_is_not_shared_is_read_again() -> None:
    assert H100 is not None
    work = replace(MANY, shared_tokens=10**6)
    shared, plain = (
        expected_seconds(work, EIGHT_BILLION, H100, "hf", sharing=sharing)
        for sharing in (True, False)
    )
    assert plain > 5 * shared


def test_a_larger_or_wider_base_takes_longer_and_so_does_a_slower_device() -> None:
    assert H100 is not None
    seconds = expected_seconds(MANY, EIGHT_BILLION, H100, "hf")
    wide = replace(EIGHT_BILLION, weight_bytes=32 * 10**9, is_float32=True)
    assert expected_seconds(MANY, wide, H100, "hf") > 10 * seconds
    assert expected_seconds(MANY, EIGHT_BILLION, UNKNOWN_GPU, "hf") > 10 * seconds
    assert expected_seconds(MANY, EIGHT_BILLION, processor(8), "hf") > 1000 * seconds


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("H200", "H200"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA A10G", "A10G"),
        ("Tesla T4", "T4"),
        ("NVIDIA RTX A6000", "A6000"),
    ],
)
def test_a_gpu_is_known_by_its_name(name: str, found: str) -> None:
    machine = known_gpu(name)
    assert machine is not None
    assert machine.name == found


def test_nothing_is_known_of_other_devices() -> None:
    assert known_gpu("Some Accelerator X1") is None
    assert known_gpu("") is None


# --- what was measured ------------------------------------------------------------------------


def measured(*seconds: float, base: str = "b", device: str = "d") -> list[Measured]:
    return [
        Measured(kind="hf", base_digest=base, device=device, reference_seconds=10.0, seconds=each)
        for each in seconds
    ]


def pace(records: list[Measured], base: str = "b", device: str = "d") -> Expectation | None:
    return expectation(records, kind="hf", base_digest=base, device=device)


def test_too_few_measurements_are_none() -> None:
    assert pace(measured(20.0, 20.0)) is None
    assert pace(measured(20.0, 20.0, 20.0), device="another") is None


def test_an_outlier_does_not_move_what_is_expected() -> None:
    found = pace(measured(20.0, 20.5, 19.5, 20.0, 900.0))
    assert found is not None
    assert found.factor == pytest.approx(2.0, rel=0.03)
    assert found.basis == "5 units of this base on d"


def test_a_base_is_judged_by_its_own_measurements_before_those_of_others() -> None:
    records = measured(20.0, 20.0, 20.0) + measured(50.0, 50.0, 50.0, base="other")
    own, third = pace(records), pace(records, base="third")
    assert own is not None
    assert third is not None
    assert own.factor == pytest.approx(2.0)
    assert 2.0 < third.factor < 5.0
    assert "other bases" in third.basis
    assert third.high > own.high


def test_what_took_no_time_or_was_expected_to_take_none_says_nothing() -> None:
    useless = [replace(r, reference_seconds=0.0) for r in measured(1.0, 1.0, 1.0)]
    assert pace(useless + measured(0.0, 0.0, 0.0)) is None


def test_four_fifths_of_what_is_measured_lie_in_the_interval() -> None:
    random = Random(1)
    held = trials = 0
    for _ in range(200):
        seconds = [10.0 * random.lognormvariate(0.5, 0.4) for _ in range(20)]
        found = pace(measured(*seconds))
        assert found is not None
        for _ in range(10):
            real = random.lognormvariate(0.5, 0.4) / found.factor
            held += found.low <= real <= found.high
            trials += 1
    assert 0.75 < held / trials < 0.87


def test_a_load_is_the_median_of_those_of_the_same_base_and_device() -> None:
    records = measured(30.0, 40.0, 500.0) + measured(1.0, base="other")
    assert measured_load(records, "b", "d") == 40.0
    assert measured_load(records, "b", "another") is None


def test_a_load_that_nobody_has_measured_is_its_weights_at_a_gigabyte_a_second() -> None:
    assert expected_load_seconds(EIGHT_BILLION, "hf") == 15.0 + 16.0
    assert expected_load_seconds(EIGHT_BILLION, "vllm") == 75.0 + 16.0


# --- cutting ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "slots", "seconds"),
    [(100.0, 1, 60.0), (20_000.0, 1, 1000.0), (1e9, 1, 1200.0), (1e6, 100, 500.0)],
)
def test_a_unit_takes_minutes_and_is_short_against_the_night(
    total: float, slots: int, seconds: float
) -> None:
    assert unit_seconds(total, slots) == seconds


@pytest.mark.parametrize(
    ("tokens", "seconds", "shards"),
    [(10**6, 50.0, 1), (10**6, 600.0, 10), (10**6, 601.0, 11), (40_000, 600.0, 2), (5, 600.0, 1)],
)
def test_a_request_set_is_cut_into_units_but_never_below_what_is_worth_it(
    tokens: int, seconds: float, shards: int
) -> None:
    assert shard_count(tokens, seconds, 60.0) == shards


@given(st.integers(0, 10**9), st.floats(0, 1e7), st.floats(1.0, 1e4))
def test_shards_are_never_small(tokens: int, seconds: float, longest: float) -> None:
    shards = shard_count(tokens, seconds, longest)
    assert shards >= 1
    assert shards == 1 or tokens // shards >= MIN_SHARD_TOKENS
