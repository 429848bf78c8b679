"""Planted gains through a whole sweep: what the tables and the gate say about them."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from raypeft import api, cli
from raypeft.errors import SpecError
from tests.support.lab import Lab, MakeSweep
from tests.support.tasks import json_splits, write_jsonl, write_task

pytestmark = pytest.mark.torch

NUM_DOCUMENTS = 240
CHOICES = ["red", "blue"]

Planted = Callable[..., str]


@pytest.fixture
def planted(make_lab_sweep: MakeSweep, lab: Lab, tmp_path: Path) -> Planted:
    """Return a function that runs a sweep of known gains and returns its output."""

    def run(**changes: Any) -> str:
        key = write_quizzes(tmp_path / "quizzes")
        skills = {"small": {"skill": 0.75}, "large": {"skill": 0.3}}
        options = {"answer_key": key, "skill": 0.5, "effects": skills}
        values = {"tasks": ["quiz_a", "quiz_b"], **changes}
        sweep = make_lab_sweep(
            engine={"kind": "fake", "options": options},
            include_path=[str(tmp_path / "quizzes")],
            **values,
        )
        assert not api.run(sweep, pool="local").failed
        return sweep.output

    return run


def write_quizzes(folder: Path) -> dict[str, str]:
    """Write two tasks of numbered questions, eight to a passage; return the answer key."""
    folder.mkdir()
    key: dict[str, str] = {}
    for name in ("quiz_a", "quiz_b"):
        rows = []
        for i in range(NUM_DOCUMENTS):
            question, label = f"{name} question {i:03d}", (i * 7 + 3) % 2
            key[question] = CHOICES[label]
            rows.append(
                {
                    "question": question,
                    "choices": CHOICES,
                    "label": label,
                    "in": {"passage": i // 8},
                }
            )
        write_jsonl(folder / f"{name}_test.jsonl", rows)
        write_task(
            folder,
            {
                "task": name,
                **json_splits(folder, name, train=False),
                "output_type": "multiple_choice",
                "doc_to_text": "{{question}}:",
                "doc_to_choice": "choices",
                "doc_to_target": "label",
                "num_fewshot": 0,
                "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
                "metadata": {"version": 1},
            },
        )
    return key


def rows_of(output: str) -> dict[tuple[str, str], Mapping[str, Any]]:
    return {(row["adapter"], row["task"]): row for row in api.open(output).gains.to_pylist()}


def policy_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    return path


def test_planted_gains_are_found_and_everything_about_them_is_told(planted: Planted) -> None:
    rows = rows_of(planted(statistics={"margin": {"acc": 0.01}}))
    assert {key: row["verdict"] for key, row in rows.items()} == {
        ("small", "quiz_a"): "gain",
        ("small", "quiz_b"): "gain",
        ("large", "quiz_a"): "loss",
        ("large", "quiz_b"): "loss",
    }
    for (adapter, _), row in rows.items():
        assert (row["correction"], row["margin"], row["family_size"]) == ("max-T", 0.01, 4)
        assert row["p"] <= min(row["q"], row["p_corrected"]) <= 0.05
        assert row["baseline_low"] < row["baseline_value"] < row["baseline_high"]
        assert row["adapter_low"] < row["adapter_value"] < row["adapter_high"]
        assert row["rank"] == {"small": 1, "large": 2}[adapter]
        assert row["p_best"] == pytest.approx(1.0 if adapter == "small" else 0.0)
        assert 0 < row["documents_needed"] < NUM_DOCUMENTS
        assert (row["noise_floor"], row["num_clusters"]) == (None, None)


def test_documents_of_a_passage_count_as_one_where_the_sweep_says_so(planted: Planted) -> None:
    tasks = [{"name": "quiz_a", "cluster": "in.passage"}, "quiz_b"]
    rows = rows_of(planted(tasks=tasks))
    clustered, plain = rows["small", "quiz_a"], rows["small", "quiz_b"]
    assert (clustered["num_clusters"], clustered["n"]) == (NUM_DOCUMENTS // 8, NUM_DOCUMENTS)
    assert "McNemar" not in clustered["method"]
    assert plain["method"].startswith("exact McNemar")
    assert plain["num_clusters"] is None


def test_a_field_that_documents_lack_gives_no_interval_and_is_named(planted: Planted) -> None:
    rows = rows_of(planted(tasks=[{"name": "quiz_a", "cluster": "paragraph"}]))
    for row in rows.values():
        assert row["verdict"] == "inconclusive"
        assert "has no field 'paragraph'" in row["reason"]
        assert "its fields are choices, in, label, question" in row["reason"]


def test_a_baseline_that_is_answered_again_gives_a_noise_floor(planted: Planted) -> None:
    output = planted(statistics={"noise_floor": True})
    cells = api.open(output).cells.to_pylist()
    first, again = (
        {row["cell"] for row in cells if row["subject"] == name} for name in ("base", "base@again")
    )
    assert len(first) == len(again) == 2
    assert not first & again
    rows = rows_of(output)
    # The fake engine answers alike, so the floor is known to be none.
    assert {row["noise_floor"] for row in rows.values()} == {0.0}
    assert {adapter for adapter, _ in rows} == {"small", "large"}
    assert {row["subject"] for row in api.open(output).results.to_pylist()} >= {"base@again"}


def test_the_gate_says_which_adapter_may_go_and_shows_the_documents(
    planted: Planted, tmp_path: Path
) -> None:
    policy = "{targets: [{task: quiz_a, min_gain: 0.1}], guards: [{task: '*', margin: 0.02}]}"
    output = planted()
    found = api.gate(output, policy_file(tmp_path, policy))
    says = {one.adapter: str(one.decision) for one in found.adapters}
    assert says == {"small": "GO", "large": "NO-GO"}
    assert found.passed
    large = next(one for one in found.adapters if one.adapter == "large")
    assert [check.kind for check in large.checks] == ["target", "guard"]
    assert [loss.task for loss in large.forgetting] == ["quiz_b"]
    rows = rows_of(output)
    assert len(found.flips) == 4
    for flips in found.flips:
        row = rows[flips.adapter, flips.task]
        assert (len(flips.better), len(flips.worse)) == (row["wins"], row["losses"])


def test_a_policy_that_asks_for_all_adapters_is_not_met_by_one(
    planted: Planted, tmp_path: Path
) -> None:
    output = planted()
    policy = policy_file(tmp_path, "{targets: [quiz_a], require: all}")
    assert not api.gate(output, policy).passed
    only_one = policy_file(tmp_path, "{targets: [quiz_a], require: all, adapters: [small]}")
    assert api.gate(output, only_one).passed


def test_the_command_leaves_with_0_only_where_the_policy_is_met(
    planted: Planted,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = planted()

    def gate(policy: str, *more: str) -> tuple[int, str]:
        file = policy_file(tmp_path, policy)
        monkeypatch.setattr(sys, "argv", ["raypeft", "gate", output, "--policy", str(file), *more])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert isinstance(left.value.code, int)
        captured = capsys.readouterr()
        return left.value.code, captured.out + captured.err

    code, text = gate("{targets: [quiz_a]}")
    assert code == 0
    assert "NO-GO" in text
    assert "the policy is met" in text
    code, text = gate("{targets: [{task: quiz_a, min_gain: 0.25}], adapters: [small]}")
    assert code == 4
    assert "UNDECIDED" in text
    code, text = gate("{targets: [quiz_a], require: all}", "--json")
    assert code == 4
    found = json.loads(text)
    assert found["passed"] is False
    assert [one["decision"] for one in found["adapters"]] == ["GO", "NO-GO"]
    assert found["flips"][0]["better"]
    code, text = gate("{target: [quiz_a]}")
    assert code == 2
    assert "did you mean `targets`?" in text


def test_names_that_the_sweep_does_not_have_are_errors(planted: Planted, tmp_path: Path) -> None:
    output = planted()
    policy = policy_file(tmp_path, "{targets: [quiz_c], adapters: [tiny]}")
    with pytest.raises(SpecError) as raised:
        api.gate(output, policy)
    assert "no task or group 'quiz_c'; there are quiz_a, quiz_b" in str(raised.value)
    assert "matches tiny; there are large, small" in str(raised.value)


def test_a_metric_that_no_subject_has_is_an_error(planted: Planted, tmp_path: Path) -> None:
    policy = "{targets: [quiz_a], guards: [{task: quiz_b, metric: acuracy, margin: 0.5}]}"
    with pytest.raises(SpecError) as raised:
        api.gate(planted(), policy_file(tmp_path, policy))
    assert "quiz_b has no metric or filter 'acuracy'; there are acc,none" in str(raised.value)
