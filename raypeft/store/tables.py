"""The tables: their Arrow schemas, each with a name and a version, and how they are checked.

Decides columns, keys, which columns describe the run rather than the result, and what makes a
stored table acceptable. How a table becomes bytes is decided by `parquet`, how records become
rows by `rows`, where files lie by `store` and `output`.

Columns that hold JSON text are written by `raypeft.store.jsontext`, which says what becomes of
NaN and infinities.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import pyarrow as pa

from raypeft.core.records import Json
from raypeft.errors import StoreError
from raypeft.store.jsontext import dump_json, load_json

NAME_KEY = b"raypeft.table"
VERSION_KEY = b"raypeft.version"
HEADER_KEY = b"raypeft.header"
"""What a file says once and not in every row; content."""
RUN_KEY = b"raypeft.run"
"""What describes the run that wrote the file; not content."""
DIGEST_KEY = b"raypeft.metadata_digest"
"""Of the four above: pages have checksums of their own, a Parquet file's metadata has none."""

Row: TypeAlias = Mapping[str, Any]
Columns: TypeAlias = Sequence[tuple[str, pa.DataType]]

INT, FLOAT, BOOL, TEXT = pa.int64(), pa.float64(), pa.bool_(), pa.string()
LONG_TEXT = pa.large_string()
"""Text that can exceed 2 GiB in one column."""

VERSIONS: Mapping[str, int] = {
    "requests": 1,
    "answers": 1,
    "scores": 1,
    "results": 1,
    "samples": 1,
    "gains": 2,  # 2: correction to num_clusters
    "cells": 1,
}

METRIC_VALUES = pa.list_(pa.struct([("name", TEXT), ("value", FLOAT), ("json", LONG_TEXT)]))
"""Per-document values: `value` is null where `json` holds no number (pairs, vectors, lists)."""

_HARDWARE: Columns = [
    ("software", TEXT),
    ("hardware_fingerprint", TEXT),
    ("device", TEXT),
    ("num_devices", INT),
    ("memory_gib", FLOAT),
    ("threads", INT),
    ("node", TEXT),
    ("seconds", FLOAT),
    ("tokens", INT),
]

_SAMPLE: Columns = [
    ("doc_id", INT),
    ("filter", TEXT),
    ("responses", LONG_TEXT),
    ("filtered_responses", LONG_TEXT),
    ("metrics", METRIC_VALUES),
    ("doc_hash", TEXT),
    ("prompt_hash", TEXT),
    ("target_hash", TEXT),
]

_COLUMNS: Mapping[str, Columns] = {
    # One row per request; a document's own columns stand on its first row only. A document
    # without requests has a row without an index.
    "requests": [
        ("digest", TEXT),
        ("task", TEXT),
        ("index", INT),
        ("doc_id", INT),
        ("idx", INT),
        ("repeat", INT),
        ("request_type", TEXT),
        ("arguments", LONG_TEXT),
        ("context", LONG_TEXT),
        ("continuation", LONG_TEXT),
        ("gen_kwargs", LONG_TEXT),
        ("doc", LONG_TEXT),
        ("target", LONG_TEXT),
        ("doc_hash", TEXT),
        ("target_hash", TEXT),
    ],
    # `text_json` is null unless the text holds what UTF-8 cannot (then `text` shows `?`).
    "answers": [
        ("cell", TEXT),
        ("index", INT),
        ("logprob", FLOAT),
        ("is_greedy", BOOL),
        ("text", LONG_TEXT),
        ("text_json", LONG_TEXT),
    ],
    # What the store keeps of a scored cell; `samples` of a sweep is made of these.
    "scores": _SAMPLE,
    "results": [
        ("subject", TEXT),
        ("base", TEXT),
        ("adapter", TEXT),
        ("entry", TEXT),
        ("task", TEXT),
        ("is_group", BOOL),
        ("metric", TEXT),
        ("filter", TEXT),
        ("value", FLOAT),
        ("value_json", TEXT),
        ("stderr", FLOAT),
        ("n", INT),
        ("higher_is_better", BOOL),
        ("aggregation", TEXT),
        ("task_version", TEXT),
        ("num_fewshot", INT),
        ("cell", TEXT),
        ("score", TEXT),
        ("base_digest", TEXT),
        ("adapter_digest", TEXT),
        ("request_set", TEXT),
        ("engine", TEXT),
        ("dtype", TEXT),
        ("softmax_dtype", TEXT),
        ("attn_implementation", TEXT),
        ("numerics", TEXT),
        ("sampling_seed", INT),
        ("scoring", TEXT),
        ("lm_eval_version", TEXT),
        *_HARDWARE,
    ],
    "samples": [("subject", TEXT), ("task", TEXT), *_SAMPLE],
    "gains": [
        ("base", TEXT),
        ("adapter", TEXT),
        ("task", TEXT),
        ("is_group", BOOL),
        ("metric", TEXT),
        ("filter", TEXT),
        ("aggregation", TEXT),
        ("request_set", TEXT),
        ("baseline_value", FLOAT),
        ("adapter_value", FLOAT),
        ("gain", FLOAT),
        ("low", FLOAT),
        ("high", FLOAT),
        ("p", FLOAT),
        ("p_corrected", FLOAT),
        ("family_size", INT),
        ("n", INT),
        ("wins", INT),
        ("losses", INT),
        ("standard_error", FLOAT),
        ("smallest_detectable_gain", FLOAT),
        ("higher_is_better", BOOL),
        ("method", TEXT),
        ("verdict", TEXT),
        ("reason", TEXT),
        ("alpha", FLOAT),
        ("seed", INT),
        ("correction", TEXT),
        ("q", FLOAT),
        ("margin", FLOAT),
        ("p_equivalent", FLOAT),
        ("documents_needed", INT),
        ("baseline_low", FLOAT),
        ("baseline_high", FLOAT),
        ("adapter_low", FLOAT),
        ("adapter_high", FLOAT),
        ("shrunk_gain", FLOAT),
        ("rank", INT),
        ("p_best", FLOAT),
        ("noise_floor", FLOAT),
        ("num_clusters", INT),
    ],
    "cells": [
        ("subject", TEXT),
        ("base", TEXT),
        ("adapter", TEXT),
        ("entry", TEXT),
        ("task", TEXT),
        ("cell", TEXT),
        ("request_set", TEXT),
        ("state", TEXT),
        ("reason", TEXT),
        ("message", TEXT),
        ("attempts", INT),
        ("slot", TEXT),
        ("path", TEXT),
        *_HARDWARE,
    ],
}

NULLABLE: Mapping[str, frozenset[str]] = {
    "requests": frozenset(name for name, _ in _COLUMNS["requests"][2:]) - {"doc_id"},
    "answers": frozenset({"logprob", "is_greedy", "text", "text_json"}),
    "scores": frozenset(),
    # A group has no cell, and no request set or hardware of its own.
    "results": frozenset(
        {"adapter", "value", "stderr", "higher_is_better", "task_version", "num_fewshot"}
        | {"cell", "score", "adapter_digest", "request_set", "softmax_dtype"}
        | {"attn_implementation", "sampling_seed", "scoring"}
        | {name for name, _ in _HARDWARE}
    ),
    "samples": frozenset(),
    "gains": frozenset(
        {"request_set", "baseline_value", "adapter_value", "gain", "low", "high", "p"}
        | {"p_corrected", "wins", "losses", "standard_error", "smallest_detectable_gain"}
        | {"higher_is_better", "correction", "q", "margin", "p_equivalent", "documents_needed"}
        | {"baseline_low", "baseline_high", "adapter_low", "adapter_high"}
        | {"shrunk_gain", "rank", "p_best", "noise_floor", "num_clusters"}
    ),
    "cells": frozenset(
        {"adapter", "cell", "request_set", "reason", "message", "slot", "path"}
        | {name for name, _ in _HARDWARE}
    ),
}

KEYS: Mapping[str, tuple[str, ...]] = {
    "requests": ("digest", "index", "doc_id"),
    "answers": ("cell", "index"),
    "scores": ("doc_id", "filter"),
    "results": ("subject", "entry", "task", "is_group", "metric", "filter"),
    "samples": ("subject", "task", "doc_id", "filter"),
    "gains": ("base", "adapter", "task", "is_group", "request_set", "metric", "filter"),
    "cells": ("subject", "entry", "task"),
}
"""What names a row, and the order of rows in `stable`."""

RUN_COLUMNS: Mapping[str, frozenset[str]] = {
    "requests": frozenset(),
    "answers": frozenset(),
    "scores": frozenset(),
    "results": frozenset(name for name, _ in _HARDWARE),
    "samples": frozenset(),
    "gains": frozenset(),
    "cells": frozenset({"attempts", "slot", "path", *(name for name, _ in _HARDWARE)}),
}
"""Columns that describe this run (timings, hardware, node, slot, attempts), not the result."""


class CorruptError(StoreError):
    """A file is not what was written: cut off, overwritten, or bits changed."""


def schema_of(name: str) -> pa.Schema:
    """Return a table's schema, with name and version in its metadata."""
    fields = [
        pa.field(column, kind, nullable=column in NULLABLE[name]) for column, kind in _COLUMNS[name]
    ]
    return pa.schema(fields, metadata=_metadata(name))


def build(name: str, rows: Iterable[Row], *, header: Json = None, run: Json = None) -> pa.Table:
    """Return a table of rows.

    Args:
        name: The table's name.
        rows: Each with exactly the table's columns.
        header: What the table says once; content.
        run: What describes the run that made it; not content.

    Raises:
        StoreError: If a row has other columns, or a value does not fit its column.
    """
    schema = schema_of(name)
    columns: dict[str, list[Any]] = {field.name: [] for field in schema}
    for number, row in enumerate(rows):
        if row.keys() != columns.keys():
            odd = ", ".join(sorted(row.keys() ^ columns.keys()))
            raise StoreError(f"table {name}, row {number}", f"columns missing or unknown: {odd}")
        for column, values in columns.items():
            values.append(row[column])
    arrays = [_array(name, field, columns[field.name]) for field in schema]
    return with_header(pa.Table.from_arrays(arrays, schema=schema), header=header, run=run)


def _array(name: str, field: pa.Field, values: list[Any]) -> pa.Array:
    try:
        array = pa.array(values, type=field.type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise StoreError(f"table {name}, column {field.name}", str(error)) from error
    if array.null_count and not field.nullable:
        row = values.index(None)
        raise StoreError(f"table {name}, column {field.name}", f"row {row} has no value")
    return array


def with_header(table: pa.Table, *, header: Json = None, run: Json = None) -> pa.Table:
    """Return the table with its header and run facts in the metadata."""
    return table.replace_schema_metadata(_metadata(name_of(table.schema), header, run))


def _metadata(name: str, header: Json = None, run: Json = None) -> dict[bytes, bytes]:
    metadata = {NAME_KEY: name.encode(), VERSION_KEY: str(VERSIONS[name]).encode()}
    if header is not None:
        metadata[HEADER_KEY] = dump_json(header).encode()
    if run is not None:
        metadata[RUN_KEY] = dump_json(run).encode()
    return metadata | {DIGEST_KEY: _metadata_digest(metadata)}


def _metadata_digest(metadata: Mapping[bytes, bytes]) -> bytes:
    hasher = hashlib.sha256()
    for key in (NAME_KEY, VERSION_KEY, HEADER_KEY, RUN_KEY):
        value = metadata.get(key)
        hasher.update(b"-" if value is None else b"%d:%b" % (len(value), value))
    return hasher.hexdigest().encode()


def name_of(schema: pa.Schema) -> str:
    """Return the table's name that a schema carries; empty if there is none."""
    metadata: Mapping[bytes, bytes] = schema.metadata or {}
    return metadata.get(NAME_KEY, b"").decode(errors="replace")


def header_of(table: pa.Table) -> Json:
    """Return the table's header; None if it has none."""
    text = (table.schema.metadata or {}).get(HEADER_KEY)
    return None if text is None else load_json(text.decode())


def run_of(table: pa.Table) -> Json:
    """Return the table's run facts; None if it has none."""
    text = (table.schema.metadata or {}).get(RUN_KEY)
    return None if text is None else load_json(text.decode())


def check_schema(schema: pa.Schema, name: str, place: str) -> None:
    """Check that a stored schema is the one of this table, name and version before columns.

    Raises:
        StoreError: If it is another table, another version, or has other columns.
        CorruptError: If columns or metadata are not what was written.
    """
    metadata = schema.metadata or {}
    if name_of(schema) != name:
        found = name_of(schema) or "none"
        raise StoreError(place, f"expected raypeft's table {name!r}, found {found!r}")
    version = metadata.get(VERSION_KEY, b"?").decode(errors="replace")
    if version != str(VERSIONS[name]):
        raise StoreError(
            place,
            f"version {version} of table {name}; this raypeft reads version {VERSIONS[name]}",
            "read it with the raypeft that wrote it, or use a new folder",
        )
    if not schema.equals(schema_of(name), check_metadata=False):
        raise CorruptError(place, f"columns are not those of table {name}, version {version}")
    if _metadata_digest(metadata) != metadata.get(DIGEST_KEY):
        raise CorruptError(place, "its metadata are not what was written")


def stable(table: pa.Table) -> pa.Table:
    """Return what two runs of the same sweep have in common, in a fixed order.

    Columns and metadata that describe the run are dropped and rows sorted by the table's key, so
    that equal results are equal tables, and equal bytes by `to_parquet`.
    """
    name = name_of(table.schema)
    assert name in VERSIONS, f"{name!r} is none of raypeft's tables"
    keys = [(column, "ascending") for column in KEYS[name]]
    kept = [column for column in table.column_names if column not in RUN_COLUMNS[name]]
    sorted_table = table.sort_by(keys).select(kept).combine_chunks()
    return with_header(sorted_table, header=header_of(table))
