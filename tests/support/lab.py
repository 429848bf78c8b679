"""A tiny base with adapters and tasks, made once a session, and sweeps over them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raypeft import api
from raypeft.core.spec import Sweep, make_sweep
from raypeft.store.output import TABLES
from raypeft.store.tables import stable
from tests.support.tasks import TinyTasks, write_tasks


@dataclass(frozen=True)
class Lab:
    """What the sweeps are about.

    Attributes:
        base: Folder of a tiny Llama.
        adapters: Folders of its adapters, by name.
        tasks: Tiny tasks.
    """

    base: Path
    adapters: Mapping[str, Path]
    tasks: TinyTasks


MakeSweep = Callable[..., Sweep]


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    from tests.support.tiny import tiny_llama, tiny_lora

    root = tmp_path_factory.mktemp("lab")
    base = tiny_llama(root / "base")
    adapters = {
        "small": tiny_lora(base, root / "adapters" / "small", seed=1, scale=0.3),
        "large": tiny_lora(
            base,
            root / "adapters" / "large",
            seed=2,
            rank=8,
            scale=0.3,
            target_modules=("q_proj", "k_proj", "v_proj", "down_proj"),
        ),
    }
    return Lab(base, adapters, write_tasks(root / "tasks"))


@pytest.fixture
def make_lab_sweep(lab: Lab, tmp_path: Path) -> MakeSweep:
    """Return a function that makes a sweep; keywords replace or deepen its sections."""

    def make(**changes: Any) -> Sweep:
        values: dict[str, Any] = {
            "output": str(tmp_path / "run"),
            "bases": [
                {"path": str(lab.base), "adapters": [str(path) for path in lab.adapters.values()]}
            ],
            "tasks": ["tiny_letters", "tiny_gen", "tiny_rolling"],
            "include_path": [str(lab.tasks.folder)],
            "engine": {"kind": "hf", "batch_size": 4},
        }
        return make_sweep({**values, **changes})

    return make


def stable_tables(output: str) -> dict[str, pa.Table]:
    """Return the tables of a sweep without what describes the run."""
    results = api.open(output)
    return {name: stable(getattr(results, name)) for name in TABLES}


def assert_same_tables(left: str, right: str) -> None:
    ours, theirs = stable_tables(left), stable_tables(right)
    for name in TABLES:
        assert _bytes(ours[name]) == _bytes(theirs[name]), f"table {name} differs"


def _bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    data: bytes = sink.getvalue().to_pybytes()
    return data
