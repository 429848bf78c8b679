"""Ctrl-C and SIGTERM → a request to stop, which the driver looks at between two events."""

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from raypeft.errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(slots=True)
class Stop:
    """Whether somebody asked for an end.

    Attributes:
        signal_name: The first signal that came, for instance `SIGTERM`; empty if none did.
    """

    signal_name: str = ""


_begun: list[Stop] = []
"""The requests that signals turn into, the innermost last."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Let a signal end the block at once with `Interrupted`, so that who called it can say so.

    For what is done before and after a driver's loop; inside, `stopping` takes signals over.
    Ray installs a handler of its own when it is started: enter this once more afterwards.
    Outside the main thread signals keep their meaning.

    Raises:
        Interrupted: After Ctrl-C or SIGTERM.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a fork, which is ended as ever
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        # Not `Interrupted` yet, which would count as a failure of what is just tried.
        raise KeyboardInterrupt(signal.Signals(number).name)

    previous = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(str(error) or "SIGINT") from error
    finally:
        _put_back(previous)


def stop_requested() -> bool:
    """Whether a signal has asked for an end; for whoever waits and is not the driver's loop."""
    return any(stop.signal_name for stop in _begun)


@contextmanager
def stopping() -> Iterator[Stop]:
    """Turn the first signal into a request; a second one raises `Interrupted` at once.

    Enter it after Ray was started, which installs a handler of its own. Outside the main thread,
    where Python allows no handler, signals keep their meaning.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if stop.signal_name:
            raise Interrupted(name)
        stop.signal_name = name

    previous = {number: signal.signal(number, handle) for number in _SIGNALS}
    _begun.append(stop)
    try:
        yield stop
    finally:
        _begun.remove(stop)
        _put_back(previous)


def _put_back(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        # None: the handler was not installed from Python and cannot be put back from here.
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
