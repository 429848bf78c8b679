"""Storage fails for a while, and a disk is full."""

import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from raypeft.core.spec import Sweep
from tests.chaos.conftest import StartNight
from tests.chaos.driver import EXIT_INTERRUPTED, EXIT_REFUSED
from tests.chaos.night import check_nothing_twice, remaining
from tests.support.lab import assert_same_tables

pytestmark = [pytest.mark.ray, pytest.mark.torch, pytest.mark.slow]


@pytest.mark.usefixtures("hosts")
def test_a_store_that_fails_for_a_while_ends_no_night(start_night: StartNight, calm: Sweep) -> None:
    night = start_night()
    assert night.wait_for("unit_done", 4), night.said()
    answers = Path(night.sweep.store) / "answers"
    away = answers.rename(answers.with_name("away"))
    answers.touch()  # a file where the folder was: no write below it can succeed
    night.wait_to_hear("tried again for")
    answers.unlink()
    away.rename(answers)
    assert night.end() == 0, night.said()
    night.check(calm)


SMALL_DISK = """
mount -t tmpfs -o size={size} none "$0" && cp -r "$1/." "$0" || exit 99
shift
"$@"
code=$?
cp -r "$STORE/." "$COPY"
exit $code
"""


@pytest.mark.usefixtures("hosts")
def test_a_full_disk_loses_nothing_that_was_finished(
    start_night: StartNight, calm: Sweep, tmp_path: Path
) -> None:
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]).returncode:
        pytest.skip("a small disk needs user and mount namespaces, which are closed here")
    night = start_night(starts=False)
    store = Path(night.sweep.store)
    seed, copy = tmp_path / "seed", tmp_path / "copy"
    shutil.copytree(store, seed)
    copy.mkdir()
    size = sum(path.stat().st_size for path in seed.rglob("*")) + 200 * 1024
    night.environment = {"STORE": str(store), "COPY": str(copy)}
    script = SMALL_DISK.format(size=size)
    night.start(["unshare", "-rm", "sh", "-c", script, str(store), str(seed)])
    night.wait_to_hear("No space left on device")
    night.wait_to_hear("tried again for")
    # The shell waits for the driver, which alone is to be told.
    (driver,) = subprocess.check_output(["pgrep", "-P", str(night.drivers[-1].pid)]).split()
    subprocess.run(["kill", f"-{signal.SIGTERM}", driver.decode()], check=True)
    assert night.end() in (EXIT_INTERRUPTED, EXIT_REFUSED), night.said()

    shutil.rmtree(store)
    copy.rename(store)
    assert remaining(store) == []
    before = night.count("unit_done")
    assert before > 0
    night.start()
    assert night.end() == 0, night.said()
    assert_same_tables(calm.output, night.sweep.output)
    check_nothing_twice(night.entries())
