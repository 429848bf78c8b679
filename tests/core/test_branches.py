"""Every branch of the state machine is taken by the tests that describe it, random ones aside."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = ("schedule", "placement", "state", "state_parts", "retry", "waiting", "explain")
LONG = "test_a_night_of_a_hundred_thousand_units_on_a_thousand_slots_keeps_them_busy"


@pytest.mark.slow
def test_the_state_machine_has_no_branch_that_no_test_takes(tmp_path: Path) -> None:
    core = ROOT / "tests" / "core"
    tests = [path for path in core.glob("test_schedule*.py") if "histories" not in path.name]
    tests += [core / f"test_{name}.py" for name in ("waiting", "retry", "explain")]
    assert len(tests) > 6
    coverage = [sys.executable, "-m", "coverage"]
    data = f"--data-file={tmp_path / 'coverage'}"
    include = ",".join(f"raypeft/core/{name}.py" for name in MODULES)
    pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", f"not {LONG}", *map(str, tests)]
    _run([*coverage, "run", "--branch", data, f"--include={include}", *pytest])
    report = _run([*coverage, "report", "--show-missing", "--fail-under=100", data])
    assert all(f"raypeft/core/{name}.py" in report for name in MODULES), report


def _run(command: list[str]) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # A run of coverage around this one must not take this one for a part of it.
    environment = {k: v for k, v in environment.items() if not k.startswith("COV_CORE")}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
