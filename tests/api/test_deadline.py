"""A night that is too short: what it leaves out is said, and the next run goes on with it."""

import io
import json
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from raypeft import api
from raypeft.cli import EXIT_FAILED_CELLS, app
from raypeft.core.spec import Sweep, dump_sweep
from raypeft.errors import SpecError
from raypeft.report.terminal import render
from tests.support.lab import MakeSweep, assert_same_tables

pytestmark = pytest.mark.torch

SHORT = {"schedule": {"deadline": "0.001s"}}
FAKE: dict[str, Any] = {"engine": {"kind": "fake"}}


def test_a_night_that_is_too_short_leaves_cells_open_and_the_next_one_goes_on(
    make_lab_sweep: MakeSweep, tmp_path: Any
) -> None:
    short = api.run(make_lab_sweep(**FAKE, **SHORT), pool="local")
    assert short.num_cells == len(short.left_out) == 9
    assert (short.num_done, short.failed) == (0, {})
    rows = api.open(short.output).cells.to_pylist()
    assert {(row["state"], row["reason"]) for row in rows} == {("open", "deadline")}
    assert "nothing of it is answered" in rows[0]["message"]
    morning = api.report(short.output)
    assert (morning.num_open, len(morning.left_out)) == (9, 9)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render(morning, title="short"))
    assert "Left out by the deadline" in console.export_text()

    whole = api.run(make_lab_sweep(**FAKE), pool="local")
    assert (whole.num_done, whole.left_out) == (9, {})
    fresh = make_lab_sweep(**FAKE, output=str(tmp_path / "fresh"), store=str(tmp_path / "other"))
    assert_same_tables(whole.output, api.run(fresh, pool="local").output)


def test_a_deadline_far_ahead_changes_no_result(make_lab_sweep: MakeSweep, tmp_path: Any) -> None:
    timed = make_lab_sweep(**FAKE, schedule={"deadline": "9h", "order": "tasks"})
    plain = make_lab_sweep(**FAKE, output=str(tmp_path / "plain"), store=str(tmp_path / "other"))
    reports = [api.run(sweep, pool="local") for sweep in (timed, plain)]
    assert [report.num_done for report in reports] == [9, 9]
    assert_same_tables(reports[0].output, reports[1].output)


def test_a_deadline_in_the_past_is_refused_before_anything_begins(
    make_lab_sweep: MakeSweep,
) -> None:
    sweep = make_lab_sweep(**FAKE, schedule={"deadline": "2020-01-01T07:00"})
    with pytest.raises(SpecError, match="is over"):
        api.run(sweep, pool="local")


def written(sweep: Sweep, tmp_path: Any) -> str:
    path = tmp_path / "sweep.yaml"
    path.write_text(dump_sweep(sweep), encoding="utf-8")
    return str(path)


def test_the_command_line_says_what_is_left_out_by_its_exit_code(
    make_lab_sweep: MakeSweep, tmp_path: Any
) -> None:
    path = written(make_lab_sweep(**FAKE, **SHORT), tmp_path)
    ran = CliRunner().invoke(app, ["run", path, "--pool", "local", "--json"])
    assert ran.exit_code == EXIT_FAILED_CELLS
    left = json.loads(ran.stdout)["left_out"]
    assert {row["why"] for row in left} != set()
    assert len(left) == 9


def test_a_plan_says_how_long_it_takes_and_a_simulation_how_good_that_is(
    make_lab_sweep: MakeSweep, tmp_path: Any
) -> None:
    path = written(make_lab_sweep(**FAKE), tmp_path)
    plan = CliRunner().invoke(app, ["plan", path, "--json"])
    assert plan.exit_code == 0, plan.output
    summary = json.loads(plan.stdout)["summary"]
    low, expected, high = (
        summary[name]
        for name in ("expected_seconds_low", "expected_seconds", "expected_seconds_high")
    )
    assert low <= expected <= high
    assert summary["slot_seconds"] > 0

    picture = tmp_path / "night.svg"
    command = ["simulate", path, "--slots", "3", "--failures", "unit_failure=0.2", "--seed", "7"]
    night = CliRunner().invoke(app, [*command, "--timeline", str(picture), "--json"])
    assert night.exit_code == 0, night.output
    found = json.loads(night.stdout)
    assert found["slots"] == 3
    assert found["done"] + found["failed"] == 9
    assert picture.read_text(encoding="utf-8").startswith("<svg")
    shown = CliRunner().invoke(app, command)
    assert "slots answering, begin to end" in shown.stdout

    wrong = CliRunner().invoke(app, ["simulate", path, "--failures", "meteors=0.1"])
    assert isinstance(wrong.exception, SpecError)
    assert "expected slot_loss" in str(wrong.exception)


def test_a_finished_sweep_has_nothing_to_simulate(make_lab_sweep: MakeSweep) -> None:
    sweep = make_lab_sweep(**FAKE)
    api.run(sweep, pool="local")
    with pytest.raises(SpecError, match="there is nothing to simulate"):
        api.simulate(sweep)
