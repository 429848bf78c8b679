"""Failures that last: what no further try can change is not tried again the next night.

An adapter that does not fit its base fails in the same way whenever it is tried, and trying it
loads the base. So such a failure is remembered under the cell's identity (another adapter, base or
request set is another cell) and under the versions that judged it: an upgrade asks again.
"""

from importlib.metadata import PackageNotFoundError, version

from raypeft import __version__
from raypeft.core.identity import canonical
from raypeft.core.records import Failure, FailureKind
from raypeft.errors import SetupError
from raypeft.store.store import Store

LASTING = frozenset(
    {
        FailureKind.DOES_NOT_FIT,
        FailureKind.NOT_APPLIED,
        FailureKind.NO_EFFECT,
        FailureKind.NOT_FINITE,
        FailureKind.UNSAFE,
        FailureKind.UNSUPPORTED,
    }
)

_JUDGES = ("torch", "transformers", "peft", "lm_eval", "vllm")


def remember_failure(store: Store, cell: str, failure: Failure) -> None:
    """Remember why a cell failed, if that lasts."""
    if failure.kind not in LASTING or failure.retryable:
        return
    try:
        store.put_memo("failure", _key(cell), [str(failure.kind), failure.message])
    except SetupError:
        return  # it is tried again, which costs time and nothing else


def remembered_failure(store: Store, cell: str) -> Failure | None:
    """Return why a cell failed before, if that lasts."""
    value = store.get_memo("failure", _key(cell))
    if not isinstance(value, list):
        return None
    kind, message = value
    return Failure(FailureKind(kind), message)


def _key(cell: str) -> str:
    return canonical([cell, __version__, *map(_version, _JUDGES)])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
