"""Adapters of a base whose embeddings are one weight: as they were trained, or refused."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from raypeft.core.records import EngineSpec, FailureKind, Shard, Subject
from raypeft.engines.adapters import read_adapter
from raypeft.engines.hf import HFEngine
from tests.engines.samples import mixed_calls, request_set
from tests.support.tiny import grown_lora, pickled, tiny_llama

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`"),
]

HEAD, INPUT = "lm_head", "embed_tokens"
REQUESTS = Shard(request_set(mixed_calls()[:4]))
BASELINE = Subject(id="base", base="base")
CONFIGS: dict[str, dict[str, Any]] = {
    "head": {"target_modules": [HEAD]},
    "head_and_layers": {"target_modules": [HEAD, "q_proj"]},
    "head_with_dora": {"target_modules": [HEAD], "use_dora": True},
    "input": {"target_modules": [INPUT]},
    "both": {"target_modules": [HEAD, INPUT]},
    "head_tied_by_peft": {"target_modules": [HEAD], "ensure_weight_tying": True},
    "input_tied_by_peft": {"target_modules": [INPUT], "ensure_weight_tying": True},
    "saved_head": {"target_modules": ["q_proj"], "modules_to_save": [HEAD]},
    "saved_input": {"target_modules": ["q_proj"], "modules_to_save": [INPUT]},
    "saved_both": {"target_modules": ["q_proj"], "modules_to_save": [HEAD, INPUT]},
    "head_and_saved_input": {"target_modules": [HEAD], "modules_to_save": [INPUT]},
    "rows": {"target_modules": ["q_proj"], "trainable_token_indices": [5, 6]},
    "rows_of_head": {"target_modules": ["q_proj"], "trainable_token_indices": {HEAD: [5, 6]}},
}
CANNOT_MERGE = (
    *("head", "head_and_layers", "head_with_dora", "input", "both", "head_tied_by_peft"),
    *("input_tied_by_peft", "rows_of_head"),
)
BASE_WEIGHT = "base_model.model.lm_head.base_layer.weight"
INPUT_WEIGHT = "base_model.model.model.embed_tokens.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tied") / "base", tie_word_embeddings=True)


@pytest.fixture(scope="module")
def engine(base: Path) -> HFEngine:
    return HFEngine(EngineSpec(kind="hf", base=str(base), base_digest="0", batch_size=4))


def probe() -> torch.Tensor:
    rows = (torch.arange(32).reshape(2, 16) * 7919 + 13) % 400
    rows[:, :4] = torch.tensor([5, 6, 5, 6])
    return rows


def trained(base: Path, folder: Path, config: dict[str, Any]) -> torch.Tensor:
    """Save an adapter as training leaves it; return what the model said then."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_pretrained(str(base))
        settings = peft.LoraConfig(r=4, task_type="CAUSAL_LM", **config)
        adapted = peft.get_peft_model(model, settings).eval()
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
            said: torch.Tensor = adapted(probe()).logits
        adapted.save_pretrained(str(folder))
    return said


def subject(
    base: Path, folder: Path, *, merge: bool = False, allow_pickle: bool = False
) -> Subject:
    adapter = read_adapter(
        str(folder), name=folder.name, base_path=str(base), allow_pickle=allow_pickle
    )
    return Subject(id="x", base="base", adapter=replace(adapter, merge=merge))


@pytest.mark.parametrize("name", CONFIGS)
def test_it_says_what_it_said_when_it_was_trained(
    engine: HFEngine, base: Path, tmp_path: Path, name: str
) -> None:
    expected = trained(base, tmp_path / name, CONFIGS[name])

    engine.switch_to(subject(base, tmp_path / name))
    with torch.no_grad():
        found = engine._model(probe()).logits

    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_merged_only_where_one_weight_can_hold_it(
    base: Path, tmp_path: Path, name: str, dtype: str
) -> None:
    trained(base, tmp_path / name, CONFIGS[name])
    engine = HFEngine(
        EngineSpec(kind="hf", base=str(base), base_digest="0", batch_size=4, dtype=dtype)
    )
    (alone,) = engine.answer(REQUESTS, [subject(base, tmp_path / name)])

    (found,) = engine.answer(REQUESTS, [subject(base, tmp_path / name, merge=True)])

    assert (found.failure is not None) == (name in CANNOT_MERGE)
    if found.failure is not None:
        assert found.failure.kind is FailureKind.UNSUPPORTED
        assert "are one weight" in found.failure.message
    elif dtype == "float32":
        for left, right in zip(found.answers, alone.answers, strict=True):
            assert left.logprob == pytest.approx(right.logprob, abs=1e-3)


def changed(folder: Path, **tensors: torch.Tensor | None) -> Path:
    file = folder / "adapter_model.safetensors"
    values = load_file(str(file)) | {name: one for name, one in tensors.items() if one is not None}
    save_file({name: one.clone() for name, one in values.items()}, file)
    return folder


@pytest.mark.parametrize("as_pickle", [False, True])
def test_a_saved_weight_of_another_base_does_not_reach_the_other_embedding(
    engine: HFEngine, base: Path, tmp_path: Path, as_pickle: bool
) -> None:
    # As from an untied sibling: its head has other values than its input embedding, and PEFT
    # would write them into the weight that both read.
    folder = tmp_path / "head"
    trained(base, folder, CONFIGS["head"])
    weight = load_file(str(folder / "adapter_model.safetensors"))[BASE_WEIGHT]
    changed(folder, **{BASE_WEIGHT: weight + 0.1 * torch.randn_like(weight)})
    if as_pickle:
        folder = pickled(folder, tmp_path / "pickled")
    (before,) = engine.answer(REQUESTS, [BASELINE])

    (found,) = engine.answer(REQUESTS, [subject(base, folder, allow_pickle=as_pickle)])
    (after,) = engine.answer(REQUESTS, [BASELINE])

    assert found.failure is not None
    assert found.failure.kind is FailureKind.DOES_NOT_FIT
    assert BASE_WEIGHT in found.failure.message
    assert "are one weight" in found.failure.message
    assert after.answers == before.answers


def test_two_different_embeddings_do_not_fit_into_one_weight(
    engine: HFEngine, base: Path, tmp_path: Path
) -> None:
    trained(base, tmp_path / "head", CONFIGS["head"])
    weight = load_file(str(tmp_path / "head" / "adapter_model.safetensors"))[BASE_WEIGHT]
    folder = changed(tmp_path / "head", **{BASE_WEIGHT: weight + 1, INPUT_WEIGHT: weight})

    (found,) = engine.answer(REQUESTS, [subject(base, folder)])

    assert found.failure is not None
    assert found.failure.kind is FailureKind.DOES_NOT_FIT


def test_the_bases_own_weight_in_another_dtype_is_no_other_weight(
    engine: HFEngine, base: Path, tmp_path: Path
) -> None:
    trained(base, tmp_path / "head", CONFIGS["head"])
    weight = load_file(str(tmp_path / "head" / "adapter_model.safetensors"))[BASE_WEIGHT]
    folder = changed(tmp_path / "head", **{BASE_WEIGHT: weight.bfloat16()})

    (found,) = engine.answer(REQUESTS, [subject(base, folder)])

    assert found.failure is None


def test_new_rows_of_an_enlarged_embedding_are_no_difference(
    engine: HFEngine, base: Path, tmp_path: Path
) -> None:
    folder = grown_lora(
        base, tmp_path / "grown", 410, target_modules=(HEAD, "q_proj"), modules_to_save=None
    )
    adapter = read_adapter(str(folder), name="grown", base_path=str(base))

    (found,) = engine.answer(
        REQUESTS, [Subject(id="x", base="base", adapter=adapter, vocab_size=410)]
    )

    assert found.failure is None
