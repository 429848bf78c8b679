"""The digest of own tasks changes with every file that can change a request set."""

import os
from pathlib import Path

import pytest

from tests.support.tasks import function, json_splits, write_jsonl, write_task

pytestmark = pytest.mark.torch


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data, own = tmp_path / "elsewhere", tmp_path / "own"
    data.mkdir()
    own.mkdir()
    write_jsonl(data / "x_test.jsonl", [{"a": 1}])
    (tmp_path / "shared_template").write_text("description: shared\n")
    write_task(
        own, {"task": "x", "include": "../shared_template"} | json_splits(data, "x", train=False)
    )
    (own / "functions.py").write_text("def f(doc): return 1\n")
    return tmp_path


def _digest(folder: Path) -> str:
    from raypeft.harness.include import include_digest

    return include_digest([str(folder / "own")])


@pytest.mark.parametrize(
    "changed",
    ["own/x.yaml", "own/functions.py", "elsewhere/x_test.jsonl", "shared_template", "own/new.txt"],
)
def test_it_changes_with_each_file_and_only_with_content(folder: Path, changed: str) -> None:
    before = _digest(folder)
    for path in (folder / "own").iterdir():
        os.utime(path, ns=(1, 1))
    (folder / "own" / "__pycache__").mkdir()
    (folder / "own" / "__pycache__" / "functions.pyc").write_bytes(b"compiled")
    assert _digest(folder) == before
    with (folder / changed).open("a") as file:
        file.write("# changed\n" if not changed.startswith("shared") else "gen_prefix: changed\n")
    assert _digest(folder) != before


def test_it_does_not_depend_on_where_the_folder_lies(tmp_path: Path) -> None:
    from raypeft.harness.include import include_digest

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_task(tmp_path / name, {"task": "x", "doc_to_text": function("functions.text")})
    assert include_digest([str(tmp_path / "one")]) == include_digest([str(tmp_path / "two")])
    assert include_digest([]) != include_digest([str(tmp_path / "one")])


def test_the_order_of_include_paths_matters_since_later_ones_override(folder: Path) -> None:
    from raypeft.harness.include import include_digest

    own, other = str(folder / "own"), str(folder / "elsewhere")
    assert include_digest([own, other]) != include_digest([other, own])


def test_a_large_file_enters_by_size_and_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raypeft.harness import include

    monkeypatch.setattr(include, "MAX_HASHED_BYTES", 4)
    before = _digest(folder)
    os.utime(folder / "elsewhere" / "x_test.jsonl", ns=(5, 5))
    assert _digest(folder) != before
