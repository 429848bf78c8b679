"""The engine contract, for vLLM; and what its processes do when they end."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from raypeft.core.records import Adapter, FailureKind, Shard
from raypeft.engines.adapters import read_adapter
from raypeft.engines.base import Engine
from raypeft.engines.build import build_engine
from raypeft.errors import EngineFatalError
from tests.contract.engine_contract import EngineContract, closing
from tests.engines.samples import hand_made_adapter, lora_tensors, mixed_calls, request_set
from tests.support.tiny import tiny_lora
from tests.vllm.conftest import VLLMLab, subject_of

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore::Warning")]


def workers() -> set[int]:
    """Return vLLM's processes below this one."""
    children = psutil.Process().children(recursive=True)
    return {one.pid for one in children if "VLLM" in " ".join(one.cmdline())}


class TestVLLMEngine(EngineContract):
    @pytest.fixture
    def engine(self, vllm_engine: Engine) -> Engine:
        return vllm_engine

    @pytest.fixture
    def fresh_engine(self, vllm_lab: VLLMLab) -> Iterator[Engine]:
        before = workers()
        yield from closing(build_engine(vllm_lab.spec))
        assert workers() == before, "closing left processes behind"

    @pytest.fixture
    def adapters(self, vllm_lab: VLLMLab) -> list[Adapter]:
        return list(vllm_lab.adapters[:2])

    @pytest.fixture(scope="class")
    @classmethod
    def bad_adapter(cls, tmp_path_factory: pytest.TempPathFactory) -> Adapter:
        folder: Path = tmp_path_factory.mktemp("bad") / "bad"
        return read_adapter(str(hand_made_adapter(folder, lora_tensors(hidden=24))), name="bad")


def test_a_killed_engine_is_fatal_and_leaves_nothing_behind(
    vllm_lab: VLLMLab, vllm_engine: Any
) -> None:
    others = workers()
    engine = build_engine(vllm_lab.spec)
    own = [psutil.Process(pid) for pid in workers() - others]
    assert own
    for process in own:
        process.kill()

    with pytest.raises(EngineFatalError):
        engine.answer(Shard(request_set(mixed_calls())), [vllm_lab.baseline])
    engine.close()

    assert workers() == others
    # The other engine is untouched.
    (answered,) = vllm_engine.answer(Shard(request_set(mixed_calls())), [vllm_lab.baseline])
    assert answered.failure is None


def test_an_engine_that_has_computed_nan_is_given_up(vllm_lab: VLLMLab, tmp_path: Path) -> None:
    huge = tiny_lora(vllm_lab.base, tmp_path / "huge", scale=1e32, lora_alpha=10**8)
    subject = subject_of(read_adapter(str(huge), name="huge", base_path=str(vllm_lab.base)))
    requests = Shard(request_set(mixed_calls()))
    engine = build_engine(vllm_lab.spec)

    (answered,) = engine.answer(requests, [subject])
    with pytest.raises(EngineFatalError, match="huge"):
        engine.answer(requests, [vllm_lab.baseline])
    engine.close()

    assert answered.failure is not None
    assert answered.failure.kind is FailureKind.NOT_FINITE
