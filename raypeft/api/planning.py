"""From a resolved sweep and its frozen request sets to a plan: what is done, what is left.

Decides which cells there are, what they are stored under and into how many shards they are cut.
What runs when is `raypeft.core.schedule`'s business.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from raypeft.api.costing import Costs, EngineOutlook
from raypeft.api.early_stopping import (
    Stopped,
    look_settings,
    never,
    shards_to_look_at,
    why_not_looked_at,
)
from raypeft.api.freezing import FrozenSweep, FrozenTask
from raypeft.api.sweeps import Resolved
from raypeft.core.cost import shard_count, unit_seconds
from raypeft.core.engine_choice import SECOND_SUFFIXES
from raypeft.core.identity import cell_key, cell_numerics, score_key
from raypeft.core.interim import LookSettings
from raypeft.core.ordering import urgencies
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
        looks: Which cells are looked at while they are answered; None with early stopping off.
        stopped: Why cells were stopped early before, by key; they are no part of the plan.
        references: What the cells would take on the cost model's reference device, by key.
        outlooks: What is expected of each engine, by its name.
    """

    resolved: Resolved
    frozen: FrozenSweep
    plan: Plan
    cells: tuple[Cell, ...] = ()
    lost: tuple[LostCell, ...] = field(default=())
    looks: LookSettings | None = None
    stopped: Mapping[str, str] = field(default_factory=dict)
    references: Mapping[str, float] = field(default_factory=dict)
    outlooks: Mapping[str, EngineOutlook] = field(default_factory=dict)

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to answer or to score."""
        return not self.plan.units and not self.plan.to_score

    def not_looked_at(self) -> dict[str, str]:
        """Return why tasks that early stopping is to look at are answered whole, by task."""
        if self.looks is None:
            return {}
        sweep, whys = self.resolved.sweep, {}
        for key in dict.fromkeys(key for unit in self.plan.units for key in unit.cells):
            cell = self.plan.cells[key]
            if cell.is_baseline or key in self.looks.baselines:
                continue
            why = why_not_looked_at(sweep, _task_of(cell, self.frozen))
            if not why and not cell.by_documents:
                why = "an earlier run has begun it in shards of whole batches"
            whys[cell.task] = why or f"{cell.subject} has no baseline there"
        return whys

    def outlooks_of_open(self) -> dict[str, EngineOutlook]:
        """Return what is expected of the engines that have something left to answer."""
        names = dict.fromkeys(unit.base for unit in self.plan.units)
        return {name: self.outlooks[name] for name in names}


def make_plan(
    resolved: Resolved,
    frozen: FrozenSweep,
    *,
    answered: Answered,
    scored: Collection[str],
    failed: Callable[[str], Failure | None] = lambda cell: None,
    device: str = "cpu",
    costs: Costs | None = None,
    stopped: Stopped = never,
) -> Planned:
    """Return the plan of a sweep.

    Args:
        resolved: The sweep and what it names.
        frozen: Its request sets.
        answered: What the store holds of answers.
        scored: Score keys the store holds results of.
        failed: Returns why a cell of this key failed before, if that lasts.
        device: `cpu` or `cuda`, what the slots have.
        costs: The cost model; without one nothing was measured before.
        stopped: Returns why a cell was stopped early before.
    """
    costs = costs or Costs(resolved, device=device)
    engines = {name: resolved.engine(name, device) for name in resolved.engine_names()}
    cells, lost = _cells(resolved, frozen, engines, scored, failed)
    cells = _with_costs(cells, frozen, costs)
    longest = unit_seconds(_open_seconds(cells, answered, scored), resolved.sweep.schedule.slots)
    cells = _with_shards(cells, resolved, frozen, answered, longest)
    # The same adapter under two names is answered once: the first one's cell stands for both.
    unique = {cell.key: cell for cell in reversed(cells)}
    shards_of = _shards_there(unique, answered)
    done, to_score = _finished(unique, shards_of, scored)
    looks = look_settings(resolved.sweep, list(unique.values()), resolved.subjects, engines)
    finished = {*done, *to_score}
    open_cells = [cell for key, cell in unique.items() if key not in finished]
    hopeless = _stopped_before(open_cells, looks, stopped)
    unique = {key: cell for key, cell in unique.items() if key not in hopeless}
    open_cells = _in_order([cell for cell in open_cells if cell.key in unique], resolved)
    plan = Plan(
        engines=engines,
        subjects=resolved.subjects,
        cells=unique,
        units=_units(open_cells, engines, shards_of, longest),
        to_score=to_score,
        done=done,
        costs={name: costs.engine_cost(name) for name in engines},
    )
    return Planned(
        resolved=resolved,
        frozen=frozen,
        plan=plan,
        cells=tuple(cells),
        lost=tuple(lost),
        looks=looks and looks.among(unique),
        stopped=hopeless,
        references=_references(cells, frozen, costs),
        outlooks={name: costs.outlook(name) for name in engines},
    )


def _shards_there(cells: Mapping[str, Cell], answered: Answered) -> dict[str, Collection[int]]:
    """Return which shards of each cell's cut are in the store."""
    return {
        key: answered.get(cell.answers_key, {}).get(cell.shards, ()) for key, cell in cells.items()
    }


def _finished(
    cells: Mapping[str, Cell], shards_of: Mapping[str, Collection[int]], scored: Collection[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the keys of the cells that are scored, and of those that only want to be."""
    done = tuple(key for key, cell in cells.items() if cell.score_key in scored)
    whole = (key for key, cell in cells.items() if len(shards_of[key]) == cell.shards)
    return done, tuple(key for key in whole if cells[key].score_key not in scored)


def _stopped_before(
    cells: Sequence[Cell], looks: LookSettings | None, stopped: Stopped
) -> dict[str, str]:
    """Return why cells need not be answered to their end, by key."""
    if looks is None:
        return {}
    return {cell.key: why for cell in cells if (why := stopped(cell, looks))}


def _in_order(cells: Sequence[Cell], resolved: Resolved) -> list[Cell]:
    """Return the cells with their urgency."""
    order = urgencies(cells, resolved.sweep.schedule.chosen_order)
    return [replace(cell, urgency=order.get(cell.key, 0)) for cell in cells]


def _with_costs(cells: Sequence[Cell], frozen: FrozenSweep, costs: Costs) -> list[Cell]:
    """Return the cells with the seconds that are expected of them."""
    known: dict[tuple[str, str], float] = {}
    for cell in cells:
        key = (cell.engine_name, cell.request_set)
        if key not in known:
            known[key] = costs.seconds(cell.engine_name, _task_of(cell, frozen).work)
    return [replace(cell, seconds=known[cell.engine_name, cell.request_set]) for cell in cells]


def _references(cells: Sequence[Cell], frozen: FrozenSweep, costs: Costs) -> dict[str, float]:
    known: dict[tuple[str, str], float] = {}
    for cell in cells:
        key = (cell.engine_name, cell.request_set)
        if key not in known:
            known[key] = costs.reference_seconds(cell.engine_name, _task_of(cell, frozen).work)
    return {cell.key: known[cell.engine_name, cell.request_set] for cell in cells}


def _task_of(cell: Cell, frozen: FrozenSweep) -> FrozenTask:
    return frozen.task(cell.subject, cell.base, cell.task)


def _open_seconds(cells: Sequence[Cell], answered: Answered, scored: Collection[str]) -> float:
    """Return about how long one slot alone would take for what is not answered."""
    left = {cell.key: cell.expected_seconds for cell in cells if cell.score_key not in scored}
    return sum(seconds for key, seconds in left.items() if not answered.get(key))


def _units(
    cells: Sequence[Cell],
    engines: Mapping[str, EngineSpec],
    answered: Mapping[str, Collection[int]],
    longest_seconds: float,
) -> tuple[Unit, ...]:
    """Cut cells into units; an engine that answers many adapters at once is given many."""
    # Answered in one batch with the first answers, the second would be no second ones.
    fused = [
        cell
        for cell in cells
        if engines[cell.engine_name].kind == "vllm" and not cell.subject.endswith(SECOND_SUFFIXES)
    ]
    together = {cell.key for cell in fused}
    others = [cell for cell in cells if cell.key not in together]
    return (
        *make_units(others, answered=answered),
        *make_units(
            fused,
            answered=answered,
            subjects_per_unit=MOST_FUSED,
            seconds_per_unit=longest_seconds,
        ),
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
    adapter = subject.attached
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


def _with_shards(
    cells: list[Cell],
    resolved: Resolved,
    frozen: FrozenSweep,
    answered: Answered,
    longest_seconds: float,
) -> list[Cell]:
    """Return the cells with the number of shards each is cut into.

    A cell that an earlier run left half answered keeps that run's cut and number, so that what is
    answered counts; of two cuts the one of which more is answered.
    """
    schedule = resolved.sweep.schedule
    chosen: list[Cell] = []
    for cell in cells:
        looks = 0
        if not cell.subject.endswith(SECOND_SUFFIXES):
            looks = shards_to_look_at(resolved.sweep, _task_of(cell, frozen))
        begun = [
            (len(indices) / count, -count, is_by_documents)
            for is_by_documents in (False, True)
            for count, indices in answered.get(_answers_key(cell, is_by_documents), {}).items()
        ]
        by_documents = looks > 0
        if begun:
            _, negative, by_documents = max(begun)
            shards = -negative
        elif schedule.shards == "auto":
            shards = shard_count(cell.tokens, cell.seconds, longest_seconds)
        else:
            shards = schedule.shards
        if looks and not begun:
            documents = _task_of(cell, frozen).num_documents
            shards = min(max(shards, looks), documents)
        chosen.append(replace(cell, shards=shards, by_documents=by_documents))
    return chosen


def _answers_key(cell: Cell, by_documents: bool) -> str:
    return replace(cell, by_documents=by_documents).answers_key
