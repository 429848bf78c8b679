"""The lane of an adapter decides what happens to the base after it, and is said in the answers."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from raypeft.core.records import Answer, EngineSpec, Shard, Subject
from raypeft.engines.adapters import read_adapter
from raypeft.engines.hf import HFEngine
from raypeft.errors import EngineFatalError
from tests.engines.samples import mixed_calls, request_set
from tests.support.tiny import tiny_llama, tiny_lora

pytestmark = pytest.mark.torch

BASELINE = Subject(id="base", base="base")
REQUESTS = request_set(mixed_calls()[:37])


def answered(engine: HFEngine, subject: Subject) -> tuple[tuple[Answer, ...], str]:
    (one,) = engine.answer(Shard(REQUESTS), [subject])
    assert one.failure is None, one.failure
    return one.answers, one.path


def subject_of(folder: Path) -> Subject:
    adapter = read_adapter(str(folder), name=folder.name)
    return Subject(id=f"base/{folder.name}", base="base", adapter=adapter)


@pytest.mark.parametrize(("bias", "is_reloaded"), [("none", False), ("all", True)])
def test_an_isolated_adapter_costs_a_fresh_base_even_where_it_changed_nothing(
    tmp_path: Path, bias: str, is_reloaded: bool
) -> None:
    # This base has no biases to train, so that the checksum would find nothing.
    base = tiny_llama(tmp_path / "base")
    folder = tiny_lora(base, tmp_path / "lora", bias=bias)
    engine = HFEngine(EngineSpec(kind="hf", base=str(base), base_digest="0", batch_size=4))
    before, _ = answered(engine, BASELINE)
    answered(engine, subject_of(folder))
    shutil.rmtree(base)

    if is_reloaded:
        with pytest.raises(EngineFatalError, match="had to be loaded again"):
            engine.answer(Shard(REQUESTS), [BASELINE])
    else:
        assert answered(engine, BASELINE)[0] == before


def test_a_clean_type_that_changed_the_base_is_named_and_the_base_loaded_again(
    tiny_base: Path, tiny_spec: EngineSpec, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = HFEngine(tiny_spec)
    before, _ = answered(engine, BASELINE)
    folder = tiny_lora(tiny_base, tmp_path / "lora")
    answered(engine, subject_of(folder))
    with torch.no_grad():
        engine.model.get_base_model().lm_head.weight[3, 5] += 1

    with caplog.at_level(logging.WARNING, logger="raypeft"):
        assert answered(engine, BASELINE)[0] == before

    (warning,) = [r.getMessage() for r in caplog.records if r.name.startswith("raypeft")]
    assert "adapter 'lora' of type LORA should leave the base as it was" in warning
    assert "lm_head.weight" in warning


def test_answers_say_their_lane(tiny_base: Path, tiny_spec: EngineSpec, tmp_path: Path) -> None:
    plain = subject_of(tiny_lora(tiny_base, tmp_path / "plain"))
    isolated = subject_of(tiny_lora(tiny_base, tmp_path / "isolated", bias="all"))
    shared, alone = HFEngine(replace(tiny_spec, sharing=True)), HFEngine(tiny_spec)

    assert answered(shared, BASELINE)[1].startswith("shared context: 1 of 34 plain: longer")
    assert answered(shared, plain)[1].startswith("shared context, lane shared: 1 of 34 plain:")
    assert answered(alone, BASELINE)[1] == "plain: the sweep file says so"
    assert answered(alone, isolated)[1] == "plain, lane isolated: the sweep file says so"
