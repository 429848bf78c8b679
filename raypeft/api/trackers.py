"""Exports to experiment trackers, by their own clients: Weights & Biases and MLflow.

Each subject becomes one run: its identity as configuration, every metric and gain as a number of
the run's summary, its rows of the tables as a table. Nothing is sent anywhere: W&B's runs are
written offline, to be uploaded by `wandb sync`; MLflow's go to a database in the folder, or to the
server that `MLFLOW_TRACKING_URI` names.
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeAlias

from raypeft.api.reading import read_report
from raypeft.core.records import Json
from raypeft.errors import SetupError
from raypeft.store.output import open_output

Tracker: TypeAlias = Literal["wandb", "mlflow"]
Row: TypeAlias = Mapping[str, Any]

IDENTITY = (
    *("subject", "base", "adapter", "base_digest", "adapter_digest", "engine", "dtype"),
    *("softmax_dtype", "attn_implementation", "numerics", "lm_eval_version", "device"),
)
MLFLOW_BATCH = 1000
"""Metrics that MLflow takes at once."""

GAIN_NUMBERS = ("gain", "low", "high", "p_corrected", "n")
ODD_IN_NAMES = re.compile(r"[^\w\-. /]", re.ASCII)
"""Neither tracker takes more in a metric's name than letters, digits and these."""


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """What a tracker is told about one subject.

    Attributes:
        subject: The subject's id, which names the run.
        config: Its identity.
        metrics: Every finite number by its name: `task/metric` or `task/metric/filter`, the same
            with `/stderr`, and gains under `gain/`.
        results: Its rows of the `results` table.
        gains: Its rows of the `gains` table.
    """

    subject: str
    config: dict[str, str]
    metrics: dict[str, float]
    results: list[Row]
    gains: list[Row]


def export_runs(
    output: str, out: Path, subjects: Sequence[str], to: Tracker, *, title: str
) -> dict[str, Path]:
    """Write each subject with results as a run of a tracker.

    Args:
        output: The sweep's output.
        out: Folder for the tracker's files.
        subjects: Which subjects.
        to: The tracker.
        title: What the sweep is called: the project or experiment.

    Returns:
        Where each subject's run lies.

    Raises:
        SetupError: If the tracker's client is not installed, or refuses something.
    """
    if find_spec(to) is None:
        raise SetupError(f"the client of {to} is not installed", f"pip install 'raypeft[{to}]'")
    runs = list(_runs(output, subjects))
    if not runs:
        raise SetupError(f"{output} has no results to export", "run the sweep first")
    try:
        out.mkdir(parents=True, exist_ok=True)
        return _to_wandb(title, out, runs) if to == "wandb" else _to_mlflow(title, out, runs)
    except OSError as error:
        raise SetupError(f"{out} cannot be written: {error}", "name another folder") from error


def _runs(output: str, subjects: Sequence[str]) -> Iterator[TrackedRun]:
    read_report(output)  # sees to it that the tables are there and whole
    tables = open_output(output)
    results, gains = tables.results.to_pylist(), tables.gains.to_pylist()
    for subject in subjects:
        own = [row for row in results if row["subject"] == subject]
        if not own:
            continue
        first = next((row for row in own if not row["is_group"]), own[0])
        who = (first["base"], first["adapter"])
        gained = [row for row in gains if (row["base"], row["adapter"]) == who]
        yield TrackedRun(
            subject=subject,
            config={name: str(first[name]) for name in IDENTITY if first[name] is not None},
            metrics=_metrics(subject, own, gained),
            results=own,
            gains=gained,
        )


def _metrics(subject: str, results: Sequence[Row], gains: Sequence[Row]) -> dict[str, float]:
    found: dict[str, float] = {}
    sources: dict[str, str] = {}
    numbers = [(_name(row), row["value"]) for row in results]
    numbers += [(_name(row) + "/stderr", row["stderr"]) for row in results]
    numbers += [
        (f"gain/{_name(row)}" + ("" if column == "gain" else f"/{column}"), row[column])
        for row in gains
        for column in GAIN_NUMBERS
    ]
    for whole, value in numbers:
        # What is not finite stands in the table; no tracker draws it.
        if value is None or not math.isfinite(value):
            continue
        name = ODD_IN_NAMES.sub("_", whole)
        if sources.setdefault(name, whole) != whole:
            raise SetupError(
                f"{subject}: {sources[name]!r} and {whole!r} would both be called {name!r}",
                "export to csv or parquet, which keep names as they are",
            )
        found[name] = float(value)
    return found


def _name(row: Row) -> str:
    parts = [row["task"], row["metric"], *([row["filter"]] if row["filter"] != "none" else [])]
    return "/".join(parts)


# --- Weights & Biases -------------------------------------------------------------------------


def _to_wandb(title: str, out: Path, runs: Sequence[TrackedRun]) -> dict[str, Path]:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb  # the extra, which nothing else needs

    settings = wandb.Settings(
        mode="offline",
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        x_disable_meta=True,  # of this machine, which need not be the one that answered
        x_disable_stats=True,
    )
    written = {}
    try:
        for one in runs:
            run = wandb.init(
                project=title,
                name=one.subject,
                group=one.config["base"],
                config=one.config,
                dir=str(out),
                settings=settings,
                reinit="finish_previous",
            )
            run.summary.update(one.metrics)
            for name, rows in (("results", one.results), ("gains", one.gains)):
                if rows:
                    columns: list[str | int] = [*rows[0]]
                    data = [list(row.values()) for row in rows]
                    run.log({name: wandb.Table(columns=columns, data=data)})
            written[one.subject] = Path(run.settings.sync_dir)
            run.finish()
    except wandb.Error as error:
        raise SetupError(f"W&B's client refuses: {error}", "see its log in the folder") from error
    finally:
        wandb.teardown()  # else its process stays
    return written


# --- MLflow -----------------------------------------------------------------------------------


def _to_mlflow(title: str, out: Path, runs: Sequence[TrackedRun]) -> dict[str, Path]:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.entities import Metric, Param  # the extra, which nothing else needs
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    server = os.environ.get("MLFLOW_TRACKING_URI")
    database = out.resolve() / "mlflow.db"
    written = {}
    try:
        client = MlflowClient(tracking_uri=server or f"sqlite:///{database}")
        experiment = client.get_experiment_by_name(title)
        if experiment is None:
            # A server knows where artifacts belong; beside a database they lie in the folder.
            place = None if server else (out.resolve() / "artifacts").as_uri()
            number = client.create_experiment(title, artifact_location=place)
        else:
            number = experiment.experiment_id
        for one in runs:
            run = client.create_run(number, run_name=one.subject)
            key, now = run.info.run_id, run.info.start_time
            metrics = [Metric(name, value, now, 0) for name, value in one.metrics.items()]
            params = [Param(name, value) for name, value in one.config.items()]
            client.log_batch(key, params=params)
            for start in range(0, len(metrics), MLFLOW_BATCH):
                client.log_batch(key, metrics=metrics[start : start + MLFLOW_BATCH])
            client.log_text(key, _json(one.results), "results.json")
            client.log_text(key, _json(one.gains), "gains.json")
            client.set_terminated(key)
            written[one.subject] = Path(server or database)
    except MlflowException as error:
        raise SetupError(
            f"MLflow's client refuses: {error}", "check MLFLOW_TRACKING_URI and the folder"
        ) from error
    return written


def _json(rows: Sequence[Row]) -> str:
    value: Json = [dict(row) for row in rows]
    return json.dumps(value, indent=1)
