"""What a slot is started with: a base and the settings under which an engine loads it.

Decides: which of these settings enter a cell's identity. Leaves to others: everything else that
passes between the parts (`records`, which has these names too).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Json: TypeAlias = Any
"""A value that `json` can hold: None, bool, int, float, str, list, or dict with str keys."""

EngineKind: TypeAlias = Literal["hf", "vllm", "fake"]
Quantization: TypeAlias = Literal["bnb-8bit", "bnb-4bit"]
"""How a base's weights are held: bitsandbytes' 8 bit, or 4 bit (nf4, double quantisation)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraRoom:
    """The room that an engine makes for LoRA adapters when it loads a base.

    Attributes:
        max_rank: The highest rank among them.
        num_adapters: How many there are.
        target_modules: The modules they are attached to, by the last part of their names.
    """

    max_rank: int
    num_adapters: int
    target_modules: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """Everything an engine needs to load one base: what a slot is started with.

    Attributes:
        kind: Which engine.
        base: Local folder or hub id of the base.
        base_digest: Digest of the base's content (weights, config, tokenizer).
        base_quick_digest: The same without weights' values, for slots to check; may be empty.
        revision: Hub revision, if any.
        tokenizer: Folder or hub id of another tokenizer; None is the base's own.
        dtype: `float32`, `bfloat16` or `float16`; never `auto` here.
        quantization: How the weights are held, if not in `dtype`; it computes in `dtype`.
        device: `cpu` or `cuda`.
        batch_size: Rows per forward pass where nothing is shared.
        sharing: Whether requests that share a context compute it once, where that is exact.
        batch_tokens: Tokens per forward pass where contexts are shared; None lets the engine
            choose by model and device.
        softmax_dtype: dtype of the log-softmax; None computes it in the model's dtype.
        attn_implementation: As in transformers; None is the model's default.
        max_length: Longest row in tokens; None is the model's own limit.
        add_bos_token: As in lm-eval's HFLM; None leaves it to the tokenizer.
        trust_remote_code: Whether the sweep file allows the base's own code.
        seed: Seed of sampled generation.
        row_limits: Most tokens at once where contexts are shared, as earlier runs learnt it: by
            hardware fingerprint and length of the prefix. No part of any identity.
        lowered: Settings of vLLM that a slot must not begin above, as slots that ran out of memory
            taught: by hardware (`core.vllm_ladder.memory_key`) and name. No part of any identity.
        lora: What the adapters of a `vllm` engine need; None loads the base alone.
        tensor_parallel: GPUs that hold one copy of the base together (`vllm`).
        spans_nodes: Whether these GPUs are those of several nodes, reached through Ray.
        options: Further settings of one engine kind: the script of `fake`, vLLM's own settings
            (`raypeft.engines.vllm_settings`).
    """

    kind: EngineKind
    base: str
    base_digest: str
    base_quick_digest: str = ""
    revision: str | None = None
    tokenizer: str | None = None
    dtype: str = "float32"
    quantization: Quantization | None = None
    device: str = "cpu"
    batch_size: int = 8
    sharing: bool = True
    batch_tokens: int | None = None
    softmax_dtype: str | None = "float32"
    attn_implementation: str | None = None
    max_length: int | None = None
    add_bos_token: bool | None = None
    trust_remote_code: bool = False
    seed: int = 1234
    row_limits: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    lowered: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)
    lora: LoraRoom | None = None
    tensor_parallel: int = 1
    spans_nodes: bool = False
    options: Mapping[str, Json] = field(default_factory=dict)

    def numerics(self) -> dict[str, Json]:
        """Return the settings that can change a score, as they enter a cell's identity.

        Left out are what moves answers by rounding at most (batch sizes), device and paths. That
        contexts are shared moves them by no more, but is promised: `sharing: false` is lm-eval's
        numbers bit for bit, and shards are cut otherwise.
        """
        # Named only where there is any, so that cells without it keep their identity.
        named: dict[str, Json] = {"quantization": self.quantization} if self.quantization else {}
        if self.kind == "hf" and self.sharing:
            named["sharing"] = True
        return named | {
            "engine": self.kind,
            "dtype": self.dtype,
            "softmax_dtype": self.softmax_dtype,
            "attn_implementation": self.attn_implementation,
            "max_length": self.max_length,
            "add_bos_token": self.add_bos_token,
            "options": self._deciding_options(),
        }

    def _deciding_options(self) -> dict[str, Json]:
        if self.kind == "vllm":
            # The others move answers by rounding at most: memory, batches, graphs.
            return {"batch_invariant": bool(self.options.get("batch_invariant", False))}
        # A fake engine's script (failures, durations) changes no answer.
        return {key: value for key, value in self.options.items() if key != "script"}
