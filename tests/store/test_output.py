from pathlib import Path

import pyarrow.parquet as pq
import pytest

from raypeft.errors import StoreError
from raypeft.store.output import (
    open_output,
    open_table_writer,
    read_run,
    write_table,
)
from raypeft.store.rows import gains_table, samples_table, scores_table
from raypeft.store.tables import build
from tests.store.examples import example_scored


def test_each_cell_is_a_row_group_of_its_own(tmp_path: Path) -> None:
    with open_table_writer(tmp_path, "samples") as writer:
        for subject in ("a", "b", "c"):
            writer.write(samples_table(subject, example_scored()))
    file = pq.ParquetFile(tmp_path / "tables" / "samples.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [3, 3, 3]


def test_a_table_written_in_parts_is_the_table_of_its_rows(tmp_path: Path) -> None:
    with open_table_writer(tmp_path, "samples") as writer:
        writer.write(samples_table("a", example_scored()).slice(0, 0))
        writer.write(samples_table("a", example_scored()))
    found = open_output(tmp_path).samples
    assert repr(found.to_pylist()) == repr(samples_table("a", example_scored()).to_pylist())


def test_an_exception_while_writing_keeps_the_old_table(tmp_path: Path) -> None:
    write_table(tmp_path, "samples", samples_table("old", example_scored()))
    with pytest.raises(RuntimeError), open_table_writer(tmp_path, "samples") as writer:  # noqa: PT012
        writer.write(samples_table("new", example_scored()))
        raise RuntimeError
    assert set(open_output(tmp_path).samples["subject"].to_pylist()) == {"old"}
    assert [path.name for path in (tmp_path / "tables").iterdir()] == ["samples.parquet"]


def test_another_table_is_refused_before_it_is_written(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="expected raypeft's table 'gains', found 'scores'"):
        write_table(tmp_path, "gains", scores_table(example_scored()))
    with (
        pytest.raises(StoreError, match="expected raypeft's table 'samples'"),
        open_table_writer(tmp_path, "samples") as writer,
    ):
        writer.write(scores_table(example_scored()))
    assert not (tmp_path / "tables" / "samples.parquet").exists()


def test_a_damaged_table_says_how_to_mend_it(tmp_path: Path) -> None:
    write_table(tmp_path, "gains", gains_table([]))
    path = tmp_path / "tables" / "gains.parquet"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(StoreError, match="run the sweep again"):
        _ = open_output(tmp_path).gains


def test_run_facts_are_read_without_rows_and_are_none_where_there_are_none(tmp_path: Path) -> None:
    assert read_run(tmp_path, "cells") is None
    write_table(tmp_path, "cells", build("cells", [], run={"inputs": "abc"}))
    assert read_run(tmp_path, "cells") == {"inputs": "abc"}
    path = tmp_path / "tables" / "cells.parquet"
    for damaged in (path.read_bytes()[:-5], b"x" * 100, b""):
        path.write_bytes(damaged)
        assert read_run(tmp_path, "cells") is None


def test_duckdb_style_readers_see_plain_parquet(tmp_path: Path) -> None:
    with open_table_writer(tmp_path, "samples") as writer:
        writer.write(samples_table("a", example_scored()))
    path = tmp_path / "tables" / "samples.parquet"
    table = pq.read_table(path, columns=["subject", "metrics"])
    assert table["metrics"].to_pylist()[0][0]["name"] == "acc"
