"""Proves that a base is what it was when it was loaded.

Decides: whether anything an adapter may have left behind (changed weights, wrapped modules,
hooks, patched methods, settings) is still there. Leaves to others: what to do about it (`hf`
loads the base again).

PEFT's `unload` is not enough: biases, PiSSA and its like, layer replication and saved modules
leave changed weights behind, and an exception in a forward pass can leave hooks behind; the next
adapter would be measured on that.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch

_INTEGER_OF_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a loaded base is made of.

    Attributes:
        tensors: dtype, shape and checksum of every parameter and buffer, by name.
        modules: Class, mode, hooks and patched methods of every module, by name.
        settings: The config and generation config, as JSON.
    """

    tensors: dict[str, tuple[str, tuple[int, ...], tuple[int, int]]]
    modules: dict[str, tuple[str, bool, int, tuple[str, ...]]]
    settings: str

    def difference(self, later: "Snapshot") -> str:
        """Return the first thing that differs in a later snapshot; empty if nothing does."""
        for kind, before, after in (
            ("module", self.modules, later.modules),
            ("tensor", self.tensors, later.tensors),
        ):
            if before.keys() != after.keys():
                names = sorted(before.keys() ^ after.keys())
                return f"{kind}s that came or went: {', '.join(names[:3])}"
            for name, value in before.items():
                if after[name] != value:
                    return f"{kind} {name!r} changed from {value} to {after[name]}"
        return "" if self.settings == later.settings else "the model's config changed"


def take_snapshot(model: torch.nn.Module) -> Snapshot:
    """Return what a model is made of; reads every weight once, on the device it lies on."""
    named = list(_named_tensors(model))
    sums = _checksums([tensor for _, tensor in named])
    tensors = {
        name: (str(tensor.dtype), tuple(tensor.shape), checksum)
        for (name, tensor), checksum in zip(named, sums, strict=True)
    }
    modules = {name: _module_state(module) for name, module in model.named_modules()}
    return Snapshot(tensors=tensors, modules=modules, settings=_settings(model))


def _named_tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    # Tied weights appear under both names, so that a broken tie with other values is seen.
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


@torch.no_grad()
def _checksums(tensors: list[torch.Tensor]) -> list[tuple[int, int]]:
    """Return two sums over the bits of each tensor, one of which depends on the positions."""
    known: dict[tuple[int, torch.Size, tuple[int, ...]], torch.Tensor] = {}
    sums = []
    for tensor in tensors:
        key = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if key not in known:
            known[key] = _bit_sums(tensor)
        sums.append(known[key])
    # One transfer for all, so that a GPU is not waited for hundreds of times.
    return [(int(first), int(second)) for first, second in _to_lists(sums)]


def _to_lists(sums: list[torch.Tensor]) -> list[list[int]]:
    if len({one.device for one in sums}) == 1:
        stacked: list[list[int]] = torch.stack(sums).tolist()
        return stacked
    return [one.tolist() for one in sums]


def _bit_sums(tensor: torch.Tensor) -> torch.Tensor:
    """Return [sum of bits, sum of bits weighted by position], both modulo 2⁶⁴."""
    flat = tensor.detach().contiguous().reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    if flat.dtype is torch.bool:
        flat = flat.view(torch.uint8)
    bits = flat.view(_INTEGER_OF_SIZE[flat.element_size()])
    if bits.numel() == 0:
        return torch.zeros(2, dtype=torch.int64, device=bits.device)
    width = tensor.shape[-1] if tensor.ndim > 1 else 1
    rows = bits.reshape(-1, width)
    # Two reductions without a copy of the weights in int64; swapped rows or columns show.
    by_row = rows.sum(dim=1, dtype=torch.int64)
    by_column = rows.sum(dim=0, dtype=torch.int64)
    weighted = (by_row * _odd_weights(by_row)).sum() + (by_column * _odd_weights(by_column)).sum()
    return torch.stack([by_row.sum(), weighted])


def _odd_weights(like: torch.Tensor) -> torch.Tensor:
    positions = torch.arange(like.numel(), dtype=torch.int64, device=like.device)
    return positions * 0x9E37_79B9 + 0x85EB_CA6B


def _module_state(module: torch.nn.Module) -> tuple[str, bool, int, tuple[str, ...]]:
    hooks = sum(len(getattr(module, name, None) or ()) for name in _HOOKS)
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    return kind, module.training, hooks, tuple(_patched_methods(module))


def _patched_methods(module: torch.nn.Module) -> list[str]:
    """Return the names under which an instance hides a method of its class by another function."""
    patched = []
    for name, value in vars(module).items():
        own = getattr(type(module), name, None)
        if not callable(value) or not callable(own):
            continue
        # PEFT's generate puts the class's own method back as an instance attribute: no change.
        restored = isinstance(value, MethodType) and value.__self__ is module
        if not (restored and value.__func__ is own):
            patched.append(name)
    return sorted(patched)


def _settings(model: torch.nn.Module) -> str:
    configs: list[Any] = [getattr(model, name, None) for name in ("config", "generation_config")]
    return json.dumps(
        [config.to_dict() if config is not None else None for config in configs],
        sort_keys=True,
        default=str,
    )
