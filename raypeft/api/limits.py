"""How much a device takes at once: learnt in one run by running out of memory, kept for the next.

Decides: what such a limit is kept under (base, dtype, quantisation, attention, engine; and the
hardware), and that the smaller of two counts. Leaves to others: learning it (the hf engine by
itself, vLLM by being lost: `core.vllm_ladder`), and where small values lie (the store).

It moves no answer but by the rounding of other batches, so it is no part of any identity.
"""

from collections.abc import Mapping
from dataclasses import replace

from raypeft.core.identity import canonical
from raypeft.core.records import EngineSpec, Failure, Hardware, Json, UnitAnswers
from raypeft.core.vllm_ladder import after_loss, memory_key
from raypeft.engines.vllm_start import memory_settings
from raypeft.errors import SetupError
from raypeft.store.store import Store

_ROWS = "row_limits"
_SETTINGS = "lowered_settings"

Limits = Mapping[str, Mapping[int, int]]
"""Most tokens at once, by hardware fingerprint and length of the prefix."""

Lowered = Mapping[str, Mapping[str, Json]]
"""vLLM's settings, by hardware (`core.vllm_ladder.memory_key`) and name."""


def with_limits(store: Store, engine: EngineSpec) -> EngineSpec:
    """Return an engine with what earlier runs have learnt about its base."""
    return replace(
        engine,
        row_limits=remembered_limits(store, engine),
        lowered=_read(store, _SETTINGS, engine),
    )


def remember_limits(store: Store, engine: EngineSpec, answers: UnitAnswers) -> None:
    """Keep what a slot has learnt, beside what is known of other hardware."""
    if answers.row_limits:
        values = {str(prefix): tokens for prefix, tokens in answers.row_limits.items()}
        _keep(store, _ROWS, engine, answers.hardware.fingerprint, values)


def remembered_limits(store: Store, engine: EngineSpec) -> Limits:
    """Return what earlier runs have learnt about a base."""
    return {
        name: {int(prefix): tokens for prefix, tokens in limits.items()}
        for name, limits in _read(store, _ROWS, engine).items()
    }


def lower_after_loss(
    store: Store, engine: EngineSpec, hardware: Hardware, failure: Failure
) -> EngineSpec:
    """Return what the next slots of a base are started with after one was lost, and keep it.

    Args:
        store: Keeps it for later runs.
        engine: What the lost slot was started with.
        hardware: What that ran on.
        failure: Why it was lost.
    """
    if engine.kind != "vllm":
        return engine
    key = memory_key(hardware)
    begun = memory_settings(engine).lowered_to(engine.lowered.get(key, {}))
    lowered = after_loss(begun, failure)
    if lowered is None:
        return engine
    known = begun.values()
    changed = {name: value for name, value in lowered.values().items() if value != known.get(name)}
    _keep(store, _SETTINGS, engine, key, changed)
    own = {**engine.lowered.get(key, {}), **changed}
    return replace(engine, lowered={**engine.lowered, key: own})


def _keep(
    store: Store, kind: str, engine: EngineSpec, hardware: str, values: Mapping[str, Json]
) -> None:
    found = {name: dict(limits) for name, limits in _read(store, kind, engine).items()}
    own = found.setdefault(hardware, {})
    for name, value in values.items():
        own[name] = min(value, own.get(name, value))
    try:
        store.put_memo(kind, _key(engine), found)
    except SetupError:
        return  # it is learnt again, which costs a few batches or one start and nothing else


def _read(store: Store, kind: str, engine: EngineSpec) -> Lowered:
    value = store.get_memo(kind, _key(engine))
    return value if isinstance(value, dict) else {}


def _key(engine: EngineSpec) -> str:
    return canonical(
        [
            engine.base_digest,
            engine.kind,
            engine.dtype,
            engine.quantization,
            engine.attn_implementation,
        ]
    )
