"""What a run on Ray tells Prometheus, read where Prometheus reads it: the node's own page."""

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.ray.heads import Head, started_head
from tests.ray.test_submit import write_sweep
from tests.support.lab import Lab

pytestmark = [pytest.mark.ray, pytest.mark.torch, pytest.mark.slow]

PATIENCE = 120
"""Seconds in which a metric must have come; Ray takes about 14."""

RUN = """
import sys
from raypeft import api
report = api.run(api.load_sweep(sys.argv[1]), address=sys.argv[2])
print("ran", report.num_done, flush=True)
sys.stdin.readline()  # a driver that is gone takes its metrics along
"""


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with started_head() as started:
        yield started


SAMPLE = re.compile(r"(ray_raypeft_\w+)\{([^}]*)\} (\S+)")


def page(head: Head) -> dict[tuple[str, str], float]:
    """Return raypeft's numbers by name and the label that is not `sweep`."""
    url = f"http://127.0.0.1:{head.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    found: dict[tuple[str, str], float] = {}
    for name, labels, value in SAMPLE.findall(text):
        own = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        assert own["sweep"] == "night"
        label = next((own[key] for key in ("base", "reason", "does") if own.get(key)), "")
        found[name, label] = float(value)
    return found


def test_a_nodes_page_has_what_a_run_did(head: Head, lab: Lab, tmp_path: Path) -> None:
    events = [{"do": "raise", "adapter": "large", "once": str(tmp_path / "raised")}]
    engine = {"kind": "fake", "options": {"script": {"events": events}}}
    adapters = [str(path) for path in lab.adapters.values()]
    sweep = write_sweep(lab, tmp_path, engine=engine, include_path=[str(lab.tasks.folder)])
    values = yaml.safe_load(sweep.read_text())
    values["bases"][0]["adapters"] = adapters
    sweep.write_text(yaml.safe_dump(values))
    with subprocess.Popen(
        [sys.executable, "-c", RUN, str(sweep), f"127.0.0.1:{head.gcs_port}"],
        env=dict(head.environment),
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as driver:
        assert driver.stdout is not None
        assert next(line for line in driver.stdout if line.startswith("ran")) == "ran 6\n"
        try:
            found = wait_for_page(head, driver)
        finally:
            driver.communicate("done\n", timeout=PATIENCE)
    assert found["ray_raypeft_cells_scored_total", ""] == 6
    assert found["ray_raypeft_units_done_total", "base"] == 12
    assert found["ray_raypeft_tokens_total", "base"] > 0
    assert found["ray_raypeft_units_failed_total", "crashed"] == 1
    assert found["ray_raypeft_units_retried_total", "crashed"] == 1
    assert found["ray_raypeft_slot_seconds_total", "answering"] > 0


def wait_for_page(head: Head, driver: "subprocess.Popen[str]") -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], float] = {}
    for _ in range(PATIENCE):
        found = page(head)
        if found.get(("ray_raypeft_cells_scored_total", "")) == 6:
            return found
        try:
            driver.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError("the driver ended")
    raise AssertionError(json.dumps({"/".join(key): value for key, value in found.items()}))
