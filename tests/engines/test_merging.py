"""Merged adapters: from a private copy, what merging costs, and what cannot be merged."""

import functools
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner

from raypeft.core.records import Adapter, EngineSpec, FailureKind, Shard, Subject, SubjectAnswers
from raypeft.engines.adapters import read_adapter
from raypeft.engines.hf import HFEngine
from raypeft.engines.hf_private import MOST_NATS_IN_FLOAT32, Deviation, check_merge
from raypeft.engines.merging import UNMERGEABLE, check_mergeable
from raypeft.errors import CellError
from tests.engines.samples import mixed_calls, request_set
from tests.engines.zoo import ZOO, make_adapter
from tests.support.tiny import grown_lora, tiny_llama, tiny_lora

pytestmark = pytest.mark.torch

BASELINE = Subject(id="base", base="base")
REQUESTS = Shard(request_set(mixed_calls()[:4]))
CANNOT = (
    *("activated_lora", "adaption_prompt", "cartridge", "cpt", "layer_replication"),
    *("p_tuning", "prefix_tuning", "prompt_tuning", "shadow"),
)


def subject(folder: Path, *, merge: bool = True) -> Subject:
    adapter = replace(read_adapter(str(folder), name=folder.name), merge=merge)
    return Subject(id=f"base/{folder.name}", base="base", adapter=adapter)


def adapter_of(subject: Subject) -> Adapter:
    assert subject.adapter is not None
    return subject.adapter


def answer(engine: HFEngine, subject: Subject) -> SubjectAnswers:
    (found,) = engine.answer(REQUESTS, [subject])
    return found


@pytest.fixture(scope="module")
def engine(tiny_spec: EngineSpec) -> Iterator[HFEngine]:
    engine = HFEngine(tiny_spec)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def zoo(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("merged_zoo")
    return functools.cache(lambda name: make_adapter(tiny_base, folder / name, name))


@pytest.mark.parametrize("name", CANNOT)
def test_what_cannot_be_merged_is_refused_from_its_config_with_the_reason(
    zoo: Callable[[str], Path], name: str
) -> None:
    adapter = read_adapter(str(zoo(name)), name=name)

    with pytest.raises(CellError, match="cannot be merged") as raised:
        check_mergeable(adapter.config, what=f"adapter {name!r}")

    assert raised.value.kind == FailureKind.UNSUPPORTED


@pytest.mark.parametrize("name", sorted({*ZOO} - {*CANNOT}))
def test_what_its_config_allows_is_merged_and_leaves_the_base_as_it_was(
    engine: HFEngine, zoo: Callable[[str], Path], name: str
) -> None:
    merged = subject(zoo(name))
    check_mergeable(adapter_of(merged).config, what=name)
    before = answer(engine, BASELINE).answers

    found = answer(engine, merged)

    assert found.failure is None, found.failure
    # The two tokens that this one trains stand in no request here; the probe has them.
    assert (found.answers != before) == (name != "trainable_tokens")
    assert "merged, deviates by at most" in found.path
    assert answer(engine, BASELINE).answers == before


def test_every_type_without_a_merge_in_peft_is_known() -> None:
    without = {
        str(kind.value)
        for kind, tuner in PEFT_TYPE_TO_TUNER_MAPPING.items()
        if not issubclass(tuner, BaseTuner)
    }
    assert without <= UNMERGEABLE.keys()


def test_merging_in_bfloat16_costs_rounding_and_says_how_much(
    tiny_spec: EngineSpec, zoo: Callable[[str], Path]
) -> None:
    engine = HFEngine(replace(tiny_spec, dtype="bfloat16"))

    found = answer(engine, subject(zoo("lora_r8_all_linear")))

    assert found.failure is None
    cost = re.search(r"at most (\S+) nats on the probe \(mean (\S+);", found.path)
    assert cost is not None
    assert 1e-4 < float(cost[2]) < float(cost[1]) < 1


def test_merged_subjects_need_the_bases_files_no_more(
    tiny_base: Path, tiny_spec: EngineSpec, zoo: Callable[[str], Path], tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    engine = HFEngine(replace(tiny_spec, base=str(base)))
    shutil.rmtree(base)
    before = answer(engine, BASELINE).answers

    first = answer(engine, subject(zoo("lora_r4"))).answers
    answer(engine, subject(zoo("lora_r4"), merge=False))

    assert answer(engine, BASELINE).answers == before
    assert answer(engine, subject(zoo("lora_r4"))).answers == first


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_one_side_of_tied_embeddings_is_not_merged(tmp_path: Path, target: str) -> None:
    base = tiny_llama(tmp_path / "base", tie_word_embeddings=True)
    folder = tiny_lora(base, tmp_path / "lora", scale=0.3, target_modules=("q_proj", "v_proj"))
    tied = make_adapter(base, tmp_path / "tied", "lora_embedding")
    if target == "lm_head":
        tied = tiny_lora(base, tmp_path / "head", scale=0.3, target_modules=("q_proj", "lm_head"))
    engine = HFEngine(EngineSpec(kind="hf", base=str(base), base_digest="0", batch_size=4))

    refused = answer(engine, subject(tied)).failure
    fine = answer(engine, subject(folder)).failure

    assert fine is None
    assert refused is not None
    assert refused.kind is FailureKind.UNSUPPORTED
    assert "one weight" in refused.message


@pytest.mark.parametrize("name", ["lora_r8_all_linear", "dora", "oft", "ia3", "saved_lm_head"])
def test_merged_answers_are_those_of_the_adapter_within_rounding(
    engine: HFEngine, zoo: Callable[[str], Path], name: str
) -> None:
    alone = answer(engine, subject(zoo(name), merge=False))

    merged = answer(engine, subject(zoo(name)))

    assert merged.failure is None
    for left, right in zip(merged.answers, alone.answers, strict=True):
        assert left.logprob == pytest.approx(right.logprob, abs=1e-3)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("settings", [{}, {"use_dora": True}])
@pytest.mark.parametrize("tied", [False, True])
def test_an_adapter_with_more_tokens_is_merged_into_the_enlarged_copy(
    tmp_path: Path, tied: bool, settings: dict[str, bool]
) -> None:
    base = tiny_llama(tmp_path / "base", tie_word_embeddings=tied)
    folder = grown_lora(base, tmp_path / "grown", 410, **settings)
    engine = HFEngine(EngineSpec(kind="hf", base=str(base), base_digest="0", batch_size=4))
    before = answer(engine, BASELINE).answers

    alone, merged = (
        answer(engine, replace(subject(folder, merge=merge), vocab_size=410))
        for merge in (False, True)
    )

    assert alone.failure is None
    assert merged.failure is None
    assert "merged, deviates by at most" in merged.path
    for left, right in zip(merged.answers, alone.answers, strict=True):
        assert left.logprob == pytest.approx(right.logprob, abs=1e-3)
    assert merged.answers != before
    assert answer(engine, BASELINE).answers == before


@pytest.mark.parametrize("name", ["prompt_tuning", "p_tuning", "adaption_prompt"])
def test_what_peft_cannot_merge_is_a_named_failure_of_the_engine_too(
    engine: HFEngine, zoo: Callable[[str], Path], name: str
) -> None:
    before = answer(engine, BASELINE).answers

    failure = answer(engine, subject(zoo(name))).failure

    assert failure is not None
    assert failure.kind is FailureKind.UNSUPPORTED
    assert "PEFT cannot merge it" in failure.message
    assert answer(engine, BASELINE).answers == before


def test_a_merge_that_is_another_model_is_refused() -> None:
    check_merge(Deviation(1e-5, 1e-6), torch.float32, "adapter 'x'")
    check_merge(Deviation(0.4, 0.01), torch.bfloat16, "adapter 'x'")

    for cost, dtype in (
        (Deviation(2 * MOST_NATS_IN_FLOAT32, 1e-6), torch.float32),
        (Deviation(2.3, 0.5), torch.bfloat16),
        (Deviation(float("nan"), float("nan")), torch.bfloat16),
    ):
        with pytest.raises(CellError, match="more than rounding"):
            check_merge(cost, dtype, "adapter 'x'")


def test_a_merge_that_peft_gets_wrong_without_a_word_is_seen_by_the_probe(
    engine: HFEngine, zoo: Callable[[str], Path]
) -> None:
    failure = answer(engine, subject(zoo("layer_replication"))).failure

    assert failure is not None
    assert failure.kind is FailureKind.UNSUPPORTED


def test_an_adapter_that_vanishes_in_the_merge_has_no_effect(
    tiny_base: Path, tiny_spec: EngineSpec, tmp_path: Path
) -> None:
    # Beside the base it moves logits; added to a weight of bfloat16 it is less than the last bit.
    folder = tiny_lora(tiny_base, tmp_path / "faint", scale=1e-4)
    config = json.loads((folder / "adapter_config.json").read_text()) | {"lora_alpha": 1e-3}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    engine = HFEngine(replace(tiny_spec, dtype="bfloat16"))

    failure = answer(engine, subject(folder)).failure

    assert failure is not None
    assert "changes nothing" in failure.message
