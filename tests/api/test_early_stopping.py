"""Hopeless cells stop early, good ones never, and the next run goes on where they were stopped."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from raypeft import api
from raypeft.api.running import Listener, RunReport
from raypeft.core.spec import Sweep
from raypeft.core.status import CellState
from raypeft.report.terminal import render
from raypeft.store.journal import read_journal
from tests.api.test_statistics import write_quizzes
from tests.support.lab import MakeSweep, assert_same_tables

pytestmark = pytest.mark.torch

ON: dict[str, Any] = {"statistics": {"early_stopping": {"looks": 8}}}
HOPELESS = "large"

MakeQuiz = Callable[..., Sweep]


@pytest.fixture
def make_quiz(make_lab_sweep: MakeSweep, tmp_path: Path) -> MakeQuiz:
    """Return a function that makes a sweep of one adapter that helps and one that harms."""
    key = write_quizzes(tmp_path / "quizzes")
    skills = {"small": {"skill": 0.6}, HOPELESS: {"skill": 0.25}}
    options = {"answer_key": key, "skill": 0.5, "effects": skills}

    def make(**changes: Any) -> Sweep:
        usual = {
            "engine": {"kind": "fake", "options": options},
            "include_path": [str(tmp_path / "quizzes")],
            "tasks": ["quiz_a", "quiz_b"],
        }
        return make_lab_sweep(**{**usual, **changes})

    return make


def stopped(report: RunReport) -> set[tuple[str, str]]:
    return {(subject.split("/")[-1], task) for subject, task in report.stopped_early}


def units_run(output: str) -> int:
    return sum(1 for entry in read_journal(output) if entry.kind == "run_unit")


def test_the_hopeless_stop_early_the_good_do_not_and_the_store_has_what_was_answered(
    make_quiz: MakeQuiz,
) -> None:
    sweep = make_quiz(**ON)
    report = api.run(sweep, pool="local")
    assert stopped(report) == {(HOPELESS, "quiz_a"), (HOPELESS, "quiz_b")}
    assert (report.num_done, report.failed, report.left_out) == (4, {}, {})
    # Three subjects on two tasks in eight shards are 48 units; what is hopeless needs half of its.
    assert units_run(sweep.output) < 42
    rows = {
        row["task"]: row
        for row in api.open(sweep.output).cells.to_pylist()
        if row["reason"] == "stopped_early"
    }
    assert {row["state"] for row in rows.values()} == {"open"}
    message = rows["quiz_a"]["message"]
    assert "a gain of 0 or more is ruled out at level 0.0125 at all times" in message
    assert "alpha 0.05 is shared by 4 cells" in message
    assert "of 8 shards are answered" in message
    gains = api.open(sweep.output).gains.to_pylist()
    assert {row["adapter"] for row in gains} == {"small"}
    # Who was stopped counts as tested: four rows, of which two have a p-value.
    assert {(row["family_size"], row["correction"]) for row in gains} == {(4, "Holm")}


def test_who_was_stopped_is_reported_as_such_and_not_as_missing(make_quiz: MakeQuiz) -> None:
    output = api.run(make_quiz(**ON), pool="local").output
    morning = api.report(output)
    assert (morning.num_open, len(morning.stopped_early), len(morning.left_out)) == (0, 2, 0)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render(morning, title="early"))
    text = console.export_text()
    assert "2 stopped early" in text
    assert "is ruled out at level" in text
    # Tables that are gone are made again from the store, reasons and all.
    for table in Path(output).glob("tables/*.parquet"):
        table.unlink()
    again = api.report(output)
    assert (again.num_open, again.num_done) == (0, morning.num_done)
    messages = [[row["message"] for row in one.stopped_early] for one in (morning, again)]
    assert messages[0] == messages[1]


def test_the_next_run_starts_nothing_and_without_early_stopping_goes_on(
    make_quiz: MakeQuiz, tmp_path: Path
) -> None:
    first = api.run(make_quiz(**ON), pool="local")
    before = units_run(first.output)
    again = api.run(make_quiz(**ON), pool="local")
    assert (stopped(again), again.num_done) == (stopped(first), 4)
    assert units_run(first.output) == before

    whole = api.run(make_quiz(), pool="local")
    assert (whole.num_done, whole.stopped_early) == (6, {})
    assert units_run(whole.output) == 48  # no shard twice
    fresh = make_quiz(output=str(tmp_path / "fresh"), store=str(tmp_path / "other"))
    assert_same_tables(whole.output, api.run(fresh, pool="local").output)


def test_status_says_who_was_stopped_in_this_run_and_in_the_next(
    make_quiz: MakeQuiz,
) -> None:
    first = api.run(make_quiz(**ON), pool="local")

    def early() -> dict[str, str]:
        cells = api.status(first.output).cells
        assert {cell.state for cell in cells} == {CellState.DONE, CellState.STOPPED_EARLY}
        return {cell.name: cell.why for cell in cells if cell.state is CellState.STOPPED_EARLY}

    told = early()
    assert set(told) == {"/".join(name) for name in first.stopped_early}
    # Without scores the next run has something to do; who was stopped is no part of it.
    shutil.rmtree(Path(make_quiz().store) / "scores")
    again = api.run(make_quiz(**ON), pool="local")
    assert (api.status(first.output).runs, stopped(again)) == (2, stopped(first))
    assert early() == told
    shutil.rmtree(Path(first.output) / "journal")
    assert early() == told  # as the tables tell


def test_a_look_sees_what_earlier_runs_have_answered(make_quiz: MakeQuiz) -> None:
    # Nobody worse than by 99 points: everything is cut for looks, and nobody is stopped.
    lenient = {"statistics": {"early_stopping": {"looks": 8, "least_gain": -0.99}}}
    late = api.run(make_quiz(**lenient), pool="local")
    assert (stopped(late), late.num_done) == (set(), 6)
    # What is done is done: other settings take no result away.
    strict = api.run(make_quiz(**ON), pool="local")
    assert (stopped(strict), strict.num_done) == (set(), 6)


def test_a_baseline_that_was_answered_whole_before_is_looked_at_too(make_quiz: MakeQuiz) -> None:
    alone = make_quiz()
    base = alone.bases[0].model_copy(update={"adapters": ()})
    api.run(alone.model_copy(update={"bases": (base,)}), pool="local")
    report = api.run(make_quiz(**ON), pool="local")
    assert stopped(report) == {(HOPELESS, "quiz_a"), (HOPELESS, "quiz_b")}
    assert report.num_reused == 2


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"tasks": [{"name": "quiz_a", "cluster": "in.passage"}]}, "stand in clusters"),
        ({"tasks": [{"name": "quiz_a", "limit": 39}]}, "it has 39 documents, expected 40 or more"),
        (
            {"statistics": {"early_stopping": {"metric": "bleu"}}, "tasks": ["quiz_a"]},
            "the task's metrics are acc,none",
        ),
    ],
)
def test_what_cannot_be_looked_at_is_answered_whole(
    make_quiz: MakeQuiz, changes: dict[str, Any], why: str
) -> None:
    said: list[str] = []
    report = api.run(
        make_quiz(**{**ON, **changes}), pool="local", listener=Listener(say=said.append)
    )
    assert (report.num_done, report.stopped_early, report.failed) == (3, {}, {})
    told = [text for text in said if text.startswith("early stopping cannot look at")]
    assert len(told) == 1
    assert why in told[0]


def test_real_engines_answer_shards_of_documents_as_they_answer_the_whole(
    make_quiz: MakeQuiz, tmp_path: Path
) -> None:
    lenient = {"early_stopping": {"looks": 3, "least_gain": -0.99}}
    common: dict[str, Any] = {
        "tasks": [{"name": "quiz_a", "limit": 70}],
        "engine": {"kind": "hf", "batch_size": 4},
    }
    cut = api.run(make_quiz(**common, statistics=lenient), pool="local")
    assert (cut.num_done, cut.failed) == (3, {})
    whole = make_quiz(**common, output=str(tmp_path / "whole"), store=str(tmp_path / "other"))
    api.run(whole, pool="local")
    ours, theirs = (api.open(output) for output in (cut.output, whole.output))
    for mine, other in zip(ours.samples.to_pylist(), theirs.samples.to_pylist(), strict=True):
        assert (mine["subject"], mine["doc_id"]) == (other["subject"], other["doc_id"])
        left, right = (logprobs(row["filtered_responses"]) for row in (mine, other))
        assert left == pytest.approx(right, abs=1e-4)
    shards = {(row["subject"], row["cell"]) for row in ours.cells.to_pylist()}
    assert shards == {(row["subject"], row["cell"]) for row in theirs.cells.to_pylist()}
    assert units_run(cut.output) == 9


def logprobs(responses: str) -> list[float]:
    return [float(logprob) for logprob, _ in json.loads(responses)]


def test_a_run_says_as_json_what_it_stopped(make_quiz: MakeQuiz) -> None:
    from raypeft.api.views import run_record

    record = json.loads(json.dumps(run_record(api.run(make_quiz(**ON), pool="local"))))
    assert {(one["subject"].split("/")[-1], one["task"]) for one in record["stopped_early"]} == {
        (HOPELESS, "quiz_a"),
        (HOPELESS, "quiz_b"),
    }
