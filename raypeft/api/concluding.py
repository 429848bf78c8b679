"""From what vLLM and hf answered both to a certificate, or to why there is none.

Decides: what is compared of the answers there are, and which failures keep a subject from vLLM.
Leaves to others: asking (`certifying`), and when a certificate is refused (`core.certificate`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from raypeft.api.certificate_work import Work
from raypeft.api.certificates import Certificates, read_certificate, vllm_version
from raypeft.api.planning import Planned
from raypeft.core.certificate import ROUNDING_NATS, Certificate, compare, measure_effect
from raypeft.core.records import Answer, Failure, FailureKind, Request, Subject
from raypeft.engines.special_tokens import special_tokens
from raypeft.errors import StoreError
from raypeft.store.store import Store

_OWN_FAILURES = frozenset(
    (
        *(FailureKind.UNSUPPORTED, FailureKind.DOES_NOT_FIT),
        *(FailureKind.NO_EFFECT, FailureKind.NOT_FINITE),
    )
)
"""What lies in an adapter, or a base, and in what an engine makes of it."""


@dataclass(frozen=True, slots=True)
class _Sides:
    """What both engines said to the same requests, numbered through.

    Attributes:
        requests: As hf was asked.
        reference: The answers of hf.
        found: Those of vLLM.
        may_go_on: Requests whose texts vLLM was let continue.
    """

    requests: list[Request]
    reference: list[Answer]
    found: list[Answer]
    may_go_on: frozenset[int]


class Concluding:
    """Compares what was answered, and keeps what follows from it.

    Args:
        planned: The plan.
        work: What both engines were asked.
        store: Has the answers, and keeps certificates.
        failures: Why cells were given up, by key.
        say: Told what is not certified, and why.
    """

    def __init__(
        self,
        planned: Planned,
        work: Work,
        store: Store,
        failures: Mapping[str, Failure],
        say: Callable[[str], None],
    ) -> None:
        self._planned = planned
        self._work = work
        self._store = store
        self._failures = failures
        self._say = say
        self._certificates = Certificates(planned.resolved.sweep, store)
        self._special: dict[str, tuple[str, ...]] = {}
        self._other_versions: set[str] = set()

    def conclude(self, subject: Subject) -> None:
        """Compare a subject's answers and keep the certificate, if both engines answered."""
        digests = [
            sample.digest
            for sample in self._work.samples[subject.base]
            if FailureKind.TASK_FAILED not in self._kinds(subject, sample.digest)
        ]
        try:
            sides = self._sides(subject.id, digests)
        except StoreError:
            self.conclude_nothing(subject)
            return
        if not sides.requests:
            self.conclude_nothing(subject)
            return
        measured = self._measured(subject, digests, sides)
        key = certificate_key(self._certificates, self._planned, subject)
        earlier = earlier_certificate(self._certificates, key)
        if earlier is not None:
            measured = joined(measured, earlier)
        self._certificates.put(key, measured, vllm=self._version(subject, digests))

    def conclude_nothing(self, subject: Subject) -> None:
        """Say why there is no certificate, and keep it where vLLM cannot do what hf can."""
        failures: dict[str, list[Failure]] = {"hf": [], "vllm": []}
        for (name, _, kind), cell in self._work.cells.items():
            if name == subject.id and cell.key in self._failures:
                failures[kind].append(self._failures[cell.key])
        own = [one for one in failures["vllm"] if one.kind in _OWN_FAILURES]
        if own and all(one.kind == FailureKind.TASK_FAILED for one in failures["hf"]):
            self._say(f"{subject.id} cannot be answered by vllm, and can by hf: {own[0].message}")
            key = certificate_key(self._certificates, self._planned, subject)
            self._certificates.put_failed(key, own[0].message)
            return
        reasons = {failure.message for side in failures.values() for failure in side}
        why = "; ".join(sorted(reasons)) or "answers are missing"
        self._say(f"{subject.id} has no certificate, and is answered without one: {why}")

    def _measured(self, subject: Subject, digests: Sequence[str], sides: _Sides) -> Certificate:
        measured = compare(
            sides.requests,
            sides.reference,
            sides.found,
            special=self._special_tokens(subject.base),
            may_go_on=sides.may_go_on,
        )
        if subject.adapter is None:
            return measured
        try:
            base = self._sides(subject.base, digests)
        except StoreError:
            return measured  # the base's own certificate says what is the matter with it
        effect = measure_effect(
            sides.requests,
            (base.reference, base.found),
            (sides.reference, sides.found),
            rounding_nats=ROUNDING_NATS[self._planned.resolved.bases[subject.base].dtype],
        )
        return replace(measured, effect=effect)

    def _kinds(self, subject: Subject, digest: str) -> Iterator[FailureKind]:
        """Yield what kept either engine from answering."""
        for kind in ("hf", "vllm"):
            failure = self._failures.get(self._work.cells[subject.id, digest, kind].key)
            if failure is not None:
                yield failure.kind

    def _sides(self, name: str, digests: Iterable[str]) -> _Sides:
        """Return what both engines said for a subject; raises StoreError if anything is missing."""
        requests: list[Request] = []
        answers: dict[str, list[Answer]] = {"hf": [], "vllm": []}
        may_go_on: list[int] = []
        documents: dict[tuple[str, int], int] = {}
        for digest in digests:
            own, offset = self._work.request_sets[digest].requests, len(requests)
            for kind, said in answers.items():
                key = self._work.cells[name, digest, kind].key
                part, _ = self._store.get_answers(key, 1, num_requests=len(own))
                said += [replace(answer, index=answer.index + offset) for answer in part]
            may_go_on += [index + offset for index in self._work.may_go_on[digest]]
            for one in own:
                number = documents.setdefault((digest, one.doc_id), len(documents))
                requests.append(replace(one, index=one.index + offset, doc_id=number))
        return _Sides(requests, answers["hf"], answers["vllm"], frozenset(may_go_on))

    def _special_tokens(self, base: str) -> tuple[str, ...]:
        if base not in self._special:
            own = self._planned.resolved.base(base).tokenizer
            self._special[base] = special_tokens(own or self._planned.resolved.bases[base].path)
        return self._special[base]

    def _version(self, subject: Subject, digests: Iterable[str]) -> str:
        """Return the vLLM that answered: the slots' own, whatever is installed here."""
        cells = [self._work.cells[subject.id, digest, "vllm"].key for digest in digests]
        facts = [one for key in cells for one in self._store.shard_facts(key, 1)]
        found = ", ".join(sorted({one.hardware.software.get("vllm", "") for one in facts}))
        own = vllm_version()
        if found != own and found not in self._other_versions:
            self._other_versions.add(found)
            self._say(
                f"vllm answered in version {found or 'unknown'}, and here is "
                f"{own or 'none installed'}: the certificates are of the former"
            )
        return found


def joined(measured: Certificate, earlier: Certificate) -> Certificate:
    """Return a certificate with what an earlier one says of requests that it lacks."""
    names: list[str] = []
    if not measured.num_texts:
        names += ["num_texts", "num_diverged", "num_at_once", "first_divergence"]
    if not measured.num_loglikelihoods:
        names += ["num_loglikelihoods", "worst_nats", "mean_nats"]
        names += ["num_documents", "num_flips", "num_greedy_flips", "effect"]
    return replace(measured, **{name: getattr(earlier, name) for name in names})


def certificate_key(certificates: Certificates, planned: Planned, subject: Subject) -> str:
    """Return what a subject's certificate is kept under."""
    adapter = "" if subject.adapter is None else subject.adapter.digest
    base = planned.resolved.base(subject.base)
    return certificates.key(base, planned.resolved.bases[subject.base], adapter)


def earlier_certificate(certificates: Certificates, key: str) -> Certificate | None:
    """Return a certificate that still holds; None if there is none, or vLLM could not answer."""
    value = certificates.current(key)
    return None if value is None or "failed" in value else read_certificate(value)
