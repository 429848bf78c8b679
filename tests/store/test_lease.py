import errno
import fcntl
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from raypeft.errors import SetupError
from raypeft.store import files
from raypeft.store.files import Folder
from raypeft.store.lease import (
    LEASE_FILE,
    LOCK_FILE,
    STALE_SECONDS,
    LeaseLostError,
    read_lease,
    take_lease,
)

NOW = 1_000_000.0
ROOT = Path(__file__).parents[2]

TAKE = """
import sys
from raypeft.store.lease import take_lease
take_lease(sys.argv[1], 1_000_000.0)
sys.stdin.readline()
"""

RACE = """
import sys
from raypeft.errors import SetupError
from raypeft.store.lease import take_lease
print("ready", flush=True)
sys.stdin.readline()
try:
    take_lease(sys.argv[1], 1_000_000.0)
    print("has it", flush=True)
except SetupError:
    print("refused", flush=True)
sys.stdin.readline()
"""


def write_lease(output: Path, host: str, pid: int, renewed_seconds: float) -> None:
    value = {"host": host, "pid": pid, "began_seconds": 0.0, "renewed_seconds": renewed_seconds}
    (output / LEASE_FILE).write_text(json.dumps(value))


def test_a_lease_is_taken_renewed_and_given_back(tmp_path: Path) -> None:
    holder = take_lease(str(tmp_path), NOW)
    lease = read_lease(str(tmp_path))
    assert lease is not None
    assert (lease.host, lease.pid) == (platform.node(), os.getpid())
    holder.renew(NOW + 50)
    renewed = read_lease(str(tmp_path))
    assert renewed is not None
    assert (renewed.began_seconds, renewed.renewed_seconds) == (NOW, NOW + 50)
    holder.release()
    assert read_lease(str(tmp_path)) is None


def test_a_holder_that_lives_on_this_machine_is_named(tmp_path: Path) -> None:
    write_lease(tmp_path, platform.node(), os.getppid(), NOW - 10 * STALE_SECONDS)
    with pytest.raises(SetupError, match=f"process {os.getppid()} on {platform.node()}"):
        take_lease(str(tmp_path), NOW)


def test_a_process_that_is_gone_from_this_machine_holds_nothing(tmp_path: Path) -> None:
    write_lease(tmp_path, platform.node(), 2**22 + 1, NOW)
    take_lease(str(tmp_path), NOW).release()


@pytest.mark.parametrize(
    ("age_seconds", "is_held"), [(STALE_SECONDS - 1, True), (STALE_SECONDS, False)]
)
def test_a_holder_elsewhere_is_dead_when_it_did_not_renew(
    tmp_path: Path, age_seconds: float, is_held: bool
) -> None:
    write_lease(tmp_path, "another-machine", os.getpid(), NOW - age_seconds)
    if is_held:
        with pytest.raises(SetupError, match="another-machine"):
            take_lease(str(tmp_path), NOW)
    else:
        take_lease(str(tmp_path), NOW).release()


def test_a_torn_lease_is_no_lease(tmp_path: Path) -> None:
    (tmp_path / LEASE_FILE).write_text('{"host": "x"')
    assert read_lease(str(tmp_path)) is None
    take_lease(str(tmp_path), NOW).release()


def test_a_killed_process_whose_end_nobody_asked_about_holds_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TAKE, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE) as holder:
        while read_lease(str(tmp_path)) is None:
            assert holder.poll() is None
        with pytest.raises(SetupError, match=f"process {holder.pid} on"):
            take_lease(str(tmp_path), NOW)
        holder.kill()
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # dead, and still in the table
        take_lease(str(tmp_path), NOW).release()


def test_a_process_that_only_has_the_id_of_a_dead_holder_holds_nothing(tmp_path: Path) -> None:
    take_lease(str(tmp_path), NOW)
    value = json.loads((tmp_path / LEASE_FILE).read_text())
    value |= {"pid": os.getppid(), "process": "1", "renewed_seconds": NOW}
    (tmp_path / LEASE_FILE).write_text(json.dumps(value))
    take_lease(str(tmp_path), NOW).release()


def test_a_namesake_whose_processes_cannot_be_seen_is_judged_by_its_silence(tmp_path: Path) -> None:
    take_lease(str(tmp_path), NOW)
    value = json.loads((tmp_path / LEASE_FILE).read_text())
    value |= {"machine": "another container", "pid": 2**22 + 1}
    (tmp_path / LEASE_FILE).write_text(json.dumps(value))
    with pytest.raises(SetupError, match="another run works on"):
        take_lease(str(tmp_path), NOW + STALE_SECONDS - 1)
    take_lease(str(tmp_path), NOW + STALE_SECONDS).release()


def test_a_holder_in_whose_place_is_another_has_lost_it(tmp_path: Path) -> None:
    first = take_lease(str(tmp_path), NOW)
    write_lease(tmp_path, "another-machine", 7, NOW + 200)
    with pytest.raises(LeaseLostError, match="worked on by process 7 on another-machine") as caught:
        first.renew(NOW + 200)
    assert "silent for 200 s" in caught.value.message
    first.release()
    left = read_lease(str(tmp_path))
    assert left is not None
    assert left.host == "another-machine"


def test_a_holder_whose_lease_was_removed_has_lost_it(tmp_path: Path) -> None:
    holder = take_lease(str(tmp_path), NOW)
    (tmp_path / LEASE_FILE).unlink()
    with pytest.raises(LeaseLostError, match="by nobody"):
        holder.renew(NOW)


@pytest.mark.parametrize("dead", [False, True])
def test_of_many_that_start_at_once_one_has_it(tmp_path: Path, dead: bool) -> None:
    if dead:
        write_lease(tmp_path, platform.node(), 2**22 + 1, NOW)
    command = [sys.executable, "-c", RACE, str(tmp_path)]
    racers = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(4)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == b"ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write(b"go\n")
        racer.stdin.flush()
    said = []
    for racer in racers:
        assert racer.stdout is not None
        said.append(racer.stdout.readline())
    for racer in racers:
        racer.communicate(b"end\n")
    assert sorted(said) == [b"has it\n", b"refused\n", b"refused\n", b"refused\n"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK_FILE, LEASE_FILE]


def test_nothing_is_decided_while_another_driver_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.0)
    holder = take_lease(str(tmp_path), NOW)
    with Folder(tmp_path).locked(LOCK_FILE):
        with pytest.raises(SetupError, match=LOCK_FILE):
            take_lease(str(tmp_path), NOW)
        with pytest.raises(SetupError, match=LOCK_FILE):
            holder.renew(NOW + 10)
    holder.renew(NOW + 20)


def test_a_lease_is_taken_and_kept_where_nothing_can_be_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(handle: int, how: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", unknown)
    write_lease(tmp_path, "another-machine", 1, NOW)
    with pytest.raises(SetupError, match="another-machine"):
        take_lease(str(tmp_path), NOW)
    holder = take_lease(str(tmp_path), NOW + STALE_SECONDS)
    holder.renew(NOW + STALE_SECONDS + 1)
    holder.release()
    assert read_lease(str(tmp_path)) is None
