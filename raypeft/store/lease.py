"""The lease on a sweep's output: one driver at a time, and a dead one's place can be taken.

Two drivers on one output would answer everything twice and write over each other's tables. The
holder renews its lease while it lives; one that was not renewed for a while, or whose process is
gone from this machine, can be taken over. Times are given by the caller.

The store needs no lease: there the first file of a name wins, and all files of a name are alike.
"""

import json
import os
import platform
from dataclasses import asdict, dataclass, replace

from raypeft.errors import SetupError
from raypeft.store.files import Folder, Location

LEASE_FILE = "lease.json"

RENEW_SECONDS = 10.0
"""How often a holder renews."""

STALE_SECONDS = 90.0
"""After this long without renewal a holder on another machine is taken for dead. Writing to an
object store may take a while, and pausing a driver for some seconds must not cost it its output."""


@dataclass(frozen=True, slots=True)
class Lease:
    """Who works on an output.

    Attributes:
        host: The machine.
        pid: The process.
        began_seconds: When it took the lease, in seconds since the epoch.
        renewed_seconds: When it last said that it lives.
    """

    host: str
    pid: int
    began_seconds: float
    renewed_seconds: float

    def is_alive(self, now_seconds: float) -> bool:
        """Return whether the holder still works, as far as can be told from here."""
        if self.host == platform.node():
            return _process_exists(self.pid)
        return now_seconds - self.renewed_seconds < STALE_SECONDS


class LeaseHolder:
    """Holds the lease on an output; made by `take_lease`."""

    def __init__(self, folder: Folder, lease: Lease) -> None:
        self._folder = folder
        self._lease = lease

    def renew(self, now_seconds: float) -> None:
        """Say that this driver lives."""
        self._lease = replace(self._lease, renewed_seconds=now_seconds)
        _write(self._folder, self._lease)

    def release(self) -> None:
        """Give the lease back."""
        self._folder.remove(LEASE_FILE)


def read_lease(output: Location) -> Lease | None:
    """Return who holds an output; None if nobody does."""
    data = Folder(output).read(LEASE_FILE)
    if data is None:
        return None
    try:
        return Lease(**json.loads(data))
    except (ValueError, TypeError):
        return None  # torn by a machine that died


def take_lease(output: Location, now_seconds: float) -> LeaseHolder:
    """Take the lease on an output.

    Raises:
        SetupError: If a driver that lives holds it.
    """
    held = read_lease(output)
    if held is not None and held.is_alive(now_seconds) and not _is_mine(held):
        raise _refusal(output, held, now_seconds)
    lease = Lease(platform.node(), os.getpid(), now_seconds, now_seconds)
    folder = Folder(output)
    _write(folder, lease)
    found = read_lease(output)
    if found is not None and not _is_mine(found):  # both started at once; the last one has it
        raise _refusal(output, found, now_seconds)
    return LeaseHolder(folder, lease)


def _refusal(output: Location, held: Lease, now_seconds: float) -> SetupError:
    return SetupError(
        f"another run works on {Folder(output).place()}: process {held.pid} on {held.host}, "
        f"last heard of {max(0.0, now_seconds - held.renewed_seconds):.0f} s ago",
        f"wait for it or stop it; if it is dead, its lease ends within {STALE_SECONDS:.0f} s",
    )


def _write(folder: Folder, lease: Lease) -> None:
    folder.write(LEASE_FILE, json.dumps(asdict(lease)).encode())


def _is_mine(lease: Lease) -> bool:
    return (lease.host, lease.pid) == (platform.node(), os.getpid())


def _process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
