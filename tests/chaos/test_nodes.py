"""Slots and nodes are killed, hang and drain at random moments; nobody can see it afterwards."""

from random import Random

import pytest

from raypeft.core.spec import Sweep
from tests.chaos.conftest import StartNight
from tests.chaos.hosts import Hosts
from tests.chaos.night import Night, check_drained_nodes_got_nothing_more

pytestmark = [pytest.mark.ray, pytest.mark.torch, pytest.mark.slow]

NUM_UNITS = 45
LOSSES = ("kill slot", "kill node", "hang node", "drain and kill node")


def strike(kind: str, night: Night, hosts: Hosts, random: Random) -> None:
    """Do one of the things that a night must survive."""
    if kind == "kill slot":
        while (slot := hosts.busy(random)) is None:
            assert night.wait_for("slot_ready", night.count("slot_ready") + 1)
        slot.kill()
        return
    host = random.choice(hosts.workers)
    match kind:
        case "kill node":
            hosts.kill(host)
        case "hang node":
            hosts.hang(host)
        case "drain node":
            hosts.drain(host)
        case "drain and kill node":
            hosts.drain(host)
            night.wait_for("unit_done", night.count("unit_done") + random.randrange(1, 4))
            hosts.kill(host)
    hosts.add()  # as an autoscaler does


def test_a_night_survives_its_nodes(
    seed: int, start_night: StartNight, hosts: Hosts, calm: Sweep
) -> None:
    random = Random(seed)
    # A unit that costs three slots is held to be the cause, so no more than two are taken.
    strikes = [*random.sample(LOSSES, 2), "drain node"]
    random.shuffle(strikes)
    moments = sorted(random.sample(range(1, NUM_UNITS - 15), len(strikes)))
    print(f"seed {seed}: {list(zip(moments, strikes, strict=True))}")
    night = start_night()
    for moment, kind in zip(moments, strikes, strict=True):
        assert night.wait_for("unit_done", moment), night.said()
        strike(kind, night, hosts, random)
    assert night.end() == 0, night.said()
    night.check(calm)
    check_drained_nodes_got_nothing_more(night.entries())
    assert night.count("slot_lost") + night.count("stop_slot") >= len(strikes)


def test_what_a_node_that_hangs_still_answers_is_not_heard(
    start_night: StartNight, hosts: Hosts, calm: Sweep
) -> None:
    night = start_night(script={"waits": True, "seconds": 0.6})
    assert night.wait_for("unit_done", 5), night.said()
    host = max(hosts.workers, key=lambda one: len(one.slots()))
    slots = host.slots()
    hosts.hang(host)
    assert night.wait_for("slot_lost", len(slots)), night.said()
    # It was declared dead, and its slots' processes live.
    assert all(slot.is_running() for slot in slots)
    assert night.end() == 0, night.said()
    night.check(calm)
