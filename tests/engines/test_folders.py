"""A name becomes a folder here or a clear error, and a local path never a network request."""

from pathlib import Path

import pytest

from raypeft.core.records import FailureKind
from raypeft.engines.folders import ADAPTER_FILES, is_hub_id, resolve_folder
from raypeft.errors import CellError


def resolve(path: str) -> Path:
    return resolve_folder(path, what="adapter", files=ADAPTER_FILES)


@pytest.mark.parametrize("name", ["gpt2", "meta-llama/Llama-3.1-8B", "org/name_v1.2-x"])
def test_names_with_at_most_one_slash_are_hub_ids(name: str) -> None:
    assert is_hub_id(name)


@pytest.mark.parametrize("name", ["/a/b", "./a", "../a", "~/a", "a/b/c", "a/", "a b", "s3://a/b"])
def test_paths_are_no_hub_ids(name: str) -> None:
    assert not is_hub_id(name)


def test_a_missing_folder_below_an_existing_one_is_no_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adapters").mkdir()

    assert not is_hub_id("adapters/mistyped")
    with pytest.raises(CellError, match="no such folder") as raised:
        resolve("adapters/mistyped")
    assert raised.value.kind == FailureKind.SPEC


def test_a_folder_is_found_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)

    assert resolve("org/name") == (tmp_path / "org" / "name").resolve()


def test_a_file_is_refused_with_its_folder_as_the_remedy(tmp_path: Path) -> None:
    file = tmp_path / "adapter_model.safetensors"
    file.touch()

    with pytest.raises(CellError, match="is a file; give the folder") as raised:
        resolve(str(file))
    assert str(tmp_path) in str(raised.value)


def test_a_loop_of_links_is_named_as_one(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")

    with pytest.raises(CellError, match="symbolic links") as raised:
        resolve(str(tmp_path / "a"))
    assert raised.value.kind == FailureKind.SPEC


def test_a_hub_id_that_is_not_in_the_cache_is_an_error_while_the_hub_is_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)

    with pytest.raises(CellError, match="hub is switched off") as raised:
        resolve("nobody-at-all/nothing-at-all")
    assert raised.value.kind == FailureKind.SPEC
    assert not raised.value.retryable
