"""Sweeps as jobs of a cluster with token authentication: submitted, killed, submitted again."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from raypeft import api
from tests.ray.heads import Head, started_head
from tests.support.lab import Lab, assert_same_tables

pytestmark = [pytest.mark.ray, pytest.mark.torch, pytest.mark.slow]

PATIENCE = 180
"""Seconds after which a process is taken to hang, which is no measure of its speed."""

FAKE = {"kind": "fake", "options": {"script": {"reads_adapters": True}}}


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with started_head() as started:
        yield started


@pytest.fixture
def folder(lab: Lab, tmp_path: Path) -> Path:
    """A folder as somebody works in it: adapters and tasks under relative names."""
    for name, path in lab.adapters.items():
        shutil.copytree(path, tmp_path / "here" / "adapters" / name)
    shutil.copytree(lab.tasks.folder, tmp_path / "here" / "tasks")
    (tmp_path / "here" / ".gitignore").write_text("adapters\ntasks\n")
    return tmp_path / "here"


def write_sweep(lab: Lab, folder: Path, name: str = "night", **changes: Any) -> Path:
    values = {
        "output": str(folder.parent / f"{name}-run"),
        "bases": [{"path": str(lab.base), "adapters": ["adapters/*"]}],
        "tasks": ["tiny_letters", "tiny_rolling"],
        "include_path": ["tasks"],
        "engine": FAKE,
        "schedule": {"slots": 2, "shards": 2},
        "store": str(folder.parent / f"{name}-store"),
        **changes,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def begin(environment: Any, folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "raypeft", *arguments],
        cwd=folder,
        env=dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that run in the background of a shell ignore it, and so would what they start.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.default_int_handler),
    )


def raypeft(environment: Any, folder: Path, *arguments: str) -> tuple[int, str, str]:
    with begin(environment, folder, *arguments) as process:
        out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def test_without_the_token_nothing_is_submitted(head: Head, lab: Lab, folder: Path) -> None:
    sweep = write_sweep(lab, folder)
    code, _, err = raypeft(
        head.without_token, folder, "submit", str(sweep), "--address", head.address
    )
    assert code == 1
    assert f"the cluster at {head.address} wants a token" in err
    assert "RAY_AUTH_TOKEN_PATH" in err
    assert "Traceback" not in err
    wrong = {**head.without_token, "RAY_AUTH_TOKEN": "0" * 64}
    code, _, err = raypeft(wrong, folder, "submit", str(sweep), "--address", head.address)
    assert code == 1
    assert f"the cluster at {head.address} refuses the token" in err


def test_a_submitted_sweep_runs_and_is_finished_at_once_when_submitted_again(
    head: Head, lab: Lab, folder: Path
) -> None:
    sweep = write_sweep(lab, folder)
    command = ("submit", str(sweep), "--address", head.address)
    code, out, err = raypeft(head.environment, folder, *command)
    assert code == 0, out + err
    assert "6 cells scored, 0 of them before this run" in out
    assert "Gains over base" in out
    assert head.environment["RAY_AUTH_TOKEN"] not in out + err
    code, out, err = raypeft(head.environment, folder, *command, "--json", "--with-code")
    assert code == 0, out + err
    submitted = json.loads(out)
    assert (submitted["status"], submitted["exit_code"]) == ("SUCCEEDED", 0)
    assert submitted["job"].endswith("-2")
    assert "6 cells scored, 6 of them before this run" in err
    calm = yaml.safe_load(sweep.read_text())
    calm |= {"output": str(folder / "calm"), "store": str(folder / "calm-store")}
    (folder / "calm.yaml").write_text(yaml.safe_dump(calm))
    raypeft(head.environment, folder, "run", "calm.yaml", "--pool", "local")
    assert_same_tables(str(folder.parent / "night-run"), str(folder / "calm"))


def test_the_bare_job_of_the_readme_runs(head: Head, lab: Lab, folder: Path) -> None:
    (folder / ".gitignore").unlink()  # which Ray would heed
    write_sweep(lab, folder, "bare")
    ray = Path(sys.executable).parent / "ray"
    command = [str(ray), "job", "submit", "--address", head.address, "--working-dir", "."]
    ended = subprocess.run(
        [*command, "--", "raypeft", "run", "bare.yaml"],
        cwd=folder,
        env=dict(head.environment),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len(api.open(str(folder.parent / "bare-run")).cells) == 6


def first_line(process: "subprocess.Popen[str]", words: str) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if words in line:
            return line
    raise AssertionError(f"{words!r} was not said")


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    while not path.exists():
        try:
            process.wait(timeout=0.1)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError(process.communicate())


def test_a_driver_that_is_killed_is_submitted_again_and_the_report_is_right(
    head: Head, lab: Lab, folder: Path
) -> None:
    marker = folder.parent / "hangs"
    hang = {"do": "hang", "adapter": "large", "once": str(marker)}
    script = {"reads_adapters": True, "events": [hang]}
    engine = {"kind": "fake", "options": {"script": script}}
    sweep = write_sweep(lab, folder, "rough", engine=engine)
    command = ("submit", str(sweep), "--address", head.address)
    follower = begin(head.environment, folder, *command)
    job = first_line(follower, "submitted as").split("submitted as ")[1].split(";")[0]
    wait_for(marker, follower)

    # Twice at once is refused, and says which job it is.
    code, _, err = raypeft(head.environment, folder, *command)
    assert code == 1
    assert job in err
    assert "ray job stop" in err

    # Ctrl-C ends the following and not the job.
    other = {"output": str(folder.parent / "other-run"), "engine": FAKE}
    write_sweep(lab, folder, "other", **other)
    follower.send_signal(signal.SIGINT)
    _, err = follower.communicate(timeout=PATIENCE)
    assert follower.returncode == 130
    assert f"no longer followed; {job} goes on" in err
    driver = head.driver()

    output = str(folder.parent / "rough-run")
    code, out, _ = raypeft(head.environment, folder, "status", output, "--json")
    assert (code, json.loads(out)["phase"]) == (0, "running")

    driver.kill()
    driver.wait(timeout=60)
    code, out, _ = raypeft(head.environment, folder, "status", output, "--json")
    assert (code, json.loads(out)["phase"]) == (0, "killed")
    code, out, err = raypeft(head.environment, folder, *command)
    assert code == 0, out + err
    assert "6 of 6 cells scored" in out
    (folder / "calm.yaml").write_text(
        yaml.safe_dump(
            yaml.safe_load(sweep.read_text())
            | {"output": str(folder / "calm"), "store": str(folder / "calm-store"), "engine": FAKE}
        )
    )
    raypeft(head.environment, folder, "run", "calm.yaml", "--pool", "local")
    assert_same_tables(output, str(folder / "calm"))
