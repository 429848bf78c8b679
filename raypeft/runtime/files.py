"""The local disk as `raypeft.core.spec.expand` asks about it."""

import glob
import os
import stat
from collections.abc import Sequence
from pathlib import PurePath

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
"""A folder with any of these is an adapter: with only one of them it is a broken one, which must
be reported and not passed over."""


class LocalFolders:
    """An `AdapterFolders` for the local disk.

    Relative paths start at the working directory. Raises OSError for what exists and cannot be
    looked into, except in `glob`, which passes over such folders.
    """

    def is_folder(self, path: str) -> bool:
        """Return whether there is a folder at a path, links followed."""
        return stat.S_ISDIR(_mode(path))

    def is_adapter(self, path: str) -> bool:
        """Return whether a folder holds any file of an adapter."""
        return any(stat.S_ISREG(_mode(os.path.join(path, name))) for name in ADAPTER_FILES)

    def children(self, path: str) -> Sequence[str]:
        """Return the folders in a folder, sorted, hidden ones left out."""
        names = sorted(name for name in os.listdir(path) if not name.startswith("."))
        return [child for name in names if self.is_folder(child := os.path.join(path, name))]

    def glob(self, pattern: str) -> Sequence[str]:
        """Return the folders that match a pattern, sorted; `**` is any number of folders."""
        matches = {match.rstrip("/") or "/" for match in glob.glob(pattern, recursive=True)}
        return sorted(filter(self.is_folder, matches), key=lambda match: PurePath(match).parts)


def _mode(path: str) -> int:
    """Return the file mode at a path, or 0 if nothing is there."""
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
