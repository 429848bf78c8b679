"""The same with a real engine: a tiny model that computes its answers."""

from pathlib import Path
from random import Random
from typing import Any

import pytest

from raypeft import api
from raypeft.core.spec import Sweep, make_sweep
from tests.chaos.conftest import StartNight, lab_values
from tests.chaos.hosts import Hosts
from tests.support.lab import Lab

pytestmark = [pytest.mark.ray, pytest.mark.torch, pytest.mark.slow]

ENGINE: dict[str, Any] = {"kind": "hf", "batch_size": 4}
# The device is the processor: GPUs that are not there can be counted, and not computed on.
HARDWARE = {"gpus": 0, "cpus": 2}


@pytest.fixture(scope="session")
def calm_model(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    folder: Path = tmp_path_factory.mktemp("calm-model")
    sweep = make_sweep(lab_values(lab, folder, engine=ENGINE))
    assert api.run(sweep, pool="local").failed == {}
    return sweep


def test_a_model_that_is_killed_at_work_answers_alike(
    seed: int, start_night: StartNight, hosts: Hosts, calm_model: Sweep
) -> None:
    random = Random(seed)
    night = start_night(
        engine=ENGINE, hardware=HARDWARE, schedule={"slots": 2, "shards": 3}, tasks=TASKS
    )
    assert night.wait_for("unit_done", random.randrange(1, 8)), night.said()
    if (slot := hosts.busy(random)) is not None:
        slot.kill()
    assert night.wait_for("unit_done", night.count("unit_done") + random.randrange(1, 4))
    night.kill()
    night.start()
    assert night.end() == 0, night.said()
    night.check(calm_model)


TASKS = ["tiny_letters", "tiny_gen", "tiny_rolling"]
