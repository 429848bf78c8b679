"""Request sets and answers → metrics and samples, by an unmodified `lm_eval.evaluate`.

lm-eval replays the answers: its filters, the task's `process_results`, its aggregation and stderr.
Decided here is what must hold before and after: every request is answered once, every
log-likelihood is finite (lm-eval would count NaN as an answer for the first choice), and the
task's code still gives the documents' targets the hashes they were frozen with.

How the task is built without its dataset is left to `rebuild.py`. Python's, numpy's and torch's
random state is seeded before each score, so that a metric that draws gets the same numbers every
time; they are a fresh run's numbers if nothing before scoring drew from them.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from lm_eval.api.metrics import mean
from lm_eval.evaluator import evaluate

from raypeft.core.records import (
    Answer,
    FailureKind,
    MetricValue,
    Request,
    RequestSet,
    Sample,
    Scored,
)
from raypeft.errors import CellError
from raypeft.harness.freeze import LM_EVAL_VERSION
from raypeft.harness.metrics import aggregation_name, metric_values, plain_json
from raypeft.harness.process import lm_eval_process
from raypeft.harness.rebuild import scoring_task, task_failed
from raypeft.harness.replay import ReplayModel, with_instances


def score(
    request_set: RequestSet, answers: Sequence[Answer], *, include_path: Sequence[str] = ()
) -> Scored:
    """Score one cell.

    Args:
        request_set: The request set, with its documents.
        answers: One for each request, in any order.
        include_path: Folders of own tasks, as they were when the request set was frozen.

    Raises:
        CellError: If an answer is missing, doubled or not finite, or if the task cannot be built
            or scored.
        ValueError: If the request set comes without its documents.
    """
    if not request_set.documents:
        raise ValueError(f"request set '{request_set.task}' has no documents; score the whole one")
    ordered = check_answers(request_set, answers)
    settings = request_set.settings
    with lm_eval_process(settings):
        task = scoring_task(request_set, include_path)
        view = with_instances(task, request_set)
        model = ReplayModel(request_set.requests, ordered)
        try:
            results = evaluate(
                model,
                {"tasks": {request_set.task: view}},
                limit=settings.limit,
                bootstrap_iters=settings.bootstrap_iters,
                confirm_run_unsafe_code=settings.confirm_run_unsafe_code,
            )
        except Exception as error:
            raise task_failed(request_set, "could not be scored", error) from error
    return _scored(request_set, view, dict(results))


def _scored(request_set: RequestSet, task: Any, results: dict[str, Any]) -> Scored:
    logged = results.pop("samples")[request_set.task]
    _check_hashes(request_set, logged)
    samples = _samples(logged)
    return Scored(
        task=request_set.task,
        metrics=_metrics(request_set.task, task, results, samples),
        samples=samples,
        lm_eval=plain_json(results),
        lm_eval_version=LM_EVAL_VERSION,
    )


def check_answers(request_set: RequestSet, answers: Sequence[Answer]) -> list[Answer]:
    """Return the answers in the order of the requests.

    Raises:
        CellError: If a request has no answer or two, an answer lacks what its request asks for,
            or a log-likelihood is not finite.
    """
    by_index = {answer.index: answer for answer in answers}
    wanted = {request.index for request in request_set.requests}
    if len(by_index) != len(answers) or by_index.keys() != wanted:
        missing, extra = len(wanted - by_index.keys()), len(by_index.keys() - wanted)
        doubled = len(answers) - len(by_index)
        raise CellError(
            FailureKind.CRASHED,
            f"task '{request_set.task}': of {len(wanted)} requests {missing} have no answer; "
            f"{doubled} answers are doubled and {extra} belong to no request",
        )
    ordered = [by_index[request.index] for request in request_set.requests]
    for request, answer in zip(request_set.requests, ordered, strict=True):
        lacking = _lacking(request, answer)
        if lacking:
            raise CellError(
                FailureKind.CRASHED,
                f"task '{request_set.task}': the answer to request {request.index} "
                f"({request.request_type}) has no {lacking}",
            )
    _check_finite(request_set, ordered)
    return ordered


def _lacking(request: Request, answer: Answer) -> str:
    if request.request_type == "generate_until":
        return "text" if answer.text is None else ""
    if answer.logprob is None:
        return "logprob"
    needs_greedy = request.request_type == "loglikelihood"
    return "is_greedy" if needs_greedy and answer.is_greedy is None else ""


def _check_finite(request_set: RequestSet, ordered: Sequence[Answer]) -> None:
    bad = [
        (request, answer)
        for request, answer in zip(request_set.requests, ordered, strict=True)
        if answer.logprob is not None and not math.isfinite(answer.logprob)
    ]
    if bad:
        request, answer = bad[0]
        raise CellError(
            FailureKind.NOT_FINITE,
            f"task '{request_set.task}': {len(bad)} of {len(ordered)} log-likelihoods are not "
            f"finite, the first one ({answer.logprob}) for document {request.doc_id}, "
            f"request {request.index}",
        )


def _metrics(
    name: str, task: Any, results: dict[str, Any], samples: Sequence[Sample]
) -> tuple[MetricValue, ...]:
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for sample in samples:
        for metric in sample.metrics:
            counts[metric, sample.filter] += 1
    functions = task.aggregation()
    return tuple(
        metric_values(
            results["results"][name],
            count=lambda metric, filter_name: counts[metric, filter_name],
            higher_is_better=results["higher_is_better"][name],
            # A metric without an aggregation is averaged by `evaluate`.
            aggregation=lambda metric: aggregation_name(functions.get(metric, mean)),
        )
    )


def _samples(logged: Sequence[dict[str, Any]]) -> tuple[Sample, ...]:
    """Convert lm-eval's samples, which come filter by filter; stable within a document."""
    samples = [
        Sample(
            doc_id=sample["doc_id"],
            filter=sample["filter"],
            responses=plain_json(sample["resps"]),
            filtered_responses=plain_json(sample["filtered_resps"]),
            metrics={metric: plain_json(sample[metric]) for metric in sample["metrics"]},
            doc_hash=sample["doc_hash"],
            prompt_hash=sample["prompt_hash"],
            target_hash=sample["target_hash"],
        )
        for sample in logged
    ]
    return tuple(sorted(samples, key=lambda sample: sample.doc_id))


def _check_hashes(request_set: RequestSet, logged: Sequence[dict[str, Any]]) -> None:
    frozen = {document.doc_id: document for document in request_set.documents}
    for sample in logged:
        document = frozen[sample["doc_id"]]
        for field in ("doc_hash", "target_hash"):
            if sample[field] != getattr(document, field):
                raise CellError(
                    FailureKind.TASK_FAILED,
                    f"task '{request_set.task}': document {document.doc_id} has another {field} "
                    "than when it was frozen; the task's files or the stored document changed "
                    "since, so freeze again",
                )
