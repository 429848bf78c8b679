"""Holding the lease on an output while a run works on it."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from raypeft.errors import Interrupted, SetupError
from raypeft.store.lease import RENEW_SECONDS, LeaseHolder, LeaseLostError, take_lease


@contextmanager
def leased(output: str, *, every_seconds: float = RENEW_SECONDS) -> Iterator[None]:
    """Hold the lease on an output; a thread renews it, also while a unit runs in this process.

    If another run takes it meanwhile, this one is asked to stop as a signal would ask it.

    Args:
        output: The sweep's output.
        every_seconds: How often it is renewed.

    Raises:
        SetupError: If a run that lives holds it; when the block ends, if another run took it.
    """
    holder = take_lease(output, time.time())
    done = threading.Event()
    lost: list[LeaseLostError] = []
    arguments = (holder, done, lost, every_seconds)
    thread = threading.Thread(target=_renew, args=arguments, name="lease", daemon=True)
    thread.start()
    try:
        yield
        if lost:
            raise lost[0]
    except Interrupted as error:
        if lost:
            raise lost[0] from error
        raise
    finally:
        done.set()
        thread.join()
        with suppress(SetupError):  # what it stood for is over; it ends by itself
            holder.release()


def _renew(
    holder: LeaseHolder, done: threading.Event, lost: list[LeaseLostError], every_seconds: float
) -> None:
    while not done.wait(every_seconds):
        try:
            holder.renew(time.time())
        except LeaseLostError as error:
            lost.append(error)
            _stop_this_run()
            return
        except SetupError:
            continue  # a full disk stops the run where it matters, at the answers


def _stop_this_run() -> None:
    """Ask the driver to stop, as a signal does; without one there is nothing to stop."""
    if signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, signal.SIG_IGN, None):
        os.kill(os.getpid(), signal.SIGTERM)
