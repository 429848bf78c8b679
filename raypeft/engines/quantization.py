"""Bases whose weights are quantised while they are loaded, with bitsandbytes.

Decides: what transformers is told, and whether this process can do it at all. Leaves to others:
loading (`hf_model`), and which adapters may be merged into such a base (`merging`).
"""

from importlib.util import find_spec
from typing import Any

from raypeft.core.records import FailureKind, Quantization
from raypeft.errors import CellError

PACKAGE = "bitsandbytes"


def quantization_problem(quantization: Quantization | None, *, device: str) -> str:
    """Return why a base cannot be quantised in this process; empty if it can, or need not be.

    Args:
        quantization: What the sweep file asks for.
        device: What the slot has.
    """
    if quantization is None:
        return ""
    if not device.startswith("cuda"):
        return f"quantization {quantization} needs a GPU, and the device is {device!r}"
    if find_spec(PACKAGE) is None:
        return (
            f"quantization {quantization} needs the package {PACKAGE}, which is not installed in "
            "this environment; install it (`pip install bitsandbytes`) wherever slots run"
        )
    return ""


def check_quantization(quantization: Quantization | None, *, what: str, device: str) -> None:
    """Refuse a base that cannot be quantised in this process.

    Raises:
        CellError: `load_failed`.
    """
    if problem := quantization_problem(quantization, device=device):
        raise CellError(FailureKind.LOAD_FAILED, f"{what}: {problem}")


def bitsandbytes_settings(quantization: Quantization, dtype: str) -> dict[str, Any]:
    """Return the settings of transformers' `BitsAndBytesConfig`.

    The 4-bit settings are those QLoRA trains with: nf4, constants quantised once more.
    """
    if quantization == "bnb-8bit":
        return {"load_in_8bit": True}
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": dtype,
    }


def loading_arguments(
    quantization: Quantization | None, *, dtype: str, device: str
) -> dict[str, Any]:
    """Return what a quantised base's loading is told beside the rest; nothing for others."""
    if quantization is None:
        return {}
    from transformers import BitsAndBytesConfig

    return {
        "quantization_config": BitsAndBytesConfig(**bitsandbytes_settings(quantization, dtype)),
        # bitsandbytes quantises while weights arrive on their device; they cannot be moved later.
        "device_map": {"": device},
    }
