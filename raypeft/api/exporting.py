"""Exports: a sweep's scores in the files of other tools."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from raypeft.api.every_eval_ever import export_every_eval_ever
from raypeft.api.planning import Planned
from raypeft.api.stored import read_planned
from raypeft.api.table_exports import export_tables
from raypeft.api.trackers import export_runs
from raypeft.core.plan import Cell
from raypeft.core.records import Json, Scored
from raypeft.errors import Problem, SetupError, SpecError
from raypeft.store.store import Store

# Written out, since typer takes no union of literals; mypy holds it to those of the parts.
ExportFormat: TypeAlias = Literal[
    "lm-eval", "parquet", "csv", "markdown", "model-card", "wandb", "mlflow", "every-eval-ever"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """One subject's exported files, or one file about all of them.

    Attributes:
        subject: The subject's id; of a file about all, what it holds.
        results: The results file.
        samples: The samples file of each task, where the format has them.
    """

    subject: str
    results: Path
    samples: tuple[Path, ...] = ()


def export_output(
    output: str, out: Path, *, subjects: Sequence[str] = (), to: ExportFormat = "lm-eval"
) -> list[Export]:
    """Write a sweep's scores as `lm_eval` would have, or in another format.

    Args:
        output: The sweep's output.
        out: Folder for the files; each subject gets a folder in it.
        subjects: Which subjects; all that have results if empty.
        to: The format.

    Raises:
        SetupError: If the sweep was never run, or nothing can be written.
    """
    planned, store = read_planned(output)
    known = list(dict.fromkeys(cell.subject for cell in planned.cells))
    # A baseline's second answers are for the noise floor alone; by name they can be had.
    usual = [subject for subject in known if not planned.resolved.subjects[subject].again]
    if unknown := [subject for subject in subjects if subject not in known]:
        message = f"no subject {', '.join(unknown)} in {output}"
        raise SpecError((Problem("--subject", message, f"there are {', '.join(known)}"),))
    if to != "lm-eval":
        title = planned.resolved.sweep.name or Path(output.rstrip("/")).name
        files = _export_tables(output, out, subjects, usual, to, title=title)
        return [Export(subject=name, results=path) for name, path in files.items()]
    exports: list[Export] = []
    for subject in subjects or usual:
        cells = [cell for cell in planned.cells if cell.subject == subject]
        scored = [(cell, found) for cell in cells if (found := store.get_scored(cell.score_key))]
        if not scored:
            continue
        exports.append(_export_subject(planned, store, subject, scored, out))
    if not exports:
        raise SetupError(f"{output} has no results to export", "run the sweep first")
    return exports


def _export_tables(
    output: str,
    out: Path,
    subjects: Sequence[str],
    usual: Sequence[str],
    to: ExportFormat,
    *,
    title: str,
) -> Mapping[str, Path]:
    match to:
        case "wandb" | "mlflow":
            return export_runs(output, out, subjects or usual, to, title=title)
        case "every-eval-ever":
            return export_every_eval_ever(output, out, subjects or usual, title=title)
        case "parquet" | "csv" | "markdown" | "model-card":
            return export_tables(output, out, subjects, to)
        case "lm-eval":
            raise AssertionError("lm-eval's files are made of the store, not of the tables")


def _export_subject(
    planned: Planned,
    store: Store,
    subject: str,
    scored: Sequence[tuple[Cell, Scored]],
    out: Path,
) -> Export:
    from raypeft.harness.export import export_lm_eval  # lm-eval, which nothing else here needs

    base = scored[0][0].base
    engine = planned.plan.engines[scored[0][0].engine_name]
    adapter = planned.resolved.subjects[subject].adapter
    arguments: dict[str, Json] = {"pretrained": engine.base, "dtype": engine.dtype}
    if adapter is not None:
        arguments["peft"] = adapter.path
    groups = [group for members in planned.frozen.groups[base].values() for group in members]
    files = export_lm_eval(
        out,
        subject=subject,
        scored=[
            (planned.frozen.request_set(store, cell.request_set), found) for cell, found in scored
        ],
        groups=groups,
        model_source=engine.kind,
        model_args=arguments,
    )
    return Export(subject=subject, results=files.results, samples=tuple(files.samples.values()))
