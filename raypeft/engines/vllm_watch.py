"""Waits for vLLM, and notices when its process is gone.

Decides: when a call that may never return is given up. Leaves to others: what is called.

vLLM's client waits for an engine process that was killed (by the kernel, for its memory, above all)
without end: it puts nothing into the queue that the call reads.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from typing import TypeVar

from raypeft.errors import EngineFatalError

_LOOK_S = 0.5
_GRACE_S = 5.0
"""Seconds in which vLLM may still say by itself what happened."""

_T = TypeVar("_T")


def call_watched(call: Callable[[], _T], processes: Sequence[BaseProcess]) -> _T:
    """Return what a call returns, or raise what it raises.

    Args:
        call: What may wait forever.
        processes: The engine's own; without any it runs in this one, and there is nothing to watch.

    Raises:
        EngineFatalError: If one of the processes ends while the call waits.
    """
    if not processes:
        return call()
    done: queue.SimpleQueue[tuple[_T | None, BaseException | None]] = queue.SimpleQueue()
    # A thread that waits for a dead process never ends; the slot that it is in does.
    threading.Thread(target=_run, args=(call, done), daemon=True, name="vllm-call").start()
    while True:
        try:
            result, error = done.get(timeout=_LOOK_S)
        except queue.Empty:
            if all(process.is_alive() for process in processes):
                continue
            result, error = _last_words(done, processes)
        if error is not None:
            raise error
        return result  # type: ignore[return-value]  # there is a result where there is no error


def _run(
    call: Callable[[], _T], done: "queue.SimpleQueue[tuple[_T | None, BaseException | None]]"
) -> None:
    try:
        done.put((call(), None))
    except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
        done.put((None, error))


def _last_words(
    done: "queue.SimpleQueue[tuple[_T | None, BaseException | None]]",
    processes: Sequence[BaseProcess],
) -> tuple[_T | None, BaseException | None]:
    try:
        return done.get(timeout=_GRACE_S)
    except queue.Empty:
        ended = [f"{one.name}: exit code {one.exitcode}" for one in processes if not one.is_alive()]
        return None, EngineFatalError(
            f"vLLM's process ended while it was waited for ({', '.join(ended)}); -9 is often the "
            "kernel, out of memory"
        )
