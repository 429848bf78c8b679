"""The ladder: under which settings vLLM is started again after its memory ran out.

Decides, from the settings of a start and the words it failed with, whether memory was the trouble,
which setting is lowered next and by how much, and when nothing is left to lower. Leaves to others:
starting (`engines.vllm_start`), and keeping what a lost slot taught (`api.limits`).

No setting here is part of an identity: each says how much is done at once, and requests are
answered one by one. A rung moves answers by the rounding of other batches at most.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import TypeAlias

from raypeft.core.engine_spec import Json
from raypeft.core.failures import Failure, FailureKind
from raypeft.core.records import Hardware

OWN_MAX_NUM_SEQS = 256
"""vLLM's own `max_num_seqs` or less, on every device; what is below it lowers."""
OWN_SHARE = 0.9
"""vLLM's own `gpu_memory_utilization` or less."""

LEAST_SEQS = 8
LEAST_SHARE = 0.3
LEAST_CACHE_BYTES = 16 << 20
_SHARE_STEP = 0.1
_SHARE_MARGIN = 0.02
"""Of a device's memory, left beside what is free now: others move, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySettings:
    """The settings of a start that decide how much memory it takes; None is vLLM's own.

    Attributes:
        max_num_seqs: Most requests in a step.
        gpu_memory_utilization: Share of the device's memory.
        kv_cache_memory_bytes: Bytes for keys and values in place of a share.
        max_loras: Most adapters in a step; None where there is no room for any.
    """

    max_num_seqs: int | None = None
    gpu_memory_utilization: float | None = None
    kv_cache_memory_bytes: int | None = None
    max_loras: int | None = None

    def values(self) -> dict[str, Json]:
        """Return what is set, by name."""
        every = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in every.items() if value is not None}

    def lowered_to(self, limits: Mapping[str, Json]) -> "MemorySettings":
        """Return the smaller of these settings and of some limits."""
        own = self.values()
        known = {field.name for field in fields(self)}
        # Where it holds no adapters, a number of them would mean nothing.
        if self.max_loras is None:
            known.discard("max_loras")
        lower = {
            name: min(value, own.get(name, value))
            for name, value in limits.items()
            if name in known
        }
        return replace(self, **lower)


class Cause(StrEnum):
    """What memory was short of, as vLLM says it."""

    TAKEN = "taken"
    """Less is free than the share asks for: others hold the rest."""
    NO_CACHE = "no_cache"
    """What is left beside weights and activations is too little for keys and values."""
    WEIGHTS = "weights"
    """The weights themselves, with the room for adapters, do not fit."""
    RAN_OUT = "ran_out"
    """An allocation failed."""


@dataclass(frozen=True, slots=True)
class Rung:
    """The next try.

    Attributes:
        settings: What it is started with.
        step: What was lowered and why, for a person.
    """

    settings: MemorySettings
    step: str


@dataclass(frozen=True, slots=True)
class Bottom:
    """Nothing is left to lower.

    Attributes:
        reason: Why, and what to do, for a person.
        may_pass: Whether the same start could succeed later, since others hold the memory.
    """

    reason: str
    may_pass: bool = False


Next: TypeAlias = Rung | Bottom

# vLLM's own words, those of torch and of CUDA's libraries; the first that is found counts.
_WORDS: tuple[tuple[str, Cause], ...] = (
    ("not enough GPU memory", Cause.WEIGHTS),
    ("less than desired", Cause.TAKEN),
    ("less than the engine's budget", Cause.TAKEN),
    ("No available memory for the cache blocks", Cause.NO_CACHE),
    ("larger than the available KV cache", Cause.NO_CACHE),
    ("less than requested memory for kv", Cause.TAKEN),
    ("out of memory", Cause.RAN_OUT),
    ("OutOfMemoryError", Cause.RAN_OUT),
    ("can't allocate memory", Cause.RAN_OUT),
    ("Cannot allocate memory", Cause.RAN_OUT),
    ("CUBLAS_STATUS_ALLOC_FAILED", Cause.RAN_OUT),
)
# "Free memory on device cuda:0 (10.1/79.2 GiB) on startup is less than desired …"
_FREE = re.compile(r"memory on (?:device|node) \S+ \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\)")
# "… is less than requested memory for kv (-1.5/2.0 GiB)": nothing is left of the share.
_NOTHING_LEFT = re.compile(r"less than requested memory for kv \((?:-|0(?:\.0+)?/)")

_ORDER: Mapping[Cause, tuple[str, ...]] = {
    Cause.TAKEN: ("gpu_memory_utilization",),
    # More memory would be a higher share, and nothing is ever raised.
    Cause.NO_CACHE: ("max_num_seqs", "max_loras"),
    Cause.WEIGHTS: ("max_loras",),
    Cause.RAN_OUT: ("max_num_seqs", "gpu_memory_utilization", "max_loras"),
}
_WHY: Mapping[Cause, str] = {
    Cause.TAKEN: "less memory is free than it asks for",
    Cause.NO_CACHE: "no memory was left for keys and values",
    Cause.WEIGHTS: "the weights and the room for adapters did not fit",
    Cause.RAN_OUT: "memory ran out",
}
_REMEDY: Mapping[Cause, str] = {
    Cause.TAKEN: "end what else holds the device's memory, or lower gpu_memory_utilization",
    Cause.NO_CACHE: "lower the base's max_length, or raise gpu_memory_utilization or "
    "kv_cache_memory_bytes",
    Cause.WEIGHTS: "use more GPUs (hardware.tensor_parallel), or `engine: {kind: hf}`",
    Cause.RAN_OUT: "use more GPUs (hardware.tensor_parallel), or lower the base's max_length",
}


def cause_of(words: str) -> Cause | None:
    """Return what memory was short of, or None if that was not the trouble."""
    if _NOTHING_LEFT.search(words):
        return Cause.NO_CACHE
    return next((cause for phrase, cause in _WORDS if phrase in words), None)


def next_rung(settings: MemorySettings, words: str, *, asked: MemorySettings) -> Next | None:
    """Return what to do about a start that failed.

    Args:
        settings: What it was started with.
        words: What it failed with: the exception, and what its processes wrote.
        asked: What the sweep file and raypeft set, before anything was lowered.

    Returns:
        The next try; that there is none; or None where memory was not the trouble.
    """
    cause = cause_of(words)
    if cause is None:
        return None
    if cause is Cause.NO_CACHE and settings.kv_cache_memory_bytes is not None:
        return Bottom(
            f"kv_cache_memory_bytes is {settings.kv_cache_memory_bytes}, too little for one "
            f"request, and no other setting adds to it; {_REMEDY[cause]}"
        )
    for name in _ORDER[cause]:
        lowered = _lowered(settings, name, words)
        if lowered is not None:
            return Rung(lowered, _step(settings, lowered, asked, _WHY[cause]))
    return Bottom(
        f"{_WHY[cause]}, and nothing is left to lower; {_REMEDY[cause]}",
        may_pass=cause is Cause.TAKEN,
    )


def after_loss(settings: MemorySettings, failure: Failure) -> MemorySettings | None:
    """Return what the next slot of a base is started with after one was lost.

    Args:
        settings: What the lost one was told to start with.
        failure: Why it was lost.

    Returns:
        None where memory was not the trouble, or nothing is left to lower.
    """
    if failure.kind is not FailureKind.OUT_OF_MEMORY:
        return None
    for name in _ORDER[Cause.RAN_OUT]:
        lowered = _lowered(settings, name, "")
        if lowered is not None:
            return lowered
    return None


def memory_key(hardware: Hardware) -> str:
    """Return what a limit is kept under: the devices and their memory, and nothing that vLLM sets.

    It must be the same before vLLM is started and afterwards.
    """
    return f"{hardware.num_devices} x {hardware.device}, {round(hardware.memory_gib)} GiB"


def described(limits: Mapping[str, Json]) -> str:
    """Return settings that an earlier loss of memory taught, for a person."""
    shown = ", ".join(f"{name} {value:g}" for name, value in sorted(limits.items()))
    return f"begun with {shown}, since memory ran out before"


# --- one setting ------------------------------------------------------------------------------


def _lowered(settings: MemorySettings, name: str, words: str) -> MemorySettings | None:
    """Return the settings with one of them lowered; None if it is as low as it gets."""
    match name:
        case "max_num_seqs":
            number = settings.max_num_seqs or OWN_MAX_NUM_SEQS
            if number <= LEAST_SEQS:
                return None
            return replace(settings, max_num_seqs=max(LEAST_SEQS, number // 2))
        case "max_loras":
            if settings.max_loras is None or settings.max_loras <= 1:
                return None
            return replace(settings, max_loras=settings.max_loras // 2)
    # With bytes given vLLM still compares its share with what is free.
    if settings.kv_cache_memory_bytes is not None and "memory utilization" not in words:
        number = settings.kv_cache_memory_bytes
        if number <= LEAST_CACHE_BYTES:
            return None
        return replace(settings, kv_cache_memory_bytes=max(LEAST_CACHE_BYTES, number // 2))
    return _lower_share(settings, words)


def _lower_share(settings: MemorySettings, words: str) -> MemorySettings | None:
    share = settings.gpu_memory_utilization or OWN_SHARE
    lower = round(share - _SHARE_STEP, 3)
    found = _FREE.search(words)
    if found is not None and float(found["total"]) > 0:
        free = float(found["free"]) / float(found["total"])
        lower = min(lower, round(free - _SHARE_MARGIN, 3))
    if lower < LEAST_SHARE:
        return None
    return replace(settings, gpu_memory_utilization=lower)


def _step(old: MemorySettings, new: MemorySettings, asked: MemorySettings, why: str) -> str:
    before, after, wanted = old.values(), new.values(), asked.values()
    (name,) = (name for name in after if after[name] != before.get(name))
    was = f"{before[name]:g}" if name in before else "vLLM's own"
    # raypeft itself sets the number of adapters where the sweep file does not.
    note = f" ({wanted[name]:g} was asked for)" if name in wanted else ""
    return f"{name} {was} -> {after[name]:g}{note}, since {why}"
