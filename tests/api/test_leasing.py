import json
import os
import platform
import signal
import threading
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from raypeft.api.leasing import leased
from raypeft.errors import Interrupted, SetupError
from raypeft.runtime.stopping import interruptible, stopping
from raypeft.store.lease import LEASE_FILE, STALE_SECONDS, LeaseLostError, read_lease

NOW = 1_000_000.0


def take_over(output: Path) -> None:
    value = json.loads((output / LEASE_FILE).read_text())
    value |= {"host": "another-machine", "pid": 7, "token": "another"}
    new = output / "new.json"
    new.write_text(json.dumps(value))
    new.replace(output / LEASE_FILE)


def work_while_another_takes_over(output: Path) -> None:
    with leased(str(output), every_seconds=0.01), stopping() as stop:
        while not stop.signal_name:
            take_over(output)  # again: it may have been renewed at this moment
            threading.Event().wait(0.02)
        raise Interrupted(stop.signal_name)


def test_a_run_whose_output_was_taken_over_stops_and_says_by_whom(tmp_path: Path) -> None:
    with pytest.raises(LeaseLostError, match="process 7 on another-machine"):
        work_while_another_takes_over(tmp_path)
    left = read_lease(str(tmp_path))
    assert left is not None
    assert left.host == "another-machine"


def test_a_run_that_ends_gives_its_output_back(tmp_path: Path) -> None:
    with leased(str(tmp_path)):
        assert read_lease(str(tmp_path)) is not None
    assert read_lease(str(tmp_path)) is None


def test_an_interruption_stays_one_where_the_lease_is_held(tmp_path: Path) -> None:
    with pytest.raises(Interrupted), leased(str(tmp_path)):
        raise Interrupted("SIGINT")


class Elsewhere:
    """A holder on another machine, and the time that passes while it is waited for.

    Args:
        output: What it holds.
        renews_at: When it renews; never by default.
        ahead_seconds: How far its clock is ahead of this machine's.
    """

    def __init__(
        self, output: Path, renews_at: float = float("inf"), ahead_seconds: float = 0.0
    ) -> None:
        self._output = output
        self._renews_at = renews_at
        self._ahead_seconds = ahead_seconds
        self.now = NOW
        self.said: list[str] = []
        self.renew(NOW - 30.0)

    def renew(self, at_seconds: float) -> None:
        renewed = at_seconds + self._ahead_seconds
        value = {"host": "another-machine", "pid": 7, "began_seconds": 0.0, "token": "another"}
        lease = json.dumps({**value, "renewed_seconds": renewed})
        (self._output / LEASE_FILE).write_text(lease)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.now >= self._renews_at:
            self.renew(self.now)

    def lease(self) -> AbstractContextManager[None]:
        output = str(self._output)
        return leased(output, say=self.said.append, clock=lambda: self.now, sleep=self.sleep)


def test_a_holder_elsewhere_that_is_silent_is_waited_for_and_replaced(tmp_path: Path) -> None:
    dead = Elsewhere(tmp_path)
    with dead.lease():
        assert dead.now - NOW == pytest.approx(STALE_SECONDS - 30.0, abs=1.0)
        held = read_lease(str(tmp_path))
        assert held is not None
        assert held.host == platform.node()
    (text,) = dead.said
    assert "process 7 on another-machine" in text
    assert "waiting up to 60 s" in text


def test_a_holder_elsewhere_that_renews_is_refused_as_soon_as_it_does(tmp_path: Path) -> None:
    living = Elsewhere(tmp_path, renews_at=NOW + 7.0)
    with pytest.raises(SetupError, match="process 7 on another-machine, last heard of 0 s ago"):
        living.lease().__enter__()
    assert living.now == NOW + 7.0


def test_waiting_ends_also_where_the_other_clock_is_ahead(tmp_path: Path) -> None:
    ahead = Elsewhere(tmp_path, ahead_seconds=3600.0)
    with pytest.raises(SetupError, match="another-machine"):
        ahead.lease().__enter__()
    assert ahead.now - NOW == STALE_SECONDS


def test_a_holder_that_gives_its_output_back_is_followed_at_once(tmp_path: Path) -> None:
    leaving = Elsewhere(tmp_path)

    def sleep(seconds: float) -> None:
        leaving.now += seconds
        (tmp_path / LEASE_FILE).unlink()

    with leased(str(tmp_path), clock=lambda: leaving.now, sleep=sleep):
        assert leaving.now == NOW + 1.0


def test_waiting_can_be_interrupted(tmp_path: Path) -> None:
    def sleep(seconds: float) -> None:
        signal.raise_signal(signal.SIGTERM)

    dead = Elsewhere(tmp_path)
    waiting = leased(str(tmp_path), clock=lambda: dead.now, sleep=sleep)
    with pytest.raises(Interrupted, match="SIGTERM"), interruptible():
        waiting.__enter__()
    left = read_lease(str(tmp_path))
    assert left is not None
    assert left.host == "another-machine"


def test_a_holder_on_this_machine_is_refused_without_waiting(tmp_path: Path) -> None:
    value = {"host": platform.node(), "pid": os.getppid(), "began_seconds": 0.0}
    (tmp_path / LEASE_FILE).write_text(json.dumps({**value, "renewed_seconds": NOW}))
    waits: list[float] = []
    with pytest.raises(SetupError, match="another run works on"):
        leased(str(tmp_path), clock=lambda: NOW, sleep=waits.append).__enter__()
    assert waits == []
