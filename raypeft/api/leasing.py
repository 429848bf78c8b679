"""Holding the lease on an output while a run works on it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from raypeft.errors import SetupError
from raypeft.store.lease import RENEW_SECONDS, LeaseHolder, take_lease


@contextmanager
def leased(output: str) -> Iterator[None]:
    """Hold the lease on an output; a thread renews it, also while a unit runs in this process.

    Raises:
        SetupError: If a run that lives holds it.
    """
    holder = take_lease(output, time.time())
    done = threading.Event()
    thread = threading.Thread(target=_renew, args=(holder, done), name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        with suppress(SetupError):  # what it stood for is over; it ends by itself
            holder.release()


def _renew(holder: LeaseHolder, done: threading.Event) -> None:
    while not done.wait(RENEW_SECONDS):
        # A full disk stops the run where it matters, at the answers.
        with suppress(SetupError):
            holder.renew(time.time())
