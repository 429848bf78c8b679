"""What is raised by torch or PEFT becomes the right kind of failure."""

import pytest
import torch

from raypeft.core.records import FailureKind
from raypeft.engines.hf_failures import as_failure, is_fatal, is_out_of_memory
from raypeft.errors import CellError, EngineFatalError

pytestmark = pytest.mark.torch

OUT_OF_MEMORY: list[Exception] = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
]
FATAL: list[Exception] = [
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    EngineFatalError("gone"),
]
ORDINARY: list[Exception] = [RuntimeError("size mismatch"), ValueError("CUDA error in a message")]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=repr)
def test_out_of_memory_is_retryable_and_not_fatal(error: Exception) -> None:
    failure = as_failure(error, "subject 'a'", "trace")

    assert is_out_of_memory(error)
    assert not is_fatal(error)
    assert failure.kind is FailureKind.OUT_OF_MEMORY
    assert failure.retryable
    assert "smaller batch_size" in failure.message


@pytest.mark.parametrize("error", FATAL, ids=repr)
def test_a_broken_device_is_fatal(error: Exception) -> None:
    assert is_fatal(error)


@pytest.mark.parametrize("error", ORDINARY, ids=repr)
def test_anything_else_is_a_crash_with_its_traceback(error: Exception) -> None:
    failure = as_failure(error, "subject 'a'", "the traceback")

    assert not is_fatal(error)
    assert failure.kind is FailureKind.CRASHED
    assert failure.retryable
    assert failure.detail == "the traceback"
    assert type(error).__name__ in failure.message


def test_a_named_failure_keeps_its_name() -> None:
    failure = as_failure(CellError(FailureKind.DOES_NOT_FIT, "why"), "subject 'a'", "trace")

    assert failure.kind is FailureKind.DOES_NOT_FIT
    assert failure.message == "why"
    assert not failure.retryable
