"""The whole way with lm-eval itself: freeze, answer and score, each where it runs."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from raypeft.core.plan import Plan, make_units
from raypeft.core.records import EvaluationSettings, FailureKind, Frozen, RequestSet
from raypeft.core.retry import Policy
from raypeft.runtime.calls import call_all
from raypeft.runtime.driver import drive
from raypeft.runtime.local import LocalPool
from raypeft.runtime.options import HardwareProfile
from raypeft.runtime.pool import RayConnection, RayPool
from raypeft.runtime.ports import Pool
from raypeft.runtime.work import freeze
from tests.support.plans import make_plan
from tests.support.sinks import MemorySink
from tests.support.tasks import write_tasks

pytestmark = pytest.mark.torch


def whole_way(pool: Pool, folder: Path) -> MemorySink:
    tasks = write_tasks(folder, docs=4)
    include = (str(tasks.folder),)
    settings = EvaluationSettings(bootstrap_iters=10)
    names = ("tiny_mc", "no_such_task")
    frozen = call_all(pool, {name: (freeze, (name, settings, include, None)) for name in names})
    missing = frozen["no_such_task"]
    assert isinstance(missing, Frozen), missing
    assert missing.failures["no_such_task"].kind is FailureKind.SPEC
    found = frozen["tiny_mc"]
    assert isinstance(found, Frozen), found
    assert not found.failures
    plan, request_sets = planned(found)
    sink = MemorySink()
    outcome = drive(
        plan,
        pool=pool,
        sink=sink,
        policy=Policy(slots=2),
        clock=time.monotonic,
        request_sets=request_sets,
        include_path=include,
    )
    assert outcome.failed == {}
    assert set(outcome.done) == set(plan.cells)
    return sink


def planned(frozen: Frozen) -> tuple[Plan, Callable[[str], RequestSet]]:
    (request_set,) = frozen.request_sets
    plan = make_plan(adapters=2, shards=2)
    cells = {key: replace(cell, request_set=request_set.digest) for key, cell in plan.cells.items()}
    units = make_units(list(cells.values()), answered={})
    return replace(plan, cells=cells, units=units), {request_set.digest: request_set}.__getitem__


def test_freeze_answer_and_score_meet_in_this_process(tmp_path: Path) -> None:
    sink = whole_way(LocalPool(num_slots=2), tmp_path)
    scored = sink.results["base0:task0"]
    assert scored.task == "tiny_mc"
    assert {metric.metric for metric in scored.metrics} >= {"acc"}
    assert len(scored.samples) == 4


@pytest.mark.ray
def test_freeze_answer_and_score_give_the_same_on_ray(
    local_ray: RayConnection, tmp_path: Path
) -> None:
    pool = RayPool(local_ray, profile=HardwareProfile(cpus=1), num_slots=2)
    on_ray = whole_way(pool, tmp_path)
    pool.close()
    assert on_ray.results == whole_way(LocalPool(), tmp_path).results
