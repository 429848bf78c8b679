"""A whole sweep on a real Ray: the same tables as in one process, and a life through kills."""

import shutil
from pathlib import Path

import pytest

from raypeft import api
from raypeft.runtime.pool import RayConnection
from tests.support.lab import Lab, MakeSweep, assert_same_tables

pytestmark = [pytest.mark.ray, pytest.mark.torch]


def test_a_sweep_on_ray_gives_the_tables_of_one_process(
    make_lab_sweep: MakeSweep, local_ray: RayConnection, tmp_path: Path
) -> None:
    alone = make_lab_sweep(output=str(tmp_path / "alone"), store=str(tmp_path / "a"))
    api.run(alone, pool="local")
    spread = make_lab_sweep(
        output=str(tmp_path / "spread"),
        store=str(tmp_path / "b"),
        schedule={"slots": 2, "shards": 3},
    )
    report = api.run(spread)
    assert (report.num_done, report.failed) == (9, {})
    assert_same_tables(alone.output, spread.output)
    cells = api.open(spread.output).cells.to_pylist()
    assert all(cell["device"] and cell["hardware_fingerprint"] for cell in cells)
    assert all(cell["slot"] for cell in cells)


def test_adapters_that_only_the_driver_can_see_travel_to_the_slots(
    make_lab_sweep: MakeSweep,
    lab: Lab,
    local_ray: RayConnection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = make_lab_sweep(output=str(tmp_path / "alone"), store=str(tmp_path / "a"))
    api.run(alone, pool="local")
    # Relative to a folder that the actors, which were started elsewhere, are not in.
    for name, folder in lab.adapters.items():
        shutil.copytree(folder, tmp_path / "driver" / "adapters" / name)
    monkeypatch.chdir(tmp_path / "driver")
    bases = [{"path": str(lab.base), "adapters": [f"adapters/{name}" for name in lab.adapters]}]
    spread = make_lab_sweep(
        bases=bases,
        output=str(tmp_path / "spread"),
        store=str(tmp_path / "b"),
        schedule={"slots": 2},
    )
    report = api.run(spread)
    assert (report.num_done, report.failed) == (9, {})
    assert_same_tables(alone.output, spread.output)


def test_a_slot_that_dies_is_replaced_and_the_tables_are_the_same(
    make_lab_sweep: MakeSweep, local_ray: RayConnection, tmp_path: Path
) -> None:
    fake = {"kind": "fake"}
    calm = make_lab_sweep(engine=fake, output=str(tmp_path / "calm"), store=str(tmp_path / "a"))
    api.run(calm, pool="local")
    events = [
        {"do": "die", "once": str(tmp_path / "died-1"), "adapter": "small", "shard": 1},
        {"do": "die", "once": str(tmp_path / "died-2"), "adapter": "large", "shard": 0},
    ]
    rough = make_lab_sweep(
        engine={"kind": "fake", "options": {"script": {"events": events}}},
        output=str(tmp_path / "rough"),
        store=str(tmp_path / "b"),
        schedule={"slots": 2, "shards": 3},
    )
    report = api.run(rough)
    assert (report.num_done, report.failed) == (9, {})
    assert (tmp_path / "died-1").exists()
    assert (tmp_path / "died-2").exists()
    assert_same_tables(calm.output, rough.output)


def test_requests_are_frozen_in_a_ray_task(
    make_lab_sweep: MakeSweep, local_ray: RayConnection
) -> None:
    frozen = api.freeze(make_lab_sweep(engine={"kind": "fake"}), pool="ray")
    assert [task.name for task in frozen.tasks("base", "base")] == [
        "tiny_letters",
        "tiny_gen",
        "tiny_rolling",
    ]
    assert all(task.digest for task in frozen.tasks("base", "base"))
