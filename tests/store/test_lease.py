import json
import os
import platform
from pathlib import Path

import pytest

from raypeft.errors import SetupError
from raypeft.store.lease import LEASE_FILE, STALE_SECONDS, read_lease, take_lease

NOW = 1_000_000.0


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
