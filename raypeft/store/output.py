"""The tables of one sweep: written when it ends or is reported, read by `raypeft.open`.

Decides where they lie (`<output>/tables/<table>.parquet`) and how they are written without
holding every sample in memory. They are made from the store and can be made again at any time.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import pyarrow as pa
import pyarrow.parquet as pq

from raypeft.core.records import Json
from raypeft.errors import StoreError
from raypeft.store.files import Folder, Location
from raypeft.store.parquet import PARQUET, read_parquet, read_parts, to_parquet
from raypeft.store.tables import CorruptError, check_schema, run_of, schema_of

TABLES = ("results", "samples", "gains", "cells")
"""What a sweep's output holds."""

REMEDY = "run the sweep again: its tables are made anew from the store, without any model"


class TableWriter:
    """Writes a table part by part; each part becomes one row group of the file.

    Made by `open_table_writer`.
    """

    def __init__(self, name: str, writer: pq.ParquetWriter) -> None:
        self._name = name
        self._writer = writer

    def write(self, part: pa.Table) -> None:
        """Append rows, of one cell as a rule: readers skip row groups of other subjects.

        Raises:
            StoreError: If the part is no part of this table.
        """
        check_schema(part.schema, self._name, f"part of table {self._name}")
        if part.num_rows:
            plain = part.replace_schema_metadata(schema_of(self._name).metadata).combine_chunks()
            self._writer.write_table(plain, row_group_size=part.num_rows)


@contextmanager
def open_table_writer(output: Location, name: str) -> Iterator[TableWriter]:
    """Give a writer; the table appears, whole, when the block ends without an exception."""
    with (
        Folder(output).open_for_write(_file(name)) as stream,
        pq.ParquetWriter(stream, schema_of(name), **PARQUET) as writer,
    ):
        yield TableWriter(name, writer)


def write_table(output: Location, name: str, table: pa.Table) -> None:
    """Write a table whole, in place of an older one.

    Raises:
        StoreError: If it is another table.
        SetupError: If it cannot be written.
    """
    check_schema(table.schema, name, f"table {name}")
    Folder(output).write(_file(name), to_parquet(table))


def tables_are_whole(output: Location) -> bool:
    """Return whether every table of a sweep is there and of this version; reads no rows."""
    folder = Folder(output)
    for name in TABLES:
        source = folder.open_random_access(_file(name))
        if source is None:
            return False
        with source:
            try:
                check_schema(pq.read_schema(source), name, name)
            except (pa.ArrowException, StoreError):
                return False
    return True


def read_run(output: Location, name: str) -> Json:
    """Return what a written table says about the run that made it, without reading a row.

    None if the table is absent, damaged or of another version: whoever asks makes it anew.
    """
    source = Folder(output).open_random_access(_file(name))
    if source is None:
        return None
    with source:
        try:
            return run_of(read_parquet(source, name, name, rows=False))
        except StoreError:
            return None


class Results:
    """The tables of a sweep, each read when it is first asked for.

    Args:
        output: The sweep's output: a folder, a URI or a pyarrow filesystem.
    """

    def __init__(self, output: Location) -> None:
        self._folder = Folder(output)

    @property
    def place(self) -> str:
        """What messages call the output."""
        return self._folder.place()

    @cached_property
    def results(self) -> pa.Table:
        """One row for each cell or group, metric and filter."""
        return self._read("results")

    @cached_property
    def samples(self) -> pa.Table:
        """One row for each document, subject and filter; large."""
        return self._read("samples")

    @cached_property
    def gains(self) -> pa.Table:
        """One row for each adapter, task or group and metric."""
        return self._read("gains")

    @cached_property
    def cells(self) -> pa.Table:
        """One row for each cell: how it ended, where and after how long."""
        return self._read("cells")

    def samples_of(self, subject: str, task: str) -> pa.Table:
        """Return the samples of one cell, without reading the others."""
        return self._read("samples", filters=[("subject", "==", subject), ("task", "==", task)])

    def sample_parts(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield some columns of the samples part by part, each of one cell as it was written.

        Never more than one part is in memory.

        Raises:
            StoreError: If there are none, or they are damaged.
        """
        place = self._folder.place(_file("samples"))
        source = self._folder.open_random_access(_file("samples"))
        if source is None:
            raise StoreError(place, "there is no such table", REMEDY)
        with source:
            try:
                yield from read_parts(source, "samples", place, columns)
            except CorruptError as error:
                raise StoreError(error.place, error.message, REMEDY) from error

    def _read(self, name: str, filters: list[tuple[str, str, str]] | None = None) -> pa.Table:
        place = self._folder.place(_file(name))
        source = self._folder.open_random_access(_file(name))
        if source is None:
            raise StoreError(place, "there is no such table", REMEDY)
        with source:
            try:
                return read_parquet(source, name, place, filters=filters)
            except CorruptError as error:
                raise StoreError(error.place, error.message, REMEDY) from error


def open_output(output: Location) -> Results:
    """Return the tables of a sweep's output.

    Raises:
        StoreError: If there are none.
    """
    names = {entry.name for entry in Folder(output).entries("tables")}
    if not names & {_file(name) for name in TABLES}:
        raise StoreError(
            Folder(output).place(),
            "no sweep has written tables here",
            "give the `output` of a sweep that has run",
        )
    return Results(output)


def _file(name: str) -> str:
    return f"tables/{name}.parquet"
