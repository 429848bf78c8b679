"""Comparisons of any two subjects: by the rules of the sweep, groups among them."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from raypeft import api, cli
from raypeft.api.html_report import baseline_of
from raypeft.core.gains import Gain
from raypeft.errors import SpecError
from tests.support.lab import Lab, MakeSweep

pytestmark = pytest.mark.torch

FAKE = {"kind": "fake"}
STRICT = {"alpha": 0.01, "resamples": 2_999, "margin": {"acc": 0.9}}


def by_name(gains: list[Gain]) -> dict[tuple[str, str, str], Gain]:
    return {(gain.task, gain.metric, gain.filter): gain for gain in gains}


def rows_of(output: str, adapter: str) -> dict[tuple[str, str, str], Mapping[str, Any]]:
    rows = api.open(output).gains.to_pylist()
    return {(r["task"], r["metric"], r["filter"]): r for r in rows if r["adapter"] == adapter}


def test_the_base_against_an_adapter_is_its_row_of_the_gains_table(
    make_lab_sweep: MakeSweep,
) -> None:
    sweep = make_lab_sweep(engine=FAKE, tasks=["tiny_nested", "tiny_rolling"], statistics=STRICT)
    api.run(sweep, pool="local")
    found = by_name(api.compare(sweep.output, "base", "base/small"))
    rows = rows_of(sweep.output, "small")
    assert found.keys() == rows.keys()
    assert (
        {name for name, gain in found.items() if gain.is_group}
        == {name for name, row in rows.items() if row["is_group"]}
        != set()
    )
    for name, gain in found.items():
        row = rows[name]
        assert (gain.base, gain.adapter, gain.alpha) == ("base", "base/small", 0.01)
        for column in ("gain", "baseline_value", "adapter_value", "n", "wins", "losses", "margin"):
            assert getattr(gain, column) == row[column], column
        if "McNemar" in gain.method:  # exact, where others depend on their draws
            assert gain.p == row["p"]


def test_two_adapters_are_compared_as_well(make_lab_sweep: MakeSweep) -> None:
    sweep = make_lab_sweep(engine=FAKE, tasks=["tiny_group"])
    api.run(sweep, pool="local")
    found = by_name(api.compare(sweep.output, "base/small", "base/large"))
    small, large = (rows_of(sweep.output, name) for name in ("small", "large"))
    assert found.keys() == small.keys()
    for name, gain in found.items():
        assert gain.gain == pytest.approx(large[name]["gain"] - small[name]["gain"])


def test_rules_that_two_sweeps_do_not_share_are_named(
    make_lab_sweep: MakeSweep, tmp_path: Path
) -> None:
    first = make_lab_sweep(engine=FAKE, tasks=["tiny_letters"], statistics={"alpha": 0.1})
    second = make_lab_sweep(
        engine=FAKE, tasks=["tiny_letters"], output=str(tmp_path / "second"), store=first.store
    )
    for sweep in (first, second):
        api.run(sweep, pool="local")
    for gain in api.compare(first.output, "base", f"{second.output}::base/small"):
        assert gain.alpha == 0.1
        assert f"judged by the rules of {first.output}" in gain.reason
        assert "has other statistics.alpha" in gain.reason
    alone = api.compare(first.output, "base", "base/small")
    assert [gain.reason for gain in alone if "judged by" in gain.reason] == []


def test_the_noise_floor_holds_for_comparisons_too(make_lab_sweep: MakeSweep) -> None:
    sweep = make_lab_sweep(
        engine=FAKE, tasks=["tiny_letters"], statistics={"noise_floor": True, "alpha": 0.2}
    )
    api.run(sweep, pool="local")
    for pair in (("base", "base@again"), ("base", "base/small"), ("base/small", "base/large")):
        gains = api.compare(sweep.output, *pair)
        assert {gain.noise_floor for gain in gains} == {0.0}
        assert all(gain.verdict != "refused" for gain in gains)
    assert {gain.gain for gain in api.compare(sweep.output, "base", "base@again")} == {0.0}


def test_a_baseline_that_is_answered_again_never_stands_for_the_base() -> None:
    def row(subject: str, again: bool) -> dict[str, Any]:
        numerics = {"engine": "hf", **({"again": True} if again else {})}
        return {
            "subject": subject,
            "base": "b",
            "request_set": "r",
            "numerics": json.dumps(numerics),
        }

    own = row("b/one", again=False)
    first, second = row("b@hf", again=False), row("a@again", again=True)
    assert baseline_of(own, [second, first]) == first
    assert baseline_of(own, [second]) is None


def test_two_sweeps_are_compared_subject_by_subject(
    make_lab_sweep: MakeSweep, tmp_path: Path
) -> None:
    first = make_lab_sweep(engine=FAKE, tasks=["tiny_letters"])
    options = {"skill": 0.9}
    second = make_lab_sweep(
        engine={**FAKE, "options": options},
        tasks=["tiny_letters"],
        output=str(tmp_path / "second"),
        store=first.store,
    )
    third = make_lab_sweep(
        engine=FAKE, tasks=["tiny_letters"], output=str(tmp_path / "third"), store=first.store
    )
    for sweep in (first, second, third):
        api.run(sweep, pool="local")
    same = api.compare_sweeps(first.output, third.output)
    assert {gain.gain for gain in same} == {0.0}
    assert {gain.base for gain in same} == {
        f"{first.output}::{subject}" for subject in ("base", "base/small", "base/large")
    }
    printed = CliRunner().invoke(cli.app, ["compare", first.output, second.output, "--json"])
    assert printed.exit_code == 0
    refused = json.loads(printed.stdout)
    assert {row["verdict"] for row in refused} == {"refused"}
    assert all("numerics.options" in row["reason"] for row in refused)


@pytest.mark.parametrize("is_changed_in_place", [False, True])
def test_a_group_that_is_defined_otherwise_is_refused(
    make_lab_sweep: MakeSweep, lab: Lab, tmp_path: Path, is_changed_in_place: bool
) -> None:
    tasks = Path(shutil.copytree(lab.tasks.folder, tmp_path / "tasks"))
    names = ["tiny_group", "tiny_mutual"]
    first = make_lab_sweep(engine=FAKE, include_path=[str(tasks)], tasks=names)
    api.run(first, pool="local")
    if not is_changed_in_place:
        tasks = Path(shutil.copytree(tasks, tmp_path / "others"))
    (path,) = [one for one in tasks.glob("*.yaml") if "group: tiny_group\n" in one.read_text()]
    path.write_text(path.read_text().replace("- tiny_mutual\n", ""))
    second = make_lab_sweep(
        engine=FAKE,
        include_path=[str(tasks)],
        tasks=names,
        output=str(tmp_path / "second"),
        store=first.store,
    )
    api.run(second, pool="local")
    gains = by_name(api.compare(first.output, "base", f"{second.output}::base/small"))
    group = gains["tiny_group", "acc", "none"]
    assert group.verdict == "refused"
    says = "is defined otherwise now" if is_changed_in_place else "children differs"
    assert says in group.reason
    assert gains["tiny_letters", "acc", "none"].verdict != "refused"


def test_what_two_sweeps_lack_in_common_is_named(make_lab_sweep: MakeSweep, tmp_path: Path) -> None:
    first = make_lab_sweep(engine=FAKE, tasks=["tiny_letters"])
    second = make_lab_sweep(engine=FAKE, tasks=["tiny_gen"], output=str(tmp_path / "second"))
    for sweep in (first, second):
        api.run(sweep, pool="local")
    with pytest.raises(SpecError, match=r"no task in common: .*tiny_letters.*tiny_gen"):
        api.compare_sweeps(first.output, second.output)
