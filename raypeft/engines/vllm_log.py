"""What vLLM's processes write: kept, since nothing else says what they died of.

Decides: which of their lines are the words of a death. Leaves to others: what these mean
(`core.vllm_ladder`).

A core that fails leaves "see root cause above" to whoever waits for it, and the cause stands in
what it, or a worker below it, has written.
"""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing.process import BaseProcess

from raypeft.core.failures import FailureKind
from raypeft.core.vllm_ladder import cause_of
from raypeft.errors import EngineFatalError

_TAIL_BYTES = 200_000
_TAIL_CHARS = 6_000
_ERROR = re.compile(r"\b[A-Za-z_.]*(?:Error|Exception)\b: \S")
# Hints among the warnings speak of memory, too.
_HARMLESS = re.compile(r"\b(?:DEBUG|INFO|WARNING) \d\d-\d\d ")


class ProcessLog:
    """Keeps what processes write that were started under it, until it is closed."""

    def __init__(self) -> None:
        # Unbuffered: the processes write into the same file.
        self._file = tempfile.TemporaryFile(mode="a+b", buffering=0)  # noqa: SIM115 - see `close`

    @contextlib.contextmanager
    def of_started(self) -> Iterator[None]:
        """Let every process started meanwhile, and those below it, write into this log.

        Nothing can be told to `multiprocessing` about a child's output; it inherits what is open
        under the numbers 1 and 2 at the moment it is started. Only then is this process's own
        output elsewhere.
        """
        own = BaseProcess.start

        def start(process: BaseProcess) -> None:
            with self._in_place_of_output():
                own(process)

        BaseProcess.start = start  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            BaseProcess.start = own  # type: ignore[method-assign]

    def tail(self) -> str:
        """Return the end of what was written."""
        if self._file.closed:
            return ""
        size = os.fstat(self._file.fileno()).st_size
        data = os.pread(self._file.fileno(), _TAIL_BYTES, max(0, size - _TAIL_BYTES))
        return data.decode("utf-8", errors="replace")

    def last_words(self) -> str:
        """Return the line that tells a death's cause, or an empty text."""
        lines = [line for line in self.tail().splitlines() if not _HARMLESS.search(line)]
        short = [line for line in lines if cause_of(line)]
        # The first error is the cause of those that follow.
        errors = [line for line in lines if _ERROR.search(line)]
        found = short[:1] or errors[:1]
        return found[0].strip() if found else ""

    def close(self) -> None:
        """Forget everything; twice is harmless."""
        self._file.close()

    @contextlib.contextmanager
    def _in_place_of_output(self) -> Iterator[None]:
        sys.stdout.flush()
        sys.stderr.flush()
        kept = [(number, os.dup(number)) for number in (1, 2)]
        try:
            for number, _ in kept:
                os.dup2(self._file.fileno(), number)
            yield
        finally:
            for number, copy in kept:
                os.dup2(copy, number)
                os.close(copy)


def fatal(message: str, error: BaseException, log: ProcessLog) -> EngineFatalError:
    """Return an exception of vLLM as the end of an engine, with what its processes wrote.

    Args:
        message: What it happened to.
        error: What was raised.
        log: Of the engine's processes.
    """
    said = getattr(error, "message", str(error))
    words = log.last_words()
    ran_out = cause_of(f"{type(error).__name__}: {said}") or cause_of(words)
    kind = FailureKind.OUT_OF_MEMORY if ran_out else FailureKind.CRASHED
    told = f"{said} (its processes: {words})" if words else said
    ended = EngineFatalError(f"{message}: {told}", kind)
    if tail := log.tail()[-_TAIL_CHARS:].strip():
        ended.add_note(f"What vLLM's processes wrote last:\n{tail}")
    return ended
