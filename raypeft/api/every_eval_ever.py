"""Exports in the schema of every_eval_ever (evaleval.org, arXiv 2606.14516), version 0.3.0.

One JSON file for each subject, in the folders of its datastore, with one evaluation result for each
metric. Samples are not among them: its own converter makes them of the files of `--to lm-eval`.
"""

import json
import math
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raypeft import __version__
from raypeft.api.reading import read_report
from raypeft.core.records import Json
from raypeft.errors import SetupError
from raypeft.store.output import open_output

SCHEMA_VERSION = "0.3.0"
UNSTATED = "unstated"
"""Who evaluates is not in a sweep; whoever publishes the file knows."""

ODD_IN_FOLDERS = re.compile(r"[^A-Za-z0-9._-]")

Row = Mapping[str, Any]


def export_every_eval_ever(
    output: str, out: Path, subjects: Sequence[str], *, title: str
) -> dict[str, Path]:
    """Write each subject's results as one file of every_eval_ever.

    Args:
        output: The sweep's output.
        out: Folder for the files.
        subjects: Which subjects.
        title: What the sweep is called: the collection.

    Returns:
        The file of each subject.

    Raises:
        SetupError: If there is nothing to export, or nothing can be written.
    """
    read_report(output)  # sees to it that the tables are there and whole
    rows = open_output(output).results.to_pylist()
    collection, models = _folder(title), dict[str, str]()
    written: dict[str, Path] = {}
    for subject in subjects:
        own = [row for row in rows if row["subject"] == subject]
        if not own:
            continue
        # The base alone is a model of its own name.
        model = "/".join(_folder(own[0][key] or own[0]["base"]) for key in ("base", "adapter"))
        if (other := models.setdefault(model, subject)) != subject:
            raise SetupError(
                f"{other} and {subject} would both be the model {model}",
                "export one of them with --subject",
            )
        path = out / "data" / collection / model / f"{uuid.uuid4()}.json"
        record = _record(own, model, collection, str(int(time.time())))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(record, indent=1, allow_nan=False)
            path.write_text(f"{text}\n", encoding="utf-8")
        except OSError as error:
            raise SetupError(f"{path} cannot be written: {error}", "name another folder") from error
        written[subject] = path
    if not written:
        raise SetupError(f"{output} has no results to export", "run the sweep first")
    return written


def _folder(name: str) -> str:
    """Return a name that is one folder, and no hidden one."""
    return ODD_IN_FOLDERS.sub("_", name).lstrip(".") or "_"


def _record(rows: Sequence[Row], model: str, collection: str, now: str) -> Json:
    first = next((row for row in rows if not row["is_group"]), rows[0])
    told = [row for row in rows if _is_told(row)]
    left_out = sorted({f"{row['task']} {row['metric']}" for row in rows if not _is_told(row)})
    details = {"raypeft": __version__}
    if left_out:
        details["left_out"] = f"no finite number or no direction: {', '.join(left_out)}"
    identity = ("subject", "base", "adapter", "base_digest", "adapter_digest", "dtype", "numerics")
    return {
        "schema_version": SCHEMA_VERSION,
        "evaluation_id": f"{collection}/{model}/{now}",
        "retrieved_timestamp": now,
        "source_metadata": {
            "source_name": "raypeft",
            "source_type": "evaluation_run",
            "source_organization_name": UNSTATED,
            "evaluator_relationship": "other",
            "additional_details": details,
        },
        "eval_library": {"name": "lm_eval", "version": first["lm_eval_version"]},
        "model_info": {
            "name": first["subject"],
            "id": model,
            "inference_engine": {"name": first["engine"]},
            "additional_details": {
                "deployment_type": "self_deployed",
                "model_availability": "unknown",
                **{name: str(first[name]) for name in identity if first[name] is not None},
            },
        },
        "evaluation_results": [_result(row) for row in told],
    }


def _is_told(row: Row) -> bool:
    """Return whether the schema has a place for a row: it wants a number and a direction."""
    known = row["value"] is not None and math.isfinite(row["value"])
    return known and row["higher_is_better"] is not None


def _result(row: Row) -> Json:
    settings = ("request_set", "task_version", "num_fewshot", "scoring", "sampling_seed", "cell")
    metric = row["metric"] if row["filter"] == "none" else f"{row['metric']},{row['filter']}"
    uncertainty: dict[str, Json] = {"num_samples": row["n"]}
    if row["stderr"] is not None and math.isfinite(row["stderr"]):
        uncertainty["standard_error"] = {"value": row["stderr"], "method": "lm_eval"}
    return {
        "evaluation_result_id": f"{row['entry']}/{row['task']}/{metric}",
        "evaluation_name": row["task"],
        "source_data": {
            "dataset_name": row["task"],
            "source_type": "other",
            "additional_details": {
                "kind": "group" if row["is_group"] else "task",
                **{name: str(row[name]) for name in settings if row[name] is not None},
            },
        },
        "metric_config": {
            "metric_id": row["metric"],
            "metric_name": metric,
            "lower_is_better": not row["higher_is_better"],
            "additional_details": {"filter": row["filter"], "aggregation": row["aggregation"]},
        },
        "score_details": {"score": row["value"], "uncertainty": uncertainty},
    }
