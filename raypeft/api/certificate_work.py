"""What vLLM and hf are both asked for certificates: engines, request sets and cells.

Decides: how both are asked so that their answers can be compared. Leaves to others: whose
certificates are measured (`certifying`), and what the answers show (`concluding`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from raypeft.api.certificates import vllm_version
from raypeft.api.planning import Planned
from raypeft.core.certificate_sets import certificate_sets, with_room
from raypeft.core.cost import estimate_tokens
from raypeft.core.engine_choice import HF_SUFFIX
from raypeft.core.identity import cell_key, cell_numerics
from raypeft.core.plan import Cell
from raypeft.core.records import EngineSpec, RequestSet, Subject
from raypeft.store.store import Store

_CUT_SHORTER = 2
"""Tokens by which lm-eval's vLLM class cuts rows of log-likelihoods shorter than HFLM does. hf is
given rows shorter by them, and prompts of texts are then cut alike by `with_room`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What both engines answer.

    Attributes:
        engines: By name, as in the sweep's own plan.
        request_sets: By digest.
        cells: By (subject, request set, engine kind).
        samples: By base the request sets that both engines answer, as hf is asked.
        may_go_on: By such a request set's digest the requests whose texts vLLM is let continue.
        answered: What the store has.
    """

    engines: Mapping[str, EngineSpec]
    request_sets: Mapping[str, RequestSet]
    cells: Mapping[tuple[str, str, str], Cell]
    samples: Mapping[str, tuple[RequestSet, ...]]
    may_go_on: Mapping[str, frozenset[int]]
    answered: Mapping[str, set[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, planned: Planned, subjects: Iterable[Subject], store: Store, device: str) -> "Work":
        """Make the cells of all subjects under both engines."""
        engines: dict[str, EngineSpec] = {}
        request_sets: dict[str, RequestSet] = {}
        cells: dict[tuple[str, str, str], Cell] = {}
        samples: dict[str, tuple[RequestSet, ...]] = {}
        may_go_on: dict[str, frozenset[int]] = {}
        for subject in subjects:
            base = subject.base
            longest = (
                planned.resolved.base(base).max_length or planned.resolved.bases[base].max_length
            )
            if base not in samples:
                samples[base] = _samples(planned, base, store)
                engines |= _engines(planned, base, longest, device)
            for sample in samples[base]:
                roomy, may_go_on[sample.digest] = with_room(
                    sample, longest=longest, extra=_CUT_SHORTER
                )
                for name, asked in ((base, roomy), (f"{base}{HF_SUFFIX}", sample)):
                    request_sets[asked.digest] = asked
                    cell = _cell(subject, asked, name, engines[name])
                    cells[subject.id, sample.digest, engines[name].kind] = cell
        known = store.answered()
        answered = {cell.key: known.get(cell.key, {}).get(1, set()) for cell in cells.values()}
        return cls(
            engines=engines,
            request_sets=request_sets,
            cells=cells,
            samples=samples,
            may_go_on=may_go_on,
            answered=answered,
        )


def _engines(planned: Planned, base: str, longest: int, device: str) -> dict[str, EngineSpec]:
    second = f"{base}{HF_SUFFIX}"
    hf = replace(planned.resolved.engine(second, device), max_length=longest - _CUT_SHORTER)
    return {base: planned.resolved.engine(base, device), second: hf}


def _samples(planned: Planned, base: str, store: Store) -> tuple[RequestSet, ...]:
    """Return what both engines answer for a base and its adapters."""
    frozen = planned.frozen
    digests = dict.fromkeys(
        task.digest for task in frozen.tasks(base, base) if task.failure is None
    )
    return certificate_sets(
        (frozen.request_set(store, digest) for digest in digests),
        num_documents=planned.resolved.sweep.engine.vllm.certificate_documents,
    )


def _cell(subject: Subject, sample: RequestSet, name: str, engine: EngineSpec) -> Cell:
    numerics = cell_numerics(engine, subject)
    if engine.kind == "vllm":
        # What an older version answered says nothing of the one that is installed now.
        numerics["certified"] = vllm_version()
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
