"""Tiny bases for the engine tests, made once a session."""

from pathlib import Path

import pytest

from raypeft.core.records import EngineSpec
from raypeft.engines.bases import read_base


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Llama with biases, so that an adapter can train them."""
    from tests.support.tiny import tiny_llama

    folder = tmp_path_factory.mktemp("bases") / "base"
    return tiny_llama(folder, attention_bias=True, mlp_bias=True)


@pytest.fixture(scope="session")
def tiny_spec(tiny_base: Path) -> EngineSpec:
    """Return a base whose answers are lm-eval's bit for bit: nothing is shared."""
    facts = read_base(str(tiny_base))
    return EngineSpec(
        kind="hf", base=facts.path, base_digest=facts.digest, batch_size=4, sharing=False
    )
