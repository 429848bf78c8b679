"""A folder on any pyarrow filesystem, with files that are written whole or not at all.

Decides how a file becomes visible: on local disks under a temporary name in the same folder,
fsync, rename; on object stores by a single put. Turns what the system refuses into `SetupError`
with the place and the remedy. What the files hold is left to others.
"""

import errno
import fcntl
import mmap
import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

import pyarrow as pa
import pyarrow.fs as pafs

from raypeft.errors import SetupError

Location: TypeAlias = str | os.PathLike[str] | pafs.FileSystem
"""A local folder, a URI of a pyarrow filesystem, or such a filesystem (then its root)."""

TEMPORARY_SUFFIX = ".tmp"
CORRUPT_SUFFIX = ".corrupt"

NO_FOLDERS = frozenset({"s3", "gcs", "abfs"})
"""Object stores: a name may hold slashes without a folder being there."""

LOCK_SECONDS = 10.0
"""So long a lock is waited for: it is held for milliseconds, unless a process was paused there."""

_LOCK_PAUSE_SECONDS = 0.01

_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EBADF})
"""What file systems without locks say."""

_REMEDIES = {
    errno.ENOSPC: "free space there or choose another place",
    errno.EDQUOT: "free space within the quota or choose another place",
    errno.EFBIG: "raise the limit on file sizes or choose another place",
    errno.EACCES: "grant write access or choose another place",
    errno.EPERM: "grant write access or choose another place",
    errno.EROFS: "the file system is mounted read-only; choose another place",
    errno.ENOTDIR: "a file stands where a folder is needed; move it or choose another place",
    errno.EEXIST: "a file stands where a folder is needed; move it or choose another place",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a folder.

    Attributes:
        name: Its name relative to the folder, with slashes.
        size_bytes: Its size.
    """

    name: str
    size_bytes: int


class Folder:
    """A folder that files are read from and written to by relative names.

    Args:
        location: Where it is; it is made by the first write.
    """

    def __init__(self, location: Location) -> None:
        self._fs, self._root, self._place = _resolve(location)
        self._local = Path(self._root) if isinstance(self._fs, pafs.LocalFileSystem) else None

    @property
    def is_local(self) -> bool:
        """Whether it lies on this machine's file system."""
        return self._local is not None

    def place(self, name: str = "") -> str:
        """Return what a message calls a file of this folder."""
        return f"{self._place.rstrip('/')}/{name}" if name else self._place

    def local_path(self, name: str) -> Path:
        """Return the path of a file of a local folder."""
        assert self._local is not None, f"{self._place} is not local"
        return self._local / name

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes, or None if there is no such file."""
        with _refusals(self.place(name), "read"):
            try:
                with self._fs.open_input_stream(self._path(name)) as stream:
                    data: bytes = stream.read()
                    return data
            except FileNotFoundError:
                return None

    def open_random_access(self, name: str) -> pa.NativeFile | None:
        """Return a file that can be read in parts, or None if there is no such file."""
        with _refusals(self.place(name), "read"):
            try:
                return self._fs.open_input_file(self._path(name))
            except FileNotFoundError:
                return None

    def exists(self, name: str) -> bool:
        """Return whether there is such a file."""
        with _refusals(self.place(name), "read"):
            info = self._fs.get_file_info(self._path(name))
        return bool(info.type == pafs.FileType.File)

    def entries(self, below: str = "") -> list[Entry]:
        """Return the finished files below a sub-folder, sorted by name; one listing call."""
        base = self._path(below) if below else self._root
        selector = pafs.FileSelector(base, allow_not_found=True, recursive=True)
        with _refusals(self.place(below), "listed"):
            infos = self._fs.get_file_info(selector)
        # Some filesystems put a slash in front of every path, whatever they were asked for.
        root = self._root.lstrip("/")
        found = []
        for info in infos:
            hidden = info.base_name.startswith(".") or info.base_name.endswith(CORRUPT_SUFFIX)
            if info.type == pafs.FileType.File and not hidden:
                name = info.path.lstrip("/").removeprefix(root).lstrip("/")
                found.append(Entry(name, int(info.size)))
        return sorted(found, key=lambda entry: entry.name)

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole; an older one of this name is replaced."""
        with _refusals(self.place(name), "written"):
            if self._local is not None:
                with _local_stream(self._local / name) as stream:
                    stream.write(data)
            else:
                self._put(name, data)

    @contextmanager
    def open_for_write(self, name: str) -> Iterator[BinaryIO]:
        """Give a stream whose file appears, whole, when the block ends without an exception."""
        with _refusals(self.place(name), "written"):
            if self._local is not None:
                with _local_stream(self._local / name) as stream:
                    yield stream
            else:
                with tempfile.TemporaryFile() as spool:
                    yield spool
                    spool.flush()
                    with _mapped(spool) as data:
                        self._put(name, data)

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Keep others who lock this file out while the block runs, or until this process ends.

        The file is made and stays: were it removed, two could each lock one of its name. Object
        stores and file systems without locks keep nobody out.

        Raises:
            SetupError: If the file cannot be made, or another process does not let go of it.
        """
        handle = None
        if self._local is not None:
            with _refusals(self.place(name), "locked"):
                handle = _lock(self._local / name)
        try:
            yield
        finally:
            if handle is not None:
                # Closing alone would not do: a process forked meanwhile has it open too.
                with suppress(OSError):
                    fcntl.flock(handle, fcntl.LOCK_UN)
                os.close(handle)

    def set_aside(self, name: str) -> None:
        """Rename a file so that it is not found any more but can be looked at."""
        with _refusals(self.place(name), "renamed"):
            self._fs.move(self._path(name), self._path(name) + CORRUPT_SUFFIX)

    def remove(self, name: str) -> None:
        """Remove a file."""
        with _refusals(self.place(name), "removed"):
            self._fs.delete_file(self._path(name))

    def remove_leftovers(self, before_seconds: float) -> list[str]:
        """Remove temporary files last written before a time (seconds since the epoch).

        A killed process leaves them behind. They are never read; only their space is lost. Object
        stores have none.
        """
        removed = []
        if self._local is not None and self._local.is_dir():
            for path in sorted(self._local.rglob(f".*{TEMPORARY_SUFFIX}")):
                # Another process may finish or remove it meanwhile.
                with suppress(FileNotFoundError):
                    if path.stat().st_mtime < before_seconds:
                        path.unlink()
                        removed.append(path.relative_to(self._local).as_posix())
        return removed

    def check_writable(self) -> None:
        """Write, read back and remove a file.

        Raises:
            SetupError: If that does not work.
        """
        name = f".write-check-{uuid.uuid4().hex}"
        self.write(name, name.encode())
        if self.read(name) != name.encode():
            raise SetupError(f"{self.place()}: a file just written cannot be read back")
        self.remove(name)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if self._root else name

    def _put(self, name: str, data: bytes | memoryview) -> None:
        path = self._path(name)
        if self._fs.type_name not in NO_FOLDERS and "/" in path:
            self._fs.create_dir(path.rsplit("/", 1)[0], recursive=True)
        with self._fs.open_output_stream(path) as stream:
            # One call: closing a stream commits the object, so an interrupt between two writes
            # would leave the first part under the final name.
            stream.write(data)


def _resolve(location: Location) -> tuple[pafs.FileSystem, str, str]:
    if isinstance(location, pafs.FileSystem):
        return location, "", f"{location.type_name}:"
    text = os.fspath(location)
    if "://" not in text:
        path = Path(text).expanduser().absolute()
        return pafs.LocalFileSystem(), path.as_posix(), str(path)
    try:
        filesystem, root = pafs.FileSystem.from_uri(text)
    except (pa.ArrowException, OSError) as error:
        remedy = "give a folder or a URI that pyarrow knows: file:// s3:// gs:// abfs:// hdfs://"
        raise SetupError(f"{text}: {error}", remedy) from error
    return filesystem, root.rstrip("/"), text


@contextmanager
def _mapped(spool: BinaryIO) -> Iterator[bytes | memoryview]:
    if spool.seek(0, os.SEEK_END) == 0:
        yield b""
        return
    with (
        mmap.mmap(spool.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as view,
    ):
        yield view


@contextmanager
def _local_stream(path: Path) -> Iterator[BinaryIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _lock(path: Path) -> int | None:
    """Return the handle of a locked file; None where its file system knows no locks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except PermissionError:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # another user's, in a shared folder
    end = time.monotonic() + LOCK_SECONDS
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return handle
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise TimeoutError(
                        f"another process has held it for {LOCK_SECONDS:.0f} s"
                    ) from None
            time.sleep(_LOCK_PAUSE_SECONDS)
    except BaseException as error:
        os.close(handle)
        if isinstance(error, OSError) and error.errno in _NO_LOCKS:
            return None
        raise


def sync_folder(path: Path) -> None:
    """Make a rename or a new file in a folder outlast a power failure."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _refusals(place: str, done: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "check that the place exists and is accessible")
        # The whole text: it names the file, should another one than `place` be at fault.
        reason = str(error)
        raise SetupError(f"{place} cannot be {done}: {reason}", remedy) from error
