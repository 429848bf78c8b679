import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from raypeft.api import packing
from raypeft.api.packing import Package, pack
from raypeft.api.submitting import SWEEP_IN_PACKAGE
from raypeft.core.spec import Sweep, make_sweep, parse_sweep
from raypeft.errors import SpecError
from raypeft.runtime.package import write_package

ABSOLUTE = {"output": "/data/run", "store": "/data/store"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def make_adapter(folder: Path, weights: bytes = b"w") -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(weights)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "optimizer.pt").write_bytes(b"large and of no use")
    (folder / "checkpoint-10").mkdir()
    (folder / "checkpoint-10" / "adapter_model.safetensors").write_bytes(b"older")
    return folder


def sweep_of(*adapters: Any, **changes: Any) -> Sweep:
    bases = [{"path": "org/base", "name": "base", "adapters": list(adapters)}]
    return make_sweep({**ABSOLUTE, "bases": bases, "tasks": ["arc_easy"], **changes})


def paths(package: Package) -> list[str]:
    return [entry.path for entry in package.sweep.bases[0].adapters]


def test_adapters_travel_under_their_own_names_and_only_what_is_needed_of_them(here: Path) -> None:
    make_adapter(here / "adapters" / "r4")
    make_adapter(here / "adapters" / "r8")
    package = pack(sweep_of("adapters/*"))
    assert paths(package) == ["adapters/r4", "adapters/r8"]
    assert set(package.files) == {
        f"adapters/{name}/{file}"
        for name in ("r4", "r8")
        for file in ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json")
    }


def test_adapters_outside_the_working_directory_are_renamed_and_keep_their_last_name(
    here: Path, tmp_path: Path
) -> None:
    first = make_adapter(tmp_path / "a" / "r4")
    make_adapter(tmp_path / "b" / "r4")
    package = pack(sweep_of(str(first), {"path": "../b/r4", "name": "other"}))
    assert paths(package) == ["packaged/0/r4", "packaged/1/r4"]
    assert [entry.table_name for entry in package.sweep.bases[0].adapters] == ["r4", "other"]
    assert all(not name.startswith(("/", "..")) for name in package.files)


def test_a_broken_adapter_travels_as_the_empty_folder_that_it_is(here: Path) -> None:
    (here / "adapters" / "broken").mkdir(parents=True)
    make_adapter(here / "adapters" / "r4")
    package = pack(sweep_of("adapters/*"))
    write_package(here / "p.zip", files=package.files, texts={}, folders=package.folders)
    with zipfile.ZipFile(here / "p.zip") as archive:
        archive.extractall(here / "out")
    assert (here / "out" / "adapters" / "broken").is_dir()


def test_what_is_only_on_the_cluster_or_the_hub_is_left_to_it(here: Path) -> None:
    make_adapter(here / "adapters" / "r4")
    package = pack(sweep_of("/models/adapters/*", "org/r16", "adapters/r4"))
    assert paths(package) == ["org/r16", "adapters/r4", "/models/adapters/*"]
    assert len(package.files) == 3


def test_relative_places_for_results_are_refused_with_what_to_do(here: Path) -> None:
    with pytest.raises(SpecError) as caught:
        pack(sweep_of(output="runs/x", store="runs/store"))
    assert [problem.place for problem in caught.value.problems] == ["output", "store"]
    assert "--shared-files" in str(caught.value)
    package = pack(sweep_of(output="s3://bucket/x", store="gs://bucket/store"))
    assert (package.sweep.output, package.sweep.store) == ("s3://bucket/x", "gs://bucket/store")


def test_a_base_is_read_by_the_nodes_and_never_travels(here: Path) -> None:
    (here / "models" / "base").mkdir(parents=True)
    bases: list[Any] = ["models/base", {"path": "/models/b2", "tokenizer": "models/base"}]
    with pytest.raises(SpecError) as caught:
        pack(make_sweep({**ABSOLUTE, "bases": bases, "tasks": ["t"]}))
    places = [problem.place for problem in caught.value.problems]
    assert places == ["bases[0].path", "bases[1].tokenizer"]
    assert "absolute path of its folder on the nodes" in str(caught.value)


def test_where_files_are_shared_nothing_travels_and_every_path_is_absolute(here: Path) -> None:
    make_adapter(here / "adapters" / "r4")
    (here / "models" / "base").mkdir(parents=True)
    (here / "tasks").mkdir()
    sweep = make_sweep(
        {
            "output": "runs/x",
            "bases": [{"path": "models/base", "adapters": ["adapters/*"]}],
            "tasks": ["t"],
            "include_path": ["tasks"],
        }
    )
    package = pack(sweep, shared_files=True)
    assert package.files == {}
    found = package.sweep
    read = [found.output, found.store, found.bases[0].path, *paths(package), *found.include_path]
    wanted = ["runs/x", "runs/store", "models/base", "adapters/r4", "tasks"]
    assert read == [os.path.abspath(path) for path in wanted]


def test_too_much_is_refused_with_the_largest_files(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "MAX_PACKAGE_BYTES", 2_000_000)
    make_adapter(here / "adapters" / "small")
    make_adapter(here / "adapters" / "huge", b"x" * 3 * 2**20)
    with pytest.raises(SpecError) as caught:
        pack(sweep_of("adapters/*"))
    assert "adapters/huge/adapter_model.safetensors (3 MiB)" in str(caught.value)
    assert "absolute path" in str(caught.value)


def test_the_same_content_is_the_same_archive(here: Path, tmp_path: Path) -> None:
    archives = []
    for number in range(2):
        adapter = make_adapter(here / "adapters" / "r4")
        os.utime(adapter / "adapter_model.safetensors", (number, number + 1e9))
        files = pack(sweep_of("adapters/*")).files
        target = tmp_path / f"{number}.zip"
        write_package(target, files=files, texts={"sweep.yaml": "a: 1\n"})
        archives.append(target.read_bytes())
        (here / "adapters").rename(tmp_path / f"old-{number}")
    assert archives[0] == archives[1]


@pytest.mark.torch
def test_task_files_travel_with_their_code_and_the_data_they_name(
    here: Path, tmp_path: Path
) -> None:
    (here / "tasks" / "__pycache__").mkdir(parents=True)
    (here / "tasks" / "__pycache__" / "x.pyc").write_bytes(b"")
    (here / "tasks" / "mine.yaml").write_text(
        "task: mine\ndataset_path: json\ndataset_kwargs: {data_files: {test: data/mine.jsonl}}\n"
    )
    (here / "tasks" / ".gitignore").write_text("*.py\n")
    (here / "tasks" / "utils.py").write_text("")
    (here / "data").mkdir()
    (here / "data" / "mine.jsonl").write_text("{}\n")
    (here / "data" / "unused.jsonl").write_text("{}\n")
    (tmp_path / "single").mkdir()
    elsewhere = tmp_path / "elsewhere.jsonl"
    elsewhere.write_text("{}\n")
    (tmp_path / "single" / "one.yaml").write_text(
        f"task: one\ndataset_path: json\ndataset_kwargs: {{data_files: {elsewhere}}}\n"
    )
    (tmp_path / "single" / "helper.py").write_text("")
    single = str(tmp_path / "single" / "one.yaml")
    package = pack(sweep_of(include_path=["tasks"], tasks=["mine", single]))
    assert package.sweep.include_path == ("tasks",)
    assert [task.name for task in package.sweep.tasks] == ["mine", "packaged/0/one.yaml"]
    assert set(package.files) == {
        "tasks/mine.yaml",
        "tasks/utils.py",
        "data/mine.jsonl",
        "packaged/0/one.yaml",
        "packaged/0/helper.py",
    }
    (note,) = package.notes
    assert str(elsewhere) in note


def test_a_task_folder_that_is_not_here_is_refused(here: Path) -> None:
    with pytest.raises(SpecError, match="include_path"):
        pack(sweep_of(include_path=["task"]))


def test_the_packaged_sweep_is_read_back(here: Path) -> None:
    make_adapter(here / "adapters" / "r4")
    package = pack(sweep_of("adapters/*"))
    from raypeft.core.spec import dump_sweep

    assert parse_sweep(dump_sweep(package.sweep), source="x") == package.sweep


@pytest.mark.torch
def test_what_is_hidden_does_not_travel(here: Path) -> None:
    (here / "tasks" / ".aws").mkdir(parents=True)
    for name in (".env", ".aws/credentials", "mine.yaml"):
        (here / "tasks" / name).write_text("task: mine\n")
    assert set(pack(sweep_of(include_path=["tasks"])).files) == {"tasks/mine.yaml"}


@pytest.mark.torch
def test_a_sweep_beside_a_task_file_does_not_take_the_place_of_the_one_that_is_run(
    here: Path,
) -> None:
    (here / "sweep.yaml").write_text("output: elsewhere\n")
    (here / "mine.yaml").write_text("task: mine\ndataset_path: json\n")
    package = pack(sweep_of(tasks=["mine.yaml"]))
    assert "sweep.yaml" in package.files
    target = here / "p.zip"
    write_package(target, files=package.files, texts={SWEEP_IN_PACKAGE: "own\n"})
    with zipfile.ZipFile(target) as archive:
        assert len(set(archive.namelist())) == len(archive.namelist())
        assert archive.read(SWEEP_IN_PACKAGE) == b"own\n"
