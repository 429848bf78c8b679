"""An adapter of zero effect: a LoRA whose B is zero, on the modules that a sweep's adapters change.

Decides: which modules it has, what its files hold, byte for byte, so that its digest is the same
wherever it is written; and how far a base may move with it. Leaves to others: who is answered
through it, and what that says (`core.noise`).

A has values, so that LoRA's code computes something, and B makes nothing of it.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raypeft.core.records import Adapter, Json
from raypeft.engines.adapters import (
    CONFIG_FILE,
    SAFE_WEIGHTS_FILE,
    adapter_digest,
    open_adapter,
    read_adapter_files,
)
from raypeft.engines.bases import read_base_tensors
from raypeft.engines.tensorfiles import TensorInfo
from raypeft.errors import CellError

MOST_RANK = 8
"""Its rank, or less where the sweep's adapters have less: an engine has room for theirs."""

MOST_NATS_IN_FLOAT32 = 1e-3
"""Rounding moves log-probabilities by 1e-5, a trained adapter by tenths."""

MOST_MEAN_NATS = 0.05
"""On average in the 16-bit dtypes, whose rounding reaches 0.01 on a toy."""

_LINEAR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<half>[AB])\.weight")
_PLUS, _MINUS = 0x3C80, 0xBC80  # 2**-6 and its negative in bfloat16


@dataclass(frozen=True, slots=True)
class ZeroAdapter:
    """What an adapter of zero effect consists of.

    Attributes:
        sizes: By module, named as in the base, how many numbers go in and come out.
        rank: Its rank.
        task_type: As in the configs of the sweep's adapters.
    """

    sizes: Mapping[str, tuple[int, int]]
    rank: int
    task_type: str | None

    @property
    def config(self) -> dict[str, Json]:
        """Its `adapter_config.json`: no more than every engine reads."""
        return {
            "base_model_name_or_path": "",
            "bias": "none",
            "inference_mode": True,
            "lora_alpha": self.rank,
            "peft_type": "LORA",
            "r": self.rank,
            "target_modules": sorted(self.sizes),
            "task_type": self.task_type,
        }

    def named(self, name: str, folder: Path) -> Adapter:
        """Return it as a subject has it; nothing need be written yet."""
        hasher = hashlib.sha256()
        for chunk in self._weights():
            hasher.update(chunk)
        return Adapter(
            name=name,
            path=str(folder),
            digest=adapter_digest(hasher.hexdigest(), self.config),
            peft_type="LORA",
            expects_effect=False,
            config=self.config,
        )

    def write(self, folder: Path) -> None:
        """Write its files, each whole or not at all; what is there is overwritten.

        Raises:
            OSError: If the folder cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.config, indent=2, sort_keys=True).encode()
        for name, chunks in ((SAFE_WEIGHTS_FILE, self._weights()), (CONFIG_FILE, iter((text,)))):
            unfinished = folder / f".{name}.{os.getpid()}"
            try:
                with unfinished.open("wb") as stream:
                    stream.writelines(chunks)
                unfinished.replace(folder / name)
            finally:
                unfinished.unlink(missing_ok=True)

    def _weights(self) -> Iterator[bytes]:
        """Yield the bytes of its safetensors file, a tensor at a time."""
        shapes: dict[str, tuple[int, int]] = {}
        for module, (num_in, num_out) in sorted(self.sizes.items()):
            shapes[f"base_model.model.{module}.lora_A.weight"] = (self.rank, num_in)
            shapes[f"base_model.model.{module}.lora_B.weight"] = (num_out, self.rank)
        header: dict[str, Json] = {}
        start = 0
        for name, shape in shapes.items():
            stop = start + 2 * math.prod(shape)
            header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, stop]}
            start = stop
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        yield len(text).to_bytes(8, "little") + text
        for name, shape in shapes.items():
            size = math.prod(shape)
            yield bytes(2 * size) if ".lora_B." in name else _values(size)


def find_zero_adapter(adapters: Sequence[Adapter], base_folder: str) -> ZeroAdapter | None:
    """Return the adapter of zero effect for a base with these adapters.

    It has the linear modules of all of them that stand in the base's files, under the same name or
    without the model's own prefix (`transformer.`); None if there are none.

    Args:
        adapters: Adapters of the base, read and checked.
        base_folder: The base's local folder.

    Raises:
        CellError: If files cannot be read.
    """
    base = read_base_tensors(Path(base_folder))
    halves: dict[str, dict[str, tuple[int, ...]]] = {}
    for adapter in adapters:
        files = read_adapter_files(
            adapter.path,
            what=f"adapter {adapter.name!r}",
            revision=adapter.revision,
            allow_pickle=adapter.allow_pickle,
        )
        for name, tensor in (files.tensors or {}).items():
            match = _LINEAR.fullmatch(name)
            if match and len(tensor.shape) == 2 and _stands_in(base, match["module"]):
                halves.setdefault(match["module"], {}).setdefault(match["half"], tensor.shape)
    whole = {name: found for name, found in halves.items() if len(found) == 2}
    if not whole:
        return None
    types = [adapter.config.get("task_type") for adapter in adapters]
    return ZeroAdapter(
        sizes={name: (found["A"][1], found["B"][0]) for name, found in whole.items()},
        rank=min(MOST_RANK, *(found["A"][0] for found in whole.values())),
        task_type=next((one for one in types if one), None),
    )


def is_written(adapter: Adapter) -> bool:
    """Return whether an adapter's files are there, with its content."""
    try:
        open_adapter(adapter)
    except CellError:
        return False
    return True


def why_effect(largest: float, mean: float, dtype: str, what: str) -> str:
    """Return how an adapter of zero effect changes its base; empty if it does not.

    Args:
        largest: By how much log-probabilities move at most, in nats.
        mean: On average.
        dtype: What the base computes in, for instance `bfloat16`.
        what: The adapter, for the message.
    """
    # In 16 bits LoRA's code may round otherwise: that is what the noise floor is to measure.
    is_float32 = dtype == "float32"
    found, limit = (largest, MOST_NATS_IN_FLOAT32) if is_float32 else (mean, MOST_MEAN_NATS)
    if math.isfinite(largest) and found <= limit:
        return ""
    return (
        f"{what}: it is of zero effect, and with it the base's log-probabilities move by up to "
        f"{largest:.1e} nats (mean {mean:.1e}) in {dtype}, which is more than rounding: this "
        "engine does not compute what an adapter says; try another version of it, or another engine"
    )


def _stands_in(base: Mapping[str, TensorInfo], module: str) -> bool:
    # Others may be tied to another module, or be renamed by transformers while it loads.
    name = f"{module}.weight"
    return name in base or name.partition(".")[2] in base


def _values(size: int) -> bytes:
    """Return the bytes of as many numbers of both signs, the same for the same size."""
    places = np.arange(size, dtype=np.uint64)
    odd = (places * np.uint64(2654435761) >> np.uint64(7)) & np.uint64(1)
    return np.where(odd == 1, _PLUS, _MINUS).astype("<u2").tobytes()
