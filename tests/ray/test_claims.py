"""Sweeps on one cluster, which tell one another through Ray what they hold and want."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_list, _internal_kv_put

from raypeft.core.events import CapacityChanged, SlotPlaced, SlotReady
from raypeft.runtime.options import HardwareProfile
from raypeft.runtime.pool import Claims, RayConnection, RayPool, claim_of
from raypeft.runtime.pool import claims as claims_module
from raypeft.runtime.pool.claims import NAMESPACE, PREFIX
from tests.contract.pool_contract import collect, only, spec

pytestmark = pytest.mark.ray

PROFILE = HardwareProfile(cpus=4)
"""Of the eight cores there are two such slots."""

OpenPool = Callable[..., RayPool]


@pytest.fixture
def open_pool(local_ray: RayConnection) -> Iterator[OpenPool]:
    with ExitStack() as stack:

        def opened(run: str, priority: int = 1) -> RayPool:
            claim = claim_of(f"sweep {run}", run, priority, PROFILE)
            pool = RayPool(
                local_ray,
                profile=PROFILE,
                num_slots=2,
                claims=Claims(claim, every_seconds=0.0, wait_seconds=0.0),
            )
            stack.callback(pool.close)
            return pool

        yield opened


def listed() -> list[bytes]:
    return sorted(_internal_kv_list(PREFIX, namespace=NAMESPACE))


def start(pool: RayPool, *slots: str) -> None:
    for slot in slots:
        pool.start_slot(slot, spec())
    for _ in slots:
        collect(pool, SlotReady)


def wait_for_room(pool: RayPool, other: RayPool) -> CapacityChanged:
    """Let two sweeps live until one is told its share."""
    while True:
        other.wait(0.05)
        for event in pool.wait(0.05):
            if isinstance(event, CapacityChanged):
                return event


def test_a_sweep_gives_what_is_above_its_share_to_one_that_waits(open_pool: OpenPool) -> None:
    early, late = open_pool("early"), open_pool("late", priority=2)
    start(early, "s1", "s2")
    late.start_slot("s1", spec())
    late.start_slot("s2", spec())
    early.submit_call("hang", time.sleep, 600)  # without anything under way a pool is not asked
    room = wait_for_room(early, late)
    assert room.slots == 1
    assert "sweep late (priority 2) waits for hardware" in room.reason
    early.stop_slot("s2")
    assert only(collect(late, SlotPlaced), SlotPlaced)
    # The other slot still waits, and each has its share: no more is given back. What is new is
    # that the other one holds hardware, for which this sweep may wait as long as it takes.
    assert wait_for_room(early, late) == replace(room, is_shared=True)
    for _ in range(10):
        late.wait(0.05)
        assert not [event for event in early.wait(0.05) if isinstance(event, CapacityChanged)]
    # When the other one is done this sweep may have everything again.
    late.close()
    assert wait_for_room(early, late).slots == 2


def test_a_driver_that_was_killed_claims_nothing_after_a_while(
    open_pool: OpenPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    early, late = open_pool("early"), open_pool("late")
    start(early, "s1", "s2")
    late.start_slot("s1", spec())
    early.submit_call("hang", time.sleep, 600)
    assert wait_for_room(early, late).slots == 1
    # Nothing is heard of it any more.
    monkeypatch.setattr(claims_module, "SILENT_SECONDS", 0.5)
    assert listed() == [PREFIX + b"early", PREFIX + b"late"]
    room = None
    while room is None:
        found = [event for event in early.wait(0.05) if isinstance(event, CapacityChanged)]
        room = found[0] if found else None
    assert room == CapacityChanged(2)
    assert listed() == [PREFIX + b"early"]


def test_what_others_left_on_the_cluster_does_no_harm(open_pool: OpenPool) -> None:
    for name, value in (("a", b"\xff"), ("b", b"[1]"), ("c", b'{"sweep": 1}')):
        _internal_kv_put(PREFIX + name.encode(), value, True, namespace=NAMESPACE)
    try:
        pool = open_pool("only")
        start(pool, "s1", "s2")
        pool.submit_call("hang", time.sleep, 600)
        for _ in range(5):
            assert pool.wait(0.01) == []
        pool.close()
        assert PREFIX + b"only" not in listed()
    finally:
        for name in ("a", "b", "c"):
            _internal_kv_del(PREFIX + name.encode(), namespace=NAMESPACE)
