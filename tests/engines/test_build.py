"""A spec becomes the engine it names."""

import subprocess
import sys
from typing import Any, cast

import pytest

from raypeft.core.records import EngineSpec, FailureKind
from raypeft.engines.build import build_engine
from raypeft.engines.fake import FakeEngine
from raypeft.errors import CellError


def test_a_fake_engine_is_built() -> None:
    spec = EngineSpec(kind="fake", base="b", base_digest="0")

    assert isinstance(build_engine(spec), FakeEngine)


def test_an_unknown_kind_is_unsupported() -> None:
    spec = EngineSpec(kind=cast(Any, "gguf"), base="b", base_digest="0")

    with pytest.raises(CellError, match="no engine 'gguf'") as raised:
        build_engine(spec)
    assert raised.value.kind == FailureKind.UNSUPPORTED


@pytest.mark.torch
def test_an_hf_engine_is_built(tiny_spec: EngineSpec) -> None:
    from raypeft.engines.hf import HFEngine

    engine = build_engine(tiny_spec)

    assert isinstance(engine, HFEngine)
    engine.close()


def test_reading_bases_and_adapters_and_a_fake_engine_need_no_torch() -> None:
    code = (
        "import sys\n"
        "import raypeft.engines.adapters, raypeft.engines.bases, raypeft.engines.tokenizer\n"
        "from raypeft.core.records import EngineSpec\n"
        "from raypeft.engines.build import build_engine\n"
        "build_engine(EngineSpec(kind='fake', base='b', base_digest='0'))\n"
        "heavy = {'torch', 'transformers', 'peft', 'lm_eval', 'ray'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
