"""Exports made from a sweep's tables alone: Parquet, CSV, Markdown, model cards for the hub."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from raypeft.api.reading import read_report
from raypeft.errors import SetupError
from raypeft.report.markdown import render_markdown
from raypeft.report.morning import summarise
from raypeft.store.output import Results, open_output
from raypeft.store.tables import schema_of

TableFormat: TypeAlias = Literal["parquet", "csv", "markdown", "model-card"]
FLAT_TABLES = ("results", "gains", "cells")
"""Those whose columns hold single values; samples hold lists."""

FORMULA = r"^[=+\-@\t\r\n]"
"""What a spreadsheet takes for the beginning of a formula, or skips to find one."""

PLAIN_NUMBER = r"^[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?$"
"""A text that is a number and nothing else is harmless, and stays one."""


def export_tables(
    output: str, out: Path, subjects: Sequence[str], to: TableFormat
) -> dict[str, Path]:
    """Write a sweep's tables in another format.

    Args:
        output: The sweep's output.
        out: Folder for the files.
        subjects: Which subjects; all of them if empty.
        to: The format.

    Returns:
        Files by what they hold: a table's name, `report`, or a subject's id.

    Raises:
        SetupError: If no sweep has run there, or nothing can be written.
    """
    read_report(output)  # sees to it that the tables are there and whole
    results = open_output(output)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if to == "parquet":
            return _parquet(results, out, subjects)
        if to == "csv":
            return _csv(results, out, subjects)
        if to == "markdown":
            return _markdown(results, out, subjects, output)
        return _model_cards(results, out, subjects)
    except OSError as error:
        raise SetupError(f"{out} cannot be written: {error}", "name another folder") from error


def of_subjects(table: pa.Table, subjects: Sequence[str]) -> pa.Table:
    """Return the rows of some subjects; all rows if none is named."""
    if not subjects:
        return table
    if "subject" in table.column_names:
        ids = table.column("subject")
    else:
        ids = pc.binary_join_element_wise(table.column("base"), table.column("adapter"), "/")
    return table.filter(pc.is_in(ids, value_set=pa.array(subjects, pa.string())))


def _parquet(results: Results, out: Path, subjects: Sequence[str]) -> dict[str, Path]:
    written = {name: out / f"{name}.parquet" for name in (*FLAT_TABLES, "samples")}
    for name in FLAT_TABLES:
        pq.write_table(of_subjects(getattr(results, name), subjects), written[name])
    # Part by part: samples may be larger than memory.
    schema = schema_of("samples")
    with pq.ParquetWriter(written["samples"], schema) as writer:
        for part in results.sample_parts(schema.names):
            kept = of_subjects(part, subjects)
            if kept.num_rows:
                writer.write_table(kept.cast(schema))
    return written


def _csv(results: Results, out: Path, subjects: Sequence[str]) -> dict[str, Path]:
    written = {}
    for name in FLAT_TABLES:
        written[name] = out / f"{name}.csv"
        table = of_subjects(getattr(results, name), subjects)
        csv.write_csv(_without_formulas(table), str(written[name]))
    return written


def _without_formulas(table: pa.Table) -> pa.Table:
    """Return the table with an apostrophe before texts that a spreadsheet would compute.

    Names and messages come from files and models; opened in a spreadsheet they must stay texts.
    """
    for index, field in enumerate(table.schema):
        if field.type not in (pa.string(), pa.large_string()):
            continue
        texts = table.column(index)
        odd = pc.and_not(
            pc.match_substring_regex(texts, FORMULA), pc.match_substring_regex(texts, PLAIN_NUMBER)
        )
        quote = pa.scalar("'", field.type)
        defused = pc.if_else(odd, pc.binary_join_element_wise(quote, texts, ""), texts)
        table = table.set_column(index, field, defused)
    return table


def _markdown(results: Results, out: Path, subjects: Sequence[str], title: str) -> dict[str, Path]:
    gains, cells = (of_subjects(table, subjects) for table in (results.gains, results.cells))
    # Baselines of every base stay: a gain without them says little.
    rows = [row for row in results.results.to_pylist() if _is_shown(row, subjects)]
    morning = summarise(rows, gains.to_pylist(), cells.to_pylist())
    path = out / "report.md"
    path.write_text(render_markdown(morning, title), encoding="utf-8")
    return {"report": path}


def _is_shown(row: Mapping[str, Any], subjects: Sequence[str]) -> bool:
    return not subjects or row["adapter"] is None or row["subject"] in subjects


def _model_cards(results: Results, out: Path, subjects: Sequence[str]) -> dict[str, Path]:
    """Write for each adapter the part of its model card that holds evaluation results."""
    from huggingface_hub import ModelCardData  # slow to import, and only this needs it

    written = {}
    rows = of_subjects(results.results, subjects).to_pylist()
    for number, subject in enumerate(dict.fromkeys(row["subject"] for row in rows)):
        own = [row for row in rows if row["subject"] == subject and row["value"] is not None]
        if not own or own[0]["adapter"] is None:
            continue
        data = ModelCardData(
            model_name=own[0]["adapter"],
            base_model=own[0]["base"],
            library_name="peft",
            eval_results=[_eval_result(row) for row in own],
        )
        # By number: a name of an adapter need not be a name of a file.
        path = out / f"{number:03d}-README.md"
        path.write_text(f"---\n{data.to_yaml()}\n---\n", encoding="utf-8")
        written[subject] = path
    return written


def _eval_result(row: Mapping[str, Any]) -> Any:
    from huggingface_hub import EvalResult

    metric = row["metric"] if row["filter"] == "none" else f"{row['metric']},{row['filter']}"
    settings = {
        "num_few_shot": row["num_fewshot"],
        "version": row["task_version"],
        "request_set": row["request_set"],
        "lm_eval": row["lm_eval_version"],
        "stderr": row["stderr"],
        "n": row["n"],
    }
    return EvalResult(
        task_type="text-generation",
        dataset_type=row["task"],
        dataset_name=row["task"],
        dataset_args={name: value for name, value in settings.items() if value is not None},
        metric_type=row["metric"],
        metric_name=metric,
        metric_value=row["value"],
    )
