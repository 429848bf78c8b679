"""A slot over several nodes: what it reserves from a real Ray, whose GPUs are only claimed."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.ray

# A Ray of its own: that of the session claims no GPUs.
PROGRAM = """
import json
from dataclasses import replace

import ray
from raypeft.core.events import SlotReady
from raypeft.core.records import EngineSpec
from raypeft.runtime.options import HardwareProfile
from raypeft.runtime.pool import RayPool, connect

with connect(num_cpus=2, num_gpus=4) as connection:
    pool = RayPool(
        replace(connection, is_local=False, is_ours=False),
        profile=HardwareProfile(gpus=4, cpus=1, tensor_parallel=4, gpus_per_node=2),
        num_slots=1,
    )
    pool.start_slot("s1", EngineSpec(kind="fake", base="b", base_digest="b"))
    events = []
    while not any(isinstance(event, SlotReady) for event in events):
        events += pool.wait(5.0)
    (group,) = ray.util.placement_group_table().values()
    pool.close()
    (after,) = ray.util.placement_group_table().values()
    found = [group["bundles"][number] for number in sorted(group["bundles"])]
    print(json.dumps([type(event).__name__ for event in events]))
    print(json.dumps([group["state"], group["strategy"], found, after["state"]]))
"""


def test_a_slot_over_several_nodes_is_placed_with_its_group_and_takes_it_along() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "RAY_ADDRESS": "local"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-3000:]
    events, (state, strategy, bundles, after) = map(json.loads, done.stdout.splitlines()[-2:])
    assert events == ["SlotPlaced", "SlotReady"]
    assert (state, strategy, after) == ("CREATED", "PACK", "REMOVED")
    # vLLM takes one GPU from each, and the slot none.
    assert bundles == [{"CPU": 1.0, "GPU": 1.0}, {"GPU": 1.0}, {"GPU": 1.0}, {"GPU": 1.0}]
