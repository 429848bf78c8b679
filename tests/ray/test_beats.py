"""What a slot says while it answers: enough to tell a slow engine from one that hangs."""

from collections.abc import Iterator

import psutil
import pytest

from raypeft.core.events import Heartbeat, SlotReady
from raypeft.core.records import EngineSpec, Json
from raypeft.runtime.options import HardwareProfile
from raypeft.runtime.pool import RayConnection, RayPool
from raypeft.runtime.ports import UnitAnswered
from tests.contract.pool_contract import REQUESTS, collect, work

pytestmark = pytest.mark.ray


@pytest.fixture
def pool(local_ray: RayConnection) -> Iterator[RayPool]:
    pool = RayPool(local_ray, profile=HardwareProfile(cpus=1), num_slots=2, beat_seconds=0.1)
    yield pool
    pool.close()


def begin(pool: RayPool, slot: str, script: Json) -> None:
    pool.share(REQUESTS.digest, REQUESTS)
    options = {"script": script}
    spec = EngineSpec(kind="fake", base="base", base_digest="b0", options=options)
    pool.start_slot(slot, spec)
    collect(pool, SlotReady)
    pool.submit(slot, work(), 3)


def beats(pool: RayPool, count: int) -> list[Heartbeat]:
    found: list[Heartbeat] = []
    while len(found) < count:
        found += [event for event in pool.wait(5.0) if isinstance(event, Heartbeat)]
    return found


def test_a_slot_that_is_slow_says_that_it_gets_on(pool: RayPool) -> None:
    begin(pool, "s1", {"waits": True, "seconds": 30.0})
    heard = beats(pool, 4)
    assert {(beat.slot, beat.unit_id, beat.attempt) for beat in heard} == {("s1", "u", 3)}
    progress = [beat.progress for beat in heard]
    assert progress == sorted(progress)
    assert progress[-1] > progress[0]


def test_a_slot_that_hangs_says_that_it_does_not(pool: RayPool) -> None:
    begin(pool, "s1", {"events": [{"do": "hang"}]})
    heard = beats(pool, 4)
    assert {(beat.unit_id, beat.progress) for beat in heard} in ({("u", 0)}, {("u", 1)})


def test_a_monitor_that_dies_is_started_again(pool: RayPool) -> None:
    begin(pool, "s1", {"waits": True, "seconds": 60.0})
    assert beats(pool, 1)
    (monitor,) = monitors()
    monitor.kill()
    psutil.wait_procs([monitor], timeout=60)
    assert beats(pool, 1)


def test_short_units_need_no_monitor(local_ray: RayConnection) -> None:
    pool = RayPool(local_ray, profile=HardwareProfile(cpus=1), num_slots=1)
    begin(pool, "s1", {})
    collect(pool, UnitAnswered)
    assert monitors() == []
    pool.close()


def monitors() -> list[psutil.Process]:
    found = psutil.Process().children(recursive=True)
    return [process for process in found if process.name().startswith("ray::Monitor")]
