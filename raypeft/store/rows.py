"""Answers, scores and gains as table rows and back, without loss.

Decides which column holds which field. Answers and scores come back equal to what was given;
`samples` and `gains` are written for readers only. Request sets are in `frozen_rows`.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

import pyarrow as pa

from raypeft.core.gains import Gain
from raypeft.core.records import (
    Answer,
    Hardware,
    Json,
    MetricValue,
    Sample,
    Scored,
    SubjectAnswers,
)
from raypeft.store.jsontext import dump_json, load_json, readable
from raypeft.store.tables import build, header_of, run_of

# --- answers ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFacts:
    """What is known about the run that answered one shard for one subject.

    Attributes:
        cell: The cell's key.
        shard_index: Which shard.
        shard_count: Of how many.
        num_answers: Answers in it.
        hardware: What answered.
        seconds: Time spent on this subject.
        unit_seconds: Wall time of the whole unit in its slot.
        tokens: Tokens that went through the model for this subject.
        path: Which way was taken, for instance `plain`.
    """

    cell: str
    shard_index: int
    shard_count: int
    num_answers: int
    hardware: Hardware
    seconds: float
    unit_seconds: float
    tokens: int
    path: str


def lost_facts(cell: str, shard_index: int, shard_count: int) -> ShardFacts:
    """Return what is known of a shard whose answers are gone: nothing.

    Its hardware is like no other, so that a cell whose results outlived its answers is compared
    with nothing.
    """
    gone = f"unknown (answers {shard_index} of {shard_count} of cell {cell} are gone)"
    return ShardFacts(
        cell=cell,
        shard_index=shard_index,
        shard_count=shard_count,
        num_answers=0,
        hardware=Hardware(fingerprint=gone, device="unknown"),
        seconds=0.0,
        unit_seconds=0.0,
        tokens=0,
        path="unknown",
    )


def answers_table(answers: SubjectAnswers, facts: ShardFacts) -> pa.Table:
    """Return one subject's answers to one shard as an `answers` table.

    Raises:
        ValueError: If there is a failure in place of answers, or they are not sorted by index.
    """
    if answers.failure is not None:
        raise ValueError(f"{answers.subject} failed ({answers.failure.kind}): nothing to store")
    indices = [answer.index for answer in answers.answers]
    if indices != sorted(set(indices)):
        raise ValueError(f"answers of {answers.subject} are not sorted by a unique index")
    rows = [
        {
            "cell": facts.cell,
            "index": answer.index,
            "logprob": answer.logprob,
            "is_greedy": answer.is_greedy,
            "text": readable(answer.text),
            "text_json": None if readable(answer.text) == answer.text else dump_json(answer.text),
        }
        for answer in answers.answers
    ]
    header = {
        "cell": facts.cell,
        "shard_index": facts.shard_index,
        "shard_count": facts.shard_count,
        "num_answers": facts.num_answers,
    }
    hardware = {item.name: getattr(facts.hardware, item.name) for item in fields(Hardware)}
    hardware["software"] = dict(facts.hardware.software)
    run = {
        "hardware": hardware,
        "seconds": facts.seconds,
        "unit_seconds": facts.unit_seconds,
        "tokens": facts.tokens,
        "path": facts.path,
    }
    return build("answers", rows, header=header, run=run)


def answers_of(table: pa.Table) -> tuple[list[Answer], ShardFacts]:
    """Return the answers and the shard's facts of an `answers` table."""
    columns = [table.column(name).to_pylist() for name in ("index", "logprob", "is_greedy")]
    texts = zip(*(table.column(name).to_pylist() for name in ("text", "text_json")), strict=True)
    exact = [text if encoded is None else load_json(encoded) for text, encoded in texts]
    answers = [Answer(*row) for row in zip(*columns, exact, strict=True)]
    return answers, facts_of(table)


def facts_of(table: pa.Table) -> ShardFacts:
    """Return the shard's facts of an `answers` table, which may have no rows."""
    header, run = header_of(table), run_of(table)
    return ShardFacts(
        cell=header["cell"],
        shard_index=header["shard_index"],
        shard_count=header["shard_count"],
        num_answers=header["num_answers"],
        hardware=Hardware(**run["hardware"]),
        seconds=run["seconds"],
        unit_seconds=run["unit_seconds"],
        tokens=run["tokens"],
        path=run["path"],
    )


# --- scores -----------------------------------------------------------------------------------


def scores_table(scored: Scored) -> pa.Table:
    """Return a scored cell as a `scores` table."""
    header = {
        "task": scored.task,
        "metrics": [asdict(metric) for metric in scored.metrics],
        "num_samples": len(scored.samples),
        "lm_eval": scored.lm_eval,
        "lm_eval_version": scored.lm_eval_version,
    }
    return build("scores", [_sample_row(sample) for sample in scored.samples], header=header)


def samples_table(subject: str, scored: Scored) -> pa.Table:
    """Return a scored cell's rows of the `samples` table."""
    head = {"subject": subject, "task": scored.task}
    return build("samples", [head | _sample_row(sample) for sample in scored.samples])


def _sample_row(sample: Sample) -> dict[str, Any]:
    return {
        "doc_id": sample.doc_id,
        "filter": sample.filter,
        "responses": dump_json(sample.responses),
        "filtered_responses": dump_json(sample.filtered_responses),
        "metrics": [
            {"name": name, "value": _number(value), "json": dump_json(value)}
            for name, value in sample.metrics.items()
        ],
        "doc_hash": sample.doc_hash,
        "prompt_hash": sample.prompt_hash,
        "target_hash": sample.target_hash,
    }


def _number(value: Json) -> float | None:
    if not isinstance(value, bool | int | float):
        return None
    try:
        return float(value)
    except OverflowError:  # a whole number beyond float64; the JSON text has it
        return None


def scored_of(table: pa.Table) -> Scored:
    """Return the scored cell of a `scores` table."""
    header = header_of(table)
    samples = [
        Sample(
            doc_id=row["doc_id"],
            filter=row["filter"],
            responses=load_json(row["responses"]),
            filtered_responses=load_json(row["filtered_responses"]),
            metrics={item["name"]: load_json(item["json"]) for item in row["metrics"]},
            doc_hash=row["doc_hash"],
            prompt_hash=row["prompt_hash"],
            target_hash=row["target_hash"],
        )
        for row in table.to_pylist()
    ]
    return Scored(
        task=header["task"],
        metrics=tuple(MetricValue(**metric) for metric in header["metrics"]),
        samples=tuple(samples),
        lm_eval=header["lm_eval"],
        lm_eval_version=header["lm_eval_version"],
    )


# --- gains ------------------------------------------------------------------------------------


def gains_table(gains: Iterable[Gain]) -> pa.Table:
    """Return the `gains` table."""
    return build("gains", [asdict(gain) | {"verdict": str(gain.verdict)} for gain in gains])
