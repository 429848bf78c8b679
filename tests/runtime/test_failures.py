import pytest

from raypeft.core.records import FailureKind
from raypeft.errors import CellError, Problem, SetupError, SpecError, StoreError
from raypeft.runtime.failures import (
    MAX_DETAIL_CHARS,
    failure_from,
    is_out_of_memory,
    load_failure_from,
)


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    ("error", "kind", "retryable"),
    [
        (CellError("not_finite", "NaN in layer 3"), FailureKind.NOT_FINITE, False),
        (CellError("crashed", "once", retryable=True), FailureKind.CRASHED, True),
        (CellError("no such kind", "what"), FailureKind.CRASHED, False),
        (SpecError((Problem("a", "b"),)), FailureKind.SPEC, False),
        (StoreError("f.parquet", "version 9"), FailureKind.UNREADABLE, False),
        (SetupError("no room"), FailureKind.CRASHED, False),
        (OutOfMemoryError("CUDA out of memory"), FailureKind.OUT_OF_MEMORY, True),
        (MemoryError(), FailureKind.OUT_OF_MEMORY, True),
        (KeyError("x"), FailureKind.CRASHED, True),
    ],
)
def test_an_exception_becomes_a_failure_that_says_whether_to_try_again(
    error: Exception, kind: FailureKind, retryable: bool
) -> None:
    failure = failure_from(error)
    assert (failure.kind, failure.retryable) == (kind, retryable)
    assert failure.detail.startswith(
        ("raypeft.errors", type(error).__module__, type(error).__name__)
    )


def test_a_kind_that_is_none_stays_in_the_message() -> None:
    assert failure_from(CellError("no such kind", "what")).message == "no such kind: what"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("no CUDA"), FailureKind.LOAD_FAILED),
        (OSError("connection reset"), FailureKind.LOAD_FAILED),
        (MemoryError(), FailureKind.OUT_OF_MEMORY),
        (CellError("unreadable", "truncated"), FailureKind.UNREADABLE),
    ],
)
def test_an_exception_while_loading_is_a_failed_load_unless_it_says_more(
    error: Exception, kind: FailureKind
) -> None:
    assert load_failure_from(error).kind is kind


def test_the_end_of_a_long_traceback_is_kept() -> None:
    failure = failure_from(ValueError("x" * (2 * MAX_DETAIL_CHARS) + "the end"))
    assert len(failure.detail) == MAX_DETAIL_CHARS
    assert failure.detail.rstrip().endswith("the end")


def test_memory_errors_are_known_by_any_base_class() -> None:
    class SpecialError(OutOfMemoryError):
        pass

    assert is_out_of_memory(SpecialError())
    assert not is_out_of_memory(RuntimeError("out of memory"))
