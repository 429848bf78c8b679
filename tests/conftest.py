"""What all tests share: one local Ray, and an environment in which nothing leaves this machine."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.support.lab import lab, make_lab_sweep

if TYPE_CHECKING:
    from raypeft.runtime.pool import RayConnection

__all__ = ["lab", "local_ray", "make_lab_sweep"]

# Before anything imports Ray or the Hugging Face libraries, which read them once.
os.environ.pop("RAY_ADDRESS", None)
os.environ["RAY_DEDUP_LOGS"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def local_ray() -> "Iterator[RayConnection]":
    """A Ray of this test session alone; starting one takes seconds, so all tests share it."""
    from raypeft.runtime.pool import connect

    # Cores are counted, not measured: more than there are lets small actors run side by side.
    with connect(num_cpus=8, num_gpus=0, object_store_mib=100) as connection:
        yield connection
