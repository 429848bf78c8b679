"""The engine contract, for every engine there is."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from raypeft.core.records import Adapter, EngineSpec
from raypeft.engines.adapters import read_adapter
from raypeft.engines.base import Engine
from raypeft.engines.bases import read_base
from raypeft.engines.build import build_engine
from tests.contract.engine_contract import EngineContract, closing
from tests.engines.samples import hand_made_adapter, lora_tensors
from tests.support.tiny import tiny_llama, tiny_lora


class TestFakeEngine(EngineContract):
    SPEC = EngineSpec(
        kind="fake",
        base="fake-base",
        base_digest="b" * 32,
        options={"script": {"events": [{"adapter": "bad", "do": "fail"}]}},
    )

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls) -> Iterator[Engine]:
        yield from closing(build_engine(cls.SPEC))

    @pytest.fixture
    def fresh_engine(self) -> Iterator[Engine]:
        yield from closing(build_engine(self.SPEC))

    @pytest.fixture(scope="class")
    @classmethod
    def adapters(cls) -> list[Adapter]:
        return [
            Adapter(name=name, path=f"adapters/{name}", digest=name * 32) for name in ("a", "c")
        ]

    @pytest.fixture(scope="class")
    @classmethod
    def bad_adapter(cls) -> Adapter:
        return Adapter(name="bad", path="adapters/bad", digest="d" * 32)


@pytest.mark.torch
class TestHFEngine(EngineContract):
    @pytest.fixture(scope="class")
    @classmethod
    def base(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tiny_llama(tmp_path_factory.mktemp("hf") / "base")

    @pytest.fixture(scope="class")
    @classmethod
    def spec(cls, base: Path) -> EngineSpec:
        facts = read_base(str(base))
        return EngineSpec(kind="hf", base=facts.path, base_digest=facts.digest, batch_size=4)

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, spec: EngineSpec) -> Iterator[Engine]:
        yield from closing(build_engine(spec))

    @pytest.fixture
    def fresh_engine(self, spec: EngineSpec) -> Iterator[Engine]:
        yield from closing(build_engine(spec))

    @pytest.fixture(scope="class")
    @classmethod
    def adapters(cls, base: Path) -> list[Adapter]:
        plain = tiny_lora(base, base.parent / "plain")
        dora = tiny_lora(base, base.parent / "dora", seed=2, rank=8, use_dora=True)
        return [
            read_adapter(str(folder), name=folder.name, base_path=str(base))
            for folder in (plain, dora)
        ]

    @pytest.fixture(scope="class")
    @classmethod
    def bad_adapter(cls, base: Path) -> Adapter:
        folder = hand_made_adapter(base.parent / "bad", lora_tensors(hidden=24))
        return read_adapter(str(folder), name="bad")
