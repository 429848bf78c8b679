import json
import threading
from pathlib import Path

import pytest

from raypeft.api.leasing import leased
from raypeft.errors import Interrupted
from raypeft.runtime.stopping import stopping
from raypeft.store.lease import LEASE_FILE, LeaseLostError, read_lease


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
