"""From a sweep file to what it names: bases, subjects, and what is wrong with them.

Everything that can be found out without loading a model is found out here, before anything
expensive starts. What is wrong with one base or adapter is that subject's failure; the others
go on.
"""

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from raypeft.api.again import Again, answered_again
from raypeft.api.assigning import Assigned, Certified, assign_base, nothing_known
from raypeft.api.variants import (
    as_asked,
    enlarged_baseline,
    needed_vocabulary,
    precision_warning,
)
from raypeft.core.engine_choice import HF_SUFFIX, EngineRoute, Surroundings
from raypeft.core.records import (
    Adapter,
    EngineKind,
    EngineSpec,
    Failure,
    FailureKind,
    LoraRoom,
    Subject,
)
from raypeft.core.spec import Base, Sweep, expand, parse_sweep
from raypeft.engines.adapters import read_adapter
from raypeft.engines.bases import BaseFacts, FileKey, read_base
from raypeft.engines.quantization import quantization_problem
from raypeft.engines.recorded_base import TargetBase
from raypeft.engines.zero_adapter import ZeroAdapter
from raypeft.errors import CellError, Problem, SpecError
from raypeft.runtime.files import LocalFolders


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A sweep and what it names.

    Attributes:
        sweep: The sweep, adapters expanded.
        bases: What each readable base is, by name.
        subjects: Every subject of the sweep by id, readable or not.
        failures: Why a subject cannot be evaluated, by subject id.
        warnings: What to know about a subject that is evaluated all the same, by subject id.
        routes: Which engine answers a subject, and why, by subject id.
        rooms: What vLLM's engine of a base must hold, by the base's name.
        surroundings: What `engine: auto` was decided on.
        zeros: The adapters of zero effect through which baselines are answered, by subject id.
    """

    sweep: Sweep
    bases: Mapping[str, BaseFacts]
    subjects: Mapping[str, Subject]
    failures: Mapping[str, Failure] = field(default_factory=dict)
    warnings: Mapping[str, str] = field(default_factory=dict)
    routes: Mapping[str, EngineRoute] = field(default_factory=dict)
    rooms: Mapping[str, LoraRoom | None] = field(default_factory=dict)
    surroundings: Surroundings = field(default_factory=Surroundings)
    zeros: Mapping[str, ZeroAdapter] = field(default_factory=dict)

    def base(self, name: str) -> Base:
        """Return the sweep's entry of a base."""
        return next(base for base in self.sweep.bases if base.name == name)

    def engine_name(self, subject: str) -> str:
        """Return the name of the engine that answers a subject: the base's, or its second one."""
        base = self.subjects[subject].base
        route = self.routes.get(subject)
        if route is None or route.kind == self.routes[base].kind:
            return base
        return f"{base}{HF_SUFFIX}"

    def engine_names(self) -> tuple[str, ...]:
        """Return the names of all engines: one for each readable base, and the second ones."""
        second = {self.engine_name(subject) for subject in self.routes} - self.bases.keys()
        return (*self.bases, *sorted(second))

    def engine(self, name: str, device: str = "cpu") -> EngineSpec:
        """Return what a slot is started with.

        Args:
            name: Of an engine, see `engine_names`.
            device: `cpu` or `cuda`, what the slot has.
        """
        sweep = self.sweep
        owner = name if name in self.bases else name.removesuffix(HF_SUFFIX)
        kind: EngineKind = self.routes[name].kind if name in self.bases else "hf"
        base, facts = self.base(owner), self.bases[owner]
        is_vllm = kind == "vllm"
        return EngineSpec(
            kind=kind,
            base=base.path,
            base_digest=facts.digest,
            base_quick_digest=facts.quick_digest,
            revision=base.revision,
            tokenizer=base.tokenizer,
            dtype=facts.dtype,
            quantization=base.quantization,
            device=device,
            batch_size=sweep.engine.batch_size,
            sharing=sweep.engine.sharing,
            batch_tokens=None if sweep.engine.batch_tokens == "auto" else sweep.engine.batch_tokens,
            softmax_dtype=(
                None if sweep.engine.softmax_dtype == "model" else sweep.engine.softmax_dtype
            ),
            attn_implementation=base.attn_implementation,
            max_length=base.max_length,
            add_bos_token=base.add_bos_token,
            trust_remote_code=base.trust_remote_code,
            seed=sweep.evaluation.seeds[2],
            options=sweep.engine.vllm.options() if is_vllm else sweep.engine.options,
            lora=self.rooms.get(owner) if is_vllm else None,
            tensor_parallel=sweep.hardware.tensor_parallel if is_vllm else 1,
            spans_nodes=is_vllm and sweep.hardware.spans_nodes,
        )


def load_sweep(path: str | Path) -> Sweep:
    """Read a sweep file and expand its adapters.

    Args:
        path: The YAML file. Relative paths in it are relative to the working directory.

    Raises:
        SpecError: Every problem of the file at once.
    """
    return expand(read_sweep(path), LocalFolders())


def read_sweep(path: str | Path) -> Sweep:
    """Read a sweep file and leave its adapters as they stand there.

    Args:
        path: The YAML file.

    Raises:
        SpecError: Every problem of the file at once.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        remedy = "name a readable YAML file"
        raise SpecError((Problem(str(path), f"cannot be read: {error}", remedy),)) from error
    return parse_sweep(text, source=str(path), name=file.stem)


def resolve(
    sweep: Sweep,
    memo: MutableMapping[FileKey, str] | None = None,
    surroundings: Surroundings | None = None,
    certified: Certified = nothing_known,
) -> Resolved:
    """Read what a sweep names, without loading a model.

    Args:
        sweep: The sweep, expanded.
        memo: Digests of files by what identifies their content on this disk; filled in.
        surroundings: What `engine: auto` depends on; without any it is hf.
        certified: What earlier runs found of vLLM's answers.

    Raises:
        SpecError: If no base can be read, so that nothing could run.
    """
    surroundings = surroundings or Surroundings()
    bases: dict[str, BaseFacts] = {}
    subjects: dict[str, Subject] = {}
    failures: dict[str, Failure] = {}
    assigned: dict[str, Assigned] = {}
    further: dict[str, Again] = {}
    for base in sweep.bases:
        unreadable: Failure | None = None
        try:
            bases[base.name] = _read_base(sweep, base, memo)
        except CellError as error:
            unreadable = _failure(error)
        facts = bases.get(base.name)
        found = _subjects(base, _target(base, facts, memo), facts)
        if facts is not None:
            able = [subject for subject, failure in found if failure is None]
            own = assign_base(sweep, base, facts, able, surroundings, certified)
            assigned[base.name] = own
            found = _with_engines(found, own)
            if sweep.statistics.noise_floor:
                again = answered_again(found, own, facts.path, sweep.output)
                found, assigned[base.name] = again.found, again.assigned
                further[base.name] = again
        for subject, failure in found:
            subjects[subject.id] = subject
            if unreadable or failure:
                failures[subject.id] = unreadable or failure  # type: ignore[assignment]
    if not bases:
        raise SpecError(tuple(_unreadable_bases(sweep, failures)))
    return Resolved(
        sweep=sweep,
        bases=bases,
        subjects=subjects,
        failures=failures,
        warnings=_warnings(sweep, bases, subjects, failures, surroundings, further),
        routes={name: route for one in assigned.values() for name, route in one.routes.items()},
        rooms={name: one.room for name, one in assigned.items()},
        surroundings=surroundings,
        zeros={name: zero for one in further.values() for name, zero in one.zeros.items()},
    )


def _unreadable_bases(sweep: Sweep, failures: Mapping[str, Failure]) -> Iterator[Problem]:
    for index, base in enumerate(sweep.bases):
        yield Problem(f"bases[{index}].path", failures[base.name].message)


def _with_engines(
    found: list[tuple[Subject, Failure | None]], own: Assigned
) -> list[tuple[Subject, Failure | None]]:
    """Return a base's subjects with the second baseline, where one is needed, behind the first."""
    kept = [
        (subject, failure or own.failures.get(subject.id))
        for subject, failure in found
        if subject.id not in own.idle
    ]
    return [kept[0], (own.twin, None), *kept[1:]] if own.twin is not None else kept


def _warnings(
    sweep: Sweep,
    bases: Mapping[str, BaseFacts],
    subjects: Mapping[str, Subject],
    failures: Mapping[str, Failure],
    surroundings: Surroundings,
    further: Mapping[str, Again],
) -> dict[str, str]:
    """Return what to know about bases and adapters that are evaluated all the same."""
    found: dict[str, str] = {}
    device = "cpu" if sweep.hardware.gpus == 0 else "cuda"
    for base in sweep.bases:
        if (facts := bases.get(base.name)) is None:
            continue
        about = [quantization_problem(base.quantization, device=device)]
        if sweep.engine.kind == "vllm" and not surroundings.vllm_installed:
            about = ["engine.kind is vllm, and vllm is not installed here"]
        if base.name in further:
            about.append(further[base.name].warning)
        found[base.name] = "; ".join(filter(None, about))
        for subject in subjects.values():
            if subject.base == base.name and subject.adapter and subject.id not in failures:
                found[subject.id] = precision_warning(subject.adapter, base, facts)
    return {name: text for name, text in found.items() if text}


def _read_base(sweep: Sweep, base: Base, memo: MutableMapping[FileKey, str] | None) -> BaseFacts:
    return read_base(
        base.path,
        revision=base.revision,
        dtype=base.dtype,
        trust_remote_code=base.trust_remote_code,
        tokenizer=base.tokenizer,
        memo=memo,
    )


def _target(
    base: Base, facts: BaseFacts | None, memo: MutableMapping[FileKey, str] | None
) -> TargetBase | None:
    if facts is None:
        return None
    return TargetBase(
        name=base.path,
        folder=facts.path,
        digest=facts.digest,
        tokenizer=base.tokenizer,
        trust_remote_code=base.trust_remote_code,
        memo=memo,
    )


def _subjects(
    base: Base, target: TargetBase | None, facts: BaseFacts | None
) -> list[tuple[Subject, Failure | None]]:
    found: list[tuple[Subject, Failure | None]] = []
    baselines: dict[str, Subject] = {}
    for entry in base.adapters:
        failure: Failure | None = None
        subject = Subject(id=base.subject_id(entry), base=base.name)
        try:
            adapter = read_adapter(
                entry.path,
                name=entry.table_name,
                revision=entry.revision,
                allow_pickle=entry.allow_pickle,
                base_path=None if target is None else target.folder,
                base=target,
                any_base=entry.any_base,
            )
            if facts is not None:
                adapter = as_asked(adapter, entry, base, facts)
                vocab_size = needed_vocabulary(adapter, base, facts)
                subject = replace(subject, vocab_size=vocab_size)
            subject = replace(subject, adapter=adapter)
            if facts is not None and (alike := enlarged_baseline(subject, base, facts)):
                baselines.setdefault(alike.id, alike)
        except CellError as error:
            failure = _failure(error)
            adapter = Adapter(name=entry.table_name, path=entry.path, digest="")
            subject = replace(subject, adapter=adapter, vocab_size=None)
        found.append((subject, failure))
    alone = [
        Subject(id=base.name, base=base.name),
        *(baselines[name] for name in sorted(baselines)),
    ]
    return [*((subject, None) for subject in alone), *found]


def _failure(error: CellError) -> Failure:
    return Failure(FailureKind(error.kind), error.message, error.retryable)
