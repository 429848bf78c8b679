"""Holding the lease on an output while a run works on it."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from raypeft.errors import Interrupted, SetupError
from raypeft.store.lease import (
    RENEW_SECONDS,
    STALE_SECONDS,
    LeaseHolder,
    LeaseLostError,
    living_holder,
    take_lease,
)

LOOK_SECONDS = 1.0
"""How often it is looked whether a holder elsewhere has renewed its lease."""


@contextmanager
def leased(
    output: str,
    *,
    every_seconds: float = RENEW_SECONDS,
    say: Callable[[str], None] = lambda text: None,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[None]:
    """Hold the lease on an output; a thread renews it, also while a unit runs in this process.

    A holder on another machine may just have been killed, as by a cluster that starts this driver
    in its place: it is waited for, until it renews its lease or that has ended.

    If another run takes it meanwhile, this one is asked to stop as a signal would ask it.

    Args:
        output: The sweep's output.
        every_seconds: How often it is renewed.
        say: Told if a holder elsewhere is waited for.
        clock: Seconds since the epoch.
        sleep: Waits for so many seconds.

    Raises:
        SetupError: If a run that lives holds it; when the block ends, if another run took it.
    """
    _wait_for_silent(output, say, clock, sleep)
    holder = take_lease(output, clock())
    done = threading.Event()
    lost: list[LeaseLostError] = []
    arguments = (holder, done, lost, every_seconds, clock)
    thread = threading.Thread(target=_renew, args=arguments, name="lease", daemon=True)
    thread.start()
    try:
        yield
        if lost:
            raise lost[0]
    except (Interrupted, KeyboardInterrupt) as error:
        if lost:
            raise lost[0] from error
        raise
    finally:
        done.set()
        thread.join()
        with suppress(SetupError):  # what it stood for is over; it ends by itself
            holder.release()


def _wait_for_silent(
    output: str,
    say: Callable[[str], None],
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> None:
    """Wait until a holder elsewhere gives a sign of life, or is silent for too long to live.

    Whether the output may be taken then is `take_lease`'s business, which names who renewed.
    """
    began = clock()
    first = held = living_holder(output, began)
    if first is None or not first.is_elsewhere:
        return
    rest = min(STALE_SECONDS, first.renewed_seconds + STALE_SECONDS - began)
    say(
        f"process {first.pid} on {first.host} works on {output} or was killed: waiting up to "
        f"{rest:.0f} s for a sign of life"
    )
    # Bounded by this machine's clock too: the other one's may be ahead.
    while held == first and clock() - began < STALE_SECONDS:
        sleep(LOOK_SECONDS)
        held = living_holder(output, clock())


def _renew(
    holder: LeaseHolder,
    done: threading.Event,
    lost: list[LeaseLostError],
    every_seconds: float,
    clock: Callable[[], float],
) -> None:
    while not done.wait(every_seconds):
        try:
            holder.renew(clock())
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
