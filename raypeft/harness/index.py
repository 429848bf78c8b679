"""Names → lm-eval index entries, reading only the YAML files that can matter.

lm-eval parses all of its 13,986 YAML files to know its tasks (13 s). Here every file is read as
text (0.3 s) and only those are parsed that can define a wanted name or one that it refers to, so
the entries are those of lm-eval's full index restricted to these names: all files that define
such a name are there, in lm-eval's order, so duplicates and tags come out the same. Building
tasks from the entries is left to `tasks.py`.
"""

import difflib
import functools
import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lm_eval.tasks
from lm_eval.tasks._index import Entry, Kind, TaskIndex
from lm_eval.tasks._yaml_loader import load_yaml

from raypeft.errors import RaypeftError

logger = logging.getLogger(__name__)

BUNDLED = Path(lm_eval.tasks.__file__).parent
"""lm-eval's own tasks."""

_IGNORED_FOLDERS = {"__pycache__", ".ipynb_checkpoints"}

_KEY = rb"^['\"]?(?:task|group|tag)['\"]?[ \t]*:"
_NAME_LINE = re.compile(rb"(?:" + _KEY + rb"|^[ \t]*-)(.*)$", re.MULTILINE)
_SPLIT = re.compile(rb"[\s\[\]{},'\"]+")
_ANY_INCLUDE = re.compile(rb"^['\"]?include['\"]?[ \t]*:", re.MULTILINE)
_PLAIN_INCLUDE = re.compile(
    _ANY_INCLUDE.pattern + rb"[ \t]*['\"]?([^\s'\"\[\]{}#|>&*]+)['\"]?[ \t]*\r?$", re.MULTILINE
)
_ODD = re.compile(
    _KEY + rb"[ \t]*(?:[|>&*!]|\[[^\]\n]*$|(?:#.*)?\r?\n(?![ \t]*-))|^(?:[{?&*!]|<<)",
    re.MULTILINE,
)
"""A YAML form whose names the line patterns cannot see: such a file is always parsed."""


class UnknownTaskError(RaypeftError):
    """A name is no task, group, tag or YAML file.

    Args:
        name: The name.
        near: Known names that are nearest.
    """

    def __init__(self, name: str, near: tuple[str, ...] = ()) -> None:
        super().__init__(name, near)
        self.name = name
        self.near = near

    def __str__(self) -> str:
        text = f"'{self.name}' is no task, group or tag of lm-eval, and no YAML file"
        if self.near:
            return f"{text}; did you mean {', '.join(self.near)}?"
        return f"{text}; own tasks are found through include_path"


class _Root:
    """The YAML files below one folder, as text."""

    def __init__(self, folder: Path) -> None:
        self._files_of: dict[bytes, set[str]] = defaultdict(set)
        self._included_by: dict[str, set[str]] = defaultdict(set)
        self._always: set[str] = set()
        texts = dict(_read_yaml_files(folder))
        pending = list(texts.items())
        while pending:
            path, text = pending.pop()
            for included in self._take(path, text):
                # Included files need no .yaml suffix and may lie outside the folder.
                if included not in texts and os.path.isfile(included):
                    texts[included] = Path(included).read_bytes()
                    pending.append((included, texts[included]))
        self._own = {path for path, _ in _paths(folder)}

    def _take(self, path: str, text: bytes) -> list[str]:
        for line in _NAME_LINE.findall(text):
            for token in _SPLIT.split(line):
                self._files_of[token].add(path)
        if _ODD.search(text):
            self._always.add(path)
        match = _PLAIN_INCLUDE.search(text)
        if match is None:
            if _ANY_INCLUDE.search(text):
                self._always.add(path)
            return []
        target = os.path.normpath(os.path.join(os.path.dirname(path), os.fsdecode(match.group(1))))
        self._included_by[target].add(path)
        return [target]

    def candidates(self, names: Iterable[str]) -> set[str]:
        """Return every file that can define one of the names, itself or through an include."""
        found = set(self._always)
        for name in names:
            tokens = [token for token in _SPLIT.split(name.encode()) if token]
            sets = [self._files_of.get(token, set()) for token in tokens]
            found |= set.intersection(*sets) if sets else set()
        pending = list(found)
        while pending:
            new = self._included_by.get(pending.pop(), set()) - found
            found |= new
            pending.extend(new)
        return found & self._own

    def tokens(self) -> Iterator[str]:
        """Yield everything that may be a name, for suggestions only."""
        return (token.decode("utf-8", "replace") for token in self._files_of)


def build_index(entry: str, include_path: Sequence[str] = ()) -> dict[str, Entry]:
    """Return lm-eval's index restricted to an entry and all it refers to.

    Args:
        entry: A task, group or tag name, or the path of a YAML file.
        include_path: Folders of own tasks; a later one overrides an earlier one, and all of them
            override lm-eval's own.

    Raises:
        UnknownTaskError: If the entry is nowhere.
    """
    roots = [_bundled(), *(_Root(Path(folder)) for folder in include_path)]
    wanted: set[str] = {entry}
    yaml_entry = _entry_of_file(entry)
    if yaml_entry is not None:
        wanted |= set(_references(yaml_entry))
    while True:
        index = _merge(roots, wanted)
        reached = wanted | {
            name for key in wanted if key in index for name in _references(index[key])
        }
        if reached == wanted:
            break
        wanted = reached
    if entry not in index and yaml_entry is None:
        raise UnknownTaskError(entry, _nearest(entry, roots))
    # Names that nobody asked for are left out: their entries may be incomplete.
    return {name: index[name] for name in index if name in wanted}


def _merge(roots: Sequence[_Root], wanted: set[str]) -> dict[str, Entry]:
    """Do what `TaskIndex.build` does, for the files that matter."""
    index: dict[str, Entry] = {}
    for root in roots:
        of_root: dict[str, Entry] = {}
        for path in sorted(root.candidates(wanted), key=lambda text: Path(text).as_posix()):
            try:
                TaskIndex.process_cfg(_load_unresolved(path), Path(path), of_root)
            except Exception as error:  # noqa: BLE001 - lm-eval skips what it cannot read, too
                logger.debug("skipping %s: %s", path, error)
        index.update(of_root)
    return index


def _load_unresolved(path: str) -> dict[str, Any]:
    if path.startswith(str(BUNDLED)):
        return dict(_load_bundled(path))
    return dict(load_yaml(path, resolve_func=False))


@functools.lru_cache(maxsize=4096)
def _load_bundled(path: str) -> dict[str, Any]:
    return dict(load_yaml(path, resolve_func=False))


@functools.cache
def _bundled() -> _Root:
    """Read lm-eval's own files once per process; they change with the installed version only."""
    return _Root(BUNDLED)


def _entry_of_file(entry: str) -> Entry | None:
    if not entry.endswith((".yaml", ".yml")):
        return None
    found: Entry | None = TaskIndex.entry_from_path(Path(entry))
    if found is not None:
        found.cfg = load_yaml(found.yaml_path, resolve_func=False)
    return found


def _references(entry: Entry) -> Iterator[str]:
    """Yield the names an entry's members are looked up by."""
    if entry.kind is Kind.TAG:
        yield from entry.tags
    yield from _member_names((entry.cfg or {}).get("task"))


def _member_names(members: Any) -> Iterator[str]:
    if not isinstance(members, list):
        return
    for member in members:
        if isinstance(member, str):
            yield member
        elif isinstance(member, dict):
            yield from (m for m in (member.get("group"), member.get("task")) if isinstance(m, str))
            yield from _member_names(member.get("task"))


def _paths(folder: Path) -> Iterator[tuple[str, str]]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _IGNORED_FOLDERS]
        yield from ((os.path.join(parent, n), n) for n in names if n.endswith(".yaml"))


def _read_yaml_files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path, _ in _paths(folder):
        try:
            yield path, Path(path).read_bytes()
        except OSError as error:
            logger.warning("skipping %s: %s", path, error)


def _nearest(name: str, roots: Sequence[_Root]) -> tuple[str, ...]:
    known = {token for root in roots for token in root.tokens()}
    near = difflib.get_close_matches(name, known, n=8, cutoff=0.6)
    # Tokens are only words of the files; those that are names are asked of the index.
    index = _merge(roots, set(near))
    return tuple(token for token in near if token in index)[:3]
