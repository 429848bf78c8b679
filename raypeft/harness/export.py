"""Scores → the files that `lm_eval` itself writes, by its own tracker.

For each subject a folder with `results_<date>.json` and one `samples_<task>_<date>.jsonl` for each
task, which lm-eval's tables, its viewers and the tools around it read. Two things differ from a
fresh run on purpose: vectors among the values per document are JSON lists (lm-eval writes numpy's
shortened print), and nothing is said about the machine, since answers may come from several.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lm_eval.loggers import EvaluationTracker
from lm_eval.utils import sanitize_model_name

from raypeft.core.records import EvaluationSettings, Group, Json, RequestSet, Sample, Scored
from raypeft.errors import SetupError
from raypeft.harness.codec import thaw_json
from raypeft.harness.groups import merge_results


@dataclass(frozen=True, slots=True)
class ExportedFiles:
    """What was written.

    Attributes:
        results: The results file.
        samples: The samples file of each task.
    """

    results: Path
    samples: Mapping[str, Path]


def export_lm_eval(
    out: Path,
    *,
    subject: str,
    scored: Sequence[tuple[RequestSet, Scored]],
    groups: Sequence[Group] = (),
    model_source: str = "hf",
    model_args: Mapping[str, Json] | None = None,
    chat_template: str | None = None,
) -> ExportedFiles:
    """Write one subject's results and samples as lm-eval would.

    Args:
        out: Folder for all subjects; the subject's own folder is made in it.
        subject: The subject's id, which names its folder as a model's name would.
        scored: Its request sets with their scores.
        groups: Groups among its tasks; one that lacks a task's result is left out.
        model_source: What lm-eval's config calls the model, for instance `hf`.
        model_args: What lm-eval's config says about it (`pretrained`, `peft`, …).
        chat_template: Text of the chat template, if one was applied.

    Raises:
        ValueError: If a task is there twice; a results file holds it once.
        SetupError: If a file was not written whole. lm-eval only warns about that.
    """
    results = _results(scored, groups, model_source, model_args)
    samples = {pair[1].task: list(export_samples(*pair)) for pair in scored}
    tracker = _tracker(out, subject, scored[0][0].settings, model_source, chat_template)
    tracker.save_results_aggregated(results=results, samples=samples)
    folder = out / sanitize_model_name(subject)
    date = getattr(tracker, "date_id", "")
    files = ExportedFiles(
        results=folder / f"results_{date}.json",
        samples={task: folder / f"samples_{task}_{date}.jsonl" for task in samples},
    )
    _check_results(files.results)
    for task, rows in samples.items():
        tracker.save_results_samples(task_name=task, samples=rows)
        _check_samples(files.samples[task], len(rows))
    return files


def _tracker(
    out: Path,
    subject: str,
    settings: EvaluationSettings,
    model_source: str,
    chat_template: str | None,
) -> Any:
    tracker = EvaluationTracker(output_path=str(out))
    tracker.general_config_tracker.log_experiment_args(
        model_source=model_source,
        # The folder's name is taken from here.
        model_args={"pretrained": subject},
        system_instruction=settings.system_instruction,
        chat_template=chat_template,
        fewshot_as_multiturn=settings.fewshot_as_multiturn,
    )
    return tracker


def export_samples(request_set: RequestSet, scored: Scored) -> list[dict[str, Any]]:
    """Return a task's samples as `lm_eval.evaluate` returns them, filter by filter."""
    documents = {document.doc_id: document for document in request_set.documents}
    arguments: dict[int, list[tuple[Json, ...]]] = {}
    ordered = sorted(request_set.requests, key=lambda request: (request.idx, request.index))
    for request in ordered:
        if request.repeat == 0:
            arguments.setdefault(request.doc_id, []).append(request.arguments)
    filters = list(dict.fromkeys(sample.filter for sample in scored.samples))
    by_filter = sorted(scored.samples, key=lambda sample: filters.index(sample.filter))
    return [
        _sample(sample, documents[sample.doc_id], arguments[sample.doc_id]) for sample in by_filter
    ]


def _sample(sample: Sample, document: Any, arguments: list[tuple[Json, ...]]) -> dict[str, Any]:
    return {
        "doc_id": sample.doc_id,
        "doc": thaw_json(document.doc),
        "target": thaw_json(document.target),
        "arguments": arguments,
        "resps": sample.responses,
        "filtered_resps": sample.filtered_responses,
        "filter": sample.filter,
        "metrics": list(sample.metrics),
        "doc_hash": sample.doc_hash,
        "prompt_hash": sample.prompt_hash,
        "target_hash": sample.target_hash,
        **sample.metrics,
    }


def _results(
    scored: Sequence[tuple[RequestSet, Scored]],
    groups: Sequence[Group],
    model_source: str,
    model_args: Mapping[str, Json] | None,
) -> dict[str, Json]:
    results = merge_results(groups, [one for _, one in scored])
    settings = {request_set.task: request_set.settings for request_set, _ in scored}
    results["config"] = {
        "model": model_source,
        "model_args": dict(model_args or {}),
        **{field: _common(settings, field) for field in _CONFIG_FIELDS},
    }
    results["date"] = time.time()
    results["lm_eval_version"] = scored[0][1].lm_eval_version
    results["request_sets"] = {request_set.task: request_set.digest for request_set, _ in scored}
    return results


_CONFIG_FIELDS = (
    "limit",
    "bootstrap_iters",
    "gen_kwargs",
    "random_seed",
    "numpy_seed",
    "torch_seed",
    "fewshot_seed",
)
"""Settings that lm-eval writes into a run's config; ours have its names."""


def _common(settings: Mapping[str, EvaluationSettings], field: str) -> Json:
    """Return a setting all tasks share, or else each task's: lm-eval knows one for a run."""
    by_task = {task: asdict(one)[field] for task, one in settings.items()}
    first, *others = by_task.values()
    return first if all(other == first for other in others) else by_task


def _check_results(path: Path) -> None:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _not_written(path, str(error)) from error


def _check_samples(path: Path, num_samples: int) -> None:
    try:
        found = path.read_bytes().count(b"\n")
    except OSError as error:
        raise _not_written(path, str(error)) from error
    if found != num_samples:
        raise _not_written(path, f"{found} of {num_samples} samples are in it")


def _not_written(path: Path, why: str) -> SetupError:
    return SetupError(
        f"{path} was not written whole: {why}", "check space and permissions, then export again"
    )
