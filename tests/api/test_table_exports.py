"""Exports made from tables alone, read back by whoever is to read them."""

import csv
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from huggingface_hub import ModelCard

from raypeft import api
from raypeft.api.table_exports import export_tables
from raypeft.report.markdown import escape
from tests.support.made_up import MadeUp, write_made_up

HOSTILE = 'a|b`<img src=x onerror=alert(1)>"\n,c'


@pytest.fixture
def output(tmp_path: Path) -> str:
    sweep = MadeUp(
        adapters=("one", HOSTILE, "broken"),
        effects={("one", "red"): 0.3},
        failed={"broken": "why | not"},
        documents=50,
    )
    return write_made_up(tmp_path / "run", sweep)


def test_csv_holds_every_row_and_number(output: str, tmp_path: Path) -> None:
    files = export_tables(output, tmp_path / "out", (), "csv")
    for name, path in files.items():
        table = getattr(api.open(output), name)
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert len(rows) == table.num_rows
        assert list(rows[0]) == table.column_names
    gains = api.open(output).gains.to_pylist()
    with files["gains"].open(encoding="utf-8", newline="") as stream:
        found = {(r["adapter"], r["task"]): float(r["gain"]) for r in csv.DictReader(stream)}
    assert found == {(row["adapter"], row["task"]): row["gain"] for row in gains}


FORMULAS = ("=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1")


def test_csv_keeps_texts_that_look_like_formulas_from_being_computed(tmp_path: Path) -> None:
    names = (*FORMULAS, "-0.5", "plain=1")
    output = write_made_up(tmp_path / "run", MadeUp(adapters=names, documents=10))
    files = export_tables(output, tmp_path / "out", (), "csv")
    with files["gains"].open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    found = {row["adapter"] for row in rows}
    assert found == {*(f"'{name}" for name in FORMULAS), "-0.5", "plain=1"}
    gains = [row["gain"] for row in api.open(output).gains.to_pylist()]
    assert [float(row["gain"]) for row in rows] == gains


def test_parquet_is_read_by_polars_and_duckdb(output: str, tmp_path: Path) -> None:
    duckdb, polars = pytest.importorskip("duckdb"), pytest.importorskip("polars")
    files = export_tables(output, tmp_path / "out", (), "parquet")
    assert set(files) == {"results", "gains", "cells", "samples"}
    for name, path in files.items():
        table = getattr(api.open(output), name)
        frame = polars.read_parquet(path)
        assert frame.to_dicts() == table.to_pylist()
        found = duckdb.sql(f"select count(*) from '{path}'").fetchall()
        assert found == [(table.num_rows,)] != [(0,)]


def test_parquet_of_one_subject_holds_its_rows_alone(output: str, tmp_path: Path) -> None:
    files = export_tables(output, tmp_path / "out", ("base/one",), "parquet")
    samples = pq.read_table(files["samples"])
    assert set(samples.column("subject").to_pylist()) == {"base/one"}
    assert samples.num_rows == 100  # two tasks of 50 documents


def test_the_tables_are_frames_of_pandas_and_polars(output: str) -> None:
    polars = pytest.importorskip("polars")
    gains = api.open(output).gains
    rows = gains.to_pylist()
    assert polars.from_arrow(gains).to_dicts() == rows
    assert gains.to_pandas()["gain"].tolist() == [row["gain"] for row in rows]


def test_only_the_subjects_asked_for_are_exported(output: str, tmp_path: Path) -> None:
    files = export_tables(output, tmp_path / "out", ("base/one",), "csv")
    for path in files.values():
        with path.open(encoding="utf-8", newline="") as stream:
            assert {row["adapter"] for row in csv.DictReader(stream)} == {"one"}


def test_markdown_tells_the_findings_and_escapes_names(output: str, tmp_path: Path) -> None:
    text = export_tables(output, tmp_path / "out", (), "markdown")["report"].read_text()
    assert "- Over base, ship one" in text
    assert "## Gains over base" in text
    assert "why \\| not" in text
    assert "<img" not in text.replace("\\<img", "")
    widths = {
        line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("| ")
    }
    assert len(widths) == 3  # heat map, baselines, failures: every row as wide as its table


@pytest.mark.parametrize(
    ("text", "escaped"),
    [("a_b", "a\\_b"), ("# a\nb", "\\# a b"), ("<b>", "\\<b\\>"), ("1.5", "1.5")],
)
def test_markdown_finds_nothing_to_do_in_a_name(text: str, escaped: str) -> None:
    assert escape(text) == escaped


def test_model_cards_are_read_by_the_hubs_own_client(output: str, tmp_path: Path) -> None:
    files = export_tables(output, tmp_path / "out", (), "model-card")
    assert set(files) == {"base/one", f"base/{HOSTILE}"}
    rows = [r for r in api.open(output).results.to_pylist() if r["subject"] == "base/one"]
    card = ModelCard.load(files["base/one"])
    assert card.data.base_model == "base"
    found = {
        one.dataset_type: (one.metric_type, one.metric_value, one.dataset_args["n"])
        for one in card.data.eval_results
    }
    assert found == {row["task"]: ("acc", row["value"], 50) for row in rows}
