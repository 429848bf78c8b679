"""A sink in memory, and a way to score without lm-eval."""

import errno
from collections.abc import Sequence

from raypeft.core.plan import Cell, Unit
from raypeft.core.records import (
    Answer,
    Failure,
    Json,
    MetricValue,
    RequestSet,
    Scored,
    UnitAnswers,
)


class MemorySink:
    """Keeps everything; refuses what would be stored twice.

    Args:
        room: How many writes of answers fit before the disk is full; None is no limit.
    """

    def __init__(self, room: int | None = None) -> None:
        self.room = room
        self.stored: dict[tuple[str, int], tuple[Answer, ...]] = {}
        self.attempts: dict[str, int] = {}
        self.results: dict[str, Scored] = {}
        self.failures: dict[str, tuple[Failure, int]] = {}
        self.lines: list[dict[str, Json]] = []

    def answers(self, unit: Unit, attempt: int, answers: UnitAnswers) -> None:
        if self.room is not None:
            if self.room == 0:
                raise OSError(errno.ENOSPC, "No space left on device", "/full/answers.parquet")
            self.room -= 1
        assert unit.subjects == tuple(given.subject for given in answers.subjects)
        for cell, given in zip(unit.cells, answers.subjects, strict=True):
            assert given.failure is None
            assert (cell, unit.shard_index) not in self.stored
            self.stored[cell, unit.shard_index] = given.answers
        self.attempts[unit.id] = attempt

    def load_answers(self, cell: Cell) -> Sequence[Answer]:
        parts = (self.stored[cell.key, index] for index in range(cell.shards))
        return sorted((answer for part in parts for answer in part), key=lambda a: a.index)

    def load_shard(self, cell: Cell, index: int) -> Sequence[Answer]:
        return self.stored[cell.key, index]

    def scored(self, cell: Cell, scored: Scored) -> None:
        assert cell.key not in self.results
        self.results[cell.key] = scored

    def gave_up(self, cell: str, failure: Failure, attempts: int) -> None:
        assert cell not in self.failures
        self.failures[cell] = (failure, attempts)

    def note(self, line: dict[str, Json]) -> None:
        self.lines.append(line)

    def noted(self, event: str) -> list[dict[str, Json]]:
        return [line for line in self.lines if line["event"] == event]


def mean_logprob(
    request_set: RequestSet, answers: Sequence[Answer], include_path: Sequence[str]
) -> Scored:
    """Score a request set by the mean of its log-likelihoods; every request must be answered."""
    indices = [answer.index for answer in answers]
    if indices != [request.index for request in request_set.requests]:
        raise ValueError(f"answers to {indices}")
    assert len(request_set.documents) == len(request_set.requests)
    value = sum(answer.logprob or 0.0 for answer in answers) / len(answers)
    metric = MetricValue(
        metric="logprob",
        filter="none",
        value=value,
        value_json=repr(value),
        stderr=None,
        n=len(answers),
        higher_is_better=True,
        aggregation="mean",
    )
    return Scored(
        task=request_set.task, metrics=(metric,), samples=(), lm_eval={}, lm_eval_version="none"
    )
