"""A made folder beside the recipe it was made from: whole and known, or not there at all.

Decides how a folder says what it was made from, when it counts as intact, and how it appears at
once under its final name. What goes into it is its maker's business.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raypeft.core.records import Json

RECIPE_FILE = "recipe.json"
RECIPE_VERSION = 1


def is_intact(folder: Path, recipe: Json) -> bool:
    """Return whether a folder was made from exactly this recipe and none of its files changed."""
    sealed = _read_seal(folder)
    return (
        sealed is not None
        and sealed.get("version") == RECIPE_VERSION
        and sealed.get("recipe") == _plain(recipe)
        and sealed.get("files") == file_digests(folder)
    )


@contextmanager
def making(folder: Path, recipe: Json) -> Iterator[Path]:
    """Make a folder: fill the one that is given; it takes the final name when all went well.

    What stood under the name before is replaced. After an exception nothing has changed there.

    Args:
        folder: The final name.
        recipe: What it is made from; stored in it with the digest of every file.

    Yields:
        An empty folder beside the final one.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.parent / f".{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        seal = {"version": RECIPE_VERSION, "recipe": recipe, "files": file_digests(partial)}
        (partial / RECIPE_FILE).write_text(json.dumps(seal, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def file_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder by its relative name, the seal left out."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / RECIPE_FILE
    }


def content_of(folder: Path) -> dict[str, Json]:
    """Return what tells one folder's content from another's, for the recipe of what uses it.

    A folder that was made here answers with the digest of every file. Any other one (a base of
    many gigabytes, say) answers with names and sizes, which costs no reading.
    """
    if _read_seal(folder) is not None:
        return {"digests": file_digests(folder)}
    sizes = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return {"sizes": sizes}


def _read_seal(folder: Path) -> dict[str, Json] | None:
    try:
        sealed = json.loads((folder / RECIPE_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None  # not made, half made or damaged: each means "make it"
    return sealed if isinstance(sealed, dict) and "files" in sealed else None


def _plain(value: Json) -> Json:
    """Return a value as JSON gives it back: tuples are lists, keys are text."""
    return json.loads(json.dumps(value))
