import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raypeft.runtime.local import LocalPool
from raypeft.runtime.options import HardwareProfile
from raypeft.runtime.pool import RayConnection, RayPool
from raypeft.runtime.ports import Pool
from tests.contract.pool_contract import PoolContract


@pytest.fixture
def monotonic() -> Callable[[], float]:
    return time.monotonic


class TestLocalPool(PoolContract):
    @pytest.fixture
    def pool(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        pool = LocalPool(num_slots=2)
        yield pool
        pool.close()


@pytest.mark.ray
class TestRayPool(PoolContract):
    @pytest.fixture
    def pool(self, local_ray: RayConnection) -> Iterator[Pool]:
        pool = RayPool(local_ray, profile=HardwareProfile(cpus=1), num_slots=2)
        yield pool
        pool.close()
