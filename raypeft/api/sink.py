"""Where the driver's answers and results go: the store, and the journal beside it."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from raypeft.api.costing import CostKeeper
from raypeft.api.lasting import remember_failure
from raypeft.api.limits import remember_limits
from raypeft.api.outputs import CellRun
from raypeft.api.planning import Planned
from raypeft.core.plan import Cell, Unit, by_documents_key
from raypeft.core.records import Answer, Failure, Json, RequestSet, Scored, UnitAnswers
from raypeft.errors import StoreError
from raypeft.runtime.ports import Sink
from raypeft.store.journal import Journal
from raypeft.store.store import Store


class RunLines:
    """The journal of one run: one beginning and one end, however often the run plans anew.

    Args:
        output: The sweep's output.
        stack: Closes the journal.
    """

    def __init__(self, output: str, stack: ExitStack) -> None:
        self._output = output
        self._stack = stack
        self._journal: Journal | None = None
        self._sink: Sink | None = None

    def journal(self) -> Journal:
        """Return the journal, opened: a run that has nothing to do leaves none."""
        if self._journal is None:
            self._journal = self._stack.enter_context(Journal(self._output))
        return self._journal

    def begin(self, sink: Sink, first_line: dict[str, Json]) -> None:
        """Note what the run sets out to do, or sets out to do now.

        Args:
            sink: Takes this line, and the run's last one if it does not begin anew.
            first_line: See `StoreSink.first_line`.
        """
        anew = {"event": "run_plans_anew"} if self._sink is not None else {}
        self._sink = sink
        sink.note({**first_line, **anew})

    def end(self) -> None:
        """Note that the run is over, if it has begun."""
        if self._sink is not None:
            self._sink.note({"event": "run_ends"})


class StoreSink:
    """A `Sink` that writes to a store and a journal.

    Args:
        store: Where answers and scores go.
        journal: Where it is noted what happened.
        planned: The sweep.
    """

    def __init__(self, store: Store, journal: Journal, planned: Planned) -> None:
        self._store = store
        self._journal = journal
        self._planned = planned
        self._attempts: dict[str, dict[str, int]] = {}
        self._slots: dict[str, str] = {}
        self._slot_of_unit: dict[str, str] = {}
        self._failures: dict[str, Failure] = {}
        self.costs = CostKeeper(store, planned.plan.engines, planned.references)

    def first_line(self) -> dict[str, Json]:
        """Return the line that says what this run sets out to do; `raypeft status` reads it.

        Cells stopped early before stand among the cells, and beside them why: no line will follow.
        """
        plan = self._planned.plan
        done = set(plan.done)
        cells = [
            [cell.key, cell.subject, cell.task, cell.key in done] for cell in self._planned.cells
        ]
        lost = [
            [lost.subject, lost.task, str(lost.failure.kind), lost.failure.message]
            for lost in self._planned.lost
        ]
        # Numbers in place of keys: a night has a hundred thousand units.
        number = {cell.key: index for index, cell in enumerate(self._planned.cells)}
        units = [
            [unit.id, unit.tokens, round(unit.seconds, 3), [number[key] for key in unit.cells]]
            for unit in plan.units
        ]
        first: dict[str, Json] = {"event": "run_begins", "cells": cells, "lost": lost}
        return {**first, "units": units, "stopped": dict(self._planned.stopped)}

    def answers(self, unit: Unit, attempt: int, answers: UnitAnswers) -> None:
        """Store answers; `unit.cells` and `unit.subjects` are those of this attempt."""
        remember_limits(self._store, self._planned.plan.engines[unit.base], answers)
        self.costs.unit(unit.base, unit.cells, unit.shard_count, answers.hardware, answers.seconds)
        for key, subject in zip(unit.cells, answers.subjects, strict=True):
            self._store.put_answers(
                by_documents_key(key) if unit.by_documents else key,
                unit.shard_index,
                unit.shard_count,
                subject,
                answers.hardware,
                answers.seconds,
            )
            self._attempts.setdefault(key, {})[unit.id] = attempt
            self._slots[key] = self._slot_of_unit.get(unit.id, "")

    def load_answers(self, cell: Cell) -> Sequence[Answer]:
        """Return a cell's answers of all shards, by index."""
        num_requests = self._planned.frozen.num_requests(cell.request_set)
        try:
            answers, _ = self._store.get_answers(
                cell.answers_key, cell.shards, num_requests=num_requests
            )
        except StoreError as error:
            # Kept, they would stand in the way of every later run.
            self._store.discard_answers(cell.answers_key, cell.shards)
            remedy = "they are set aside; start the sweep again to answer them"
            raise StoreError(error.place, error.message, remedy) from error
        return answers

    def load_shard(self, cell: Cell, index: int) -> Sequence[Answer]:
        """Return a cell's answers of one shard."""
        return self._store.get_shard(cell.answers_key, index, cell.shards)

    def scored(self, cell: Cell, scored: Scored) -> None:
        """Store a cell's results."""
        self._store.put_scored(cell.score_key, scored)

    def gave_up(self, cell: str, failure: Failure, attempts: int) -> None:
        """Keep why a cell has no results; the next run tries again unless the reason lasts."""
        self._attempts.setdefault(cell, {})["given up"] = attempts
        self._failures[cell] = failure
        remember_failure(self._store, cell, failure)

    def note(self, line: dict[str, Json]) -> None:
        """Append a line to the journal."""
        fields = dict(line)
        kind = str(fields.pop("event"))
        if kind == "run_unit":
            self._slot_of_unit[str(fields["unit_id"])] = str(fields["slot"])
        self.costs.journal_line(kind, fields)
        self._journal.append(kind, fields, at_seconds=time.time())

    def request_set(self, digest: str) -> RequestSet:
        """Return a request set, documents and all.

        Raises:
            StoreError: If it is not there any more.
        """
        return self._planned.frozen.request_set(self._store, digest)

    def runs(self) -> dict[str, CellRun]:
        """Return what was done in this run, by cell key."""
        touched: Mapping[str, None] = dict.fromkeys((*self._attempts, *self._failures))
        return {
            key: CellRun(
                attempts=sum(self._attempts.get(key, {}).values()),
                slot=self._slots.get(key) or None,
                failure=self._failures.get(key),
            )
            for key in touched
        }
