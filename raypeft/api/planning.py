"""From a resolved sweep and its frozen request sets to a plan: what is done, what is left.

Decides which cells there are, what they are stored under and into how many shards they are cut.
What runs when is `raypeft.core.schedule`'s business.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from raypeft.api.freezing import FrozenSweep, FrozenTask
from raypeft.api.sweeps import Resolved
from raypeft.core.cost import shard_count
from raypeft.core.identity import cell_key, cell_numerics, score_key
from raypeft.core.plan import Cell, Plan, Unit, make_units
from raypeft.core.records import EngineSpec, Failure, Subject

MOST_FUSED = 16
"""Subjects of one unit where an engine answers them in one batch. Each keeps its answers in memory
until the unit ends, and all are answered again if it fails."""

Answered = Mapping[str, Mapping[int, Collection[int]]]
"""For each cell key, for each number of shards, the shards that are in the store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LostCell:
    """A cell that cannot even be planned.

    Attributes:
        subject: The subject's id.
        entry: The sweep's task entry.
        task: The leaf task, or the entry where its tasks are not known.
        failure: Why.
    """

    subject: str
    entry: str
    task: str
    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A plan and what it was made from.

    Attributes:
        resolved: The sweep and what it names.
        frozen: Its request sets.
        plan: What is to be done. Subjects of equal content share a cell there.
        cells: Every cell of every subject, in the sweep's order.
        lost: Cells that have failed before anything was loaded.
    """

    resolved: Resolved
    frozen: FrozenSweep
    plan: Plan
    cells: tuple[Cell, ...] = ()
    lost: tuple[LostCell, ...] = field(default=())

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to answer or to score."""
        return not self.plan.units and not self.plan.to_score


def make_plan(
    resolved: Resolved,
    frozen: FrozenSweep,
    *,
    answered: Answered,
    scored: Collection[str],
    failed: Callable[[str], Failure | None] = lambda cell: None,
    device: str = "cpu",
) -> Planned:
    """Return the plan of a sweep.

    Args:
        resolved: The sweep and what it names.
        frozen: Its request sets.
        answered: What the store holds of answers.
        scored: Score keys the store holds results of.
        failed: Returns why a cell of this key failed before, if that lasts.
        device: `cpu` or `cuda`, what the slots have.
    """
    engines = {name: resolved.engine(name, device) for name in resolved.engine_names()}
    cells, lost = _cells(resolved, frozen, engines, scored, failed)
    cells = _with_shards(cells, resolved, answered)
    # The same adapter under two names is answered once: the first one's cell stands for both.
    unique = {cell.key: cell for cell in reversed(cells)}
    shards_of = {key: answered.get(key, {}).get(cell.shards, ()) for key, cell in unique.items()}
    done = tuple(key for key, cell in unique.items() if cell.score_key in scored)
    finished = set(done)
    to_score = tuple(
        key
        for key, cell in unique.items()
        if key not in finished and len(shards_of[key]) == cell.shards
    )
    finished.update(to_score)
    plan = Plan(
        engines=engines,
        subjects=resolved.subjects,
        cells=unique,
        units=_units(
            [cell for key, cell in unique.items() if key not in finished], engines, shards_of
        ),
        to_score=to_score,
        done=done,
    )
    return Planned(
        resolved=resolved, frozen=frozen, plan=plan, cells=tuple(cells), lost=tuple(lost)
    )


def _units(
    cells: Sequence[Cell],
    engines: Mapping[str, EngineSpec],
    answered: Mapping[str, Collection[int]],
) -> tuple[Unit, ...]:
    """Cut cells into units; an engine that answers many adapters at once is given many."""
    fused = [cell for cell in cells if engines[cell.engine_name].kind == "vllm"]
    others = [cell for cell in cells if engines[cell.engine_name].kind != "vllm"]
    return (
        *make_units(others, answered=answered),
        *make_units(fused, answered=answered, subjects_per_unit=MOST_FUSED),
    )


def _cells(
    resolved: Resolved,
    frozen: FrozenSweep,
    engines: Mapping[str, EngineSpec],
    scored: Collection[str],
    failed: Callable[[str], Failure | None],
) -> tuple[list[Cell], list[LostCell]]:
    cells: list[Cell] = []
    lost: list[LostCell] = []
    for subject in resolved.subjects.values():
        engine = resolved.engine_name(subject.id)
        for task in frozen.tasks(subject.id, subject.base):
            failure = resolved.failures.get(subject.id) or task.failure
            cell = None if failure else _cell(subject, task, engine, engines[engine])
            if cell is not None and cell.score_key not in scored:
                failure = failed(cell.key)
            if cell is None or failure is not None:
                assert failure is not None
                lost.append(
                    LostCell(subject=subject.id, entry=task.entry, task=task.name, failure=failure)
                )
            else:
                cells.append(cell)
    return cells, lost


def _cell(subject: Subject, task: FrozenTask, name: str, engine: EngineSpec) -> Cell:
    adapter = subject.adapter
    key = cell_key(
        base_digest=engine.base_digest,
        adapter_digest=None if adapter is None else adapter.digest,
        request_set=task.digest,
        numerics=cell_numerics(engine, subject),
        sampling_seed=engine.seed if task.samples else None,
    )
    results = score_key(
        cell=key,
        lm_eval_version=task.lm_eval_version,
        bootstrap_iters=task.bootstrap_iters,
        scoring=task.scoring,
    )
    return Cell(
        key=key,
        score_key=results,
        subject=subject.id,
        base=subject.base,
        task=task.name,
        entry=task.entry,
        request_set=task.digest,
        is_baseline=subject.is_baseline,
        tokens=task.tokens,
        engine=name if name != subject.base else "",
    )


def _with_shards(cells: list[Cell], resolved: Resolved, answered: Answered) -> list[Cell]:
    """Return the cells with the number of shards each is cut into.

    A cell that an earlier run left half answered keeps that run's number, so that what is
    answered counts.
    """
    schedule = resolved.sweep.schedule
    num_open = sum(1 for cell in cells if not answered.get(cell.key))
    chosen: list[Cell] = []
    for cell in cells:
        if begun := answered.get(cell.key):
            shards = max(begun, key=lambda count: (len(begun[count]) / count, -count))
        elif schedule.shards == "auto":
            shards = shard_count(cell.tokens, num_open, schedule.slots)
        else:
            shards = schedule.shards
        chosen.append(replace(cell, shards=shards))
    return chosen
