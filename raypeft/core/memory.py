"""Whether a base fits into the memory of a slot's devices, before it is loaded there.

Decides what a slot needs at the very least (the weights), what it will about need (with adapters,
keys and values, and what is computed), and when that is refused: only where the weights alone are
more than there is, since everything else can be made smaller while the night runs.
"""

from dataclasses import dataclass

from raypeft.core.cost import BaseSize
from raypeft.core.records import EngineKind, LoraRoom

GIB = 2**30

DEFAULT_ADAPTER_RANK = 16
TOKENS_AT_ONCE = 8192
LOGITS_BYTES = 128_000 * 4 * 512
"""Logits of 512 tokens over a large vocabulary in 32 bits."""

RUNTIME_BYTES = GIB // 2
"""What torch and CUDA take for themselves on a GPU, about."""

VLLM_SHARE = 0.92
"""vLLM's own `gpu_memory_utilization`."""

_LAYER_SCALE = 12 * 128**2
"""A transformer of L layers is about 128 L wide and has about 12 L (128 L)² values; within a third
for every open family from 0.1 to 70 billion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """What a slot needs on its devices, all of them together, in bytes.

    Attributes:
        weights: The base's weights.
        adapters: Its adapters, as many as are there at once.
        working: Keys, values and what is computed, at usual sizes.
    """

    weights: int
    adapters: int
    working: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.adapters + self.working


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryVerdict:
    """Whether it fits.

    Attributes:
        need: What is needed.
        have: What is there for it, in bytes; None where that is not known.
        source: From where that is known.
    """

    need: MemoryNeed
    have: int | None
    source: str

    @property
    def refused(self) -> bool:
        """Whether it cannot work: the weights alone are more than there is."""
        return self.have is not None and self.need.weights > self.have

    @property
    def is_tight(self) -> bool:
        """Whether what is about needed is more than there is."""
        return self.have is not None and self.need.total > self.have

    def sentence(self) -> str:
        """Return the verdict in words, with its numbers."""
        need, have = self.need, self.have
        text = (
            f"needs about {need.total / GIB:.1f} GiB (weights {need.weights / GIB:.1f}, adapters "
            f"{need.adapters / GIB:.1f}, keys, values and computing {need.working / GIB:.1f})"
        )
        if have is None:
            return f"{text}; a slot's memory is not known, so nothing was checked"
        return f"{text}; a slot has {have / GIB:.1f} GiB for it ({self.source})"


def memory_need(
    size: BaseSize,
    *,
    kind: EngineKind,
    max_length: int,
    batch_tokens: int | None = None,
    lora: LoraRoom | None = None,
    has_adapters: bool = True,
) -> MemoryNeed:
    """Return what a slot needs for a base.

    Args:
        size: The base.
        kind: Of the engine.
        max_length: Longest row in tokens.
        batch_tokens: Tokens computed at once, if the sweep says so.
        lora: The room that vLLM makes for adapters.
        has_adapters: Whether the base has adapters; all but vLLM hold one at a time.
    """
    value_bytes = 4 if size.is_float32 else 2
    layers = (size.num_parameters / _LAYER_SCALE) ** (1 / 3)
    width = 128 * layers
    # Seven matrices a layer take an adapter, together about 18 times as wide as the model.
    values_per_rank = 18 * width * layers
    rank = DEFAULT_ADAPTER_RANK if lora is None else lora.max_rank
    num_adapters = int(has_adapters) if lora is None else lora.num_adapters
    tokens = batch_tokens or min(TOKENS_AT_ONCE, 8 * max_length)
    if kind == "vllm":
        # One row at full length must find room; keys and values with grouped heads, a quarter.
        tokens = max(max_length, TOKENS_AT_ONCE)
    keys_and_values = 2 * layers * width * value_bytes // 4
    computed = 20 * width * value_bytes
    working = tokens * (keys_and_values + computed) + LOGITS_BYTES + RUNTIME_BYTES
    return MemoryNeed(
        weights=size.weight_bytes,
        adapters=round(num_adapters * rank * values_per_rank * value_bytes),
        working=round(working),
    )


def check_memory(
    need: MemoryNeed,
    *,
    kind: EngineKind,
    device_bytes: int | None,
    num_devices: float = 1,
    vllm_share: float | None = None,
    source: str = "",
) -> MemoryVerdict:
    """Return whether a slot's devices hold what is needed.

    Args:
        need: What is needed.
        kind: Of the engine.
        device_bytes: Memory of one device; None where it is not known.
        num_devices: Devices that hold the base together; a share where slots share one.
        vllm_share: `gpu_memory_utilization`, if the sweep says so.
        source: From where the memory is known.
    """
    have: int | None = None
    if device_bytes is not None:
        share = (vllm_share or VLLM_SHARE) if kind == "vllm" else 1.0
        have = int(device_bytes * num_devices * share)
    return MemoryVerdict(need=need, have=have, source=source)
