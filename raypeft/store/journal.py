"""The journal: what happened in a run, appended line by line, for `status` and for people.

Decides its form: JSON lines in numbered segments `<output>/journal/<number>.jsonl`, each with a
version line first; every run begins a segment, so nothing that exists is ever changed. On a local
disk a line is appended and synced; on an object store, which cannot append, the current segment
is put again whole, and a new one begins when it is full. Times are given by the caller. Resuming
does not read the journal: the store alone says what is done.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Self

from raypeft.core.records import Json
from raypeft.errors import SetupError, StoreError
from raypeft.store.files import Folder, Location, sync_folder
from raypeft.store.jsontext import dump_json, load_json

JOURNAL_VERSION = 1

LINES_PER_OBJECT = 256
"""Lines of a segment on an object store: each appended line puts all lines of its segment."""

_SEGMENT = re.compile(r"journal/(\d{6,})\.jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One thing that happened.

    Attributes:
        at_seconds: When, in seconds since the epoch.
        kind: What, for instance `unit_done`.
        fields: The particulars.
    """

    at_seconds: float
    kind: str
    fields: Mapping[str, Json]


class Journal:
    """Appends to a sweep's journal. One process at a time; the lease on the output sees to that.

    Args:
        output: The sweep's output.
    """

    def __init__(self, output: Location) -> None:
        self._folder = Folder(output)
        self._number = max(_segments(self._folder), default=0)
        self._lines: list[str] = []
        self._stream: FileIO | None = None

    def append(self, kind: str, fields: Mapping[str, Json], *, at_seconds: float) -> None:
        """Append a line; when this returns, it is on disk.

        Raises:
            SetupError: If it cannot be written.
        """
        line = dump_json({"at_seconds": at_seconds, "kind": kind, "fields": dict(fields)})
        if self._folder.is_local:
            self._append_local(line)
        else:
            self._append_object(line)

    def close(self) -> None:
        """Close the current segment; calling it twice is harmless."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append_local(self, line: str) -> None:
        path = self._folder.local_path(_name(self._number + (self._stream is None)))
        try:
            if self._stream is None:
                self._stream = self._begin(path)
                self._number += 1
                _write_line(self._stream, _version_line())
            _write_line(self._stream, line)
        except OSError as error:
            # What was half-written stays the last line of its segment: the next begins another.
            self.close()
            remedy = "free space there, or give an output that can be written"
            raise SetupError(f"{path} cannot be written: {error}", remedy) from error

    def _begin(self, path: Path) -> FileIO:
        path.parent.mkdir(parents=True, exist_ok=True)
        # "x": a second driver that got past the lease must not share a segment.
        stream = FileIO(path, "x")
        try:
            sync_folder(path.parent)
        except OSError:
            # Who tries again takes the same number, which must not be taken then.
            stream.close()
            path.unlink(missing_ok=True)
            raise
        return stream

    def _append_object(self, line: str) -> None:
        if not self._lines or len(self._lines) > LINES_PER_OBJECT:
            self._number += 1
            self._lines = [_version_line()]
        self._lines.append(line)
        text = "".join(f"{item}\n" for item in self._lines)
        self._folder.write(_name(self._number), text.encode())


def read_journal(output: Location) -> Iterator[Entry]:
    """Yield everything that was written, run by run, in order.

    The last line of a segment may be torn where a process or a machine died: it is left out.

    Raises:
        StoreError: If a segment has another version, or a line before its last is no JSON.
    """
    folder = Folder(output)
    for number in sorted(_segments(folder)):
        data = folder.read(_name(number))
        if data is not None:
            yield from _entries(data, folder.place(_name(number)))


def _entries(data: bytes, place: str) -> Iterator[Entry]:
    *whole, _torn = data.split(b"\n")
    for position, line in enumerate(whole):
        try:
            value = load_json(line.decode())
        except (ValueError, RecursionError) as error:
            if position == len(whole) - 1:
                return  # the disk kept the end of the line but not its middle
            raise StoreError(place, f"line {position + 1} is no JSON: {error}") from error
        if position == 0:
            version = value.get("raypeft.journal") if isinstance(value, dict) else None
            if version != JOURNAL_VERSION:
                raise StoreError(
                    place,
                    f"version {version} of the journal; this raypeft reads {JOURNAL_VERSION}",
                    "read it with the raypeft that wrote it",
                )
        else:
            yield _entry(value, place, position)


def _entry(value: Json, place: str, position: int) -> Entry:
    try:
        return Entry(**value)
    except TypeError as error:
        raise StoreError(place, f"line {position + 1} is no line of a journal: {error}") from error


def _segments(folder: Folder) -> list[int]:
    matches = [_SEGMENT.fullmatch(entry.name) for entry in folder.entries("journal")]
    return [int(match[1]) for match in matches if match]


def _name(number: int) -> str:
    return f"journal/{number:06d}.jsonl"


def _write_line(stream: FileIO, line: str) -> None:
    rest = memoryview(line.encode() + b"\n")
    while rest:  # unbuffered, so that closing never has anything left to write
        rest = rest[stream.write(rest) :]
    os.fsync(stream.fileno())


def _version_line() -> str:
    return json.dumps({"raypeft.journal": JOURNAL_VERSION})
