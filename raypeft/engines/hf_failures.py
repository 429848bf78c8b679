"""What an exception from torch or PEFT means for the subject that caused it.

Decides: out of memory, a broken device, or a crash of this subject. Leaves to others: making the
model clean again.
"""

import gc

import torch

from raypeft.core.records import Failure, FailureKind
from raypeft.errors import CellError, EngineFatalError

_OUT_OF_MEMORY_TEXTS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
# After these every later call on the device fails as well, or gives wrong numbers.
_FATAL_TEXTS = (
    "CUDA error",
    "device-side assert",
    "an illegal memory access",
    "CUBLAS_STATUS_EXECUTION_FAILED",
    "CUDNN_STATUS_EXECUTION_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, on a GPU or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        text in str(error) for text in _OUT_OF_MEMORY_TEXTS
    )


def is_fatal(error: BaseException) -> bool:
    """Return whether the device or the engine is beyond use."""
    if isinstance(error, EngineFatalError):
        return True
    if not isinstance(error, RuntimeError) or is_out_of_memory(error):
        return False
    return any(text in str(error) for text in _FATAL_TEXTS)


def as_failure(error: Exception, what: str, detail: str) -> Failure:
    """Return an exception as the failure of one subject.

    Args:
        error: What was raised.
        what: Whom it happened to, for the message.
        detail: The traceback.
    """
    if isinstance(error, CellError):
        return Failure(FailureKind(error.kind), error.message, error.retryable)
    if is_out_of_memory(error):
        first = str(error).strip().partition("\n")[0]
        return Failure(
            FailureKind.OUT_OF_MEMORY,
            f"{what}: memory ran out ({first}); use a smaller batch_size, or "
            "batch_tokens where contexts are shared",
            retryable=True,
            detail=detail,
        )
    return Failure(
        FailureKind.CRASHED,
        f"{what}: {type(error).__name__}: {error}",
        retryable=True,
        detail=detail,
    )


def free_memory() -> None:
    """Give unused memory back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
