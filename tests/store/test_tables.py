from dataclasses import fields

import pyarrow as pa
import pytest

from raypeft.core.gains import Gain
from raypeft.errors import StoreError
from raypeft.store.parquet import to_parquet
from raypeft.store.tables import (
    KEYS,
    NULLABLE,
    RUN_COLUMNS,
    VERSIONS,
    build,
    header_of,
    run_of,
    schema_of,
    stable,
)
from tests.store.test_parquet import cell_row


@pytest.mark.parametrize("name", sorted(VERSIONS))
def test_keys_run_columns_and_nullable_columns_are_columns(name: str) -> None:
    columns = set(schema_of(name).names)
    assert set(KEYS[name]) <= columns
    assert RUN_COLUMNS[name] < columns
    assert NULLABLE[name] <= columns
    assert not RUN_COLUMNS[name] & set(KEYS[name])


def test_the_gains_table_has_the_fields_of_a_gain() -> None:
    assert schema_of("gains").names == [item.name for item in fields(Gain)]


def test_a_row_with_missing_or_unknown_columns_is_refused_by_name() -> None:
    row = cell_row(colour="red")
    del row["slot"]
    with pytest.raises(StoreError, match="row 0: columns missing or unknown: colour, slot"):
        build("cells", [row])


def test_a_value_of_another_type_is_refused_with_its_column() -> None:
    with pytest.raises(StoreError, match="column attempts"):
        build("cells", [cell_row(attempts="three")])


def test_a_missing_value_is_refused_with_its_column_and_row() -> None:
    with pytest.raises(StoreError, match="column state: row 1 has no value"):
        build("cells", [cell_row(), cell_row(state=None)])


def test_two_runs_of_one_sweep_are_stably_equal_byte_for_byte() -> None:
    tonight = [cell_row(task=t, seconds=1.5, node="n1", attempts=1) for t in ("a", "b")]
    before = [cell_row(task=t, seconds=9.0, node="n2", attempts=3, slot="s") for t in ("b", "a")]
    tables = [build("cells", rows, run={"host": str(len(rows))}) for rows in (tonight, before)]
    assert to_parquet(tables[0]) != to_parquet(tables[1])
    assert to_parquet(stable(tables[0])) == to_parquet(stable(tables[1]))


def test_a_different_result_stays_different() -> None:
    tables = [build("cells", [cell_row(state=state)]) for state in ("done", "failed")]
    assert to_parquet(stable(tables[0])) != to_parquet(stable(tables[1]))


def test_stable_keeps_the_header_and_drops_run_facts() -> None:
    table = stable(build("cells", [cell_row()], header={"a": 1}, run={"b": 2}))
    assert header_of(table) == {"a": 1}
    assert run_of(table) is None
    assert isinstance(table, pa.Table)
