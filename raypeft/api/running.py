"""Running a sweep: preflight, freeze, answer, score, and the tables at the end.

The store is the truth: a run asks it what is done, does the rest, and makes the output's tables
again from it. So a second run of a finished sweep starts nothing, and a run that was killed goes
on where it stopped.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial

from raypeft.api.again import write_zero_adapters
from raypeft.api.certificates import certified_by
from raypeft.api.certifying import certify
from raypeft.api.costing import Costs, refuse_what_cannot_fit, remembered_costs
from raypeft.api.early_stopping import remember_stopped, remembered_stop
from raypeft.api.freezing import FrozenSweep, freeze_sweep
from raypeft.api.lasting import remembered_failure
from raypeft.api.leasing import leased
from raypeft.api.limits import lower_after_loss, with_limits
from raypeft.api.memo import FileDigests
from raypeft.api.outputs import CellRun, write_outputs
from raypeft.api.planning import Planned, make_plan
from raypeft.api.policy import deadline_seconds, policy_of, with_deadline
from raypeft.api.pools import PoolKind, check_nodes, has_nvidia_gpu, open_pool
from raypeft.api.rerouting import record_too_much
from raypeft.api.sink import RunLines, StoreSink
from raypeft.api.stored import SWEEP_FILE
from raypeft.api.surroundings import find_surroundings, record_surroundings
from raypeft.api.sweeps import Resolved, resolve
from raypeft.api.watching import watching
from raypeft.core.records import Failure, FailureKind
from raypeft.core.spec import Sweep, dump_sweep
from raypeft.runtime.driver import drive
from raypeft.runtime.meter import Progress
from raypeft.runtime.patient import PatientSink
from raypeft.runtime.ports import Pool
from raypeft.runtime.stopping import interruptible
from raypeft.runtime.watched import Watcher
from raypeft.store.files import Folder
from raypeft.store.store import Store

LEFTOVER_SECONDS = 86_400.0
"""Half-written files older than a day were left behind by processes that died."""

MAX_PLANS = 2
"""Once more where results turn out to be damaged when the tables are made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """How a run ended.

    Attributes:
        output: The sweep's output folder.
        num_cells: All cells of the sweep.
        num_done: Cells with results.
        num_reused: Of these, what was in the store before.
        failed: Why others have none, by (subject, task).
        left_out: Why the deadline left out others, by (subject, task).
        stopped_early: Why others were stopped as hopeless, by (subject, task).
        seconds: Wall time.
    """

    output: str
    num_cells: int
    num_done: int
    num_reused: int
    failed: Mapping[tuple[str, str], Failure] = field(default_factory=dict)
    left_out: Mapping[tuple[str, str], str] = field(default_factory=dict)
    stopped_early: Mapping[tuple[str, str], str] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """Who is told what goes on; nobody by default.

    Attributes:
        say: Told in words, now and then.
        progress: Told how far the run is, after every round of the loop.
        watchers: See every line of the journal and every unit that is stored.
    """

    say: Callable[[str], None] = lambda text: None
    progress: Callable[[Progress], None] = lambda measured: None
    watchers: Sequence[Watcher] = ()


class PoolOnDemand:
    """Opens the pool when it is first asked for, in the surrounding stack."""

    def __init__(
        self,
        stack: ExitStack,
        sweep: Sweep,
        kind: PoolKind,
        address: str | None,
        listener: Listener,
    ) -> None:
        self._stack = stack
        self._context = open_pool(sweep, kind=kind, address=address)
        self._kind = kind
        self._listener = listener
        self._pool: Pool | None = None
        self.device = "cpu"

    def pool(self) -> Pool:
        """Return the pool, opened."""
        if self._pool is None:
            if self._kind == "ray":
                self._listener.say("connecting to Ray")
            self._pool, self.device = self._stack.enter_context(self._context)
            self._stack.enter_context(interruptible())
        return self._pool

    @property
    def is_ray(self) -> bool:
        """Whether it is one on Ray."""
        return self._kind == "ray"

    def has_gpus(self) -> bool:
        """Return whether slots have GPUs; on Ray only the cluster can tell."""
        if self._kind == "local":
            return has_nvidia_gpu()
        self.pool()
        return self.device == "cuda"


def run_sweep(
    sweep: Sweep,
    *,
    pool: PoolKind = "ray",
    address: str | None = None,
    listener: Listener | None = None,
) -> RunReport:
    """Run a sweep to its end.

    Args:
        sweep: The sweep, adapters expanded.
        pool: On Ray, or in this process.
        address: The Ray cluster; None takes RAY_ADDRESS, and starts a Ray here if there is none.
        listener: Who is told what goes on.

    Raises:
        SpecError: If nothing of the sweep could run.
        SetupError: If output, store or cluster cannot be used.
        Interrupted: After Ctrl-C or SIGTERM; what was finished is stored.
    """
    listener = listener or Listener()
    started = time.monotonic()
    deadline = deadline_seconds(sweep)
    check_nodes(sweep, pool)
    store = _writable_store(sweep)
    with leased(sweep.output, say=listener.say), ExitStack() as stack:
        lines = RunLines(sweep.output, stack)
        source = PoolOnDemand(stack, sweep, pool, address, listener)
        surroundings = find_surroundings(sweep, source.has_gpus)
        certified = certified_by(sweep, store)
        resolved = resolve(sweep, FileDigests(store), surroundings, certified)
        for subject, failure in resolved.failures.items():
            listener.say(f"{subject} cannot be evaluated: {failure.kind}: {failure.message}")
        _warn(resolved, listener)
        record_surroundings(sweep, surroundings)

        def plan_anew() -> Planned:
            again = resolve(sweep, FileDigests(store), surroundings, certified)
            _warn(again, listener)
            return plan_with_pool(again, store, source, listener)

        for attempt in range(MAX_PLANS):
            planned = plan_with_pool(resolved, store, source, listener, answers_follow=True)
            if _certify(planned, store, source, listener):
                planned = plan_anew()
            if attempt == 0:
                Folder(sweep.output).write(SWEEP_FILE, dump_sweep(sweep).encode())
            runs = _answer_and_score(planned, store, source, listener, deadline, lines)
            if record_too_much(planned, runs, listener.say):
                planned = plan_anew()
                runs = _answer_and_score(planned, store, source, listener, deadline, lines)
            resolved = planned.resolved
            missing = write_outputs(planned, store, runs)
            if not missing:
                break
            listener.say(f"{len(missing)} results in the store are damaged: made again")
        lines.end()
    return _report(planned, runs, missing, time.monotonic() - started)


def _writable_store(sweep: Sweep) -> Store:
    """Return the sweep's store, tidied up; refuse a store or an output that cannot be written."""
    store = Store(sweep.store)
    store.check_writable()
    Folder(sweep.output).check_writable()
    store.remove_leftovers(time.time() - LEFTOVER_SECONDS)
    return store


def _certify(planned: Planned, store: Store, source: PoolOnDemand, listener: Listener) -> bool:
    return certify(
        planned,
        store,
        source.pool,
        policy_of(planned.resolved.sweep),
        device=lambda: source.device,
        say=listener.say,
    )


def plan_only(
    sweep: Sweep,
    *,
    freeze: bool = True,
    pool: PoolKind = "local",
    address: str | None = None,
    listener: Listener | None = None,
) -> Planned:
    """Return what a run of the sweep would do.

    Args:
        sweep: The sweep, adapters expanded.
        freeze: Whether lm-eval builds request sets that the store does not have; without them
            their tasks are not known, and the plan says which entries are missing.
        pool: Where they are built; in this process by default.
        address: The Ray cluster, for `ray`.
        listener: Who is told what goes on.

    Raises:
        SpecError: If nothing of the sweep could run.
    """
    listener = listener or Listener()
    store = Store(sweep.store)
    with ExitStack() as stack:
        source = PoolOnDemand(stack, sweep, pool, address, listener)
        surroundings = find_surroundings(sweep, source.has_gpus)
        certified = certified_by(sweep, store)
        resolved = resolve(sweep, FileDigests(store), surroundings, certified)
        _warn(resolved, listener)
        if freeze:
            return plan_with_pool(resolved, store, source, listener)
        frozen = freeze_sweep(resolved, store, pool=None)
        costs = Costs(resolved, remembered_costs(store), source.device)
        return make_plan(
            resolved,
            frozen,
            answered=store.answered(),
            scored=store.scored(),
            costs=costs,
            stopped=partial(remembered_stop, store),
        )


def freeze_only(
    sweep: Sweep,
    *,
    pool: PoolKind = "local",
    address: str | None = None,
    listener: Listener | None = None,
) -> FrozenSweep:
    """Build and store a sweep's request sets, for nodes without datasets or network.

    Args:
        sweep: The sweep; its adapters are not looked at.
        pool: Where lm-eval builds them; in this process by default.
        address: The Ray cluster, for `ray`.
        listener: Who is told what goes on.

    Raises:
        SpecError: If not one task could be built.
    """
    listener = listener or Listener()
    store = Store(sweep.store)
    store.check_writable()
    resolved = resolve(sweep, FileDigests(store))
    with ExitStack() as stack:
        source = PoolOnDemand(stack, sweep, pool, address, listener)
        frozen = freeze_sweep(resolved, store, pool=None)
        if frozen.missing:
            frozen = freeze_sweep(resolved, store, pool=source.pool(), say=listener.say)
    return frozen


def _warn(resolved: Resolved, listener: Listener) -> None:
    for subject, warning in resolved.warnings.items():
        listener.say(f"{subject}: {warning}")


def plan_with_pool(
    resolved: Resolved,
    store: Store,
    source: PoolOnDemand,
    listener: Listener,
    *,
    answers_follow: bool = False,
) -> Planned:
    """Freeze what is missing and return the plan; the pool is opened only if it is needed.

    Args:
        resolved: The sweep and what it names.
        store: Where request sets lie.
        source: Gives the pool.
        listener: Who is told what goes on.
        answers_follow: Whether the plan is carried out: slots get ready while lm-eval is at work.
    """
    frozen = freeze_sweep(resolved, store, pool=None)
    if frozen.missing:
        pool = source.pool()
        if answers_follow:
            prepare(pool, resolved)
        frozen = freeze_sweep(resolved, store, pool=pool, say=listener.say)
    for failure in {task.failure for tasks in frozen.by_base.values() for task in tasks}:
        if failure is not None:
            listener.say(f"a task cannot be evaluated: {failure.kind}: {failure.message}")
    planned = make_plan(
        resolved,
        frozen,
        answered=store.answered(),
        scored=store.scored(),
        failed=partial(remembered_failure, store),
        device=source.device,
        costs=Costs(resolved, remembered_costs(store), source.device),
        stopped=partial(remembered_stop, store),
    )
    refuse_what_cannot_fit(resolved, planned.outlooks_of_open())
    return planned


def prepare(pool: Pool, resolved: Resolved) -> None:
    """Let as many slots get ready as can be of use, whatever the plan will be.

    Of two kinds of engine it is the one that most cells need: every subject has the same tasks.
    """
    sweep = resolved.sweep
    able = [one for one in resolved.subjects.values() if one.id not in resolved.failures]
    kinds = Counter(resolved.engine(resolved.engine_name(one.id)).kind for one in able)
    if kinds:
        count = min(sweep.schedule.slots, len(able) * len(sweep.tasks))
        pool.prepare_slots(count, kinds.most_common(1)[0][0])


def _answer_and_score(
    planned: Planned,
    store: Store,
    source: PoolOnDemand,
    listener: Listener,
    deadline: float | None,
    lines: RunLines,
) -> dict[str, CellRun]:
    if planned.is_finished:
        return {}
    for task, why in planned.not_looked_at().items():
        listener.say(f"early stopping cannot look at {task}: {why}")
    pool = source.pool()
    sweep, plan = planned.resolved.sweep, planned.plan
    write_zero_adapters(planned.resolved.subjects, planned.resolved.zeros)
    # The device is known only now that the pool is there; it is no part of any identity.
    engines = {name: planned.resolved.engine(name, source.device) for name in plan.engines}
    engines = {name: with_limits(store, engine) for name, engine in engines.items()}
    plan = replace(plan, engines=engines)
    with ExitStack() as stack:
        sink = StoreSink(store, lines.journal(), planned)
        watched = watching(
            PatientSink(sink),
            sweep=sweep.name,
            on_ray=source.is_ray,
            watchers=listener.watchers,
            on_progress=listener.progress,
        )
        lines.begin(watched.sink, sink.first_line())
        stack.callback(sink.costs.write)
        outcome = drive(
            plan,
            pool=pool,
            sink=watched.sink,
            policy=with_deadline(policy_of(sweep), deadline),
            clock=time.monotonic,
            request_sets=sink.request_set,
            include_path=tuple(sweep.include_path),
            on_progress=watched.on_progress,
            after_loss=partial(lower_after_loss, store),
            looks=planned.looks,
        )
    runs = {key: CellRun(failure=failure) for key, failure in outcome.failed.items()}
    runs |= sink.runs()
    for key, reason in outcome.left_out.items():
        runs[key] = replace(runs.get(key, CellRun()), left_out=reason)
    for key, reason in outcome.stopped_early.items():
        runs[key] = replace(runs.get(key, CellRun()), stopped_early=reason)
        assert planned.looks is not None
        remember_stopped(store, key, planned.looks, reason)
    for why in sorted(set(outcome.not_looked_at.values())):
        listener.say(f"early stopping cannot look at cells: {why}")
    return runs


def _report(
    planned: Planned, runs: Mapping[str, CellRun], missing: frozenset[str], seconds: float
) -> RunReport:
    failures = {key: run.failure for key, run in runs.items() if run.failure is not None}
    damaged = Failure(FailureKind.UNREADABLE, "its results in the store are damaged again")
    failures |= dict.fromkeys(missing, damaged)
    failed = {
        (cell.subject, cell.task): failures[cell.key]
        for cell in planned.cells
        if cell.key in failures
    }
    failed |= {(lost.subject, lost.task): lost.failure for lost in planned.lost}
    left_out = {
        (cell.subject, cell.task): runs[cell.key].left_out
        for cell in planned.cells
        if cell.key in runs and runs[cell.key].left_out
    }
    done = set(planned.plan.done)
    stopped = {key: run.stopped_early for key, run in runs.items() if run.stopped_early}
    stopped = {**planned.stopped, **stopped}
    early = {
        (cell.subject, cell.task): stopped[cell.key]
        for cell in planned.cells
        if cell.key in stopped
    }
    num_without = len(left_out) + len(early)
    return RunReport(
        output=planned.resolved.sweep.output,
        num_cells=len(planned.cells) + len(planned.lost),
        num_done=sum(1 for cell in planned.cells if cell.key not in failures) - num_without,
        num_reused=sum(1 for cell in planned.cells if cell.key in done),
        failed=failed,
        left_out=left_out,
        stopped_early=early,
        seconds=seconds,
    )
