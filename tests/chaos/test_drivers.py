"""Drivers are killed, stopped, started again, and started twice."""

import signal
from pathlib import Path
from random import Random

import pytest

from raypeft.core.spec import Sweep
from tests.chaos.conftest import StartNight
from tests.chaos.driver import EXIT_INTERRUPTED, EXIT_REFUSED
from tests.chaos.hosts import Hosts
from tests.chaos.night import Night

pytestmark = [pytest.mark.ray, pytest.mark.torch, pytest.mark.slow]


def test_a_night_survives_its_drivers(
    seed: int, start_night: StartNight, hosts: Hosts, calm: Sweep
) -> None:
    random = Random(seed)
    night = start_night(script={"waits": True, "seconds": 1.0})
    assert night.wait_for("unit_done", random.randrange(1, 6)), night.said()
    holder = night.drivers[-1]

    other = Night(night.sweep, hosts, night.folder / "second")
    other.start()
    assert other.end() == EXIT_REFUSED
    assert f"another run works on {night.sweep.output}: process {holder.pid}" in other.said()

    assert night.kill(signal.SIGKILL) == -signal.SIGKILL
    before = night.count("unit_done")
    night.start()  # takes over at once: its predecessor is dead
    assert night.wait_for("unit_done", before + random.randrange(1, 10)), night.said()
    assert night.kill(signal.SIGTERM) == EXIT_INTERRUPTED, night.said()
    night.start()
    assert night.end() == 0, night.said()
    night.check(calm)


@pytest.mark.usefixtures("hosts")
def test_calls_that_run_and_are_reported_failed_are_counted_once(
    seed: int, start_night: StartNight, calm: Sweep, tmp_path: Path
) -> None:
    failures = (
        '{"CoreWorkerService.grpc_client.PushTask": {"num_failures": 2, '
        '"req_failure_prob": 0, "resp_failure_prob": 30, "in_flight_failure_prob": 0}}'
    )
    random = Random(seed)
    events = [
        {"do": do, "adapter": name, "shard": random.randrange(5), "once": str(tmp_path / do)}
        for do, name in (("hang", "small"), ("out_of_memory", "large"), ("raise", "small"))
    ]
    night = start_night(
        events=events,
        environment={"RAY_testing_rpc_failure": failures},
        schedule={"slots": 3, "shards": 5, "unit_timeout": "8s"},
    )
    assert night.end() == 0, night.said()
    night.check(calm)
    kinds = {str(entry.fields.get("kind")) for entry in night.entries()}
    assert {"timed_out", "out_of_memory"} <= kinds | _reasons(night)


def _reasons(night: Night) -> set[str]:
    stopped = [entry for entry in night.entries() if entry.kind == "stop_slot"]
    return {"timed_out" for one in stopped if "unit_timeout" in str(one.fields["reason"])}
