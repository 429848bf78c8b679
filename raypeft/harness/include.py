"""The digest of own tasks: what a freeze is looked up by, beside the names and settings."""

import glob
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.tasks._yaml_loader import load_yaml

from raypeft.core.identity import digest

INCLUDE_VERSION = 1

MAX_HASHED_BYTES = 64 * 1024 * 1024
"""Larger files enter by size and modification time: reading them would cost seconds per plan."""

_YAML = (".yaml", ".yml")
_IGNORED_FOLDERS = {"__pycache__", ".ipynb_checkpoints", ".git"}


@dataclass(frozen=True, slots=True)
class OwnTasks:
    """The files that own tasks are made of, in digests.

    Attributes:
        code: Of their YAML and Python.
        python: Of their Python, which decides scores beside the configuration.
        digest: Of everything.
        has_data: Whether all local data that they name is here.
    """

    code: str
    python: str
    digest: str
    has_data: bool


def read_own_tasks(include_path: Sequence[str]) -> OwnTasks:
    """Return the digests of own tasks; see `include_digest`."""
    code = [[part for part in _root_part(Path(root)) if _is_code(part)] for root in include_path]
    python = [[part for part in parts if part[0].endswith(".py")] for parts in code]
    return OwnTasks(
        python=digest("include-python", INCLUDE_VERSION, [parts for parts in python if parts]),
        code=digest("include-code", INCLUDE_VERSION, code),
        digest=include_digest(include_path),
        has_data=all(_has_data(Path(root)) for root in include_path),
    )


def _is_code(part: list[str]) -> bool:
    return part[0] == "merged" or Path(part[0]).suffix in (*_YAML, ".py")


def _has_data(root: Path) -> bool:
    """Return whether every file that a task's `data_files` names is here; a URL counts as here."""
    for path in _files_below(root):
        if path.suffix in _YAML:
            arguments = (_config_of(path) or {}).get("dataset_kwargs")
            named = arguments.get("data_files") if isinstance(arguments, dict) else None
            for text in _strings(named):
                if "://" not in text and not glob.glob(text, recursive=True):
                    return False
    return True


def include_digest(include_path: Sequence[str]) -> str:
    """Return a digest of the files that own tasks are made of.

    It covers every file below the include paths (by content, up to `MAX_HASHED_BYTES`; larger ones
    by size and modification time), the YAML that they include from elsewhere, and the local data
    that their `data_files`, `data_dir` or `dataset_path` name, wherever it lies. It does not cover
    Python that a task imports from elsewhere, data sets of the hub, or the local files of lm-eval's
    own tasks.

    Args:
        include_path: Folders, or single YAML files, in the order in which they override.
    """
    parts = [_root_part(Path(root)) for root in include_path]
    return digest("include", INCLUDE_VERSION, parts)


def _root_part(root: Path) -> list[list[str]]:
    base = root.parent if root.is_file() else root
    part = []
    for path in sorted(_files_below(root)):
        part.append([path.relative_to(base).as_posix(), _file_mark(path)])
        if path.suffix in _YAML:
            part.extend(_yaml_marks(path))
    return part


def _yaml_marks(path: Path) -> Iterator[list[str]]:
    """Yield what a YAML file depends on outside of itself."""
    config = _config_of(path)
    if config is None:
        return
    # Includes are merged here, so a change in one of them shows. lm-eval writes functions with the
    # folder, which must not matter.
    merged = repr(config).replace(str(path.resolve().parent), "")
    yield ["merged", hashlib.sha256(merged.encode()).hexdigest()]
    for data in sorted(_local_data(config)):
        yield ["data", _file_mark(data)]


def _config_of(path: Path) -> Mapping[str, Any] | None:
    try:
        config = load_yaml(path, resolve_func=False)
    except Exception:  # noqa: BLE001 - lm-eval skips a file it cannot read; its bytes are covered
        return None
    return config if isinstance(config, dict) else None


def named_data(include_path: Sequence[str]) -> dict[str, list[Path]]:
    """Return the local data that task files name: files by the text that stands there.

    Args:
        include_path: Folders, or single YAML files.
    """
    found: dict[str, list[Path]] = {}
    for root in include_path:
        for path in _files_below(Path(root)):
            if path.suffix in _YAML:
                for text in _data_texts(_config_of(path) or {}):
                    if text not in found and (files := sorted(_files_named(text))):
                        found[text] = files
    return found


def _local_data(config: Mapping[str, Any]) -> set[Path]:
    return {file for text in _data_texts(config) for file in _files_named(text)}


def _data_texts(config: Mapping[str, Any]) -> Iterator[str]:
    arguments = config.get("dataset_kwargs")
    arguments = arguments if isinstance(arguments, dict) else {}
    named = [config.get("dataset_path"), arguments.get("data_dir"), arguments.get("data_files")]
    return _strings(named)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _strings(list(value.values()))
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _files_named(text: str) -> Iterator[Path]:
    """Yield the local files that a name or pattern stands for; none for a hub name or a URL."""
    for match in glob.glob(text, recursive=True):
        yield from _files_below(Path(match))


def _files_below(root: Path) -> Iterator[Path]:
    if root.is_file():
        yield root
    else:
        for path in root.rglob("*"):
            if path.is_file() and not _IGNORED_FOLDERS & set(path.parts):
                yield path


def _file_mark(path: Path) -> str:
    status = path.stat()
    if status.st_size > MAX_HASHED_BYTES:
        return f"{status.st_size} bytes, modified {status.st_mtime_ns}"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
