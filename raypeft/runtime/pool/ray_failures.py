"""What Ray's exceptions mean for the work they stand for: a plain table."""

import ray.exceptions

from raypeft.core.records import Failure, FailureKind
from raypeft.runtime.failures import MAX_DETAIL_CHARS, failure_from, traceback_text


def failure_of(error: BaseException) -> Failure:
    """Return what an exception of Ray means for the work it stands for."""
    exceptions = ray.exceptions
    text = str(error).strip()[-MAX_DETAIL_CHARS:] or type(error).__name__
    message = f"{type(error).__name__}: {text.splitlines()[0]}"

    def failure(kind: FailureKind, retryable: bool, what: str) -> Failure:
        return Failure(kind, f"{what} ({message})", retryable, text)

    match error:
        case exceptions.RayTaskError(cause=BaseException() as cause):
            inner = failure_from(cause)
            return Failure(inner.kind, inner.message, inner.retryable, text)
        case exceptions.OutOfMemoryError():
            what = "Ray stopped the process because its node ran out of memory"
            return failure(FailureKind.OUT_OF_MEMORY, True, what)
        case exceptions.RayActorError(actor_init_failed=True):
            return failure(FailureKind.LOAD_FAILED, True, "the slot's process could not begin")
        case exceptions.RayActorError(preempted=True):
            return failure(FailureKind.SLOT_LOST, True, "the slot's node was taken away")
        case exceptions.RayActorError():
            return failure(FailureKind.SLOT_LOST, True, "the slot's process is gone")
        case exceptions.ActorUnschedulableError() | exceptions.TaskUnschedulableError():
            return failure(FailureKind.LOAD_FAILED, False, "no node can ever take it")
        case exceptions.RuntimeEnvSetupError():
            return failure(FailureKind.LOAD_FAILED, False, "its environment could not be set up")
        case (
            exceptions.WorkerCrashedError()
            | exceptions.NodeDiedError()
            | exceptions.LocalRayletDiedError()
            | exceptions.ObjectLostError()
        ):
            return failure(FailureKind.SLOT_LOST, True, "its process or node is gone")
        case exceptions.TaskCancelledError():
            return failure(FailureKind.INTERRUPTED, True, "it was cancelled")
        case exceptions.GetTimeoutError():
            return failure(FailureKind.TIMED_OUT, True, "Ray gave no result in time")
        case exceptions.ObjectStoreFullError() | exceptions.OutOfDiskError():
            return failure(FailureKind.CRASHED, True, "Ray's object store or its disk is full")
        case exceptions.RayError():
            return failure(FailureKind.CRASHED, True, "Ray failed")
        case _:
            # An answer that this process cannot read.
            return Failure(FailureKind.CRASHED, message, True, traceback_text(error))
