"""Gives each subject of a base its engine, from files and settings alone.

Decides: nothing about what an engine can do (`core.vllm_routing`) or which is taken
(`core.engine_choice`); it brings both together for one base, adds the second baseline where one
is needed, and turns refusals into failures. Leaves to others: loading anything.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from raypeft.core.engine_choice import (
    HF_SUFFIX,
    Assignment,
    EngineRoute,
    Surroundings,
    assign_engines,
    may_be_vllm,
)
from raypeft.core.records import Adapter, Failure, FailureKind, LoraRoom, Subject
from raypeft.core.spec import Base, Sweep
from raypeft.core.vllm_routing import (
    AdapterFacts,
    BaseSettings,
    lora_room,
    why_base_not_vllm,
    why_not_vllm,
)
from raypeft.engines.bases import BaseFacts
from raypeft.engines.lora_facts import read_lora_facts
from raypeft.errors import CellError


@dataclass(frozen=True, slots=True)
class Finding:
    """What is known of vLLM's answers.

    Attributes:
        refused: Why they were found wrong; empty if they were not, or nothing is known.
        note: What was measured, for a person; empty if nothing is known.
    """

    refused: str = ""
    note: str = ""


Certified: TypeAlias = Callable[[Base, BaseFacts, str], Finding]
"""From a base's entry, what it is, and an adapter's digest (empty: the base) to what is known."""


def nothing_known(base: Base, facts: BaseFacts, adapter_digest: str) -> Finding:
    """Return that nothing is known."""
    return Finding()


@dataclass(frozen=True, slots=True, kw_only=True)
class Assigned:
    """The engines of one base's subjects.

    Attributes:
        routes: By subject id; none for subjects that have failed.
        room: What vLLM's engine must hold for the adapters; None if it holds none.
        twin: The second baseline, answered by `hf`, if some adapters need it.
        failures: Why subjects cannot be answered as the sweep file says.
        idle: Ids of enlarged baselines that no adapter is compared with any more.
    """

    routes: Mapping[str, EngineRoute]
    room: LoraRoom | None = None
    twin: Subject | None = None
    failures: Mapping[str, Failure] = field(default_factory=dict)
    idle: frozenset[str] = frozenset()


def assign_base(
    sweep: Sweep,
    base: Base,
    facts: BaseFacts,
    subjects: Sequence[Subject],
    surroundings: Surroundings,
    certified: Certified = nothing_known,
) -> Assigned:
    """Return which engine answers each of a base's subjects.

    Args:
        sweep: The sweep.
        base: The base's entry.
        facts: What the base is.
        subjects: Its subjects that can be read, baselines among them.
        surroundings: What `auto` depends on.
        certified: What was measured before.
    """
    kind = sweep.engine.kind
    adapters = {one.id: one.adapter for one in subjects if one.adapter is not None}
    sizes = {one.id: one.vocab_size for one in subjects}
    why_base = ""
    known: dict[str, AdapterFacts] = {}
    failures: dict[str, Failure] = {}
    if may_be_vllm(kind, surroundings):
        settings = _settings(sweep, base, facts, surroundings, bool(adapters))
        why_base = why_base_not_vllm(settings) or certified(base, facts, "").refused
        if not why_base:
            known, failures = _read(adapters, sizes, facts)
    reasons = {
        name: _why_not(adapter, known.get(name), base, facts, certified)
        for name, adapter in adapters.items()
        if name not in failures
    }
    found = assign_engines(kind, surroundings, why_base_not=why_base, why_adapters_not=reasons)
    failures |= _refusals(found, subjects)
    routes = {base.name: found.baseline, **found.adapters}
    able = [name for name in reasons if name not in failures]
    compared = {name: routes[name] for name in able}
    routes |= _enlarged_baselines(subjects, compared, sizes)
    twin = _twin(base, found.baseline, compared, sizes)
    if twin is not None:
        routes[twin.id] = EngineRoute("hf", "auto: hf, for the adapters that vllm cannot do")
    for name, route in routes.items():
        if route.kind == "vllm":
            adapter = adapters.get(name)
            note = certified(base, facts, "" if adapter is None else adapter.digest).note
            routes[name] = replace(route, certificate=note)
    return Assigned(
        routes=routes,
        room=lora_room([known[name] for name in able if routes[name].kind == "vllm"]),
        twin=twin,
        failures=failures,
        idle=frozenset(one.id for one in subjects if one.id not in routes and one.is_baseline),
    )


def _settings(
    sweep: Sweep, base: Base, facts: BaseFacts, surroundings: Surroundings, has_adapters: bool
) -> BaseSettings:
    softmax = sweep.engine.softmax_dtype
    return BaseSettings(
        model_type=facts.model_type,
        dtype=facts.dtype,
        on_gpu=surroundings.has_gpus,
        has_adapters=has_adapters,
        quantization=base.quantization,
        softmax_dtype=None if softmax == "model" else softmax,
        attn_implementation=base.attn_implementation,
        trust_remote_code=base.trust_remote_code,
    )


def _read(
    adapters: Mapping[str, Adapter], sizes: Mapping[str, int | None], facts: BaseFacts
) -> tuple[dict[str, AdapterFacts], dict[str, Failure]]:
    known: dict[str, AdapterFacts] = {}
    failures: dict[str, Failure] = {}
    for name, adapter in adapters.items():
        try:
            known[name] = read_lora_facts(adapter, sizes[name], facts.path)
        except CellError as error:
            failures[name] = Failure(FailureKind(error.kind), error.message, error.retryable)
    return known, failures


def _why_not(
    adapter: Adapter,
    own: AdapterFacts | None,
    base: Base,
    facts: BaseFacts,
    certified: Certified,
) -> str:
    if own is None:
        return ""  # vLLM does not come into question, or the base is refused as a whole
    reason = why_not_vllm(adapter.config, own, facts.model_type)
    return reason or certified(base, facts, adapter.digest).refused


def _refusals(found: Assignment, subjects: Iterable[Subject]) -> dict[str, Failure]:
    reasons = dict(found.refused)
    if found.base_refused:
        reasons = {subject.id: found.base_refused for subject in subjects}
    return {
        name: Failure(FailureKind.UNSUPPORTED, f"{name}: {reason}")
        for name, reason in reasons.items()
    }


def _enlarged_baselines(
    subjects: Iterable[Subject],
    able: Mapping[str, EngineRoute],
    sizes: Mapping[str, int | None],
) -> dict[str, EngineRoute]:
    """Return the routes of baselines enlarged for adapters: as those that they are for."""
    routes: dict[str, EngineRoute] = {}
    for subject in subjects:
        if subject.is_baseline and subject.vocab_size is not None:
            alike = [able[name] for name in able if sizes[name] == subject.vocab_size]
            if alike:
                routes[subject.id] = alike[0]
    return routes


def _twin(
    base: Base,
    baseline: EngineRoute,
    able: Mapping[str, EngineRoute],
    sizes: Mapping[str, int | None],
) -> Subject | None:
    # Adapters with a larger vocabulary have a baseline of their own already.
    if any(able[name].kind != baseline.kind and sizes[name] is None for name in able):
        return Subject(id=f"{base.name}{HF_SUFFIX}", base=base.name)
    return None
