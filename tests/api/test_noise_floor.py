"""Baselines answered again, alone and through an adapter of zero effect: what the tables say."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from raypeft import api
from raypeft.api.sweeps import resolve
from raypeft.core.spec import Sweep
from raypeft.engines.adapters import SAFE_WEIGHTS_FILE
from raypeft.errors import SetupError
from tests.api.test_statistics import write_quizzes
from tests.support.lab import Lab, MakeSweep
from tests.support.tiny import tiny_lora

pytestmark = pytest.mark.torch

FLOOR = {"statistics": {"noise_floor": True}}
FAKE = {"engine": {"kind": "fake"}, "tasks": ["tiny_letters"]}


def rows_of(output: str) -> dict[tuple[str, str], Mapping[str, Any]]:
    return {(row["adapter"], row["task"]): row for row in api.open(output).gains.to_pylist()}


def quiz_sweep(make: MakeSweep, tmp_path: Path, **script: Any) -> Sweep:
    """A sweep of known gains, whose adapter of zero effect knows other questions for most."""
    key = write_quizzes(tmp_path / "quizzes")
    effects = {"small": {"skill": 0.53}, "large": {"skill": 0.9}, "base@zero": {"luck": 0.7}}
    options = {"answer_key": key, "skill": 0.5, "effects": effects, "script": script}
    return make(
        engine={"kind": "fake", "options": options},
        include_path=[str(tmp_path / "quizzes")],
        tasks=["quiz_a"],
        **FLOOR,
    )


def test_noise_that_only_the_path_through_adapters_has_is_in_the_floor(
    make_lab_sweep: MakeSweep, tmp_path: Path
) -> None:
    sweep = quiz_sweep(make_lab_sweep, tmp_path, reads_adapters=True)
    assert not api.run(sweep, pool="local").failed
    rows = rows_of(sweep.output)
    # Never an adapter: not in the gains, not in their ranks, not in a family.
    assert set(rows) == {("small", "quiz_a"), ("large", "quiz_a")}
    assert {row["family_size"] for row in rows.values()} == {2}
    assert sorted(row["rank"] for row in rows.values()) == [1, 2]
    floors = {row["noise_floor"] for row in rows.values()}
    assert len(floors) == 1
    assert 0.02 < floors.pop() < 0.2
    assert rows["large", "quiz_a"]["verdict"] == "gain"
    small = rows["small", "quiz_a"]
    assert (small["verdict"], small["p_corrected"] < 0.05) == ("inconclusive", True)
    assert "not claimed: the baseline, answered again, may differ" in small["reason"]
    results = api.open(sweep.output).results.to_pylist()
    zero = [row for row in results if row["subject"] == "base@zero"]
    assert [row["adapter"] for row in zero] == [None]
    by_subject = {gain.noise_floor for gain in api.compare(sweep.output, "base", "base/large")}
    assert by_subject == {rows["large", "quiz_a"]["noise_floor"]}


def test_a_gate_never_judges_it(make_lab_sweep: MakeSweep, tmp_path: Path) -> None:
    sweep = quiz_sweep(make_lab_sweep, tmp_path)
    api.run(sweep, pool="local")
    policy = tmp_path / "policy.yaml"
    policy.write_text("targets: [quiz_a]")
    assert {one.adapter for one in api.gate(sweep.output, policy).adapters} == {"small", "large"}


def test_where_it_fails_the_floor_says_that_it_is_without_it(
    make_lab_sweep: MakeSweep, tmp_path: Path
) -> None:
    events = [{"do": "fail", "adapter": "base@zero", "kind": "unsupported"}]
    sweep = quiz_sweep(make_lab_sweep, tmp_path, events=events)
    failed = api.run(sweep, pool="local").failed
    assert set(failed) == {("base@zero", "quiz_a")}
    for row in rows_of(sweep.output).values():
        assert row["noise_floor"] == 0.0
        assert "its noise floor is without base@zero" in row["reason"]
    for gain in api.compare(sweep.output, "base", "base/large"):
        assert "its noise floor is without base@zero" in gain.reason


def test_hf_attaches_it_and_the_floor_in_float32_is_none(make_lab_sweep: MakeSweep) -> None:
    sweep = make_lab_sweep(tasks=["tiny_letters"], **FLOOR)
    assert not api.run(sweep, pool="local").failed
    assert {row["noise_floor"] for row in rows_of(sweep.output).values()} == {0.0}
    cells = {row["subject"]: row for row in api.open(sweep.output).cells.to_pylist()}
    assert len({cells[name]["cell"] for name in ("base", "base@again", "base@zero")}) == 3
    assert "lane shared" in cells["base@zero"]["path"]
    assert (Path(sweep.output) / "zero_adapters" / "base@zero" / SAFE_WEIGHTS_FILE).is_file()
    again = api.run(sweep, pool="local")
    assert again.num_reused == again.num_cells == 5


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_where_there_can_be_none_the_plan_says_why(
    make_lab_sweep: MakeSweep, lab: Lab, tmp_path: Path
) -> None:
    def found(adapters: list[Any], **changes: Any) -> tuple[set[str], str]:
        bases = [{"path": str(lab.base), "adapters": adapters}]
        resolved = resolve(make_lab_sweep(bases=bases, **FAKE, **FLOOR, **changes))
        return set(resolved.subjects), resolved.warnings.get("base", "")

    small = str(lab.adapters["small"])
    assert found([small]) == ({"base", "base@again", "base@zero", "base/small"}, "")
    merged = {"path": small, "merge": True}
    words = tiny_lora(lab.base, tmp_path / "words", target_modules=("embed_tokens",))
    for adapters, why in (
        ([], "no adapter is compared with it"),
        ([merged], "none of its adapters is a LoRA that is attached"),
        ([str(words)], "on linear modules"),
    ):
        names, warning = found(adapters)
        assert "base@zero" not in names
        assert warning.startswith("base's noise floor is without an adapter of zero effect: ")
        assert why in warning


def test_an_output_that_cannot_hold_it_is_an_error_that_says_so(make_lab_sweep: MakeSweep) -> None:
    sweep = make_lab_sweep(**FAKE, **FLOOR)
    Path(sweep.output).mkdir()
    (Path(sweep.output) / "zero_adapters").write_text("in the way")
    with pytest.raises(SetupError, match=r"the adapter of zero effect behind base@zero"):
        api.run(sweep, pool="local")


def test_without_a_noise_floor_nothing_is_answered_again(make_lab_sweep: MakeSweep) -> None:
    assert set(resolve(make_lab_sweep(**FAKE)).subjects) == {"base", "base/small", "base/large"}
