"""What all tests share: one local Ray, and an environment in which nothing leaves this machine."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
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


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out files all of whose tests `-m` leaves out: importing torch alone takes seconds."""
    if collection_path.suffix != ".py" or not collection_path.is_file():
        return None
    expression = str(config.getoption("markexpr"))
    if "(" in expression or " or " in expression:
        return None
    left_out = {term[4:] for term in expression.split(" and ") if term.startswith("not ")}
    line = MARKS.search(collection_path.read_text(encoding="utf-8")) if left_out else None
    if line is None:
        return None
    return bool(left_out & set(re.findall(r"pytest\.mark\.(\w+)", line[0]))) or None


MARKS = re.compile(r"^pytestmark = .*$", re.MULTILINE)
