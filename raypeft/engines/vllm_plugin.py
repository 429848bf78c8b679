"""`raypeft-vllm`: the vllm engine as a model of lm-eval, with or without Ray.

Importing this module registers the name. Nothing heavy is imported before a model is made, since
lm-eval resolves names for its help as well.

Decides: which arguments the model takes, and what they mean. Leaves to others: loading and
answering (`vllm`, as `vllm_lm_eval`), everything else (lm-eval).
"""

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any

import lm_eval.models  # noqa: F401 - lm-eval's own names, which it looks up only in an empty registry
from lm_eval.api.model import LM
from lm_eval.api.registry import model_registry, register_model

from raypeft.errors import Problem, SpecError

NAME = "raypeft-vllm"

_FLAGS = (*("add_bos_token", "any_base", "batch_invariant", "enforce_eager", "trust_remote_code"),)
_NO_MEANING = ("batch_size", "max_batch_size")
"""lm-eval gives them to every model; vLLM forms its own batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """The arguments of `raypeft-vllm`; those that lm-eval's `vllm` has too are called as there.

    Attributes:
        pretrained: Folder or hub id of the base.
        adapter: Folder or hub id of a LoRA adapter; None is the base alone.
        revision: Hub revision of the base.
        adapter_revision: Hub revision of the adapter.
        any_base: Whether the adapter may have been trained on another base than this one.
        tokenizer: Folder or hub id of another tokenizer.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.
        device: `cpu` or `cuda`; None takes a GPU if there is one.
        max_length: Longest row in tokens.
        add_bos_token: As for `vllm`.
        trust_remote_code: Whether the base's own code may run.
        seed: Seed of sampled generation.
        tensor_parallel_size: GPUs that hold the base together.
        gpu_memory_utilization: Share of the GPU's memory.
        kv_cache_memory_bytes: Bytes for keys and values instead of a share.
        max_num_seqs: Most requests in a step.
        block_size: Tokens in a block of the prefix cache.
        enforce_eager: Whether CUDA graphs are left out.
        batch_invariant: Whether answers are made independent of their batch (GPU).
    """

    pretrained: str
    adapter: str | None = None
    revision: str | None = None
    adapter_revision: str | None = None
    any_base: bool = False
    tokenizer: str | None = None
    dtype: str = "auto"
    device: str | None = None
    max_length: int | None = None
    add_bos_token: bool | None = None
    trust_remote_code: bool = False
    seed: int = 1234
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float | None = None
    kv_cache_memory_bytes: int | None = None
    max_num_seqs: int | None = None
    block_size: int | None = None
    enforce_eager: bool | None = None
    batch_invariant: bool | None = None


class RaypeftVLLM(LM):  # type: ignore[misc]  # lm-eval is untyped
    """What lm-eval finds under `raypeft-vllm`; making one gives the model itself.

    Keyword arguments are those of `Arguments`. `lora_local_path` and `max_model_len` may be said
    for `adapter` and `max_length`, so that the arguments of `--model vllm` can be kept.
    """

    def __new__(cls, **arguments: Any) -> Any:
        """Load the base, load the adapter and prove that it is applied.

        Raises:
            SpecError: If an argument is unknown or has an impossible value.
            CellError: If the base cannot be loaded or the adapter not be applied.
        """
        from raypeft.engines.vllm_lm_eval import LmEvalVLLM

        return LmEvalVLLM(read_arguments(arguments))


# An entry point under this name is resolved by the registry itself, with what it finds here.
if NAME not in model_registry:
    register_model(NAME)(RaypeftVLLM)


def read_arguments(given: dict[str, Any]) -> Arguments:
    """Return lm-eval's arguments of a model, checked; values of vLLM's own are checked later.

    Raises:
        SpecError: Every problem at once.
    """
    values = {
        key: value for key, value in given.items() if value is not None and key not in _NO_MEANING
    }
    problems = []
    for other, own in (("lora_local_path", "adapter"), ("max_model_len", "max_length")):
        if other in values:
            said = values.pop(other)
            if values.setdefault(own, said) != said:
                problems.append(Problem(other, f"is {said!r}, and {own} is {values[own]!r}"))
    known = [field.name for field in dataclasses.fields(Arguments)]
    for key in values.keys() - set(known):
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        problems.append(Problem(key, f"is no argument of {NAME}", hint))
    for key in _FLAGS:
        if not isinstance(values.get(key, False), bool):
            problems.append(Problem(key, f"is {values[key]!r}; allowed are true and false"))
    for key, least in (("max_length", 1), ("tensor_parallel_size", 1), ("seed", 0)):
        value = values.get(key, least)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            problems.append(Problem(key, f"is {value!r}; allowed is a whole number from {least}"))
    if "pretrained" not in values:
        problems.append(Problem("pretrained", "is missing", "give a folder or hub id of the base"))
    if problems:
        raise SpecError(tuple(sorted(problems, key=str)), f"the arguments of {NAME}")
    return Arguments(**values)
