"""What answered is read back, and what cannot change an answer is not in the fingerprint."""

import pytest
import torch

from raypeft.engines.hardware import read_hardware

pytestmark = pytest.mark.torch


def test_a_cpu_is_described() -> None:
    hardware = read_hardware("cpu")

    assert hardware.device
    assert hardware.num_devices == 0
    assert hardware.memory_gib > 0
    assert hardware.threads == torch.get_num_threads()
    assert hardware.node
    assert {"python", "torch", "transformers", "peft", "lm-eval"} <= hardware.software.keys()
    assert hardware.software["torch"] == torch.__version__


def test_reading_twice_gives_the_same() -> None:
    assert read_hardware("cpu") == read_hardware("cpu")


def test_another_number_of_threads_is_other_hardware() -> None:
    before, threads = read_hardware("cpu"), torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert read_hardware("cpu").fingerprint != before.fingerprint
    finally:
        torch.set_num_threads(threads)
    assert read_hardware("cpu") == before


@pytest.mark.gpu
def test_a_gpu_is_described() -> None:
    hardware = read_hardware("cuda")

    assert hardware.device == torch.cuda.get_device_name(0)
    assert hardware.num_devices == torch.cuda.device_count()
    assert hardware.memory_gib > 1
    assert hardware.fingerprint != read_hardware("cpu").fingerprint
