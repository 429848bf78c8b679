"""Reads back what an engine really runs on.

Decides: what belongs to a hardware fingerprint, that is what can change the last bits of an
answer. Leaves to others: what may be compared with what.

On a GPU these are the device, its memory and capability, the driver and the precision of matrix
products; on the CPU the processor, the instruction set torch chose and the number of threads
(another number splits sums differently). Package versions are recorded beside it.
"""

import importlib
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

from raypeft.core.identity import digest
from raypeft.core.records import Hardware, Json

HARDWARE_VERSION = 1
_PACKAGES = ("torch", "transformers", "peft", "lm-eval", "tokenizers", "accelerate", "numpy")
_GIB = 1 << 30


def read_hardware(device: str) -> Hardware:
    """Return the hardware of this process as seen by torch.

    Args:
        device: `cpu` or `cuda`, with or without a number.
    """
    is_gpu = torch.device(device).type == "cuda"
    fields = _gpu_fields() if is_gpu else _cpu_fields()
    memory = fields["memory_bytes"][0] if is_gpu else _host_memory_bytes()
    return Hardware(
        fingerprint=digest("hardware", HARDWARE_VERSION, _rounded(fields)),
        device=str(fields["names"][0]),
        num_devices=len(fields["names"]) if is_gpu else 0,
        memory_gib=round(memory / _GIB, 1),
        threads=torch.get_num_threads(),
        node=platform.node(),
        software=_software(),
    )


def _gpu_fields() -> dict[str, Any]:
    devices = [torch.cuda.get_device_properties(at) for at in range(torch.cuda.device_count())]
    return {
        "names": [device.name for device in devices],
        "memory_bytes": [device.total_memory for device in devices],
        "capabilities": [f"{device.major}.{device.minor}" for device in devices],
        "driver": _driver_version(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
    }


def _cpu_fields() -> dict[str, Any]:
    return {
        "names": [_processor_name()],
        "machine": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def _rounded(fields: dict[str, Any]) -> dict[str, Json]:
    """Return the fields with memory in whole GiB: equal cards differ by a few MiB."""
    memory = fields.get("memory_bytes")
    return fields | ({"memory_bytes": [round(one / _GIB) for one in memory]} if memory else {})


def _host_memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except OSError:
        pass  # no Linux; the generic name must do
    return platform.processor() or platform.machine()


def _driver_version() -> str:
    """Return the NVIDIA driver's version: from NVML, else from the kernel module, else empty."""
    try:
        pynvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return _kernel_driver_version()
    try:
        pynvml.nvmlInit()
        try:
            return str(pynvml.nvmlSystemGetDriverVersion())
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return _kernel_driver_version()


def _kernel_driver_version() -> str:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return ""
    # "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 …"
    words = text.partition("\n")[0].split()
    return next((word for word in words if word[0].isdigit() and "." in word), "")


def _software() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
