"""The page of sweeps: one that ran on the fake engine, and one too large for any screen."""

import json
import re
import sys
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import yaml

from raypeft import api, cli
from raypeft.api.html_report import baseline_of, html_report_line
from raypeft.errors import SetupError
from tests.support.lab import Lab, MakeSweep
from tests.support.made_up import MadeUp, write_made_up

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


def samples_of(html: str) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json" id="samples-data">(.*?)</script>', html)
    found: dict[str, Any] = json.loads(text)
    return found


@pytest.mark.torch
def test_a_sweep_that_ran_has_a_page_with_prompts_recipes_and_identities(
    make_lab_sweep: MakeSweep, lab: Lab
) -> None:
    options = {"effects": {"small": {"skill": 0.95}}, "skill": 0.2}
    sweep = make_lab_sweep(engine={"kind": "fake", "options": options}, tasks=["tiny_letters"])
    api.run(sweep, pool="local")
    path = Path(api.html_report(sweep.output))
    assert path == Path(sweep.output) / "report.html"
    html = path.read_text()
    gains = {row["adapter"]: row for row in api.open(sweep.output).gains.to_pylist()}
    data = samples_of(html)
    assert data["pairs"]
    for pair in data["pairs"]:
        row = gains[pair["adapter"]]
        assert (pair["better"], pair["worse"]) == (row["wins"], row["losses"])
    assert all(prompt and "could not be read" not in prompt for prompt, _, _ in data["questions"])
    assert any("→" in text for text, _ in data["answers"])
    text = unescape(re.sub(r"<[^>]+>", " ", html))
    for row in api.open(sweep.output).results.to_pylist():
        assert row["base_digest"] in text
        assert row["request_set"] in text
        assert row["adapter_digest"] is None or row["adapter_digest"] in text
    assert "target modules" in text
    assert "q_proj, v_proj" in text


@pytest.mark.torch
def test_run_and_report_write_the_page_and_say_where(
    raypeft: Run, lab: Lab, tmp_path: Path
) -> None:
    values = {
        "output": "run",
        "bases": [{"path": str(lab.base), "adapters": [str(lab.adapters["small"])]}],
        "tasks": ["tiny_letters"],
        "include_path": [str(lab.tasks.folder)],
        "engine": {"kind": "fake"},
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(values))
    code, out, _ = raypeft("run", "sweep.yaml", "--pool", "local")
    assert code == 0
    assert "report: " in out
    assert (tmp_path / "run" / "report.html").exists()
    output = str(tmp_path / "run")
    assert raypeft("report", output, "--html", "elsewhere/page.html") == (
        0,
        "elsewhere/page.html\n",
        "",
    )
    assert (tmp_path / "elsewhere" / "page.html").exists()
    code, _, err = raypeft("report", output, "page.html")
    assert code == 2
    assert "--html" in err


def test_without_its_packages_the_page_is_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    output = write_made_up(tmp_path, MadeUp(documents=20))
    # As where the extra is not installed: the finder finds nothing of that name.
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SetupError, match=r"raypeft\[report\]"):
        api.html_report(output)
    assert html_report_line(output).startswith("no HTML report: ")


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    output = write_made_up(tmp_path / "run", MadeUp(documents=20))
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match="cannot be written"):
        api.html_report(output, tmp_path / "file" / "page.html")


def test_samples_that_do_not_match_their_gain_are_left_out_and_named(tmp_path: Path) -> None:
    sweep = MadeUp(adapters=("one",), tasks=("red",), effects={("one", "red"): 0.3})
    output = write_made_up(tmp_path / "run", sweep)
    # The samples of another sweep in the place of this one's.
    other = write_made_up(tmp_path / "other", MadeUp(adapters=("one",), tasks=("red",), seed=9))
    samples = Path(other) / "tables" / "samples.parquet"
    samples.replace(Path(output) / "tables" / "samples.parquet")
    html = Path(api.html_report(output)).read_text()
    assert "The samples of base/one on red do not match its gain and are not shown." in html
    assert 'id="samples-data"' not in html


@pytest.mark.slow
def test_32_adapters_on_12_tasks_fit_a_page_of_5_megabytes(tmp_path: Path) -> None:
    adapters = tuple(f"adapter-{i}" for i in range(32))
    tasks = tuple(f"task-{i}" for i in range(12))
    effects = {(adapters[i], tasks[j]): 0.02 * (i - 8) for i in range(16) for j in range(0, 12, 3)}
    sweep = MadeUp(
        adapters=adapters, tasks=tasks, effects=effects, answer="word " * 500, documents=60
    )
    path = Path(api.html_report(write_made_up(tmp_path, sweep)))
    assert path.stat().st_size < 5_000_000
    data = samples_of(path.read_text())
    assert len({pair["adapter"] for pair in data["pairs"] if pair["items"]}) > 16


def test_the_documents_shown_first_are_those_of_the_adapter_to_ship(tmp_path: Path) -> None:
    sweep = MadeUp(
        adapters=("worse", "best"),
        effects={("worse", "red"): -0.3, ("best", "red"): 0.3},
        documents=60,
    )
    output = write_made_up(tmp_path / "run", sweep)
    data = samples_of(Path(api.html_report(output)).read_text())
    assert data["pairs"][0]["adapter"] == "best"


def test_the_baseline_is_the_one_that_answered_alike() -> None:
    def row(subject: str, engine: str, request_set: str = "r") -> dict[str, Any]:
        numerics = json.dumps({"engine": engine})
        return {
            "subject": subject,
            "base": "base",
            "request_set": request_set,
            "numerics": numerics,
        }

    baselines = [row("base@hf", "hf"), row("base", "vllm"), row("base@other", "hf", "s")]
    assert baseline_of(row("base/one", "hf"), baselines) == baselines[0]
    assert baseline_of(row("base/two", "vllm"), baselines) == baselines[1]
    assert baseline_of(row("base/odd", "hf", "t"), baselines) is None
