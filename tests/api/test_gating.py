"""A gate on a sweep that is not finished: nothing passes yet."""

from pathlib import Path
from typing import Any

import pytest

from raypeft import api
from tests.api.test_statistics import write_quizzes
from tests.support.lab import MakeSweep

pytestmark = pytest.mark.torch


def test_nothing_passes_while_cells_are_open(make_lab_sweep: MakeSweep, tmp_path: Path) -> None:
    key = write_quizzes(tmp_path / "quizzes")
    effects = {"small": {"skill": 0.75}, "large": {"skill": 0.3}}

    def run(**changes: Any) -> str:
        sweep = make_lab_sweep(
            engine={
                "kind": "fake",
                "options": {"answer_key": key, "skill": 0.5, "effects": effects},
            },
            include_path=[str(tmp_path / "quizzes")],
            **changes,
        )
        assert not api.run(sweep, pool="local").failed
        return sweep.output

    policy = tmp_path / "policy.yaml"
    policy.write_text("targets: [quiz_a]")
    found = {one.adapter: one for one in api.gate(run(tasks=["quiz_a"]), policy).adapters}
    assert {name: str(one.decision) for name, one in found.items()} == {
        "small": "GO",
        "large": "NO-GO",
    }

    both: dict[str, Any] = {"tasks": ["quiz_a", "quiz_b"]}
    report = api.gate(run(**both, schedule={"deadline": "0.001s"}), policy)
    found = {one.adapter: one for one in report.adapters}
    # The gain on quiz_a is there as before; three cells of quiz_b are not.
    assert [str(check.decision) for check in found["small"].checks] == ["GO", "UNDECIDED"]
    assert "3 cells of base are open" in found["small"].checks[1].reason
    assert str(found["small"].decision) == "UNDECIDED"
    assert str(found["large"].decision) == "NO-GO"
    assert not report.passed

    assert api.gate(run(**both), policy).passed


def test_a_guard_of_all_else_where_there_is_nothing_else_passes_nothing(
    make_lab_sweep: MakeSweep, tmp_path: Path
) -> None:
    sweep = make_lab_sweep(engine={"kind": "fake"}, tasks=["tiny_letters"])
    api.run(sweep, pool="local")
    policy = tmp_path / "policy.yaml"
    policy.write_text("{targets: [tiny_letters], guards: [{task: '*', margin: 0.5}]}")
    for one in api.gate(sweep.output, policy).adapters:
        assert [check.kind for check in one.checks] == ["target", "sweep"]
        assert 'the guard "*" covers nothing' in one.checks[1].reason
