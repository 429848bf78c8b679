"""The lease on a sweep's output: one driver at a time, and a dead one's place can be taken.

Two drivers on one output would answer everything twice and write over each other's tables. The
holder renews its lease while it lives; one whose process is gone from this machine, or that was
not renewed for a while elsewhere, can be taken over. A holder that finds another in its place,
because it was paused for too long, has lost it and must end. Times are given by the caller.

On a file system the lease is only read and written under a lock, which ends with its process, so
that of two drivers that start at once one has it, and a paused one cannot write over another's.
Object stores and file systems without locks have nothing alike: there the last of two that start at
once has it, and the other one finds that out when it next renews.

The store needs no lease: there the first file of a name wins, and all files of a name are alike.
"""

import json
import os
import platform
import secrets
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from raypeft.errors import SetupError
from raypeft.store.files import Folder, Location

LEASE_FILE = "lease.json"

LOCK_FILE = ".lease.lock"
"""What is locked, not the lease itself: that is replaced whenever it is written. It is never
removed, or two drivers could lock two files of its name."""

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
        machine: Which boot of which machine, and which of its process tables: containers may have
            one name and not see one another's processes.
        process: When the process began, by the machine's own count: ids are used again.
        token: Tells this lease from an earlier one of the same process.
    """

    host: str
    pid: int
    began_seconds: float
    renewed_seconds: float
    machine: str = ""
    process: str = ""
    token: str = ""

    @property
    def is_elsewhere(self) -> bool:
        """Whether its process cannot be seen from here, so that only its silence tells."""
        return self.machine != _machine() if self.machine else self.host != platform.node()

    def is_alive(self, now_seconds: float) -> bool:
        """Return whether the holder still works, as far as can be told from here."""
        if not self.is_elsewhere:
            return _process_exists(self.pid) and self.process in ("", _process(self.pid))
        return now_seconds - self.renewed_seconds < STALE_SECONDS


class LeaseHolder:
    """Holds the lease on an output; made by `take_lease`."""

    def __init__(self, output: Location, lease: Lease) -> None:
        self._output = output
        self._folder = Folder(output)
        self._lease = lease

    def renew(self, now_seconds: float) -> None:
        """Say that this driver lives.

        Raises:
            LeaseLostError: If another driver has taken its place, or the lease was removed.
            SetupError: If it cannot be written.
        """
        self._check(now_seconds)  # an output that was removed is not made again for its lock
        with self._folder.locked(LOCK_FILE):
            self._check(now_seconds)
            self._lease = replace(self._lease, renewed_seconds=now_seconds)
            _write(self._folder, self._lease)

    def release(self) -> None:
        """Give the lease back, if it is still this driver's."""
        if read_lease(self._output) is None:
            return
        with self._folder.locked(LOCK_FILE):
            found = read_lease(self._output)
            if found is not None and found.token == self._lease.token:
                self._folder.remove(LEASE_FILE)

    def _check(self, now_seconds: float) -> None:
        found = read_lease(self._output)
        if found is None or found.token != self._lease.token:
            place = self._folder.place()
            whose = "nobody" if found is None else f"process {found.pid} on {found.host}"
            idle = now_seconds - self._lease.renewed_seconds
            raise LeaseLostError(
                f"{place} is now worked on by {whose}: this run was silent for {idle:.0f} s",
                "let the other one finish; what this one has finished is stored",
            )


class LeaseLostError(SetupError):
    """Another driver works on the output."""


def read_lease(output: Location) -> Lease | None:
    """Return who holds an output; None if nobody does."""
    data = Folder(output).read(LEASE_FILE)
    if data is None:
        return None
    try:
        return Lease(**json.loads(data))
    except (ValueError, TypeError):
        return None  # torn by a machine that died


def living_holder(output: Location, now_seconds: float) -> Lease | None:
    """Return the lease of another driver that holds an output and lives, as far as can be told."""
    held = read_lease(output)
    if held is None or not held.is_alive(now_seconds) or _is_mine(held):
        return None
    return held


def take_lease(output: Location, now_seconds: float) -> LeaseHolder:
    """Take the lease on an output.

    Raises:
        SetupError: If a driver that lives holds it.
    """
    folder = Folder(output)
    lease = Lease(
        host=platform.node(),
        pid=os.getpid(),
        began_seconds=now_seconds,
        renewed_seconds=now_seconds,
        machine=_machine(),
        process=_process(os.getpid()),
        token=secrets.token_hex(8),
    )
    with folder.locked(LOCK_FILE):
        held = living_holder(output, now_seconds)
        if held is not None:
            raise _refusal(output, held, now_seconds)
        _write(folder, lease)
        found = read_lease(output)
        if found is None or found.token != lease.token:  # both started at once, without a lock
            raise _refusal(output, found or lease, now_seconds)
    return LeaseHolder(output, lease)


def _refusal(output: Location, held: Lease, now_seconds: float) -> SetupError:
    return SetupError(
        f"another run works on {Folder(output).place()}: process {held.pid} on {held.host}, "
        f"last heard of {max(0.0, now_seconds - held.renewed_seconds):.0f} s ago",
        f"wait for it or stop it; if it is dead, its lease ends within {STALE_SECONDS:.0f} s",
    )


def _encoded(lease: Lease) -> bytes:
    return json.dumps(asdict(lease)).encode()


def _write(folder: Folder, lease: Lease) -> None:
    folder.write(LEASE_FILE, _encoded(lease))


def _is_mine(lease: Lease) -> bool:
    here = (platform.node(), os.getpid(), _process(os.getpid()))
    return (lease.host, lease.pid, lease.process or here[2]) == here


def _process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _process(pid: int) -> str:
    """Return when a process began, as the kernel counts; empty where there is no /proc."""
    with suppress(OSError, IndexError):
        # The name stands in brackets, and may hold both brackets and spaces.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "ended" if fields[0] in _ENDED else fields[19]
    return ""


_ENDED = ("Z", "X")
"""Killed, and only waiting for its parent to ask how it ended."""


def _machine() -> str:
    """Return which boot of a machine this is, and whose processes it sees; empty if unknown."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    return ""
