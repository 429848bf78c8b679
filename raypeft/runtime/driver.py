"""The only loop: wait, step, carry out.

It decides nothing: what follows from an event is `raypeft.core.schedule`'s business. It alone
writes, and it writes what a slot answered before it tells the schedule, so nothing that is
counted as finished can be lost.
"""

import dataclasses
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from raypeft.core.document_shards import shard_digest, shard_of_documents
from raypeft.core.events import (
    CellScored,
    Command,
    Event,
    GiveUp,
    Heartbeat,
    LeaveOut,
    RunUnit,
    ScoreCell,
    ScoreFailed,
    SlotLost,
    SlotReady,
    StartSlot,
    StopRequested,
    StopSlot,
    Tick,
    UnitDone,
    UnitFailed,
)
from raypeft.core.interim import LookSettings
from raypeft.core.plan import Cell, Plan, Unit
from raypeft.core.records import (
    Answer,
    EngineSpec,
    Failure,
    FailureKind,
    Hardware,
    RequestSet,
    Scored,
    UnitAnswers,
)
from raypeft.core.retry import Policy
from raypeft.core.schedule import initial, step
from raypeft.engines.travel import content_key, read_adapter_bytes
from raypeft.errors import Interrupted, SetupError, StoreError
from raypeft.runtime.failures import failure_from
from raypeft.runtime.lines import line_of
from raypeft.runtime.looking import Looking
from raypeft.runtime.meter import Meter, Outcome, Progress
from raypeft.runtime.ports import (
    CallDone,
    CallFailed,
    Pool,
    PoolEvent,
    Shared,
    Sink,
    UnitAnswered,
    UnitWork,
)
from raypeft.runtime.stopping import Stop, stopping
from raypeft.runtime.work import look as look_with_harness
from raypeft.runtime.work import score as score_with_harness

ScoreFunction: TypeAlias = Callable[[RequestSet, Sequence[Answer], Sequence[str]], Scored]

AfterLoss: TypeAlias = Callable[[EngineSpec, Hardware, Failure], EngineSpec]

WAIT_SECONDS = 1.0
"""How soon a signal or an expired limit is noticed while nothing happens."""

DEAF_SECONDS = 5.0
"""A round that takes longer, since storage failed for a while for instance, hears nothing of slots
for too long to count it against them."""


def as_before(spec: EngineSpec, hardware: Hardware, failure: Failure) -> EngineSpec:
    """Return what a slot was started with: its loss has taught nothing."""
    return spec


def drive(
    plan: Plan,
    *,
    pool: Pool,
    sink: Sink,
    policy: Policy,
    clock: Callable[[], float],
    request_sets: Callable[[str], RequestSet],
    include_path: Sequence[str] = (),
    on_progress: Callable[[Progress], None] = lambda progress: None,
    drain: bool = False,
    score: ScoreFunction = score_with_harness,
    after_loss: AfterLoss = as_before,
    looks: LookSettings | None = None,
) -> Outcome:
    """Answer and score what a plan leaves to do.

    Args:
        plan: What is to be done.
        pool: Where it is done. Closed if the run does not reach its end, else left open.
        sink: Where it goes.
        policy: How much at once and how often; slots beyond the pool's are not started.
        clock: Seconds that never go back.
        request_sets: Returns a request set, documents and all, by its digest.
        include_path: Folders with own task files, for scoring.
        on_progress: Told after every round.
        drain: Whether what runs may finish after the first signal.
        score: Module-level function that scores one cell.
        after_loss: Told of a slot that was lost for lack of memory; returns what the next ones of
            its base are started with.
        looks: Which cells are looked at while they are answered, and stopped if they are hopeless.

    Raises:
        Interrupted: After Ctrl-C or SIGTERM; what was finished is stored.
        SetupError: If the sink cannot write; what could be stored is.
    """
    policy = dataclasses.replace(
        policy,
        slots=min(policy.slots, pool.num_slots),
        scoring=min(policy.scoring, pool.calls_at_once),
    )
    if not pool.is_parallel:
        # Slots that take turns also wait for one another, which is nobody's fault.
        policy = dataclasses.replace(policy, unit_timeout_seconds=None, start_timeout_seconds=None)
    world = _World(pool, sink, clock, request_sets, tuple(include_path), score, after_loss, looks)
    run = _Run(plan, policy, world)
    try:
        with stopping() as stop:
            return run.to_the_end(stop, on_progress, drain)
    except SetupError:
        run.rescue()
        raise
    except BaseException:
        pool.close()
        raise


@dataclass(frozen=True, slots=True)
class _World:
    """Everything outside that a run touches."""

    pool: Pool
    sink: Sink
    clock: Callable[[], float]
    request_sets: Callable[[str], RequestSet]
    include_path: tuple[str, ...]
    score: ScoreFunction
    after_loss: AfterLoss
    looks: LookSettings | None


class _Run:
    def __init__(self, plan: Plan, policy: Policy, world: _World) -> None:
        self._plan = plan
        self._pool = world.pool
        self._sink = world.sink
        self._clock = world.clock
        self._world = world
        self._meter = Meter(world.clock())
        self._state, commands = initial(plan, policy)
        self._first_commands = commands
        self._events: deque[PoolEvent | Event] = deque()
        self._calls: dict[str, tuple[str, int]] = {}
        self._shared: set[str] = set()
        self._engines = dict(plan.engines)
        """What the next slot of each base is started with."""
        self._bases: dict[str, str] = {}
        self._hardware: dict[str, Hardware] = {}
        finished = set(plan.done)
        unfinished = [cell for cell in plan.cells.values() if cell.key not in finished]
        self._users = Counter(key for cell in unfinished for key in self._uses(cell))
        looks = world.looks or LookSettings(baselines={})
        self._looking = Looking(plan, looks, at_once=policy.scoring)
        self._looking.begin(self._state)

    # --- the loop -----------------------------------------------------------------------------

    def to_the_end(
        self, stop: Stop, on_progress: Callable[[Progress], None], drain: bool
    ) -> Outcome:
        self._carry_out(self._first_commands)
        self._step(Tick(self._clock()))
        self._pool.drop_spares()
        while not self._state.finished:
            self._events.extend(self._pool.wait(WAIT_SECONDS))
            heard_seconds = self._clock()
            if stop.signal_name and self._state.stop is None:
                # First only begin nothing new: what has just come is still current, and stored.
                self._step(StopRequested(stop.signal_name, drain=True))
            self._handle_all()
            self._look()
            if self._state.stop == StopRequested(stop.signal_name, drain=True) and not drain:
                self._step(StopRequested(stop.signal_name, drain=False))
            now = self._clock()
            deaf_seconds = now - heard_seconds
            self._step(Tick(now, deaf_seconds if deaf_seconds > DEAF_SECONDS else 0.0))
            on_progress(self._meter.progress(self._state, self._clock()))
        if self._state.stop is not None:
            raise Interrupted(self._state.stop.reason)
        for cell, problem in self._looking.interim.problems.items():
            line = {"event": "not_looked_at", "cell": cell, "reason": problem}
            with _writing("the journal"):
                self._sink.note(line)
        outcome = self._meter.outcome(self._state, self._clock())
        return dataclasses.replace(outcome, not_looked_at=self._looking.interim.problems)

    def rescue(self) -> None:
        """Store what can still be stored after the sink has failed once, then close the pool."""
        self._events.extend(self._pool.wait(0.0))
        for event in self._events:
            if isinstance(event, UnitAnswered) and self._is_current(event):
                try:
                    self._store_answers(event)
                except SetupError:
                    continue  # already being reported
        self._pool.close()

    def _handle_all(self) -> None:
        while self._events:
            # Taken out only afterwards: `rescue` tries again what could not be stored.
            self._handle(self._events[0])
            self._events.popleft()

    def _handle(self, event: PoolEvent | Event) -> None:
        match event:
            case UnitAnswered():
                if self._is_current(event):
                    self._step(self._store_answers(event))
                else:
                    self._note(event, dropped=True)
            case CallDone(call) | CallFailed(call) if self._looking.is_look(call):
                given = event.result if isinstance(event, CallDone) else event.failure
                self._events.extend(self._looking.ended(call, given))
            case CallDone(call) | CallFailed(call):
                cell, attempt = self._calls.pop(call, ("", 0))
                if self._state.scoring.get(cell) != attempt:
                    pass  # begun before a stop, or told before
                elif isinstance(event, CallDone):
                    self._step(self._store_scored(cell, attempt, event.result))
                else:
                    self._step(ScoreFailed(cell, attempt, event.failure))
            case _:
                self._step(event)

    def _step(self, event: Event) -> None:
        self._meter.see(event, self._clock())
        if not isinstance(event, Tick | Heartbeat):
            self._note(event)
        self._learn(event)
        self._carry_out(step(self._state, event))
        if isinstance(event, UnitDone):
            answered = (cell for cell, failure in event.outcomes.items() if failure is None)
            self._looking.unit_stored(self._state.units[event.unit_id], answered, self._state)
        if isinstance(event, CellScored):
            self._forget(event.cell)

    def _learn(self, event: Event) -> None:
        """Start the next slots of a base with less, if one was lost for lack of memory."""
        match event:
            case SlotReady(slot, hardware):
                self._hardware[slot] = hardware
            case SlotLost(slot, Failure(FailureKind.OUT_OF_MEMORY) as failure):
                if slot in self._state.slots and slot in self._hardware:
                    base = self._bases[slot]
                    spec, hardware = self._engines[base], self._hardware[slot]
                    self._engines[base] = self._world.after_loss(spec, hardware, failure)

    # --- what the schedule wants done ---------------------------------------------------------

    def _carry_out(self, commands: Sequence[Command]) -> None:
        for command in commands:
            self._meter.see(command, self._clock())
            self._note(command)
            match command:
                case StartSlot(slot, base):
                    self._bases[slot] = base
                    self._pool.start_slot(slot, self._engines[base])
                case StopSlot(slot):
                    self._pool.stop_slot(slot)
                case RunUnit():
                    self._run_unit(command)
                case ScoreCell():
                    self._score_cell(command)
                case GiveUp(cell, failure, attempts):
                    with _writing(f"the failure of cell {cell}"):
                        self._sink.gave_up(cell, failure, attempts)
                    self._forget(cell)
                case LeaveOut(cell):
                    self._forget(cell)

    def _run_unit(self, command: RunUnit) -> None:
        unit = _narrowed(self._state.units[command.unit_id], command.cells)
        index, count = unit.shard_index, unit.shard_count
        key, part, shard = unit.request_set, RequestSet.for_slot, (index, count)
        if unit.by_documents:
            # To an engine it is all there is: its batches are of these documents alone.
            key, shard = shard_digest(unit.request_set, index, count), (0, 1)
            part = partial(_documents_for_slot, index=index, count=count)
        try:
            self._share(key, part, unit.request_set)
        except (StoreError, OSError) as error:
            failure = _unreadable(error)
            failed = UnitFailed(command.slot, unit.id, command.attempt, failure)
            self._events.append(failed)
            return
        self._offer_adapters(unit)
        work = UnitWork(
            unit_id=unit.id,
            request_set=key,
            shard_index=shard[0],
            shard_count=shard[1],
            subjects=tuple(self._plan.subjects[subject] for subject in unit.subjects),
        )
        self._pool.submit(command.slot, work, command.attempt)

    def _score_cell(self, command: ScoreCell) -> None:
        cell = self._plan.cells[command.cell]
        key = _score_key(cell.request_set)
        try:
            self._share(key, lambda full: full, cell.request_set)
            answers = tuple(self._sink.load_answers(cell))
        except (StoreError, OSError) as error:
            self._events.append(ScoreFailed(cell.key, command.attempt, _unreadable(error)))
            return
        call = f"score/{cell.key}/{command.attempt}"
        self._calls[call] = (cell.key, command.attempt)
        self._pool.submit_call(
            call, self._world.score, Shared(key), answers, self._world.include_path
        )

    def _look(self) -> None:
        """Begin the looks that there is room for."""
        for look in self._looking.take(self._state):
            cell = self._plan.cells[look.cell]
            key = _score_key(cell.request_set)
            try:
                self._share(key, lambda full: full, cell.request_set)
                if cell.by_documents and cell.shards == look.count:
                    answers = tuple(self._sink.load_shard(cell, look.index))
                else:
                    answers = tuple(self._sink.load_answers(cell))
            except (StoreError, OSError) as error:
                self._events.append(CallFailed(look.call, _unreadable(error)))
                continue
            self._pool.submit_call(
                look.call,
                look_with_harness,
                Shared(key),
                look.index,
                look.count,
                answers,
                self._looking.interim.settings.metric,
                self._world.include_path,
            )

    # --- writing ------------------------------------------------------------------------------

    def _store_answers(self, event: UnitAnswered) -> Event:
        cells = self._state.running[event.unit_id].cells
        unit = _narrowed(self._state.units[event.unit_id], cells)
        given = tuple(answers.subject for answers in event.answers.subjects)
        if given != unit.subjects:
            message = f"{event.slot} was asked about {unit.subjects} and answered about {given}"
            failure = Failure(FailureKind.CRASHED, message, retryable=True)
            return UnitFailed(event.slot, unit.id, event.attempt, failure)
        outcomes = {
            cell: answers.failure
            for cell, answers in zip(cells, event.answers.subjects, strict=True)
        }
        answered = tuple(cell for cell in cells if outcomes[cell] is None)
        if answered:
            with _writing(f"the answers of unit {unit.id} for {', '.join(unit.subjects)}"):
                self._sink.answers(
                    _narrowed(unit, answered), event.attempt, _answered_only(event.answers)
                )
        return UnitDone(event.slot, unit.id, event.attempt, outcomes)

    def _store_scored(self, cell: str, attempt: int, result: object) -> Event:
        if not isinstance(result, Scored):
            message = f"scoring gave {type(result).__name__}, not Scored"
            return ScoreFailed(cell, attempt, Failure(FailureKind.CRASHED, message))
        with _writing(f"the results of cell {cell}"):
            self._sink.scored(self._plan.cells[cell], result)
        return CellScored(cell, attempt)

    def _note(self, thing: Event | Command | UnitAnswered, *, dropped: bool = False) -> None:
        line = line_of(thing, self._clock() - self._meter.started_seconds)
        with _writing("the journal"):
            self._sink.note(line | {"dropped": True} if dropped else line)

    # --- small things -------------------------------------------------------------------------

    def _is_current(self, event: UnitAnswered) -> bool:
        return self._state.is_current(event.slot, event.unit_id, event.attempt)

    def _share(self, key: str, part: Callable[[RequestSet], RequestSet], digest: str) -> None:
        if key not in self._shared:
            self._pool.share(key, part(self._world.request_sets(digest)))
            self._shared.add(key)

    def _offer_adapters(self, unit: Unit) -> None:
        for subject in unit.subjects:
            adapter = self._plan.subjects[subject].opened
            if adapter is not None:
                self._pool.offer(content_key(adapter), partial(read_adapter_bytes, adapter))

    def _uses(self, cell: Cell) -> tuple[str, ...]:
        """Return the keys of what a cell needs shared or offered."""
        adapter = self._plan.subjects[cell.subject].opened
        request_set = [cell.request_set, _score_key(cell.request_set)]
        if cell.by_documents:
            count = cell.shards
            request_set += [shard_digest(cell.request_set, at, count) for at in range(count)]
        return tuple(request_set if adapter is None else [*request_set, content_key(adapter)])

    def _forget(self, cell: str) -> None:
        """Free the memory of request sets and adapters that no unfinished cell uses any more."""
        for key in self._uses(self._plan.cells[cell]):
            self._users[key] -= 1
            if self._users[key] == 0:
                self._shared.discard(key)
                self._pool.release(key)


def _documents_for_slot(full: RequestSet, index: int, count: int) -> RequestSet:
    return shard_of_documents(full, index, count).for_slot()


def _score_key(digest: str) -> str:
    return f"score/{digest}"


def _narrowed(unit: Unit, cells: Sequence[str]) -> Unit:
    """Return a unit with some of its cells only."""
    if tuple(cells) == unit.cells:
        return unit
    subjects: Mapping[str, str] = dict(zip(unit.cells, unit.subjects, strict=True))
    return dataclasses.replace(
        unit, cells=tuple(cells), subjects=tuple(subjects[cell] for cell in cells)
    )


def _answered_only(answers: UnitAnswers) -> UnitAnswers:
    subjects = tuple(subject for subject in answers.subjects if subject.failure is None)
    return dataclasses.replace(answers, subjects=subjects)


def _unreadable(error: Exception) -> Failure:
    failure = failure_from(error)
    retryable = isinstance(error, OSError)
    return Failure(FailureKind.UNREADABLE, failure.message, retryable, failure.detail)


@contextmanager
def _writing(what: str) -> Iterator[None]:
    """Say what could not be written, and what to do about it."""
    try:
        yield
    except OSError as error:
        raise SetupError(
            f"{what} could not be written: {error}",
            "make room or make the folder writable, and start the sweep again: it goes on "
            "where it stopped",
        ) from error
