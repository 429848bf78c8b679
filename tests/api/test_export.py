"""`api.export`: which subjects are written, in each format, of a sweep that ran."""

import json
from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq
import pytest

from raypeft import api
from tests.support.lab import MakeSweep

pytestmark = pytest.mark.torch

SUBJECTS = ["base", "base/small", "base/large"]


@pytest.fixture
def output(make_lab_sweep: MakeSweep) -> str:
    """A sweep with a name, whose baseline was answered twice."""
    sweep = make_lab_sweep(
        name="night",
        engine={"kind": "fake"},
        tasks=["tiny_letters"],
        statistics={"noise_floor": True},
    )
    api.run(sweep, pool="local")
    return sweep.output


@pytest.mark.parametrize("to", ["lm-eval", "every-eval-ever"])
def test_a_baselines_second_answers_are_exported_by_name_only(
    output: str, tmp_path: Path, to: Literal["lm-eval", "every-eval-ever"]
) -> None:
    exported = api.export(output, tmp_path / "all", to=to)
    assert [one.subject for one in exported] == SUBJECTS
    assert all(one.results.is_file() for one in exported)
    (again,) = api.export(output, tmp_path / "again", subjects=["base@again"], to=to)
    assert (again.subject, again.results.is_file()) == ("base@again", True)


def test_every_eval_ever_is_told_the_sweeps_name_and_its_groups(
    make_lab_sweep: MakeSweep, tmp_path: Path
) -> None:
    sweep = make_lab_sweep(name="two nights", engine={"kind": "fake"}, tasks=["tiny_group"])
    api.run(sweep, pool="local")
    (first, *_) = api.export(sweep.output, tmp_path / "out", to="every-eval-ever")
    record = json.loads(first.results.read_text())
    assert record["evaluation_id"].startswith("two_nights/base/base/")
    kinds = {
        one["evaluation_name"]: one["source_data"]["additional_details"]["kind"]
        for one in record["evaluation_results"]
    }
    assert kinds == {"tiny_letters": "task", "tiny_mutual": "task", "tiny_group": "group"}


def test_parquet_holds_whole_tables_or_one_subject(output: str, tmp_path: Path) -> None:
    whole = {one.subject: one.results for one in api.export(output, tmp_path / "a", to="parquet")}
    assert pq.read_table(whole["results"]).num_rows == api.open(output).results.num_rows
    one = api.export(output, tmp_path / "b", subjects=["base/small"], to="parquet")
    rows = {part.subject: pq.read_table(part.results).to_pylist() for part in one}
    assert {row["subject"] for row in (*rows["results"], *rows["samples"])} == {"base/small"}
    assert {row["adapter"] for row in rows["gains"]} == {"small"}
