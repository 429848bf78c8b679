"""`status`, its `--why` and `--follow`, `run --log-json` and what `submit` refuses, as seen."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from raypeft import cli
from raypeft.api.leasing import leased
from tests.support.lab import Lab
from tests.test_cli import write_sweep

pytestmark = pytest.mark.torch

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def raypeft(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Run:
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
def output(raypeft: Run, lab: Lab, tmp_path: Path) -> str:
    """What a run left in which one adapter always fails."""
    script = {"events": [{"do": "fail", "adapter": "small", "message": "no such luck"}]}
    path = write_sweep(lab, tmp_path, engine={"kind": "fake", "options": {"script": script}})
    assert raypeft("run", str(path), "--pool", "local")[0] == 3
    return str(tmp_path / "sweep-run")


def test_status_shows_counts_failures_and_why(raypeft: Run, output: str) -> None:
    code, out, _ = raypeft("status", output)
    assert code == 0
    for words in ("ended", "6 cells: 4 done, 2 failed", "Last failures", "no such luck"):
        assert words in out
    found = json.loads(raypeft("status", output, "--json")[1])
    assert found["counts"]["done"] == 4
    assert found["work_done_seconds"] == pytest.approx(found["work_seconds"])
    assert found["remaining_seconds"] is None


def test_why_tells_the_history_of_a_cell(raypeft: Run, output: str) -> None:
    code, out, _ = raypeft("status", output, "--why", "base/small/tiny_letters")
    assert code == 0
    for words in ("failed: does_not_fit: no such luck", "attempt 1 at unit", "is given up"):
        assert words in out
    code, out, _ = raypeft("status", output, "--why", "base/small", "--json")
    cells = json.loads(out)
    assert [cell["task"] for cell in cells] == ["tiny_letters", "tiny_rolling"]
    assert all(cell["history"] for cell in cells)
    key = cells[0]["key"]
    assert json.loads(raypeft("status", output, "--why", key[:8], "--json")[1]) == cells[:1]


def test_a_cell_that_is_not_there_leaves_with_2_and_names_those_near_it(
    raypeft: Run, output: str
) -> None:
    code, _, err = raypeft("status", output, "--why", "base/smal/tiny_letters")
    assert code == 2
    assert "base/small/tiny_letters" in err


def test_following_a_run_that_is_over_shows_it_once_and_ends(raypeft: Run, output: str) -> None:
    code, out, _ = raypeft("status", output, "--follow")
    assert code == 0
    assert len(out.splitlines()) == 1
    assert "ended; 6 cells: 4 done, 2 failed" in out
    assert raypeft("status", output, "--follow", "--json")[0] == 2


def test_a_run_that_is_being_prepared_is_not_the_one_that_was_killed_before(
    raypeft: Run, output: str
) -> None:
    (segment,) = Path(output, "journal").iterdir()
    lines = segment.read_text().splitlines(keepends=True)
    last = next(number for number, line in enumerate(lines) if '"run_unit"' in line)
    segment.write_text("".join(lines[: last + 1]))
    assert f"{output}: killed" in raypeft("status", output)[1]
    with leased(output):
        code, out, _ = raypeft("status", output)
        assert (code, f"{output}: being prepared" in out) == (0, True)
        assert "Slots" not in out
        assert "the last one is killed" in raypeft("status", output, "--why", "base")[1]
        shutil.rmtree(Path(output, "journal"))
        assert "being prepared" in raypeft("status", output)[1]


def test_where_the_journal_is_gone_the_tables_still_say_where_the_sweep_stands(
    raypeft: Run, output: str
) -> None:
    shutil.rmtree(Path(output) / "journal")
    found = json.loads(raypeft("status", output, "--json")[1])
    assert found["phase"] == "ended"
    assert (found["counts"]["done"], found["counts"]["failed"]) == (4, 2)


def test_a_run_logs_json_lines_with_the_ids_of_units_and_cells(
    raypeft: Run, lab: Lab, tmp_path: Path
) -> None:
    path = write_sweep(lab, tmp_path, engine={"kind": "fake"})
    log = tmp_path / "night.jsonl"
    code, _, err = raypeft("run", str(path), "--pool", "local", "--log-json", str(log))
    assert code == 0
    assert "of 6 cells scored" in err  # the progress is shown as ever
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    events = {line["event"] for line in lines if "event" in line}
    assert {"run_begins", "run_unit", "answers_stored", "cell_scored", "run_ends"} <= events
    about_units = [line for line in lines if "unit_id" in line]
    assert all(line["unit_id"] for line in about_units)
    # From the slot, which here is this process.
    assert any(line["message"] == "unit answered" and line["subjects"] for line in about_units)
    scored = [line for line in lines if line.get("event") == "cell_scored"]
    assert {name for line in scored for name in line["names"]} >= {"base/small/tiny_letters"}


def test_standard_error_holds_nothing_but_json_where_it_is_the_log(
    raypeft: Run, lab: Lab, tmp_path: Path
) -> None:
    path = write_sweep(lab, tmp_path, engine={"kind": "fake"})
    code, out, err = raypeft("run", str(path), "--pool", "local", "--log-json", "-")
    assert code == 0
    assert "Gains over base" in out
    assert all(json.loads(line)["message"] for line in err.splitlines())


def test_submit_refuses_a_sweep_whose_results_would_be_lost(
    raypeft: Run, lab: Lab, tmp_path: Path
) -> None:
    path = write_sweep(lab, tmp_path, output="runs/x", store="runs/store")
    code, _, err = raypeft("submit", str(path), "--address", "http://127.0.0.1:1")
    assert code == 2
    assert "in a folder that Ray deletes" in err
    assert "--shared-files" in err


def test_submit_says_that_no_cluster_is_named(
    raypeft: Run, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    code, _, err = raypeft("submit", str(write_sweep(lab, tmp_path)))
    assert code == 1
    assert "RAY_API_SERVER_ADDRESS" in err
