"""The settings of a vLLM engine: what a spec says, as arguments of lm-eval's vLLM class.

Decides: which options there are, which settings of a spec vLLM cannot follow, and the room for
adapters. Leaves to others: what the installed version can do (`vllm_capabilities`), loading.

Options of the sweep file, all optional:
    gpu_memory_utilization: Share of the GPU's memory, above 0 and at most 1.
    kv_cache_memory_bytes: Bytes for keys and values instead of a share.
    max_num_seqs: Most requests in a step.
    max_loras: Most adapters in a step.
    block_size: Tokens in a block of the prefix cache.
    enforce_eager: Whether CUDA graphs are left out.
    batch_invariant: Whether answers are made independent of their batch, at some cost (GPU).
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from raypeft.core.records import EngineSpec, FailureKind, Json, LoraRoom
from raypeft.errors import CellError

ALLOWED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as `max_lora_rank`."""

OUTER_MODULES = frozenset(("lm_head", "embed_tokens"))
"""Never wrapped: with prompt log-probabilities vLLM puts a wrapped head on the wrong rows, and on a
GPU it then writes out of bounds even for adapters that have none."""

MOST_LORAS = 8
"""Adapters in one step. More cost memory each and gain nothing: thousands of prompts of one adapter
fill a step."""

MOST_HELD = 64
"""Adapters in the host's memory, which is pinned: one of rank 64 on all modules of an 8B base is a
third of a GiB. More than a unit asks at once are of use only if they need not be read again."""


@dataclass(frozen=True, slots=True)
class _Option:
    allowed: str
    is_allowed: Callable[[Json], bool]


def _is_count(value: Json) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_share(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1


_COUNT = _Option("a whole number above 0", _is_count)
_FLAG = _Option("true or false", lambda value: isinstance(value, bool))
OPTIONS: Mapping[str, _Option] = {
    "gpu_memory_utilization": _Option("a number above 0 and at most 1", _is_share),
    "kv_cache_memory_bytes": _COUNT,
    "max_num_seqs": _COUNT,
    "max_loras": _COUNT,
    "block_size": _COUNT,
    "enforce_eager": _FLAG,
    "batch_invariant": _FLAG,
}


def check_settings(spec: EngineSpec) -> None:
    """Refuse what a vLLM engine would not follow.

    Raises:
        CellError: `spec` for options, `unsupported` for settings of the hf engine.
    """
    what = f"base {spec.base!r}"
    for name, value in spec.options.items():
        option = OPTIONS.get(name)
        if option is None:
            near = difflib.get_close_matches(name, OPTIONS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(OPTIONS)}"
            raise CellError(FailureKind.SPEC, f"{what}: vllm has no option {name!r}; {hint}")
        if value is not None and not option.is_allowed(value):
            raise CellError(
                FailureKind.SPEC,
                f"{what}: the option {name} is {value!r}; allowed is {option.allowed}",
            )
    for problem in _not_followed(spec):
        raise CellError(FailureKind.UNSUPPORTED, f"{what}: {problem}; use `engine: {{kind: hf}}`")


def _not_followed(spec: EngineSpec) -> list[str]:
    problems = []
    if spec.quantization is not None:
        problems.append(f"quantization {spec.quantization} is done by hf only")
    if spec.softmax_dtype != "float32":
        problems.append(
            f"softmax_dtype is {spec.softmax_dtype!r}, and vLLM's log-softmax is float32"
        )
    if spec.attn_implementation is not None:
        problems.append(
            f"attn_implementation {spec.attn_implementation!r} is one of transformers, and vLLM "
            "has its own"
        )
    if spec.lora is not None and spec.lora.max_rank > ALLOWED_RANKS[-1]:
        problems.append(f"rank {spec.lora.max_rank} is above {ALLOWED_RANKS[-1]}, vLLM's limit")
    if spec.lora is not None and spec.dtype == "float32" and spec.device.startswith("cuda"):
        problems.append("vLLM's kernels for adapters compute in 16 bits, and dtype is float32")
    return problems


def wrapped_modules(room: LoraRoom | None) -> tuple[str, ...]:
    """Return the modules that are wrapped for adapters."""
    return () if room is None else tuple(sorted(set(room.target_modules) - OUTER_MODULES))


def num_loras(spec: EngineSpec) -> int:
    """Return how many adapters a step may hold; 0 without adapters."""
    if spec.lora is None:
        return 0
    return min(spec.lora.num_adapters, int(spec.options.get("max_loras") or MOST_LORAS))


def model_arguments(spec: EngineSpec) -> dict[str, Any]:
    """Return the arguments of lm-eval's vLLM class beside the model's folder; None is a default."""
    arguments: dict[str, Any] = {
        "dtype": spec.dtype,
        "max_model_len": spec.max_length,
        "add_bos_token": spec.add_bos_token,
        "trust_remote_code": spec.trust_remote_code,
        "seed": spec.seed % (1 << 31),
        "tensor_parallel_size": spec.tensor_parallel,
        "batch_size": "auto",
        "enable_prefix_caching": True,
        # vLLM's counters tell whether a request was preempted, and what the cache saved.
        "disable_log_stats": False,
    }
    if spec.tensor_parallel > 1:
        # Left open, vLLM would take Ray inside a Ray actor, and wait for GPUs that the actor has.
        # Over several nodes it is Ray, and its workers take the bundles of the slot's group.
        arguments["distributed_executor_backend"] = "ray" if spec.spans_nodes else "mp"
    own = {"batch_invariant", "max_loras"}
    arguments |= {name: value for name, value in spec.options.items() if name not in own}
    return arguments | _lora_arguments(spec)


def _lora_arguments(spec: EngineSpec) -> dict[str, Any]:
    if spec.lora is None:
        return {}
    return {
        "enable_lora": True,
        "max_loras": num_loras(spec),
        # All of them, if there are not very many: others are put in their place between calls.
        "max_cpu_loras": max(min(spec.lora.num_adapters, MOST_HELD), num_loras(spec)),
        "max_lora_rank": next(rank for rank in ALLOWED_RANKS if rank >= spec.lora.max_rank),
        "lora_target_modules": list(wrapped_modules(spec.lora)),
    }
