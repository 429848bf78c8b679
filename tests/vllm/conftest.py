"""One vLLM engine for all of its tests, in processes of its own, and what hf says to the same."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from raypeft.core.records import Adapter, EngineSpec, LoraRoom, Subject
from raypeft.engines.adapters import read_adapter
from raypeft.engines.build import build_engine

BLOCK = 32
"""Tokens in a block of the prefix cache: the least that vLLM's attention takes on a CPU."""

MAX_LENGTH = 256
PARITY_LENGTH = MAX_LENGTH - 2
"""Rows that HFLM cuts at this length are those that lm-eval's vLLM class cuts at `MAX_LENGTH`."""

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ADAPTERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all_linear": {"rank": 8, "target_modules": ALL_LINEAR},
    "rslora": {"rank": 8, "use_rslora": True},
    "rank_pattern": {"rank_pattern": {"layers.1.self_attn.q_proj": 2}},
    "alpha_pattern": {"alpha_pattern": {"layers.0.self_attn.q_proj": 32}},
    "one_layer": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "odd_rank": {"rank": 5, "target_modules": ("k_proj", "o_proj")},
    "mlp": {"rank": 16, "target_modules": ("gate_proj", "down_proj")},
}


@dataclass(frozen=True)
class VLLMLab:
    """A base that vLLM's attention takes on a CPU, and adapters of all kinds that it does right."""

    base: Path
    adapters: tuple[Adapter, ...]
    spec: EngineSpec

    @property
    def baseline(self) -> Subject:
        return Subject(id="base", base="base")

    @property
    def subjects(self) -> list[Subject]:
        adapted = [subject_of(adapter) for adapter in self.adapters]
        return [*adapted[:3], self.baseline, *adapted[3:]]


@contextmanager
def in_this_process() -> Iterator[None]:
    """Let vLLM engines that are made meanwhile run in this process, where they start at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        yield


def subject_of(adapter: Adapter) -> Subject:
    return Subject(id=f"base/{adapter.name}", base="base", adapter=adapter)


@pytest.fixture(scope="session")
def vllm_lab(tmp_path_factory: pytest.TempPathFactory) -> VLLMLab:
    from tests.support.tiny import tiny_llama, tiny_lora

    root = tmp_path_factory.mktemp("vllm")
    # Four heads of 32: vLLM's attention on a CPU takes no narrower ones.
    base = tiny_llama(root / "base", hidden=128)
    for number, (name, settings) in enumerate(ADAPTERS.items()):
        tiny_lora(base, root / name, seed=number + 1, **settings)
    spec = EngineSpec(
        kind="vllm",
        base=str(base),
        base_digest="base",
        lora=LoraRoom(max_rank=16, num_adapters=9, target_modules=ALL_LINEAR),
        options={
            # Fewer slots than adapters: they change while requests run.
            "max_loras": 3,
            "block_size": BLOCK,
            "kv_cache_memory_bytes": 64 << 20,
            "max_num_seqs": 32,
            "enforce_eager": True,
        },
    )
    adapters = [read_adapter(str(root / name), name=name, base_path=str(base)) for name in ADAPTERS]
    return VLLMLab(base, tuple(adapters), spec)


@pytest.fixture(scope="session")
def vllm_engine(vllm_lab: VLLMLab) -> Iterator[Any]:
    """Return the engine; nobody may close it."""
    os.environ.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    engine = build_engine(vllm_lab.spec)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def hf_engine(vllm_lab: VLLMLab) -> Iterator[Any]:
    """Return the reference, which cuts rows where the vLLM engine does."""
    spec = EngineSpec(
        kind="hf", base=str(vllm_lab.base), base_digest="base", max_length=PARITY_LENGTH
    )
    engine = build_engine(spec)
    yield engine
    engine.close()
