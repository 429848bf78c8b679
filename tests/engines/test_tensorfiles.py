"""A safetensors file is read without torch, and a broken one is named with what is wrong."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from raypeft.core.records import FailureKind
from raypeft.engines.tensorfiles import read_header, scan_tensor
from raypeft.errors import CellError


def write_raw(file: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return file


def entry(shape: list[int], start: int, stop: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def test_names_shapes_and_dtypes_are_read(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file(
        {"a": np.zeros((2, 3), np.float32), "b": np.ones((), np.int64), "c": np.ones((0, 4))},
        file,
        metadata={"format": "pt"},
    )

    tensors = read_header(file, what="x")

    assert {name: (one.dtype, one.shape) for name, one in tensors.items()} == {
        "a": ("F32", (2, 3)),
        "b": ("I64", ()),
        "c": ("F64", (0, 4)),
    }
    assert tensors["a"].num_elements == 6


BROKEN: dict[str, tuple[Any, bytes, int | None, str]] = {
    "short": (b"", b"", None, "has 8 bytes|not JSON"),
    "header beyond the end": ({}, b"", 500, "claims 500 bytes, but the file has"),
    "header too long": ({}, b"", 1 << 40, "at most 100000000"),
    "no JSON": (b"{nonsense", b"", None, "not JSON"),
    "no UTF-8": (b"\xff\xfe\x00", b"", None, "not JSON"),
    "no object": ([1, 2], b"", None, "not a JSON object"),
    "twice": (b'{"a": {}, "a": {}}', b"", None, "names 'a' twice"),
    "truncated": ({"a": entry([2], 0, 8)}, b"1234", None, "the file ends at"),
    "trailing bytes": ({"a": entry([1], 0, 4)}, b"12345678", None, "the file goes on at"),
    "gap": ({"a": entry([1], 4, 8)}, b"12345678", None, "leaves a gap"),
    "overlap": (
        {"a": entry([2], 0, 8), "b": entry([1], 4, 8)},
        b"12345678",
        None,
        "'b' overlaps the tensor before it",
    ),
    "size": ({"a": entry([3], 0, 8)}, b"12345678", None, r"F32 of shape \(3,\) needs 12"),
    "dtype": ({"a": entry([1], 0, 4, "F33")}, b"1234", None, "unknown dtype 'F33'"),
    "negative": ({"a": entry([-1], 0, 4)}, b"1234", None, "impossible numbers"),
    "backwards": ({"a": entry([0], 4, 0)}, b"1234", None, "impossible numbers"),
    "malformed": ({"a": {"dtype": "F32"}}, b"", None, "'a' is malformed"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_unreadable_and_says_why(tmp_path: Path, case: str) -> None:
    header, data, length, message = BROKEN[case]
    file = write_raw(tmp_path / "broken.safetensors", header, data, length)

    with pytest.raises(CellError, match=message) as raised:
        read_header(file, what="adapter 'x'")
    assert raised.value.kind == FailureKind.UNREADABLE
    assert "adapter 'x'" in raised.value.message
    assert str(file) in raised.value.message


def test_empty_and_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()

    with pytest.raises(CellError, match="it is empty"):
        read_header(tmp_path / "empty", what="x")
    with pytest.raises(CellError, match="there is no such file"):
        read_header(tmp_path / "missing", what="x")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_to_a_file_escapes_as_another_error(tmp_path: Path, data: st.DataObject) -> None:
    kinds: set[str] = set()
    file = tmp_path / "x.safetensors"
    save_file({"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float16)}, file)
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content[: data.draw(st.integers(0, len(content)))])

    try:
        tensors = read_header(file, what="x")
    except CellError as error:
        kinds.add(error.kind)
    else:
        for tensor in tensors.values():
            scan_tensor(file, tensor)
    assert kinds <= {FailureKind.UNREADABLE}


FLOATS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


@pytest.mark.torch
@pytest.mark.parametrize("dtype", FLOATS)
def test_nan_is_told_from_the_largest_value_in_every_float_type(tmp_path: Path, dtype: str) -> None:
    import torch
    from safetensors.torch import save_file as save_torch_file

    kind = getattr(torch, FLOATS[dtype])
    largest = torch.finfo(kind).max
    file = tmp_path / "x.safetensors"
    tensors = {
        "clean": torch.tensor([0.0, -0.0, 1.5, -largest, largest], dtype=torch.float64).to(kind),
        "broken": torch.tensor([1.0, float("nan"), -float("nan")]).to(kind),
    }
    save_torch_file(tensors, file)

    found = read_header(file, what="x")

    assert {one.dtype for one in found.values()} == {dtype}
    assert scan_tensor(file, found["clean"]).num_non_finite == 0
    assert scan_tensor(file, found["broken"]).num_non_finite == 2


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_one_bad_value_beyond_the_first_block_is_found(tmp_path: Path, value: float) -> None:
    values = np.zeros(5 << 20, np.float16)
    values[-1] = value
    file = tmp_path / "x.safetensors"
    save_file({"a": values}, file)

    scan = scan_tensor(file, read_header(file, what="x")["a"])

    assert scan.num_non_finite == 1
    assert not scan.is_zero


def test_zeros_of_either_sign_are_zero(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file(
        {
            "zero": np.array([0.0, -0.0], np.float32),
            "tiny": np.array([0.0, 1e-45], np.float32),
            "whole": np.array([0, 128], np.uint8),
        },
        file,
    )
    tensors = read_header(file, what="x")

    found = {name: scan_tensor(file, tensor).is_zero for name, tensor in tensors.items()}

    assert found == {"zero": True, "tiny": False, "whole": False}
