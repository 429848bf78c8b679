"""Reads safetensors files without torch: names, dtypes, shapes, and whether values are finite.

Decides: whether a file is whole and well-formed (header, offsets, sizes), and which of its
tensors hold NaN or infinity or are all zero. Leaves to others: what the tensors mean.

The safetensors library reports a broken file by its first problem in the words of its parser;
here the message names the file, the tensor and the numbers, and nothing is ever mapped into a
model before the file has been found whole.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from raypeft.core.records import FailureKind
from raypeft.engines.folders import read_failure
from raypeft.errors import CellError

BLOCK_BYTES = 8 << 20
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip

_Bits = npt.NDArray[Any]
_NON_FINITE: dict[str, tuple[str, Callable[[_Bits], _Bits]]] = {
    # An exponent of all ones is NaN or infinity in IEEE formats.
    "F64": ("<u8", lambda bits: (bits & 0x7FF0_0000_0000_0000) == 0x7FF0_0000_0000_0000),
    "F32": ("<u4", lambda bits: (bits & 0x7F80_0000) == 0x7F80_0000),
    "C64": ("<u4", lambda bits: (bits & 0x7F80_0000) == 0x7F80_0000),
    "F16": ("<u2", lambda bits: (bits & 0x7C00) == 0x7C00),
    "BF16": ("<u2", lambda bits: (bits & 0x7F80) == 0x7F80),
    "F8_E5M2": ("u1", lambda bits: (bits & 0x7C) == 0x7C),
    # These have no infinity and one or two NaN patterns.
    "F8_E4M3": ("u1", lambda bits: (bits & 0x7F) == 0x7F),
    "F8_E8M0": ("u1", lambda bits: bits == 0xFF),
    "F8_E4M3FNUZ": ("u1", lambda bits: bits == 0x80),
    "F8_E5M2FNUZ": ("u1", lambda bits: bits == 0x80),
}
_SIGN_FREE = {"<u8": 0x7FFF_FFFF_FFFF_FFFF, "<u4": 0x7FFF_FFFF, "<u2": 0x7FFF, "u1": 0x7F}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a file.

    Attributes:
        dtype: safetensors' name, for instance `BF16`.
        shape: Its shape.
        start: First byte in the file.
        stop: First byte after it.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def num_elements(self) -> int:
        """How many values it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class TensorScan:
    """What reading a tensor's values showed.

    Attributes:
        num_non_finite: Values that are NaN or infinite.
        is_zero: Whether every value is zero.
    """

    num_non_finite: int
    is_zero: bool


def read_header(file: Path, *, what: str) -> dict[str, TensorInfo]:
    """Return the tensors of a safetensors file, by name, after checking that it is whole.

    Args:
        file: The file.
        what: What it belongs to, for messages.

    Raises:
        CellError: `unreadable`, saying what is wrong with the file.
    """
    try:
        with file.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            header, data_start = _raw_header(stream, size)
        return _tensors(header, data_start, size)
    except OSError as error:
        raise read_failure(what, file, error) from None
    except _BrokenFileError as error:
        raise CellError(
            FailureKind.UNREADABLE,
            f"{what}: {file} is not a whole safetensors file: {error}; copy or save it again",
        ) from None


def scan_tensor(file: Path, tensor: TensorInfo) -> TensorScan:
    """Read a tensor's values in blocks and return what they show."""
    bits_dtype, non_finite = _NON_FINITE.get(tensor.dtype, ("u1", None))
    magnitude = _SIGN_FREE[bits_dtype] if non_finite is not None else 0xFF
    num_non_finite, is_zero = 0, True
    for block in _blocks(file, tensor.start, tensor.stop):
        bits = np.frombuffer(block, dtype=bits_dtype)
        if non_finite is not None:
            num_non_finite += int(np.count_nonzero(non_finite(bits)))
        # The sign of a zero is no effect either.
        is_zero = is_zero and not np.any(bits & np.array(magnitude, dtype=bits_dtype))
    return TensorScan(num_non_finite=num_non_finite, is_zero=is_zero)


def hash_file(file: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    hasher = hashlib.sha256()
    with file.open("rb", buffering=0) as stream:
        while block := stream.read(BLOCK_BYTES):
            hasher.update(block)
    return hasher.hexdigest()


class _BrokenFileError(Exception):
    """Why a safetensors file cannot be used; becomes a `CellError` that names the file."""


def _raw_header(stream: BinaryIO, size: int) -> tuple[Mapping[str, Any], int]:
    if size == 0:
        raise _BrokenFileError("it is empty")
    if size < 8:
        raise _BrokenFileError(f"it has {size} bytes, and the header's length alone takes 8")
    length = int.from_bytes(stream.read(8), "little")
    if length > _MAX_HEADER_BYTES:
        raise _BrokenFileError(
            f"its header claims {length} bytes, and at most {_MAX_HEADER_BYTES} are allowed"
        )
    if 8 + length > size:
        raise _BrokenFileError(f"its header claims {length} bytes, but the file has {size}")
    try:
        header = json.loads(stream.read(length), object_pairs_hook=_without_duplicates)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise _BrokenFileError(f"its header is not JSON ({error})") from None
    if not isinstance(header, dict):
        raise _BrokenFileError("its header is not a JSON object")
    return header, 8 + length


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise _BrokenFileError(f"its header names {name!r} twice")
        result[name] = value
    return result


def _tensors(header: Mapping[str, Any], data_start: int, size: int) -> dict[str, TensorInfo]:
    tensors = {
        name: _tensor(name, entry, data_start)
        for name, entry in header.items()
        if name != "__metadata__"
    }
    expected = data_start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if tensor.start != expected:
            relation = (
                "overlaps the tensor before it" if tensor.start < expected else "leaves a gap"
            )
            raise _BrokenFileError(f"tensor {name!r} {relation} at byte {tensor.start}")
        expected = tensor.stop
    if expected != size:
        verb = "ends" if size < expected else "goes on"
        raise _BrokenFileError(f"its tensors end at byte {expected}, but the file {verb} at {size}")
    return tensors


def _tensor(name: str, entry: Any, data_start: int) -> TensorInfo:
    try:
        dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, start, stop]
    except (TypeError, KeyError, ValueError):
        raise _BrokenFileError(f"the entry of tensor {name!r} is malformed") from None
    if not all(type(number) is int and number >= 0 for number in numbers) or stop < start:
        raise _BrokenFileError(f"the entry of tensor {name!r} holds impossible numbers")
    if dtype not in _BITS:
        raise _BrokenFileError(f"tensor {name!r} has the unknown dtype {dtype!r}")
    num_bits = math.prod(shape) * _BITS[dtype]
    if num_bits != (stop - start) * 8:
        raise _BrokenFileError(
            f"tensor {name!r} takes {stop - start} bytes, but {dtype} of shape {tuple(shape)} "
            f"needs {num_bits / 8:g}"
        )
    return TensorInfo(dtype, tuple(shape), data_start + start, data_start + stop)


def _blocks(file: Path, start: int, stop: int) -> Iterator[bytes]:
    with file.open("rb", buffering=0) as stream:
        stream.seek(start)
        while start < stop:
            # A raw read may give less than asked for; blocks must hold whole values.
            block = bytearray()
            wanted = min(BLOCK_BYTES, stop - start)
            while len(block) < wanted:
                part = stream.read(wanted - len(block))
                if not part:
                    raise OSError(f"{file} became shorter while it was read")
                block += part
            start += wanted
            yield bytes(block)
