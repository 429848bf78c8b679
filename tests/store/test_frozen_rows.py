import pytest
from hypothesis import HealthCheck, given, settings

from raypeft.core.records import Document, Request, RequestSet
from raypeft.store.frozen_rows import (
    failure_json,
    failure_of,
    group_json,
    group_of,
    request_set_of,
    request_set_table,
)
from raypeft.store.parquet import from_parquet, to_parquet
from tests.store.examples import any_request_set, choices, example_frozen, make_request_set

RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@RELAXED
@given(any_request_set())
def test_a_request_set_comes_back_equal_from_its_file(request_set: RequestSet) -> None:
    data = to_parquet(request_set_table(request_set))
    back = request_set_of(from_parquet(data, "requests", "place"))
    assert repr(back) == repr(request_set)


def test_a_document_stands_on_its_first_row_only() -> None:
    table = request_set_table(choices(num_documents=2, num_choices=3))
    assert [doc is not None for doc in table["doc"].to_pylist()] == [True, False, False] * 2
    assert table["context"].to_pylist() == ["Q0"] * 3 + ["Q1"] * 3
    assert table["continuation"].to_pylist() == [" 0", " 1", " 2"] * 2


def test_generation_settings_can_be_read_without_taking_arguments_apart() -> None:
    settings = {"until": ["\n\n"], "max_gen_toks": 8}
    request = Request(0, 0, 0, 0, "generate_until", ("Q", settings))
    table = request_set_table(make_request_set([request], [Document(0, {}, "A", "d", "t")]))
    assert table["gen_kwargs"].to_pylist() == ['{"until":["\\n\\n"],"max_gen_toks":8}']
    assert table["continuation"].to_pylist() == [None]


def test_a_document_without_requests_is_kept() -> None:
    request_set = make_request_set([], [Document(4, {"a": 1}, None, "d", "t")])
    assert request_set_of(request_set_table(request_set)) == request_set


def test_requests_out_of_order_are_refused() -> None:
    request = Request(1, 0, 0, 0, "loglikelihood", ("a", "b"))
    with pytest.raises(ValueError, match="not numbered 0, 1, 2"):
        request_set_table(make_request_set([request], [Document(0, {}, 0, "d", "t")]))


def test_groups_and_failures_come_back_equal() -> None:
    frozen = example_frozen(failed=True)
    (group,) = frozen.groups
    assert group_of(group_json(group)) == group
    failure = frozen.failures["other"]
    assert failure_of(failure_json(failure)) == failure
