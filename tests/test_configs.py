"""Every sweep in `configs/` is read, expanded on a made-up disk, and fits the JSON Schema."""

from collections.abc import Sequence
from pathlib import Path

import jsonschema
import pytest
import yaml

from raypeft.core.spec import Sweep, dump_sweep, expand, parse_sweep, sweep_schema

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


class AdaptersEverywhere:
    """A disk where every pattern matches two adapters and every folder of adapters holds two.

    Two levels below `adapters/` lie single adapters, as the comments in the sweeps have it.
    """

    def is_folder(self, path: str) -> bool:
        return path.startswith("adapters/") and "*" not in path

    def is_adapter(self, path: str) -> bool:
        return path.count("/") >= 2

    def children(self, path: str) -> Sequence[str]:
        return [f"{path}/first", f"{path}/second"]

    def glob(self, pattern: str) -> Sequence[str]:
        stem = pattern.rstrip("*").rstrip("/")
        return [f"{stem}/one", f"{stem}/two"]


def read(path: Path) -> Sweep:
    return parse_sweep(path.read_text(encoding="utf-8"), source=str(path), name=path.stem)


def test_there_are_sweeps_to_start_from() -> None:
    assert {path.stem for path in CONFIGS} >= {"local", "overnight", "chat", "own_tasks"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_a_sweep_of_its_name(path: Path) -> None:
    sweep = read(path)
    assert sweep.name == path.stem
    assert sweep.store == "runs/store"
    assert all(sweep.settings(task) for task in sweep.tasks)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_expands_to_named_adapters_and_is_read_back(path: Path) -> None:
    sweep = expand(read(path), AdaptersEverywhere(), source=str(path))
    adapters = [adapter for base in sweep.bases for adapter in base.adapters]
    assert len(adapters) >= 2
    assert all(adapter.name and "*" not in adapter.path for adapter in adapters)
    assert parse_sweep(dump_sweep(sweep), source="dump") == sweep


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_fits_the_schema_that_editors_use(path: Path) -> None:
    jsonschema.validate(yaml.safe_load(path.read_text(encoding="utf-8")), sweep_schema())
