"""Ctrl-C and SIGTERM of a driver with a Ray of its own, while one of its units hangs."""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from raypeft.core.records import Answer
from tests.ray.drivers import EXIT_INTERRUPTED, PLAN

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]


def lines(driver: "subprocess.Popen[str]") -> Iterator[str]:
    assert driver.stdout is not None
    return (line.strip() for line in driver.stdout)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_driver_and_its_ray_and_everything_told_is_on_disk(
    number: signal.Signals, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "tests.ray.drivers", str(tmp_path)]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        # A terminal's Ctrl-C, `timeout` and service managers reach the whole group, Ray's
        # processes too; this test's own must not be in it.
        start_new_session=True,
    ) as driver:
        told: list[str] = []
        for line in lines(driver):
            if line.startswith("stored"):
                told.append(line.split()[1])
            if len(told) == 4:
                break
        family = psutil.Process(driver.pid).children(recursive=True)
        assert family
        os.killpg(driver.pid, number)
        rest = list(lines(driver))
        told += [line.split()[1] for line in rest if line.startswith("stored")]
        assert driver.wait() == EXIT_INTERRUPTED, rest
    assert rest[-1] == f"interrupted {number.name}"
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive
    stored: dict[tuple[str, int], tuple[Answer, ...]] = {}
    for path in tmp_path.glob("*.pickle"):
        cell, index, answers = pickle.loads(path.read_bytes())
        stored[cell, index] = answers
    assert {path.stem for path in tmp_path.glob("*.pickle")} == set(told)
    assert 4 <= len(stored) < len(PLAN.units)
    assert all(len(answers) == 3 for answers in stored.values())
