"""What the README shows is tried as it stands there: Python, sweep, statistics, policy."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest

from raypeft.api.exporting import ExportFormat
from raypeft.core.gate_policy import parse_policy
from raypeft.core.spec import make_sweep, parse_sweep
from raypeft.core.yaml_text import read_yaml
from tests.support.made_up import MadeUp, write_made_up

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str, holding: str) -> list[str]:
    """Return the blocks of code in a language that hold a text."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    return [text for text in found if holding in text]


def test_the_notebook_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("duckdb")
    pytest.importorskip("polars")
    sweep = MadeUp(
        adapters=("good", "bad"), effects={("good", "red"): 0.3, ("bad", "red"): -0.3}, documents=60
    )
    write_made_up(tmp_path / "runs" / "overnight", sweep)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    (first,), (second,) = blocks("python", "duckdb"), blocks("python", "polars")
    exec(first, names)
    assert names["best"].fetchall() == [("good", 1, 0), ("bad", 0, 1)]
    exec(second, names)
    assert names["lost"]["adapter"].to_list() == ["bad"]
    assert "p_corrected" in capsys.readouterr().out


def test_the_sweep_and_the_statistics_are_read() -> None:
    (text,) = blocks("yaml", "name: overnight")
    sweep = parse_sweep(text, source="README.md")
    assert sweep.name == "overnight"
    (text,) = blocks("yaml", "statistics:")
    values = read_yaml(text, source="README.md")
    base = {"output": "runs/overnight", "bases": [{"path": "base", "adapters": ["one"]}]}
    assert make_sweep({**base, **values}).statistics.noise_floor


def test_the_policy_is_read() -> None:
    (text,) = blocks("yaml", "targets:")
    policy = parse_policy(text, source="README.md")
    assert (policy.targets[0].task, policy.guards[0].task) == ("gsm8k", "*")


def test_every_format_of_export_is_named() -> None:
    table = README[README.index("| format | what |") :].split("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines()[2:]]
    named = {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}
    assert named == set(get_args(ExportFormat))


def test_every_file_that_is_named_is_there() -> None:
    linked = re.findall(r"\]\(([^)#:]+)\)", README)
    named = re.findall(r"`((?:raypeft|benchmarks|configs)/[^`*{ ]+)`", README)
    missing = [name for name in (*linked, *named) if not (ROOT / name).exists()]
    assert missing == []
