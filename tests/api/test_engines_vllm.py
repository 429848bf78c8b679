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
from tests.support.lab import Lab
from tests.support.tiny import tiny_llama, tiny_lora

pytestmark = [pytest.mark.vllm, pytest.mark.torch, pytest.mark.slow]

# In 16 bits, which on a CPU wants blocks and heads of 32.
SETTINGS = {"block_size": 32, "kv_cache_memory_bytes": 64 << 20, "enforce_eager": True}


def test_each_adapter_is_compared_with_the_baseline_of_its_engine(lab: Lab, tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", hidden=128)
    adapters = [
        tiny_lora(base, tmp_path / "plain", seed=1, scale=0.3),
        tiny_lora(base, tmp_path / "dora", seed=2, scale=0.3, use_dora=True),
    ]
    entry = {"path": str(base), "dtype": "bfloat16", "adapters": [str(path) for path in adapters]}
    values: dict[str, Any] = {
        "output": str(tmp_path / "run"),
        "bases": [entry],
        "tasks": ["tiny_letters", "tiny_gen", "tiny_rolling"],
        "include_path": [str(lab.tasks.folder)],
        "engine": {"kind": "auto", "vllm": {**SETTINGS, "max_num_seqs": 16}},
    }
    sweep = make_sweep(values)
    # As a run on GPUs would have left it: on a CPU `auto` takes vllm in no other way.
    record_surroundings(sweep, Surroundings(vllm_installed=True, has_gpus=True))
    file = tmp_path / "sweep.yaml"
    file.write_text(dump_sweep(sweep))

    # In a process of its own: vLLM leaves its settings behind in the process that ran it.
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    code = "from raypeft.cli import main; main()"
    command = [sys.executable, "-c", code, "run", "--pool", "local", str(file)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=500, check=False
    )

    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    tables = api.open(sweep.output)
    assert set(tables.cells["state"].to_pylist()) == {"done"}
    engines = {row["subject"]: row["engine"] for row in tables.results.to_pylist()}
    assert engines == {"base": "vllm", "base/plain": "vllm", "base@hf": "hf", "base/dora": "hf"}
    paths = {row["subject"]: row["path"] for row in tables.cells.to_pylist()}
    assert "by hf, since use_dora is set" in paths["base/dora"]
    assert "by hf" not in paths["base/plain"]
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
