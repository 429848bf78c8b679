"""What only processes of their own can show: death, hanging, environment."""

import itertools
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from raypeft.core.events import SlotFailed, SlotLost, SlotReady
from raypeft.core.records import EngineSpec, FailureKind, RequestSet
from raypeft.core.retry import Policy
from raypeft.engines.base import Engine
from raypeft.runtime.calls import call_all
from raypeft.runtime.driver import drive
from raypeft.runtime.meter import Progress
from raypeft.runtime.options import HardwareProfile
from raypeft.runtime.pool import RayConnection, RayPool
from raypeft.runtime.ports import CallFailed, PoolEvent, UnitAnswered
from tests.contract.pool_contract import REQUESTS, collect, only, spec, work
from tests.support.plans import make_plan, make_request_set
from tests.support.sinks import MemorySink, mean_logprob

pytestmark = pytest.mark.ray


@pytest.fixture
def pool(local_ray: RayConnection) -> Iterator[RayPool]:
    pool = RayPool(local_ray, profile=HardwareProfile(cpus=1), num_slots=2)
    yield pool
    pool.close()


def actors() -> list[psutil.Process]:
    """Return the processes of live slots."""
    found = psutil.Process().children(recursive=True)
    return [process for process in found if process.name().startswith("ray::SlotActor")]


def test_an_actor_that_is_killed_at_work_is_a_lost_slot(pool: RayPool, tmp_path: Path) -> None:
    marker = tmp_path / "begun"
    pool.share(REQUESTS.digest, REQUESTS)
    pool.start_slot("s1", spec({"do": "hang", "once": str(marker)}))
    collect(pool, SlotReady)
    pool.submit("s1", work(), 1)
    while not marker.exists():
        assert pool.wait(0.1) == []
    (process,) = actors()
    os.kill(process.pid, signal.SIGKILL)
    lost = only(collect(pool, SlotLost), SlotLost)
    assert isinstance(lost, SlotLost)
    assert lost.failure.kind is FailureKind.SLOT_LOST
    assert lost.failure.retryable


def test_an_actor_that_dies_is_replaced_and_its_unit_answered_by_another(
    pool: RayPool, tmp_path: Path
) -> None:
    plan = make_plan(adapters=3, shards=2)
    event = {"do": "die", "adapter": "a1", "once": str(tmp_path / "died")}
    engine = replace(plan.engines["base0"], options={"script": {"events": [event]}})
    sink = MemorySink()
    outcome = drive(
        replace(plan, engines={"base0": engine}),
        pool=pool,
        sink=sink,
        policy=Policy(slots=2),
        clock=time.monotonic,
        request_sets=make_request_set,
        score=mean_logprob,
    )
    assert (tmp_path / "died").exists()
    assert outcome.failed == {}
    assert len(sink.noted("slot_lost")) == 1
    assert sorted(sink.attempts.values()) == [1] * 7 + [2]


def test_a_unit_that_hangs_is_stopped_by_its_time_limit_and_runs_again(
    pool: RayPool, tmp_path: Path
) -> None:
    marker = tmp_path / "hung"
    plan = make_plan(adapters=1)
    event = {"do": "hang", "adapter": "a0", "once": str(marker)}
    engine = replace(plan.engines["base0"], options={"script": {"events": [event]}})
    sink = MemorySink()
    hours = 0.0

    def let_time_pass(progress: Progress) -> None:
        nonlocal hours
        if marker.exists() and not any("unit_timeout" in str(line) for line in sink.lines):
            hours += 1.0

    outcome = drive(
        replace(plan, engines={"base0": engine}),
        pool=pool,
        sink=sink,
        policy=Policy(slots=1, unit_timeout_seconds=1800.0),
        clock=lambda: hours * 3600,
        request_sets=make_request_set,
        on_progress=let_time_pass,
        score=mean_logprob,
    )
    assert outcome.failed == {}
    assert sorted(sink.attempts.values()) == [1, 2]
    assert any("unit_timeout" in str(line["reason"]) for line in sink.noted("stop_slot"))


def explode() -> None:
    raise RuntimeError("scripted: this value cannot be read")


class Unreadable:
    def __reduce__(self) -> tuple[object, tuple[()]]:
        return explode, ()


def test_an_actor_that_cannot_begin_is_a_failed_start(pool: RayPool) -> None:
    pool.start_slot(
        "s1", EngineSpec(kind="fake", base="b", base_digest="d", options={"x": Unreadable()})
    )
    failed = only(collect(pool, SlotFailed), SlotFailed)
    assert isinstance(failed, SlotFailed)
    assert failed.failure.kind is FailureKind.LOAD_FAILED
    assert "cannot be read" in failed.failure.detail


def test_an_actor_that_dies_while_it_loads_is_a_failed_start(local_ray: RayConnection) -> None:
    pool = RayPool(local_ray, profile=HardwareProfile(cpus=1), num_slots=1, build=leave)
    pool.start_slot("s1", spec())
    failed = only(collect(pool, SlotFailed), SlotFailed)
    assert isinstance(failed, SlotFailed)
    assert failed.failure.retryable
    pool.close()


def leave(spec: EngineSpec) -> Engine:
    os._exit(9)


def test_a_call_whose_process_dies_is_a_failed_call(pool: RayPool) -> None:
    pool.submit_call("c1", os._exit, 9)
    failed = only(collect(pool, CallFailed), CallFailed)
    assert isinstance(failed, CallFailed)
    assert failed.failure.kind is FailureKind.SLOT_LOST
    assert failed.failure.retryable


def test_stopping_a_slot_ends_its_process_while_it_hangs(pool: RayPool, tmp_path: Path) -> None:
    marker = tmp_path / "begun"
    pool.share(REQUESTS.digest, REQUESTS)
    pool.start_slot("s1", spec({"do": "hang", "once": str(marker)}))
    collect(pool, SlotReady)
    pool.submit("s1", work(), 1)
    while not marker.exists():
        assert pool.wait(0.1) == []
    processes = actors()
    assert len(processes) == 1
    pool.stop_slot("s1")
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert not alive


def environment(*names: str) -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in names}


def test_workers_stay_offline_and_import_what_the_driver_does(pool: RayPool) -> None:
    assert call_all(pool, {"c": (environment, ("HF_HUB_OFFLINE",))}) == {
        "c": {"HF_HUB_OFFLINE": os.environ["HF_HUB_OFFLINE"]}
    }


def process_id() -> int:
    return os.getpid()


def test_calls_find_a_process_that_has_imported_everything(pool: RayPool) -> None:
    (first,) = call_all(pool, {"c1": (process_id, ())}).values()
    for slot in ("s1", "s2"):
        pool.start_slot(slot, spec())
    collect(pool, SlotReady)
    (second,) = call_all(pool, {"c2": (process_id, ())}).values()
    assert first == second


def test_a_prepared_actor_becomes_the_next_slot(pool: RayPool) -> None:
    pool.prepare_slots(5, "fake")
    pool.share(REQUESTS.digest, REQUESTS)
    pool.start_slot("s1", spec())
    collect(pool, SlotReady)
    pool.start_slot("s2", spec())
    collect(pool, SlotReady)
    pool.submit("s2", work(), 1)
    collect(pool, UnitAnswered)
    assert len(actors()) == 2  # no more than fit, however many were expected


def test_an_actor_prepared_for_another_engine_becomes_no_slot_of_this_one(pool: RayPool) -> None:
    pool.prepare_slots(1, "another")
    pool.share(REQUESTS.digest, REQUESTS)
    pool.start_slot("s1", spec())
    collect(pool, SlotReady)
    assert len(actors()) == 2
    pool.drop_spares()
    pool.start_slot("s2", spec())  # finds room only where the other one was
    collect(pool, SlotReady)


def test_calls_go_on_beside_prepared_actors_that_hold_every_core(local_ray: RayConnection) -> None:
    pool = RayPool(
        replace(local_ray, is_local=False, is_ours=False),
        profile=HardwareProfile(cpus=1),
        num_slots=2,
    )
    try:
        pool.prepare_slots(2, "fake")
        assert call_all(pool, {"c": (process_id, ())})["c"] != os.getpid()
    finally:
        pool.close()


def test_prepared_actors_that_nobody_needs_give_their_hardware_back(pool: RayPool) -> None:
    pool.prepare_slots(2, "fake")
    pool.start_slot("s1", spec())
    collect(pool, SlotReady)
    pool.drop_spares()
    pool.start_slot("s2", spec())  # finds room only where the other one was
    collect(pool, SlotReady)


def test_a_prepared_actor_that_died_is_no_slot_that_is_never_heard_of(pool: RayPool) -> None:
    pool.prepare_slots(1, "fake")
    while not actors():
        assert pool.wait(0.1) == []
    for process in actors():
        process.kill()
    pool.start_slot("s1", spec())
    events: list[PoolEvent] = []
    # Ray itself starts another one if it died before it was created.
    while not any(isinstance(event, SlotFailed | SlotReady) for event in events):
        events += pool.wait(5.0)
    assert all(event.failure.retryable for event in events if isinstance(event, SlotFailed))


def test_a_large_request_set_goes_through_the_object_store_once(pool: RayPool) -> None:
    plan = make_plan(adapters=4, shards=2)
    sizes = itertools.count()

    def request_sets(digest: str) -> RequestSet:
        next(sizes)
        return make_request_set(digest, 5000)

    outcome = drive(
        plan,
        pool=pool,
        sink=MemorySink(),
        policy=Policy(slots=2),
        clock=time.monotonic,
        request_sets=request_sets,
        score=mean_logprob,
    )
    assert len(outcome.done) == 5
    assert next(sizes) == 2
