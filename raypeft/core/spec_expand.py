"""Patterns and folders of adapters in a sweep → one entry for each adapter.

What lies on a disk is told by an `AdapterFolders`; this module only decides what it means.
Whether an adapter can be used at all is not decided here but when its folder is read, so that
one broken adapter is a failed adapter and not the end of the sweep.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Protocol

from raypeft.core.spec_checks import check_adapters
from raypeft.core.spec_fields import check_name, last_component
from raypeft.core.spec_models import AdapterEntry, Base, Sweep
from raypeft.core.spec_problems import shown
from raypeft.errors import Problem, SpecError

_PATTERN_CHARS = re.compile(r"[*?\[]")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


_WHERE_PATHS_START = "relative paths start at the working directory, and `~` is not expanded"


class AdapterFolders(Protocol):
    """What `expand` must know about a disk. Any method may raise OSError."""

    def is_folder(self, path: str) -> bool:
        """Return whether there is a folder at a path."""
        ...

    def is_adapter(self, path: str) -> bool:
        """Return whether a folder holds any file of an adapter: its config or its weights."""
        ...

    def children(self, path: str) -> Sequence[str]:
        """Return the paths of the folders in a folder, sorted, hidden ones left out."""
        ...

    def glob(self, pattern: str) -> Sequence[str]:
        """Return the paths of the folders that match a pattern, sorted, without plain files."""
        ...


def expand(sweep: Sweep, folders: AdapterFolders, *, source: str = "") -> Sweep:
    """Return the sweep with one named entry for each adapter.

    An entry with a name is one adapter and stays as it is. Without a name, a folder that is an
    adapter is that adapter; a folder that holds adapter folders is all of them; any other folder
    stays an entry, to fail when it is read. A pattern is every folder that matches it, adapter or
    not, so that a half-written adapter is reported and not dropped; but with `**`, which matches
    every folder on the way, only adapters. What is no folder and reads `org/name` is a hub id.
    Expanding twice is expanding once.

    Args:
        sweep: As parsed.
        folders: The disk.
        source: The sweep file, for the message.

    Raises:
        SpecError: With every pattern that matches nothing, every path that is neither a folder
            nor a hub id, and all names that are impossible or stand twice.
    """
    problems: list[Problem] = []
    bases = [
        _expand_base(base, f"bases[{index}]", folders, problems)
        for index, base in enumerate(sweep.bases)
    ]
    if problems:
        raise SpecError(tuple(problems), source)
    return sweep.model_copy(update={"bases": tuple(bases)})


def _expand_base(base: Base, place: str, folders: AdapterFolders, problems: list[Problem]) -> Base:
    """Return a base with its adapters expanded as far as there are no problems."""
    try:
        if base.revision is not None and folders.is_folder(base.path):
            problems.append(_revision_of_folder(place, base.path, base.revision))
    except OSError as error:
        problems.append(_unreadable(place, base.path, error))
    found: list[tuple[str, AdapterEntry]] = []
    for number, entry in enumerate(base.adapters):
        entry_place = f"{place}.adapters[{number}]"
        for outcome in _expand_entry(entry, entry_place, folders):
            if isinstance(outcome, Problem):
                problems.append(outcome)
            else:
                found.append((entry_place, outcome))
    problems += check_adapters(found)
    return base.model_copy(update={"adapters": tuple(entry for _, entry in found)})


def _expand_entry(
    entry: AdapterEntry, place: str, folders: AdapterFolders
) -> Iterator[AdapterEntry | Problem]:
    try:
        paths = _paths(entry, place, folders)
        if isinstance(paths, Problem):
            yield paths
            return
        if entry.revision is not None and any(folders.is_folder(path) for path in paths):
            yield _revision_of_folder(place, entry.path, entry.revision)
    except OSError as error:
        yield _unreadable(place, entry.path, error)
        return
    for path in paths:
        name = last_component(path) if entry.name is None else entry.name
        try:
            yield entry.model_copy(update={"path": path, "name": check_name(name)})
        except ValueError as error:
            message = f"the name {shown(name)}, from {shown(path)}, {error}"
            yield Problem(place, message, "give it another with `name:`")


def _paths(entry: AdapterEntry, place: str, folders: AdapterFolders) -> Sequence[str] | Problem:
    """Return the folders or the hub id that an entry stands for."""
    path = entry.path
    # A folder first: its name may hold a bracket, or read like a hub id.
    if folders.is_folder(path):
        if entry.name is not None or folders.is_adapter(path):
            return [path]
        return [child for child in folders.children(path) if folders.is_adapter(child)] or [path]
    if _PATTERN_CHARS.search(path):
        if entry.name is not None:
            message = f"the pattern {shown(path)} has the name {shown(entry.name)}"
            return Problem(place, message, "leave `name` out, or give the path of one adapter")
        matches = folders.glob(path)
        if "**" in path:
            matches = [match for match in matches if folders.is_adapter(match)]
        message = f"the pattern {shown(path)} matches no adapter folder"
        return matches or Problem(place, message, _WHERE_PATHS_START)
    if _HUB_ID.fullmatch(path):
        return [path]
    message = f"{shown(path)} is neither a folder here nor a hub id (`org/name`)"
    return Problem(place, message, _WHERE_PATHS_START)


def _revision_of_folder(place: str, path: str, revision: str) -> Problem:
    return Problem(
        f"{place}.revision",
        f"{shown(revision)} is given for {shown(path)}, which is a folder here",
        "leave it out: a revision selects a commit of a hub id",
    )


def _unreadable(place: str, path: str, error: OSError) -> Problem:
    return Problem(place, f"{shown(path)} cannot be read: {error.strerror or error}")
