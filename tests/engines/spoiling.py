"""How to spoil a good adapter: each function changes its folder, or makes one that does."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from raypeft.engines.adapters import CONFIG_FILE, PICKLED_WEIGHTS_FILE, SAFE_WEIGHTS_FILE

Spoil = Callable[[Path], object]
Tensors = dict[str, torch.Tensor]


def config(**changes: Any) -> Spoil:
    """Change settings."""

    def spoil(folder: Path) -> None:
        file = folder / CONFIG_FILE
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return spoil


def config_text(data: bytes) -> Spoil:
    """Write another config file."""
    return lambda folder: (folder / CONFIG_FILE).write_bytes(data)


def tensors(change: Callable[[Tensors], Tensors]) -> Spoil:
    """Change tensors."""

    def spoil(folder: Path) -> None:
        file = folder / SAFE_WEIGHTS_FILE
        changed = {name: one.contiguous() for name, one in change(load_file(file)).items()}
        save_file(changed, file)

    return spoil


def each(change: Callable[[torch.Tensor], torch.Tensor], *parts: str) -> Spoil:
    """Change the tensors whose names hold one of these parts."""
    return tensors(
        lambda all_: {
            name: change(one) if any(part in name for part in parts) else one
            for name, one in all_.items()
        }
    )


def without(*parts: str) -> Spoil:
    """Leave out the tensors whose names hold one of these parts."""
    return tensors(
        lambda all_: {n: one for n, one in all_.items() if not any(part in n for part in parts)}
    )


def renamed(old: str, new: str, *, keep: bool = False) -> Spoil:
    """Rename tensors, or copy them under another name."""
    return tensors(
        lambda all_: (
            (dict(all_) if keep else {})
            | {n.replace(old, new): t.clone() for n, t in all_.items() if old in n or not keep}
        )
    )


def both(*spoils: Spoil) -> Spoil:
    """Spoil in several ways."""
    return lambda folder: [spoil(folder) for spoil in spoils]


def weights_bytes(change: Callable[[bytes], bytes]) -> Spoil:
    """Change the bytes of the weights file."""

    def spoil(folder: Path) -> None:
        file = folder / SAFE_WEIGHTS_FILE
        file.write_bytes(change(file.read_bytes()))

    return spoil


def header(change: Callable[[str], str]) -> Spoil:
    """Change the header of the weights file, whatever that does to the rest."""

    def with_other_header(data: bytes) -> bytes:
        length = int.from_bytes(data[:8], "little")
        text = change(data[8 : 8 + length].decode()).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    return weights_bytes(with_other_header)


def one_entry(key: str, value: Any) -> Spoil:
    """Change one field of the header's first tensor."""

    def changed(text: str) -> str:
        entries = json.loads(text)
        first = next(name for name in entries if name != "__metadata__")
        entries[first][key] = value
        return json.dumps(entries)

    return header(changed)


def twice(text: str) -> str:
    """Name the header's first tensor a second time."""
    entries = json.loads(text)
    first = next(name for name in entries if name != "__metadata__")
    return f"{text.rstrip()[:-1]}, {json.dumps(first)}: {json.dumps(entries[first])}}}"


def replaced(name: str, make: Callable[[Path], object]) -> Spoil:
    """Put something else in a file's place."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return spoil


def folder_as(make: Callable[[Path], object]) -> Spoil:
    """Put something else in the folder's place."""

    def spoil(folder: Path) -> None:
        shutil.rmtree(folder)
        make(folder)

    return spoil


def removed(*names: str) -> Spoil:
    """Delete files."""

    def spoil(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return spoil


def link(target: str) -> Callable[[Path], None]:
    """Make a symbolic link."""
    return lambda path: path.symlink_to(target)


def loop(path: Path) -> None:
    """Make a link to itself."""
    path.symlink_to(path)


def pickled(make: Callable[[Tensors], Any]) -> Spoil:
    """Hold the weights in a pickle, or something else."""

    def spoil(folder: Path) -> None:
        torch.save(make(load_file(folder / SAFE_WEIGHTS_FILE)), folder / PICKLED_WEIGHTS_FILE)
        (folder / SAFE_WEIGHTS_FILE).unlink()

    return spoil


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def malicious(folder: Path) -> None:
    """Hold code in a pickle; the marker that it would make is beside the folder."""
    marker = folder.parent / "ran"
    torch.save({"lora_A": Malicious(marker)}, folder / PICKLED_WEIGHTS_FILE)
    (folder / SAFE_WEIGHTS_FILE).unlink()


def unreadable(folder: Path) -> None:
    """Take away the right to read."""
    (folder / SAFE_WEIGHTS_FILE).chmod(0)


def nan(tensor: torch.Tensor) -> torch.Tensor:
    """Make one value NaN."""
    changed = tensor.clone()
    changed.view(-1)[3] = float("nan")
    return changed


def wider(tensor: torch.Tensor) -> torch.Tensor:
    """Give an A matrix twice the inputs."""
    return torch.cat([tensor, tensor], dim=1)


def outputs(all_: Tensors) -> Tensors:
    """Return the B matrices by the names of their A matrices."""
    return {name: all_[name.replace("lora_A", "lora_B")] for name in all_ if "lora_A" in name}
