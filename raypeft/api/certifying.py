"""Certificates: before vLLM answers for a subject, it and hf answer a few documents both.

Decides: who still needs one. Leaves to others: what both are asked (`certificate_work`), what is
compared and when it is refused (`concluding`, `core.certificate`), where it is remembered
(`certificates`), and what a refusal means for the engines (`assigning`).

The documents are those of the sweep itself. Both engines' answers are cells like others, under
identities of their own, so a certificate that was interrupted goes on where it stopped; what was
measured is kept in the store for every later sweep of the same base and adapter.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from raypeft.api.certificate_work import Work
from raypeft.api.certificates import Certificates
from raypeft.api.concluding import Concluding, certificate_key, earlier_certificate
from raypeft.api.limits import lower_after_loss, with_limits
from raypeft.api.planning import Planned
from raypeft.api.surroundings import record_not_loaded
from raypeft.core.certificate import Certificate
from raypeft.core.plan import Cell, Plan, Unit, make_units
from raypeft.core.records import Answer, Failure, Json, RequestSet, Scored, Subject, UnitAnswers
from raypeft.core.retry import Policy
from raypeft.runtime.driver import drive
from raypeft.runtime.ports import Pool
from raypeft.store.store import Store


def certify(
    planned: Planned,
    store: Store,
    pool: Callable[[], Pool],
    policy: Policy,
    *,
    device: Callable[[], str],
    say: Callable[[str], None] = lambda text: None,
) -> bool:
    """Measure the certificates that a plan's subjects still need.

    Args:
        planned: The plan.
        store: Keeps answers and certificates.
        pool: Opens the pool; called only if anything is to be answered.
        policy: As in the run itself.
        device: Returns what the slots compute on; called after `pool`.
        say: Told what goes on.

    Returns:
        Whether anything was measured, so that the engines must be assigned anew.
    """
    subjects = _lacking(planned, store)
    if not subjects:
        return False
    say(f"certificates: hf and vllm answer a few documents both, for {len(subjects)} subjects")
    opened = pool()
    work = Work.of(planned, _with_baselines(planned, subjects), store, device())
    sink = _Sink(store, work.request_sets)
    _answer(work, planned, store, opened, policy, sink)
    not_loaded = _not_loaded(work, sink) if planned.resolved.sweep.engine.kind == "auto" else {}
    for base, why in not_loaded.items():
        say(f"vllm cannot load base {base}, which hf answers instead: {why}")
    facts = planned.resolved.bases
    if not_loaded:
        reasons = {facts[base].digest: why for base, why in not_loaded.items()}
        record_not_loaded(planned.resolved.sweep, reasons)
    concluding = Concluding(planned, work, store, sink.failures, say)
    for subject in subjects:
        if subject.base not in not_loaded:
            concluding.conclude(subject)
    return True


def _answer(
    work: "Work", planned: Planned, store: Store, pool: Pool, policy: Policy, sink: "_Sink"
) -> None:
    """Let both engines answer what the store does not have."""
    open_cells = [cell for cell in work.cells.values() if 0 not in work.answered.get(cell.key, ())]
    if not open_cells:
        return
    plan = Plan(
        engines={name: with_limits(store, one) for name, one in work.engines.items()},
        subjects=planned.resolved.subjects,
        cells={cell.key: cell for cell in open_cells},
        units=make_units(open_cells, answered={}),
    )
    drive(
        plan,
        pool=pool,
        sink=sink,
        policy=policy,
        clock=time.monotonic,
        request_sets=sink.request_set,
        score=nothing_to_score,
        after_loss=partial(lower_after_loss, store),
    )


def nothing_to_score(
    request_set: RequestSet, answers: Sequence[Answer], include_path: Sequence[str]
) -> Scored:
    """Stand for scoring: answers that are only compared have no metrics."""
    return Scored(task=request_set.task, metrics=(), samples=(), lm_eval=None, lm_eval_version="")


class _Sink:
    """Stores answers, and nothing else: there are no scores, and the journal is the run's."""

    def __init__(self, store: Store, request_sets: Mapping[str, RequestSet]) -> None:
        self._store = store
        self._request_sets = request_sets
        self.failures: dict[str, Failure] = {}
        self.loaded: set[str] = set()
        """Names of engines that a slot was ready with."""
        self._engines: dict[str, str] = {}

    def request_set(self, digest: str) -> RequestSet:
        return self._request_sets[digest]

    def answers(self, unit: Unit, attempt: int, answers: UnitAnswers) -> None:
        for key, subject in zip(unit.cells, answers.subjects, strict=True):
            shard = (unit.shard_index, unit.shard_count)
            self._store.put_answers(key, *shard, subject, answers.hardware, answers.seconds)

    def load_answers(self, cell: Cell) -> Sequence[Answer]:
        return ()

    def load_shard(self, cell: Cell, index: int) -> Sequence[Answer]:
        return ()

    def scored(self, cell: Cell, scored: Scored) -> None:
        """Nothing was scored."""

    def gave_up(self, cell: str, failure: Failure, attempts: int) -> None:
        self.failures[cell] = failure

    def note(self, line: dict[str, Json]) -> None:
        """Take note of who loads what; the journal tells of the sweep's own cells."""
        slot = str(line.get("slot"))
        if line["event"] == "start_slot":
            self._engines[slot] = str(line["base"])
        elif line["event"] == "slot_ready":
            self.loaded.add(self._engines[slot])


def _not_loaded(work: Work, sink: _Sink) -> dict[str, str]:
    """Return why vLLM could not even load bases, by their names."""
    reasons: dict[str, str] = {}
    for cell in work.cells.values():
        name = cell.engine_name
        failure = sink.failures.get(cell.key)
        if work.engines[name].kind == "vllm" and name not in sink.loaded and failure is not None:
            reasons.setdefault(cell.base, failure.message)
    return reasons


def _lacking(planned: Planned, store: Store) -> list[Subject]:
    """Return the subjects that vLLM is to answer without a certificate that holds."""
    resolved = planned.resolved
    if not resolved.sweep.engine.vllm.certificate_documents:
        return []
    certificates = Certificates(resolved.sweep, store)
    open_subjects = {subject for unit in planned.plan.units for subject in unit.subjects}
    lacking = []
    for subject_id in sorted(open_subjects):
        subject = resolved.subjects[subject_id]
        route = resolved.routes.get(subject_id)
        if route is None or route.kind != "vllm" or subject.again:
            continue  # a second answering needs no certificate beside that of the first
        known = earlier_certificate(certificates, certificate_key(certificates, planned, subject))
        if known is None or _says_nothing_of(known, _output_types(planned, subject.base)):
            lacking.append(subject)
    return lacking


def _with_baselines(planned: Planned, subjects: Sequence[Subject]) -> list[Subject]:
    """Return subjects with their baselines, which an adapter's effect is measured against."""
    resolved = planned.resolved
    baselines = [resolved.subjects[subject.base] for subject in subjects]
    return list({subject.id: subject for subject in (*baselines, *subjects)}.values())


def _output_types(planned: Planned, base: str) -> set[str]:
    """Return what a base's tasks ask for, by lm-eval's names."""
    tasks = planned.frozen.tasks(base, base)
    return {planned.frozen.headers[one.digest].output_type for one in tasks if one.failure is None}


def _says_nothing_of(known: Certificate, output_types: set[str]) -> bool:
    """Return whether a certificate lacks texts, or log-likelihoods, that are asked for now."""
    lacks_texts = "generate_until" in output_types and not known.num_texts
    return lacks_texts or (bool(output_types - {"generate_until"}) and not known.num_loglikelihoods)
