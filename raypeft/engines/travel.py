"""Brings an adapter to a node that does not have it, by content.

Decides: which of an adapter's files an engine needs, whether a node already has them (under the
adapter's path, in the hub's cache, or brought earlier), and where they lie once they are brought.
What counts is the digest: a folder of the right name with other content is not used. Leaves to
others: how the bytes travel (`runtime`), whether the adapter is any good (`adapters`,
`hf_adapters`).
"""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from raypeft.core.records import Adapter, EngineSpec, FailureKind
from raypeft.engines.adapters import CONFIG_FILE, open_adapter
from raypeft.engines.bases import TOKENIZER_FILES, tokenizer_digest
from raypeft.engines.folders import ADAPTER_FILES, is_hub_id, read_failure, resolve_folder
from raypeft.errors import CellError

MOST_BYTES = 4 << 30
"""Most that travels for one adapter: it is held in memory whole, on both sides. A LoRA has tens of
megabytes, one that saved the embeddings of a large base a few gigabytes."""

UNUSED_SECONDS = 24 * 3600.0
"""What no slot of a node has used for so long is deleted when something new is brought there."""

_Stamp: TypeAlias = tuple[tuple[int, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class AdapterBytes:
    """An adapter as it travels.

    Attributes:
        content: What it is; see `content_key`.
        files: Content by name, relative to its folder: config, weights, and the tokenizer's files
            if it is evaluated with its own. Nothing else of the folder.
    """

    content: str
    files: Mapping[str, bytes]


def content_key(adapter: Adapter) -> str:
    """Return what names an adapter's content: its digest, and that of its tokenizer if it has one.

    Two adapters may have the same weights and differ in their tokenizers.
    """
    return "-".join(filter(None, (adapter.digest, adapter.tokenizer_digest)))


def reads_adapters(spec: EngineSpec) -> bool:
    """Return whether this engine opens the files of its adapters."""
    return spec.kind != "fake" or bool(spec.options.get("script", {}).get("reads_adapters"))


def read_adapter_bytes(adapter: Adapter) -> AdapterBytes:
    """Read the files of an adapter that are to travel, after checking that they are still its own.

    Raises:
        CellError: As `open_adapter`, and `unsupported` if there is too much of it.
    """
    what = f"adapter {adapter.name!r}"
    files = open_adapter(adapter)
    paths = {CONFIG_FILE: files.folder / CONFIG_FILE, files.weights.name: files.weights}
    if adapter.tokenizer:
        _check_tokenizer(adapter)
        words = resolve_folder(adapter.tokenizer, what="tokenizer", files=TOKENIZER_FILES)
        found = [path for pattern in TOKENIZER_FILES for path in words.glob(pattern)]
        paths |= {str(path.relative_to(words)): path for path in sorted(found)}
    try:
        sizes = {name: path.stat().st_size for name, path in paths.items()}
        if sum(sizes.values()) > MOST_BYTES:
            largest = max(sizes, key=lambda name: sizes[name])
            raise CellError(
                FailureKind.UNSUPPORTED,
                f"{what}: its files have {sum(sizes.values()) / 2**30:.1f} GiB, most of it "
                f"{paths[largest]}, and at most {MOST_BYTES / 2**30:.1f} GiB are brought to a node "
                "that lacks them; copy the folder to every node, under the same path",
            )
        content = {name: path.read_bytes() for name, path in paths.items()}
    except OSError as error:
        raise read_failure(what, Path(error.filename or files.folder), error) from None
    return AdapterBytes(content_key(adapter), content)


class LocalAdapters:
    """The adapters a slot can open on its node.

    What is brought is kept for all slots of the node, in a folder that only this user can enter,
    one folder for each content, whole or absent.

    Args:
        cache: Where what is brought is kept; None is a folder of this user among the system's
            temporary files.
    """

    def __init__(self, cache: Path | None = None) -> None:
        self._cache = cache or Path(tempfile.gettempdir()) / f"raypeft-adapters-{os.getuid()}"
        self._known: dict[str, tuple[Adapter, _Stamp]] = {}

    def find(self, adapter: Adapter) -> Adapter | None:
        """Return the adapter as it can be opened here; None if this node lacks its content.

        Nothing is downloaded: the hub's cache is looked into, the hub is not asked.
        """
        known = self._known.get(content_key(adapter))
        if known is not None and known[1] == _stamp(known[0]):
            # Where it lies, and no more: the same content may be merged here and not there.
            place = known[0]
            return replace(
                adapter, path=place.path, revision=place.revision, tokenizer=place.tokenizer
            )
        for candidate in self._candidates(adapter):
            if _is_itself(candidate):
                return self._remember(candidate)
        return None

    def keep(self, adapter: Adapter, brought: AdapterBytes) -> Adapter:
        """Write what was brought, and return the adapter as it can be opened here.

        Raises:
            CellError: `unreadable` if it is another content, or cannot be written; `unsafe` if the
                folder for it is not this user's alone.
        """
        what = f"adapter {adapter.name!r}"
        _check_names(brought.files, what)
        target = self._folder(adapter)
        try:
            _make_private(self._cache, what)
            _delete_unused(self._cache)
            with tempfile.TemporaryDirectory(prefix=".new-", dir=self._cache) as temporary:
                folder = Path(temporary) / "adapter"
                _write(folder, brought.files)
                local = _moved(adapter, folder)
                open_adapter(local)
                _check_tokenizer(local)
                self._put(adapter, folder, Path(temporary) / "old")
        except OSError as error:
            raise CellError(
                FailureKind.UNREADABLE,
                f"{what}: it was brought to this node, and could not be written to {target}: "
                f"{error.strerror or error}; make room there, or set TMPDIR to a folder with room",
                retryable=True,
            ) from error
        return self._remember(_moved(adapter, target))

    def _candidates(self, adapter: Adapter) -> Iterator[Adapter]:
        # A folder that cannot be entered is as good as none.
        with contextlib.suppress(OSError):
            if Path(adapter.path).expanduser().is_dir():
                yield adapter
            elif is_hub_id(adapter.path) and (folder := _in_hub_cache(adapter)):
                yield _moved(adapter, folder)
        with contextlib.suppress(OSError):
            target = self._folder(adapter)
            if target.is_dir() and _is_private(self._cache):
                yield _moved(adapter, target)

    def _folder(self, adapter: Adapter) -> Path:
        return self._cache / content_key(adapter)

    def _remember(self, local: Adapter) -> Adapter:
        if Path(local.path).parent == self._cache:
            with contextlib.suppress(OSError):
                os.utime(local.path)  # in use: see `UNUSED_SECONDS`
        self._known[content_key(local)] = (local, _stamp(local))
        return local

    def _put(self, adapter: Adapter, folder: Path, old: Path) -> None:
        """Move a whole folder to its place, where another slot may have put one meanwhile."""
        target = self._folder(adapter)
        try:
            folder.rename(target)
            return
        except OSError:
            if not target.exists():
                raise
        if _is_itself(_moved(adapter, target)):
            return
        target.rename(old)  # somebody wrote into it
        folder.rename(target)


def _moved(adapter: Adapter, folder: Path) -> Adapter:
    words = str(folder) if adapter.tokenizer else None
    return replace(adapter, path=str(folder), revision=None, tokenizer=words)


def _is_itself(candidate: Adapter) -> bool:
    """Return whether a folder holds what the adapter's digests say."""
    try:
        open_adapter(candidate)
        _check_tokenizer(candidate)
    except CellError:
        return False
    return True


def _check_tokenizer(adapter: Adapter) -> None:
    if not adapter.tokenizer:
        return
    found = tokenizer_digest(adapter.tokenizer)
    if found != adapter.tokenizer_digest:
        raise CellError(
            FailureKind.UNREADABLE,
            f"adapter {adapter.name!r}: the tokenizer in {adapter.tokenizer} is another one than "
            f"when the sweep was planned (digest {found}, expected {adapter.tokenizer_digest}); "
            "plan again, and do not write into adapter folders while a sweep runs",
        )


def _in_hub_cache(adapter: Adapter) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            adapter.path,
            revision=adapter.revision,
            allow_patterns=[*ADAPTER_FILES, *(TOKENIZER_FILES if adapter.tokenizer else ())],
            local_files_only=True,
        )
    except (OSError, ValueError):
        return None
    return Path(folder)


def _stamp(local: Adapter) -> _Stamp:
    """Return what the file system says about an adapter's files; empty if it has none."""
    folder = Path(local.path).expanduser()
    stamps = []
    for pattern in (*ADAPTER_FILES, *(TOKENIZER_FILES if local.tokenizer else ())):
        for path in sorted(folder.glob(pattern)):
            with contextlib.suppress(OSError):
                found = path.stat()
                stamps.append((found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino))
    return tuple(stamps)


def _check_names(files: Mapping[str, bytes], what: str) -> None:
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise CellError(
                FailureKind.UNSAFE, f"{what}: what was brought names a file {name!r} elsewhere"
            )


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _make_private(cache: Path, what: str) -> None:
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_private(cache):
        raise CellError(
            FailureKind.UNSAFE,
            f"{what}: {cache}, where adapters are kept that this node lacks, can be changed by "
            "others; delete it, or set TMPDIR to a folder of your own",
        )


def _is_private(cache: Path) -> bool:
    status = cache.lstat()  # not stat: a link of somebody else's would be followed
    return status.st_uid == os.getuid() and status.st_mode & 0o170077 == 0o040000


def _delete_unused(cache: Path) -> None:
    for folder in cache.iterdir():
        with contextlib.suppress(OSError):  # another slot does the same
            if time.time() - folder.stat().st_mtime > UNUSED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
