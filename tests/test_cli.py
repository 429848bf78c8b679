"""The command line as its user sees it: arguments, what is printed, exit codes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from raypeft import cli
from tests.support.lab import Lab, assert_same_tables

pytestmark = pytest.mark.torch

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def raypeft(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Run:
    """Return a function that runs the command line here: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["raypeft", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return left.value.code, out, err

    return run


@pytest.fixture
def sweep_file(lab: Lab, tmp_path: Path) -> Path:
    return write_sweep(lab, tmp_path)


def write_sweep(lab: Lab, folder: Path, name: str = "sweep", **changes: Any) -> Path:
    values = {
        "output": str(folder / f"{name}-run"),
        "store": str(folder / f"{name}-store"),
        "bases": [{"path": str(lab.base), "adapters": [str(p) for p in lab.adapters.values()]}],
        "tasks": ["tiny_letters", "tiny_rolling"],
        "include_path": [str(lab.tasks.folder)],
        "engine": {"kind": "fake"},
        **changes,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_run_prints_the_morning_table_and_leaves_with_0(raypeft: Run, sweep_file: Path) -> None:
    code, out, _ = raypeft("run", str(sweep_file), "--pool", "local")
    assert code == 0
    for words in ("6 of 6 cells scored", "(baseline)", "Gains over base", "small", "large"):
        assert words in out


def test_nothing_is_coloured_where_there_is_no_terminal(raypeft: Run, sweep_file: Path) -> None:
    _, out, err = raypeft("run", str(sweep_file), "--pool", "local")
    assert "\x1b" not in out + err


def test_plan_shows_what_is_left_and_what_is_done(raypeft: Run, sweep_file: Path) -> None:
    code, out, _ = raypeft("plan", str(sweep_file), "--json")
    before = json.loads(out)
    assert code == 0
    assert (before["summary"]["cells"], before["summary"]["done"]) == (6, 0)
    raypeft("run", str(sweep_file), "--pool", "local")
    _, out, _ = raypeft("plan", str(sweep_file), "--json")
    after = json.loads(out)
    assert (after["summary"]["done"], after["summary"]["units"]) == (6, 0)


def test_plan_without_freezing_names_what_is_not_frozen(raypeft: Run, sweep_file: Path) -> None:
    code, out, _ = raypeft("plan", str(sweep_file), "--no-freeze", "--json")
    assert code == 0
    assert json.loads(out)["summary"]["not_frozen"] == ["tiny_letters", "tiny_rolling"]
    _, out, _ = raypeft("plan", str(sweep_file), "--no-freeze")
    assert "2 task entries are not frozen: what they take is unknown" in " ".join(out.split())
    assert "nothing is left to answer" not in out


def test_freeze_stores_request_sets(raypeft: Run, sweep_file: Path) -> None:
    code, out, _ = raypeft("freeze", str(sweep_file), "--json")
    assert code == 0
    digests = {task["request_set"] for task in json.loads(out)}
    stored = {p.stem for p in (sweep_file.parent / "sweep-store" / "requests").iterdir()}
    assert digests == stored


def test_report_status_compare_and_export_read_what_a_run_left(
    raypeft: Run, sweep_file: Path, tmp_path: Path
) -> None:
    raypeft("run", str(sweep_file), "--pool", "local")
    output = str(tmp_path / "sweep-run")
    code, out, _ = raypeft("report", output, "--json")
    assert code == 0
    assert {row["adapter"] for row in json.loads(out)["gains"]} == {"small", "large"}
    assert "All gains" in raypeft("report", output, "--all")[1]
    code, out, _ = raypeft("status", output, "--json")
    assert (code, json.loads(out)["phase"]) == (0, "ended")
    assert "6 done" in raypeft("status", output)[1]
    code, out, _ = raypeft("compare", output, "base/small", "base/large", "--json")
    assert code == 0
    assert {row["task"] for row in json.loads(out)} == {"tiny_letters", "tiny_rolling"}
    code, _, _ = raypeft("export", output, "--out", "exported")
    assert code == 0
    assert len(list((tmp_path / "exported").rglob("samples_*.jsonl"))) == 6


def test_a_wrong_sweep_file_leaves_with_2_and_names_every_problem(
    raypeft: Run, tmp_path: Path
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("output: run\nbases: [gpt2]\ntaks: [arc]\nengine: {batch_size: many}\n")
    code, out, err = raypeft("run", str(path))
    assert (code, out) == (2, "")
    for words in ("taks", "tasks", "engine.batch_size", "many"):
        assert words in err
    assert "Traceback" not in err


def test_a_sweep_file_that_is_not_there_leaves_with_2(raypeft: Run) -> None:
    code, _, err = raypeft("plan", "nowhere.yaml")
    assert code == 2
    assert "nowhere.yaml" in err


def test_failed_cells_leave_with_3_and_the_others_are_scored(
    raypeft: Run, lab: Lab, tmp_path: Path
) -> None:
    path = write_sweep(lab, tmp_path, tasks=["tiny_letters", "no_such_task"])
    code, out, _ = raypeft("run", str(path), "--pool", "local")
    assert code == 3
    assert "3 of 6 cells scored" in out
    assert "Failed cells" in out
    assert "no_such_task" in out


def test_hostile_names_and_messages_cannot_steer_the_terminal(
    raypeft: Run, lab: Lab, tmp_path: Path
) -> None:
    script = {"events": [{"do": "fail", "adapter": "small", "message": "\x1b[2J[red]x\x07"}]}
    path = write_sweep(lab, tmp_path, engine={"kind": "fake", "options": {"script": script}})
    code, out, err = raypeft("run", str(path), "--pool", "local")
    assert code == 3
    assert "\x1b" not in out + err
    assert "\x07" not in out + err
    assert "[red]x" in out


def test_reading_an_output_that_is_none_leaves_with_1_and_a_remedy(raypeft: Run) -> None:
    code, _, err = raypeft("report", "nothing-here")
    assert code == 1
    assert "nothing-here" in err
    assert "Traceback" not in err


def test_an_unknown_option_leaves_with_2(raypeft: Run) -> None:
    assert raypeft("run", "--no-such-option")[0] == 2


def test_schema_is_a_json_schema(raypeft: Run) -> None:
    code, out, _ = raypeft("schema")
    assert code == 0
    assert "bases" in json.loads(out)["properties"]


def test_doctor_finds_the_packages_and_tries_the_folders(raypeft: Run, sweep_file: Path) -> None:
    code, out, _ = raypeft("doctor", str(sweep_file), "--json")
    assert code == 0
    checks = {check["check"]: check for check in json.loads(out)}
    assert {"torch", "ray", "lm_eval", "output", "store"} <= set(checks)


def test_doctor_names_a_folder_that_cannot_be_written(
    raypeft: Run, lab: Lab, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    path = write_sweep(lab, tmp_path, output=str(tmp_path / "file" / "run"))
    code, out, _ = raypeft("doctor", str(path), "--json")
    checks = {check["check"]: check for check in json.loads(out)}
    assert code == 1
    assert checks["output"]["status"] == "problem"
    assert checks["output"]["remedy"]


# --- killed and interrupted -------------------------------------------------------------------


def _slow(marker: Path) -> dict[str, Any]:
    """A fake engine that hangs on one adapter until the marker exists."""
    event = {"do": "hang", "adapter": "large", "once": str(marker)}
    return {"kind": "fake", "options": {"script": {"events": [event]}}}


def _start(path: Path) -> subprocess.Popen[str]:
    code = "from raypeft.cli import main; main()"
    root = str(Path(cli.__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-c", code, "run", str(path), "--pool", "local"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )


def _wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a file is there; a process that ends before it was made is an error."""
    while not path.exists():
        try:
            process.wait(timeout=0.05)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError(process.communicate()[1])


def test_a_killed_run_goes_on_where_it_stopped(raypeft: Run, lab: Lab, tmp_path: Path) -> None:
    marker = tmp_path / "hangs"
    path = write_sweep(lab, tmp_path, "killed", engine=_slow(marker))
    process = _start(path)
    _wait_for(marker, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    answered = _answer_files(tmp_path / "killed-store")
    assert answered  # the baseline and the first adapter were stored before
    assert raypeft("run", str(path), "--pool", "local")[0] == 0
    assert answered.items() <= _answer_files(tmp_path / "killed-store").items()
    calm = write_sweep(lab, tmp_path, "calm", engine={"kind": "fake"})
    assert raypeft("run", str(calm), "--pool", "local")[0] == 0
    assert_same_tables(str(tmp_path / "killed-run"), str(tmp_path / "calm-run"))


def _answer_files(store: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in (store / "answers").rglob("*.parquet")}
