import inspect

import pytest
import ray.exceptions as exceptions

from raypeft.core.records import FailureKind
from raypeft.errors import CellError
from raypeft.runtime.pool import failure_of

GONE = (FailureKind.SLOT_LOST, True)
TABLE = [
    (exceptions.ActorDiedError(), GONE),
    (exceptions.ActorUnavailableError("lost contact", None), GONE),
    (exceptions.RayActorError(actor_init_failed=True), (FailureKind.LOAD_FAILED, True)),
    (exceptions.RayActorError(preempted=True), GONE),
    (exceptions.OutOfMemoryError("killed by the monitor"), (FailureKind.OUT_OF_MEMORY, True)),
    (exceptions.WorkerCrashedError(), GONE),
    (exceptions.NodeDiedError("node down"), GONE),
    (exceptions.LocalRayletDiedError(), GONE),
    (exceptions.ObjectLostError("ab" * 28, None, ""), GONE),
    (exceptions.OwnerDiedError("ab" * 28, None, ""), GONE),
    (exceptions.ObjectReconstructionFailedError("ab" * 28), GONE),
    (exceptions.ActorUnschedulableError("never"), (FailureKind.LOAD_FAILED, False)),
    (exceptions.TaskUnschedulableError("never"), (FailureKind.LOAD_FAILED, False)),
    (exceptions.RuntimeEnvSetupError("no pip"), (FailureKind.LOAD_FAILED, False)),
    (exceptions.TaskCancelledError(), (FailureKind.INTERRUPTED, True)),
    (exceptions.GetTimeoutError("late"), (FailureKind.TIMED_OUT, True)),
    (exceptions.ObjectStoreFullError("full"), (FailureKind.CRASHED, True)),
    (exceptions.OutOfDiskError("full"), (FailureKind.CRASHED, True)),
    (exceptions.RaySystemError("broken"), (FailureKind.CRASHED, True)),
    (exceptions.PendingCallsLimitExceeded("many"), (FailureKind.CRASHED, True)),
    (exceptions.RpcError("reset"), (FailureKind.CRASHED, True)),
    (ModuleNotFoundError("no module x"), (FailureKind.CRASHED, True)),
]


@pytest.mark.parametrize(
    ("error", "expected"), TABLE, ids=[type(error).__name__ for error, _ in TABLE]
)
def test_an_exception_of_ray_says_what_became_of_the_work(
    error: Exception, expected: tuple[FailureKind, bool]
) -> None:
    failure = failure_of(error)
    assert (failure.kind, failure.retryable) == expected
    assert type(error).__name__ in failure.message
    assert "\n" not in failure.message


def test_every_exception_of_ray_that_means_a_death_is_in_the_table() -> None:
    known = {type(error) for error, _ in TABLE}
    deaths = {
        cls
        for name, cls in inspect.getmembers(exceptions, inspect.isclass)
        if issubclass(cls, exceptions.RayError) and name.endswith("DiedError")
    }
    assert deaths <= known


@pytest.mark.parametrize("retryable", [True, False])
def test_an_error_of_ours_keeps_its_kind_through_ray(retryable: bool) -> None:
    cause = CellError("not_finite", "NaN in layer 3", retryable)
    error = exceptions.RayTaskError("run", "the traceback", cause, "title", 1, "127.0.0.1")
    failure = failure_of(error.as_instanceof_cause())
    assert failure.kind is FailureKind.NOT_FINITE
    assert failure.message == "NaN in layer 3"
    assert failure.retryable is retryable
    assert "the traceback" in failure.detail
