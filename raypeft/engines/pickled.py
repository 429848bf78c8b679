"""What an adapter's pickled weights hold, without their values.

Decides: the names and shapes in `adapter_model.bin`, read by torch's own unpickler, which builds
tensors and runs nothing. Leaves to others: whether pickled weights may be used at all
(`adapters`), their values (`hf_adapters`).
"""

import pickle
from collections.abc import Mapping
from typing import Any

from raypeft.core.records import FailureKind
from raypeft.engines.adapters import AdapterFiles
from raypeft.engines.tensorfiles import TensorInfo
from raypeft.errors import CellError

_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fn": "F8_E4M3",
}


def pickled_tensors(files: AdapterFiles, *, what: str) -> dict[str, TensorInfo]:
    """Return the tensors of a pickled weights file; their places in it are not told.

    Raises:
        CellError: `unreadable`, or `unsafe` if it holds more than tensors.
    """
    weights = load_pickled(files, what=what, device="meta")
    return {
        name: TensorInfo(_dtype(tensor), tuple(tensor.shape), 0, 0)
        for name, tensor in weights.items()
    }


def load_pickled(files: AdapterFiles, *, what: str, device: str) -> Mapping[str, Any]:
    """Load a pickled weights file; on the device `meta` without its values.

    Raises:
        CellError: `unreadable`, or `unsafe` if it holds more than tensors.
    """
    # Only sweeps with pickled adapters need torch this early: planning does without it.
    import torch

    try:
        weights = torch.load(files.weights, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        if "Weights only load failed" not in str(error):
            raise _unreadable(files, what, error) from error
        raise CellError(
            FailureKind.UNSAFE,
            f"{what}: {files.weights} holds more than tensors, and what it holds was not run: "
            f"{_first_line(error)}; save the adapter again as safetensors",
        ) from error
    except Exception as error:
        raise _unreadable(files, what, error) from error
    if not isinstance(weights, dict) or not all(
        isinstance(one, torch.Tensor) for one in weights.values()
    ):
        raise CellError(FailureKind.UNREADABLE, f"{what}: {files.weights} holds no tensors by name")
    return weights


def _dtype(tensor: Any) -> str:
    name = str(tensor.dtype).removeprefix("torch.")
    return _DTYPES.get(name, name)


def _unreadable(files: AdapterFiles, what: str, error: Exception) -> CellError:
    return CellError(
        FailureKind.UNREADABLE,
        f"{what}: {files.weights} cannot be read: {type(error).__name__}: {_first_line(error)}; "
        "copy or save it again",
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
