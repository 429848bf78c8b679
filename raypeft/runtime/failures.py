"""Exceptions → failures, where a broad handler turns one into an event.

Knows our own errors and Python's; `raypeft.runtime.pool` adds Ray's.
"""

import traceback

from raypeft.core.records import Failure, FailureKind
from raypeft.errors import CellError, SetupError, SpecError, StoreError

MAX_DETAIL_CHARS = 20_000
"""The end of a traceback says most; a longer one would swell the tables."""


def failure_from(error: BaseException) -> Failure:
    """Return what an exception means for the work that raised it."""
    detail = traceback_text(error)
    if isinstance(error, CellError):
        return Failure(kind_of(error.kind), _cell_message(error), error.retryable, detail)
    if isinstance(error, SpecError):
        return Failure(FailureKind.SPEC, str(error), detail=detail)
    if isinstance(error, StoreError):
        return Failure(FailureKind.UNREADABLE, str(error), detail=detail)
    if isinstance(error, SetupError):
        return Failure(FailureKind.CRASHED, str(error), detail=detail)
    message = f"{type(error).__name__}: {error}"
    if is_out_of_memory(error):
        return Failure(FailureKind.OUT_OF_MEMORY, message, retryable=True, detail=detail)
    return Failure(FailureKind.CRASHED, message, retryable=True, detail=detail)


def load_failure_from(error: BaseException) -> Failure:
    """Return what an exception means that was raised while a base was loaded."""
    failure = failure_from(error)
    if failure.kind is FailureKind.CRASHED and not isinstance(error, CellError):
        return Failure(FailureKind.LOAD_FAILED, failure.message, failure.retryable, failure.detail)
    return failure


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the accelerator or beside it."""
    # By name: torch moved the class once, and must not be imported to ask.
    names = {cls.__name__ for cls in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"})


def kind_of(name: str) -> FailureKind:
    """Return the kind of this name, or `crashed` for a name that is none."""
    try:
        return FailureKind(name)
    except ValueError:
        return FailureKind.CRASHED


def traceback_text(error: BaseException) -> str:
    """Return the traceback, its end if it is long."""
    return "".join(traceback.format_exception(error))[-MAX_DETAIL_CHARS:]


def _cell_message(error: CellError) -> str:
    known = kind_of(error.kind) == error.kind
    return error.message if known else f"{error.kind}: {error.message}"
