"""The archive that a submitted sweep travels in.

Decides its form: a ZIP file of files under relative names, the same bytes for the same content, so
that a cluster which has it already is not sent it again. Ray would leave out what a `.gitignore`
names if it were given a folder. What belongs into it is `raypeft.api.packing`'s business.
"""

import stat
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

MAX_PACKAGE_BYTES = 480 * 2**20
"""Ray carries at most 512 MiB in one message, and the archive has a head of its own."""

_OLDEST = (1980, 1, 1, 0, 0, 0)
"""The first time a ZIP file can hold; the real ones would make the same content differ."""

_PACKED = (".safetensors", ".bin", ".gz", ".parquet", ".zip")
"""Packing these again takes long and gains nothing."""


def write_package(
    target: Path,
    *,
    files: Mapping[str, Path],
    texts: Mapping[str, str],
    folders: Iterable[str] = (),
) -> None:
    """Write the archive.

    Args:
        target: Where, ending in `.zip`.
        files: What to put in, by its name there.
        texts: Files that are made up here, by name.
        folders: Folders that are there even if they hold nothing.

    Raises:
        OSError: If a file cannot be read or the archive not be written.
    """
    with zipfile.ZipFile(target, "w") as archive:
        for name in sorted(folders):
            archive.writestr(_entry(f"{name}/", stat.S_IFDIR | 0o755), b"")
        for name in sorted(texts):
            archive.writestr(_entry(name), texts[name], zipfile.ZIP_DEFLATED)
        for name in sorted(files):
            with files[name].open("rb") as source, archive.open(_entry(name), "w") as packed:
                while part := source.read(2**20):
                    packed.write(part)


def size_of(files: Mapping[str, Path]) -> int:
    """Return how many bytes the files have together."""
    return sum(path.stat().st_size for path in files.values())


def _entry(name: str, mode: int = stat.S_IFREG | 0o644) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _OLDEST)
    entry.external_attr = mode << 16
    is_packed = name.endswith((*_PACKED, "/"))
    entry.compress_type = zipfile.ZIP_STORED if is_packed else zipfile.ZIP_DEFLATED
    return entry
