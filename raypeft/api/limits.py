"""How much a device takes at once: learnt in one run by running out of memory, kept for the next.

Decides: what such a limit is kept under (base, dtype, quantisation, attention, engine; and the
hardware), and that the smaller of two counts. Leaves to others: learning it (the engine), and
where small values lie (the store).

It moves no answer but by the rounding of other batches, so it is no part of any identity.
"""

from collections.abc import Mapping

from raypeft.core.identity import canonical
from raypeft.core.records import EngineSpec, Json, UnitAnswers
from raypeft.errors import SetupError
from raypeft.store.store import Store

_KIND = "row_limits"

Limits = Mapping[str, Mapping[int, int]]
"""Most tokens at once, by hardware fingerprint and length of the prefix."""


def remember_limits(store: Store, engine: EngineSpec, answers: UnitAnswers) -> None:
    """Keep what a slot has learnt, beside what is known of other hardware."""
    if not answers.row_limits:
        return
    found = {name: dict(limits) for name, limits in remembered_limits(store, engine).items()}
    own = found.setdefault(answers.hardware.fingerprint, {})
    for prefix, tokens in answers.row_limits.items():
        own[prefix] = min(tokens, own.get(prefix, tokens))
    value: Json = {
        name: {str(prefix): tokens for prefix, tokens in limits.items()}
        for name, limits in found.items()
    }
    try:
        store.put_memo(_KIND, _key(engine), value)
    except SetupError:
        return  # it is learnt again, which costs a few batches and nothing else


def remembered_limits(store: Store, engine: EngineSpec) -> Limits:
    """Return what earlier runs have learnt about a base."""
    value = store.get_memo(_KIND, _key(engine))
    if not isinstance(value, dict):
        return {}
    return {
        name: {int(prefix): tokens for prefix, tokens in limits.items()}
        for name, limits in value.items()
    }


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
