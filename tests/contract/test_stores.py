"""The store's contract in every kind of place that needs no server.

A bucket of an object store is reached through the same pyarrow calls as the last two.
"""

from pathlib import Path

import pyarrow.fs as pafs
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from raypeft.store.files import Location
from raypeft.store.store import Store
from tests.contract.store_contract import OpenStore, StoreContract


class Places(StoreContract):
    @pytest.fixture
    def open_store(self, location: Location) -> OpenStore:
        return lambda: Store(location)


class TestLocalFolder(Places):
    @pytest.fixture
    def location(self, tmp_path: Path) -> Location:
        return tmp_path / "deep" / "store"


class TestFileUri(Places):
    @pytest.fixture
    def location(self, tmp_path: Path) -> Location:
        return f"file://{tmp_path}/store with spaces".replace(" ", "%20")


class TestFilesystemInMemory(Places):
    """pyarrow's own; it cannot append and knows no fsync, like an object store."""

    @pytest.fixture
    def location(self) -> Location:
        return pafs._MockFileSystem()


class TestFsspecFilesystem(Places):
    @pytest.fixture
    def location(self) -> Location:
        memory = MemoryFileSystem(skip_instance_cache=True)
        memory.store = {}
        memory.pseudo_dirs = [""]
        return pafs.PyFileSystem(pafs.FSSpecHandler(memory))
