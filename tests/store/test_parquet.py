from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raypeft.errors import StoreError
from raypeft.store.parquet import from_parquet, to_parquet
from raypeft.store.rows import scored_of, scores_table
from raypeft.store.tables import VERSION_KEY, CorruptError, build
from tests.store.examples import example_scored

RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def cell_row(**values: Any) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(build("cells", []).column_names)
    return row | {
        "subject": "b/a", "base": "b", "entry": "t", "task": "t", "state": "done", "attempts": 1
    } | values  # fmt: skip


def test_equal_tables_give_equal_bytes_however_they_are_chunked() -> None:
    rows = [cell_row(task=f"t{i}", seconds=0.1 * i) for i in range(10)]
    whole = build("cells", rows)
    parts = pa.concat_tables([build("cells", rows[:3]), build("cells", rows[3:])])
    assert to_parquet(whole) == to_parquet(parts) == to_parquet(build("cells", rows))


DATA = to_parquet(scores_table(example_scored()))


@RELAXED
@given(st.integers(0, len(DATA) - 1))
def test_a_file_cut_off_anywhere_is_noticed(length: int) -> None:
    with pytest.raises(CorruptError, match="place"):
        from_parquet(DATA[:length], "scores", "place")


@RELAXED
@given(st.integers(0, len(DATA) - 1), st.integers(0, 7))
def test_a_flipped_bit_is_noticed_or_changes_nothing(place: int, bit: int) -> None:
    damaged = bytearray(DATA)
    damaged[place] ^= 1 << bit
    try:
        table = from_parquet(bytes(damaged), "scores", "place")
    except StoreError:
        return
    assert repr(scored_of(table)) == repr(example_scored())


def test_bytes_of_something_else_are_corrupt() -> None:
    for data in (b"", b"PAR1", b"x" * 1000):
        with pytest.raises(CorruptError):
            from_parquet(data, "scores", "place")


def test_another_version_is_refused_with_both_numbers_before_its_columns() -> None:
    table = pa.table({"new_column": [1]})
    metadata = scores_table(example_scored()).schema.metadata | {VERSION_KEY: b"7"}
    data = to_parquet(table.replace_schema_metadata(metadata))
    with pytest.raises(StoreError, match=r"version 7 of table scores; .* reads version 1"):
        from_parquet(data, "scores", "place")


def test_another_table_is_refused_by_name() -> None:
    with pytest.raises(StoreError, match="expected raypeft's table 'gains', found 'scores'"):
        from_parquet(DATA, "gains", "place")


def test_a_parquet_file_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    data = to_parquet(pa.table({"a": [1]}))
    with pytest.raises(StoreError, match="found 'none'"):
        from_parquet(data, "gains", "place")
