from pathlib import Path

import pytest

from raypeft.train.artifact import RECIPE_FILE, content_of, is_intact, making

RECIPE = {"kind": "thing", "sizes": (1, 2)}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    folder = tmp_path / "parts" / "thing"
    with making(folder, RECIPE) as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "weights").write_bytes(b"abc")
    return folder


def test_a_made_folder_is_intact_for_its_recipe_only(made: Path) -> None:
    assert is_intact(made, RECIPE)
    assert is_intact(made, {"kind": "thing", "sizes": [1, 2]})
    assert not is_intact(made, {"kind": "thing", "sizes": [1, 3]})


def test_a_folder_that_is_not_there_is_not_intact(tmp_path: Path) -> None:
    assert not is_intact(tmp_path / "nowhere", RECIPE)


@pytest.mark.parametrize("damage", ["changed", "removed", "added", "seal cut short", "seal gone"])
def test_any_damage_is_noticed(made: Path, damage: str) -> None:
    match damage:
        case "changed":
            (made / "inner" / "weights").write_bytes(b"abd")
        case "removed":
            (made / "inner" / "weights").unlink()
        case "added":
            (made / "inner" / "more").touch()
        case "seal cut short":
            seal = made / RECIPE_FILE
            seal.write_text(seal.read_text()[:-10])
        case "seal gone":
            (made / RECIPE_FILE).unlink()
    assert not is_intact(made, RECIPE)


def fail_while_making(folder: Path) -> None:
    with making(folder, {"kind": "other"}) as partial:
        (partial / "weights").touch()
        raise RuntimeError("no more")


def test_a_failure_leaves_what_was_there_before(made: Path) -> None:
    with pytest.raises(RuntimeError, match="no more"):
        fail_while_making(made)
    assert is_intact(made, RECIPE)
    assert [path.name for path in made.parent.iterdir()] == ["thing"]


def test_making_anew_replaces_the_whole_folder(made: Path) -> None:
    with making(made, {"kind": "other"}) as partial:
        (partial / "other").touch()
    assert is_intact(made, {"kind": "other"})
    assert sorted(path.name for path in made.iterdir()) == ["other", RECIPE_FILE]


def test_what_an_interrupted_making_left_behind_is_cleared(made: Path) -> None:
    leftover = made.parent / ".thing.partial"
    leftover.mkdir()
    (leftover / "half").touch()
    with making(made, RECIPE) as partial:
        assert list(partial.iterdir()) == []
    assert not leftover.exists()


def test_content_tells_sealed_folders_apart_by_their_bytes(made: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    with making(other, RECIPE) as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "weights").write_bytes(b"abd")
    assert content_of(made) != content_of(other)


def test_content_tells_unsealed_folders_apart_by_their_sizes(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"abc")
    assert content_of(tmp_path) == {"sizes": {"weights": 3}}
