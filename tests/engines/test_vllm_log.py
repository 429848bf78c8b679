"""What vLLM's processes write is kept, and says what they died of."""

import multiprocessing
import os
from collections.abc import Iterator

import pytest

from raypeft.core.failures import FailureKind
from raypeft.engines.vllm_log import ProcessLog, fatal
from raypeft.errors import EngineFatalError

RAN_OUT = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
HINT = "(EngineCore pid=7) WARNING 11-24 12:00:00 [x.py:1] lower it if you run out of memory"


@pytest.fixture
def log() -> Iterator[ProcessLog]:
    log = ProcessLog()
    yield log
    log.close()
    log.close()


def write(*lines: str) -> None:
    for number, line in enumerate(lines):
        os.write(1 + number % 2, f"{line}\n".encode())


def written(log: ProcessLog, *lines: str) -> None:
    """Let a process write these lines, on both of its outputs."""
    process = multiprocessing.get_context("spawn").Process(target=write, args=lines)
    with log.of_started():
        process.start()
    process.join()
    assert process.exitcode == 0


def test_a_process_writes_into_the_log_and_this_one_where_it_did(
    log: ProcessLog, capfd: pytest.CaptureFixture[str]
) -> None:
    written(log, "one", "two")
    os.write(1, b"mine\n")

    assert log.tail().split() == ["one", "two"]
    assert capfd.readouterr().out == "mine\n"


def test_the_cause_is_told_and_a_hint_is_none(log: ProcessLog) -> None:
    written(log, HINT, f"ERROR {RAN_OUT}", "RuntimeError: Engine core initialization failed.")

    ended = fatal("base 'b': vLLM raised", RuntimeError("see above"), log)

    assert log.last_words() == f"ERROR {RAN_OUT}"
    assert ended.kind == FailureKind.OUT_OF_MEMORY
    assert RAN_OUT in ended.message
    assert any(HINT in note for note in ended.__notes__)


def test_without_words_of_memory_it_is_a_crash_with_its_first_error(log: ProcessLog) -> None:
    written(log, HINT, "ValueError: no such tokenizer", "RuntimeError: worker failed")

    ended = fatal("base 'b'", EngineFatalError("its process ended"), log)

    assert ended.kind == FailureKind.CRASHED
    assert (
        ended.message
        == "base 'b': its process ended (its processes: ValueError: no such tokenizer)"
    )


def test_a_log_that_is_closed_has_no_words() -> None:
    log = ProcessLog()
    log.close()
    assert log.last_words() == ""
