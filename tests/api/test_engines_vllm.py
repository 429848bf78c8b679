"""A sweep that vLLM and hf answer together, with the real engines."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raypeft import api
from raypeft.api.surroundings import record_surroundings
from raypeft.core.engine_choice import Surroundings
from raypeft.core.spec import dump_sweep, make_sweep
from raypeft.store.journal import read_journal
from tests.support.lab import Lab
from tests.support.tiny import tiny_llama, tiny_lora

pytestmark = [pytest.mark.vllm, pytest.mark.torch, pytest.mark.slow]

# In 16 bits, which on a CPU wants blocks and heads of 32.
SETTINGS = {"block_size": 32, "kv_cache_memory_bytes": 64 << 20, "enforce_eager": True}


@pytest.fixture
def values(lab: Lab, tmp_path: Path) -> dict[str, Any]:
    """A sweep of a base, an adapter that vLLM can do and one that it cannot."""
    base = tiny_llama(tmp_path / "base", hidden=128)
    adapters = [
        tiny_lora(base, tmp_path / "plain", seed=1, scale=0.3),
        tiny_lora(base, tmp_path / "dora", seed=2, scale=0.3, use_dora=True),
    ]
    entry = {"path": str(base), "dtype": "bfloat16", "adapters": [str(path) for path in adapters]}
    return {
        "output": str(tmp_path / "run"),
        "store": str(tmp_path / "store"),
        "bases": [entry],
        "tasks": ["tiny_letters", "tiny_gen", "tiny_rolling"],
        "include_path": [str(lab.tasks.folder)],
        "engine": {"kind": "auto", "vllm": {**SETTINGS, "max_num_seqs": 16}},
    }


def run(values: dict[str, Any], tmp_path: Path, exit_code: int = 0) -> tuple[Any, str]:
    """Run a sweep in a process of its own: vLLM leaves its settings behind where it ran."""
    sweep = make_sweep(values)
    # As a run on GPUs would have left it: on a CPU `auto` takes vllm in no other way.
    record_surroundings(sweep, Surroundings(vllm_installed=True, has_gpus=True))
    file = tmp_path / "sweep.yaml"
    file.write_text(dump_sweep(sweep))
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    code = "from raypeft.cli import main; main()"
    command = [sys.executable, "-c", code, "run", "--pool", "local", str(file)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == exit_code, done.stdout[-2000:] + done.stderr[-4000:]
    return api.open(sweep.output), done.stdout + done.stderr


def test_each_adapter_is_compared_with_the_baseline_of_its_engine(
    values: dict[str, Any], tmp_path: Path
) -> None:
    tables, said = run(values, tmp_path)
    assert "certificates: hf and vllm answer a few documents both, for 2 subjects" in said
    assert set(tables.cells["state"].to_pylist()) == {"done"}
    engines = {row["subject"]: row["engine"] for row in tables.results.to_pylist()}
    assert engines == {"base": "vllm", "base/plain": "vllm", "base@hf": "hf", "base/dora": "hf"}
    paths = {row["subject"]: row["path"] for row in tables.cells.to_pylist()}
    assert "by hf, since use_dora is set" in paths["base/dora"]
    assert "by hf" not in paths["base/plain"]
    for subject in ("base", "base/plain"):
        assert "certificate: " in paths[subject]
        assert "texts differ" in paths[subject]
    gains = tables.gains.to_pylist()
    assert {row["adapter"] for row in gains} == {"plain", "dora"}
    assert "refused" not in {row["verdict"] for row in gains}
    values_of = {
        (row["subject"], row["task"], row["metric"]): row["value"]
        for row in tables.results.to_pylist()
    }
    for row in gains:
        baseline = {"plain": "base", "dora": "base@hf"}[row["adapter"]]
        assert row["baseline_value"] == values_of[baseline, row["task"], row["metric"]]


def test_adapters_are_answered_in_one_batch_and_a_bad_one_fails_alone(
    values: dict[str, Any], tmp_path: Path
) -> None:
    base = Path(values["bases"][0]["path"])
    more = [tiny_lora(base, tmp_path / f"more{n}", seed=n, scale=0.3) for n in (3, 4)]
    zero = tiny_lora(base, tmp_path / "zero", seed=5, scale=0.0)
    values["bases"][0]["adapters"] = [str(tmp_path / "plain"), *map(str, more), str(zero)]
    values["engine"]["vllm"]["certificate_documents"] = 0
    tables, _ = run(values, tmp_path, exit_code=3)
    cells = {
        (row["subject"], row["task"]): (row["state"], row["reason"])
        for row in tables.cells.to_pylist()
    }
    assert {cells["base/zero", task] for task in values["tasks"]} == {("failed", "no_effect")}
    assert {cells[f"base/more{n}", task] for n in (3, 4) for task in values["tasks"]} == {
        ("done", None)
    }
    runs = [entry for entry in read_journal(values["output"]) if entry.kind == "run_unit"]
    assert len(runs) == 2 * len(values["tasks"])  # the base, and all adapters together


def test_a_subject_whose_certificate_is_refused_is_answered_by_hf_and_says_so(
    values: dict[str, Any], tmp_path: Path
) -> None:
    values["engine"]["vllm"]["certificate_tolerance_nats"] = 1e-9  # below any rounding
    tables, _ = run(values, tmp_path)
    assert set(tables.results["engine"].to_pylist()) == {"hf"}
    paths = {row["subject"]: row["path"] for row in tables.cells.to_pylist()}
    assert "its certificate is refused: its answers lie up to" in paths["base/plain"]
    assert "refused" not in set(tables.gains["verdict"].to_pylist())
    # What was measured is known to the next run, which has nothing left to do.
    again, said = run(values, tmp_path)
    assert "certificates:" not in said
    assert again.cells.equals(tables.cells)


# One request does not fit into so many bytes, and no other setting helps.
STARVED = {"kv_cache_memory_bytes": 1024, "block_size": 32, "enforce_eager": True}


def test_a_base_that_vllm_cannot_load_is_answered_by_hf_and_says_why(
    values: dict[str, Any], tmp_path: Path
) -> None:
    values["engine"]["vllm"] = STARVED
    values["tasks"] = ["tiny_letters"]
    tables, said = run(values, tmp_path)
    assert "vllm cannot load base base, which hf answers instead" in said
    assert set(tables.cells["state"].to_pylist()) == {"done"}
    assert set(tables.results["engine"].to_pylist()) == {"hf"}
    paths = {row["subject"]: row["path"] for row in tables.cells.to_pylist()}
    assert paths.keys() == {"base", "base/plain", "base/dora"}
    for path in paths.values():
        assert "by hf, since vllm could not load it (not_loaded.json" in path
        assert "kv_cache_memory_bytes is 1024" in path
    assert "refused" not in set(tables.gains["verdict"].to_pylist())
    # It keeps the engine that it has: nothing is tried, and nothing answered, again.
    again, said = run(values, tmp_path)
    assert "cannot load" not in said
    assert again.cells.equals(tables.cells)


def test_a_base_that_vllm_cannot_load_any_more_is_answered_by_hf_in_the_same_run(
    values: dict[str, Any], tmp_path: Path
) -> None:
    values["tasks"] = ["tiny_letters"]
    tables, said = run(values, tmp_path)
    assert "certificates:" in said
    engines = {row["subject"]: row["engine"] for row in tables.results.to_pylist()}
    assert engines["base/plain"] == "vllm"
    paths = {row["subject"]: row["path"] for row in tables.cells.to_pylist()}
    assert "times that under hf" in paths["base/plain"]
    # Another sweep with the same store: what was certified there is known.
    values |= {"output": str(tmp_path / "second"), "evaluation": {"limit": 3}}
    values["engine"]["vllm"] = STARVED
    tables, said = run(values, tmp_path)
    assert "certificates:" not in said
    assert "vllm cannot answer for base base, which hf does instead" in said
    assert set(tables.cells["state"].to_pylist()) == {"done"}
    assert set(tables.results["engine"].to_pylist()) == {"hf"}
    assert "refused" not in set(tables.gains["verdict"].to_pylist())


def test_vllm_by_name_that_cannot_load_fails_and_says_what_to_do(
    values: dict[str, Any], tmp_path: Path
) -> None:
    values["engine"] = {"kind": "vllm", "vllm": STARVED}
    values["bases"][0]["adapters"] = values["bases"][0]["adapters"][:1]
    values["tasks"] = ["tiny_letters"]
    values["hardware"] = {"gpus": 0}
    tables, _ = run(values, tmp_path, exit_code=3)
    rows = tables.cells.to_pylist()
    assert {(row["state"], row["reason"]) for row in rows} == {("failed", "out_of_memory")}
    assert {"lower the base's max_length, or raise" in row["message"] for row in rows} == {True}
