"""Slots on several nodes: labels, shares of GPUs, one kind of hardware, nodes that come."""

from typing import Any

import pytest

from raypeft import api
from raypeft.core.spec import Sweep
from tests.chaos.conftest import StartNight
from tests.chaos.hosts import Hosts
from tests.chaos.night import Night

pytestmark = [pytest.mark.ray, pytest.mark.torch, pytest.mark.slow]

SCRIPT = {"waits": True, "seconds": 0.2, "hardware": "$CHAOS_DEVICE"}


def kind(device: str) -> dict[str, Any]:
    """Return the options of a node with two GPUs that Ray calls as it calls all others."""
    return {"labels": {"raypeft/hw": device}, "env_vars": {"CHAOS_DEVICE": device}}


@pytest.fixture
def mixed(cluster: Hosts) -> Hosts:
    """The cluster with two kinds of nodes."""
    cluster.have(kind("red"), kind("blue"))
    return cluster


def devices(night: Night) -> set[str]:
    """Return on what the cells were answered, all shards of each."""
    return {
        device
        for cell in api.open(night.sweep.output).cells.to_pylist()
        for device in str(cell["device"]).split("; ")
    }


def ready(night: Night) -> set[str]:
    """Return the devices of slots that became ready."""
    return {str(one.fields["device"]) for one in night.entries() if one.kind == "slot_ready"}


def finish(night: Night, calm: Sweep) -> None:
    assert night.end() == 0, night.said()
    night.check(calm)


def test_one_base_stays_on_the_hardware_of_its_first_slot(
    start_night: StartNight, mixed: Hosts, calm: Sweep
) -> None:
    night = start_night(script=SCRIPT, schedule={"slots": 3, "shards": 5})
    finish(night, calm)
    assert len(devices(night)) == 1
    assert ready(night) == devices(night)
    assert "base' is pinned to" in night.said()


def test_where_it_is_allowed_a_base_is_on_all_hardware_and_gains_say_so(
    start_night: StartNight, mixed: Hosts, calm: Sweep
) -> None:
    hardware = {"gpus": 1, "cpus": 1, "allow_mixed": True}
    night = start_night(script=SCRIPT, hardware=hardware, schedule={"slots": 4, "shards": 5})
    assert night.end() == 0, night.said()
    assert ready(night) == {"red", "blue"}
    reasons = {str(gain["reason"]) for gain in api.open(night.sweep.output).gains.to_pylist()}
    assert any("mixed hardware" in reason for reason in reasons), reasons


def test_labels_choose_the_nodes_and_shares_of_gpus_are_slots(
    start_night: StartNight, mixed: Hosts, calm: Sweep
) -> None:
    hardware: dict[str, Any] = {"gpus": 0.5, "cpus": 0.5, "labels": {"raypeft/hw": "!red"}}
    night = start_night(script=SCRIPT, hardware=hardware, schedule={"slots": 3, "shards": 5})
    finish(night, calm)
    assert devices(night) == ready(night) == {"blue"}
    assert night.count("slot_ready") == 3  # on two GPUs


def test_slots_wait_for_nodes_that_come_and_it_is_said_for_what(
    start_night: StartNight, mixed: Hosts, calm: Sweep
) -> None:
    night = start_night(
        script={**SCRIPT, "seconds": 0.6},
        hardware={"gpus": 1, "cpus": 1, "labels": {"raypeft/hw": "green"}},
        schedule={"slots": 4, "shards": 5},
    )
    night.wait_to_hear("a slot waits for a node that the cluster does not have")
    assert "has 'red' where raypeft/hw must be 'green'" in night.said()
    assert (night.count("start_slot"), night.count("slot_placed")) == (4, 0)
    mixed.add(**kind("green"))
    assert night.wait_for("slot_ready", 2), night.said()
    mixed.add(**kind("green"))
    assert night.wait_for("slot_ready", 4), night.said()
    finish(night, calm)
    assert devices(night) == {"green"}
    assert night.count("start_slot") == night.count("stop_slot") == 4
