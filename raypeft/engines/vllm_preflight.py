"""Whether vLLM would compute with all of an adapter, asked before it is given one.

Decides: by an adapter's config and tensors, whether vLLM would leave out a part of it, or all of
it, without a word. Leaves to others: what vLLM refuses by itself (`vllm_adapters`), the routing
that keeps such adapters away (`core.vllm_routing`), whose table is not trusted here.

vLLM reads the last part of a tensor's name only, attaches what it finds under a name that it has
wrapped, copies whatever shape there is, and drops the rest.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from raypeft.core.peft_settings import unknown_settings
from raypeft.core.records import FailureKind
from raypeft.engines.adapter_checks import check_lora, check_values
from raypeft.engines.adapters import AdapterFiles
from raypeft.engines.bases import read_base_tensors
from raypeft.engines.tensorfiles import TensorInfo
from raypeft.errors import CellError

_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<half>[AB])\.weight")

# They say which modules were trained, how training began, or nothing about the weights.
_NEEDS_NO_READING = frozenset(
    (
        *("auto_mapping", "base_model_name_or_path", "corda_config", "eva_config"),
        *("exclude_modules", "inference_mode", "layers_pattern", "layers_to_transform"),
        *("loftq_config", "lora_dropout", "lora_ga_config", "megatron_core", "peft_type"),
        *("peft_version", "qalora_group_size", "revision", "runtime_config", "task_type"),
    )
)


class Preflight:
    """What an engine has made room for.

    Args:
        base_folder: The base's local folder.
        modules: The modules that are wrapped, by the last part of their names.
        max_rank: The highest rank there is room for.
        adapter_settings: The settings of an adapter's config that vLLM reads.
    """

    def __init__(
        self,
        base_folder: Path,
        *,
        modules: Collection[str],
        max_rank: int,
        adapter_settings: frozenset[str],
    ) -> None:
        self._folder = base_folder
        self._modules = frozenset(modules)
        self._max_rank = max_rank
        self._read = adapter_settings | _NEEDS_NO_READING
        self._base = read_base_tensors(base_folder)

    def check(self, files: AdapterFiles, *, what: str, expects_effect: bool = True) -> None:
        """Refuse an adapter of which vLLM would leave something out.

        Args:
            files: The adapter's files.
            what: What they are, for messages.
            expects_effect: Whether weights that are zero everywhere are refused.

        Raises:
            CellError: `unsupported`, `does_not_fit`, or what `adapter_checks` finds.
        """
        config = files.config
        if config["peft_type"] != "LORA":
            raise _unsupported(what, f"it is of type {config['peft_type']}, and vLLM takes LORA")
        if files.tensors is None:
            raise _unsupported(what, "its weights are pickled, and vLLM is given safetensors only")
        if unread := unknown_settings(config, self._read):
            shown = ", ".join(f"{name}={value!r}"[:60] for name, value in list(unread.items())[:3])
            raise _unsupported(what, f"its config sets {shown}, which this vLLM does not read")
        check_lora(files.tensors, config, what=what, base_folder=str(self._folder))
        self._check_names(files.tensors, what)
        # Last, since it reads every value; and here, since NaN would stay in the engine's cache.
        try:
            check_values(files.weights, files.tensors, config, what=what)
        except CellError as error:
            if expects_effect or error.kind != FailureKind.NO_EFFECT:
                raise

    def _check_names(self, tensors: Mapping[str, TensorInfo], what: str) -> None:
        for name, tensor in tensors.items():
            match = _NAME.fullmatch(name)
            if match is None:
                raise _unsupported(what, f"vLLM would not read its tensor {name!r}")
            module = match["module"]
            if module.rsplit(".", 1)[-1] not in self._modules:
                raise _unsupported(
                    what,
                    f"it changes {module}, and this engine has wrapped "
                    f"{', '.join(sorted(self._modules)) or 'nothing'}; vLLM would leave it out",
                )
            weight = self._base.get(f"{module}.weight")
            if weight is None:
                raise CellError(
                    FailureKind.DOES_NOT_FIT,
                    f"{what}: the base has no {module}, and vLLM would leave the adapter's out",
                )
            self._check_shape(match["half"], tensor, weight, f"{what}: {name}")

    def _check_shape(self, half: str, tensor: TensorInfo, weight: TensorInfo, where: str) -> None:
        shape, size = tensor.shape, weight.shape
        fits = len(shape) == len(size) == 2 and (
            shape[1] == size[1] if half == "A" else shape[0] == size[0]
        )
        if not fits:
            raise CellError(
                FailureKind.DOES_NOT_FIT,
                f"{where} has shape {shape}, and the base's weight {size}; vLLM would put it into "
                "a corner of the weight",
            )
        rank = shape[0 if half == "A" else 1]
        if rank > self._max_rank:
            raise CellError(
                FailureKind.UNSUPPORTED,
                f"{where} has rank {rank}, and this engine has room for {self._max_rank}",
            )


def _unsupported(what: str, why: str) -> CellError:
    return CellError(FailureKind.UNSUPPORTED, f"{what}: {why}; use `engine: {{kind: hf}}`")
