"""Tables as the bytes of Parquet files: equal tables give equal bytes, damaged bytes are noticed.

Decides compression, checksums and what counts as damage. Which columns a table has is decided by
`tables`, where the bytes lie by `files`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raypeft.store.tables import CorruptError, check_schema

PARQUET: Mapping[str, Any] = {
    "compression": "zstd",
    "compression_level": 3,
    "version": "2.6",
    "store_schema": True,
    "write_page_checksum": True,
}
"""Nothing here depends on time or machine: equal tables become equal bytes."""


def to_parquet(table: pa.Table) -> bytes:
    """Return the table as the bytes of a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table.combine_chunks(), sink, **PARQUET)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def from_parquet(data: bytes, name: str, place: str, *, rows: bool = True) -> pa.Table:
    """Return the table in the bytes of a Parquet file, checked.

    Args:
        data: The file.
        name: The table it must be.
        place: What an error calls it.
        rows: Without them only what the table says once is read.

    Raises:
        CorruptError: If the bytes are not what was written.
        StoreError: If it is another table or another version.
    """
    return read_parquet(pa.BufferReader(data), name, place, rows=rows)


def read_parquet(
    source: pa.NativeFile,
    name: str,
    place: str,
    *,
    rows: bool = True,
    filters: Sequence[tuple[str, str, Any]] | None = None,
) -> pa.Table:
    """Read a table from an open file; see `from_parquet`.

    Args:
        source: The file.
        name: The table it must be.
        place: What an error calls it.
        rows: Without them only what the table says once is read.
        filters: As in `pyarrow.parquet.read_table`: rows to keep.
    """
    try:
        with pq.ParquetFile(source, page_checksum_verification=True) as file:
            # The version before the content: another version may not even be readable.
            check_schema(file.schema_arrow, name, place)
            _check_counts(file.metadata, place)
            if not rows:
                return file.schema_arrow.empty_table()
            table = file.read() if filters is None else None
        if table is None:
            table = pq.read_table(source, filters=filters, page_checksum_verification=True)
        # And again: Parquet keeps schema and metadata twice, and reading takes the other copy.
        check_schema(table.schema, name, place)
        return table
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        # The bytes are at hand: whatever Arrow dislikes now is wrong with them.
        raise CorruptError(place, f"no readable Parquet file: {error}") from error


def read_parts(
    source: pa.NativeFile, name: str, place: str, columns: Sequence[str]
) -> Iterator[pa.Table]:
    """Yield some columns of a table, row group by row group; see `read_parquet`."""
    try:
        with pq.ParquetFile(source, page_checksum_verification=True) as file:
            check_schema(file.schema_arrow, name, place)
            _check_counts(file.metadata, place)
            for number in range(file.metadata.num_row_groups):
                yield file.read_row_group(number, columns=list(columns))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise CorruptError(place, f"no readable Parquet file: {error}") from error


def _check_counts(metadata: pq.FileMetaData, place: str) -> None:
    """Check the numbers of rows, which no checksum covers, against one another.

    The first column of every table is flat: it has one value for each row.
    """
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    rows = [group.num_rows for group in groups]
    values = [group.column(0).num_values for group in groups]
    if metadata.num_rows != sum(rows) or rows != values:
        counts = f"{metadata.num_rows} rows in all, {rows} in its groups, {values} values"
        raise CorruptError(place, f"its counts disagree: {counts}")
