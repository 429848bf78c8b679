import os
from pathlib import Path

import pytest

from raypeft.core.spec import expand, make_sweep
from raypeft.errors import SpecError
from raypeft.runtime.files import ADAPTER_FILES, LocalFolders

DISK = LocalFolders()


@pytest.fixture
def adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: two adapters, a half-written one, other folders and files."""
    for folder in ("good", "good-2", "broken", "logs", ".hidden", "nested/deep"):
        (tmp_path / "adapters" / folder).mkdir(parents=True)
    for folder in ("good", "good-2", ".hidden", "nested/deep"):
        (tmp_path / "adapters" / folder / "adapter_config.json").write_text("{}")
    (tmp_path / "adapters" / "broken" / "adapter_model.safetensors").write_bytes(b"")
    (tmp_path / "adapters" / "README.md").write_text("notes")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_folders_and_nothing_else_are_folders(adapters: Path) -> None:
    assert DISK.is_folder("adapters/good")
    assert DISK.is_folder("adapters/good/")
    assert DISK.is_folder(str(adapters / "adapters"))
    assert not DISK.is_folder("adapters/README.md")
    assert not DISK.is_folder("adapters/README.md/x")
    assert not DISK.is_folder("org/name")


@pytest.mark.parametrize("name", ADAPTER_FILES)
def test_any_file_of_an_adapter_makes_one(tmp_path: Path, name: str) -> None:
    assert not DISK.is_adapter(str(tmp_path))
    (tmp_path / name).write_bytes(b"")
    assert DISK.is_adapter(str(tmp_path))


def test_children_are_the_visible_folders_sorted(adapters: Path) -> None:
    assert DISK.children("adapters") == [
        f"adapters/{name}" for name in ("broken", "good", "good-2", "logs", "nested")
    ]


def test_a_pattern_matches_visible_folders_only(adapters: Path) -> None:
    assert DISK.glob("adapters/*") == DISK.children("adapters")
    assert DISK.glob("adapters/g*/") == ["adapters/good", "adapters/good-2"]
    assert DISK.glob("adapters/x*") == []


def test_two_stars_go_to_any_depth_and_name_no_folder_twice(adapters: Path) -> None:
    assert DISK.glob("adapters/nested/**") == ["adapters/nested", "adapters/nested/deep"]


def test_links_are_followed(adapters: Path) -> None:
    os.symlink("adapters/good", "link")
    os.symlink("nowhere", "dangling")
    assert DISK.is_adapter("link")
    assert not DISK.is_folder("dangling")


def test_what_exists_and_cannot_be_looked_at_is_an_error_and_not_absent(adapters: Path) -> None:
    os.symlink("loop", "loop")
    with pytest.raises(OSError, match="loop"):
        DISK.is_folder("loop")


def test_a_sweep_is_expanded_on_the_real_disk(adapters: Path) -> None:
    entries = [
        "adapters",
        {"path": "adapters/logs", "name": "named"},
        "adapters/nested/*",
        "org/on-the-hub",
    ]
    bases = [{"path": "gpt2", "adapters": entries}]
    sweep = make_sweep({"output": "o", "tasks": ["t"], "bases": bases})
    found = expand(sweep, DISK).bases[0].adapters
    assert [(entry.name, entry.path) for entry in found] == [
        ("broken", "adapters/broken"),
        ("good", "adapters/good"),
        ("good-2", "adapters/good-2"),
        ("named", "adapters/logs"),
        ("deep", "adapters/nested/deep"),
        ("on-the-hub", "org/on-the-hub"),
    ]


def test_a_file_in_place_of_a_folder_is_refused(adapters: Path) -> None:
    bases = [{"path": "gpt2", "adapters": ["./adapters/README.md"]}]
    sweep = make_sweep({"output": "o", "tasks": ["t"], "bases": bases})
    with pytest.raises(SpecError, match="is neither a folder here nor a hub id"):
        expand(sweep, DISK)
