"""Adapters of zero effect: the same bytes everywhere, and proof that they change nothing."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from raypeft.core.records import Adapter, EngineSpec, FailureKind, Shard, Subject
from raypeft.core.routing import Lane
from raypeft.engines.adapters import (
    SAFE_WEIGHTS_FILE,
    adapter_digest,
    open_adapter,
    read_adapter,
)
from raypeft.engines.bases import read_base
from raypeft.engines.hf import HFEngine
from raypeft.engines.tensorfiles import hash_file
from raypeft.engines.vllm_preflight import Preflight
from raypeft.engines.zero_adapter import find_zero_adapter, is_written, why_effect
from raypeft.errors import CellError
from tests.engines.samples import mixed_calls, request_set
from tests.engines.zoo import make_base
from tests.support.tiny import tiny_lora

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def adapters(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Adapter]:
    root = tmp_path_factory.mktemp("adapters")
    folders = [
        tiny_lora(tiny_base, root / "narrow", target_modules=("q_proj", "v_proj")),
        tiny_lora(tiny_base, root / "wide", rank=16, target_modules=("q_proj", "down_proj")),
    ]
    return [read_adapter(str(folder), name=folder.name) for folder in folders]


@pytest.fixture
def zero(adapters: list[Adapter], tiny_base: Path, tmp_path: Path) -> Adapter:
    found = find_zero_adapter(adapters, str(tiny_base))
    assert found is not None
    adapter = found.named("base@zero", tmp_path / "zero")
    assert not is_written(adapter)
    found.write(tmp_path / "zero")
    assert is_written(adapter)
    return adapter


@pytest.fixture(scope="module")
def engine(tiny_spec: EngineSpec) -> HFEngine:
    return HFEngine(tiny_spec)


def subject(adapter: Adapter) -> Subject:
    return Subject(id="base@zero", base="base", again=True, through=adapter)


def test_it_has_the_modules_of_all_adapters_and_its_b_is_zero(
    zero: Adapter, adapters: list[Adapter], tiny_base: Path
) -> None:
    tensors = load_file(Path(zero.path) / SAFE_WEIGHTS_FILE)
    halves: dict[str, dict[str, torch.Tensor]] = {"A": {}, "B": {}}
    for name, tensor in tensors.items():
        halves[name.removesuffix(".weight")[-1]][name.rpartition(".lora_")[0]] = tensor
    assert halves["A"].keys() == halves["B"].keys()
    assert {name.rpartition(".")[2] for name in halves["A"]} == {"q_proj", "v_proj", "down_proj"}
    assert {tensor.shape[0] for tensor in halves["A"].values()} == {4}  # the least of them
    assert all(bool((tensor != 0).all()) for tensor in halves["A"].values())
    assert not any(bool(tensor.any()) for tensor in halves["B"].values())
    assert zero.config["target_modules"] == sorted(
        name.removeprefix("base_model.model.") for name in halves["A"]
    )


def test_its_digest_is_known_before_it_is_written_and_the_same_everywhere(
    zero: Adapter, adapters: list[Adapter], tiny_base: Path, tmp_path: Path
) -> None:
    open_adapter(zero)
    again = find_zero_adapter(adapters[::-1], str(tiny_base))
    assert again is not None
    assert again.named("other", tmp_path / "elsewhere").digest == zero.digest
    narrow = find_zero_adapter(adapters[:1], str(tiny_base))
    assert narrow is not None
    assert narrow.named("other", tmp_path / "elsewhere").digest != zero.digest
    (Path(zero.path) / SAFE_WEIGHTS_FILE).write_bytes(b"cut off")
    assert not is_written(zero)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_without_linear_modules_of_the_base_there_is_none(tiny_base: Path, tmp_path: Path) -> None:
    folder = tiny_lora(tiny_base, tmp_path / "words", target_modules=("embed_tokens",))
    assert find_zero_adapter([read_adapter(str(folder), name="words")], str(tiny_base)) is None


def answers(engine: HFEngine, *subjects: Subject) -> list[Any]:
    return engine.answer(Shard(request_set(mixed_calls())), subjects)


def test_hf_answers_through_it_as_the_base_in_float32(engine: HFEngine, zero: Adapter) -> None:
    alone, through = answers(engine, Subject(id="base", base="base"), subject(zero))
    assert through.failure is None
    assert through.answers == alone.answers
    assert f"lane {Lane.SHARED}" in through.path
    assert "lane" not in alone.path


def test_an_adapter_with_an_effect_is_refused_where_none_is_expected(
    engine: HFEngine, adapters: list[Adapter]
) -> None:
    falsely = replace(adapters[0], expects_effect=False)
    proper = Subject(id="base/narrow", base="base", adapter=adapters[0])
    # Attached and proven as what it is, it must be proven anew as what it is not.
    good, bad = answers(engine, proper, subject(falsely))
    assert good.failure is None
    assert bad.failure is not None
    assert bad.failure.kind is FailureKind.UNSUPPORTED
    assert "it is of zero effect, and with it" in bad.failure.message
    assert "more than rounding" in bad.failure.message


def test_one_of_zero_effect_is_no_adapter_to_be_evaluated(engine: HFEngine, zero: Adapter) -> None:
    proper = Subject(id="base/zero", base="base", adapter=replace(zero, expects_effect=True))
    through, refused = answers(engine, subject(zero), proper)
    assert through.failure is None
    assert refused.failure is not None
    assert refused.failure.kind is FailureKind.NO_EFFECT
    with pytest.raises(CellError) as raised:
        read_adapter(zero.path, name="zero")
    assert raised.value.kind == FailureKind.NO_EFFECT


def test_one_that_fits_in_part_is_refused_as_any_other(
    engine: HFEngine, zero: Adapter, tmp_path: Path
) -> None:
    shutil.copytree(zero.path, tmp_path / "part")
    file = tmp_path / "part" / SAFE_WEIGHTS_FILE
    tensors = load_file(file)
    tensors.pop(next(name for name in tensors if "lora_B" in name))
    save_file(tensors, file)
    part = replace(
        zero, path=str(tmp_path / "part"), digest=adapter_digest(hash_file(file), zero.config)
    )
    (found,) = answers(engine, subject(part))
    assert found.failure is not None
    assert found.failure.kind is FailureKind.DOES_NOT_FIT


def test_it_is_attached_to_transposed_weights_too(tmp_path: Path) -> None:
    base = make_base(tmp_path / "gpt2", "gpt2")
    folder = tiny_lora(base, tmp_path / "lora", target_modules=("c_attn",), fan_in_fan_out=True)
    found = find_zero_adapter([read_adapter(str(folder), name="lora")], str(base))
    assert found is not None
    found.write(tmp_path / "zero")
    facts = read_base(str(base))
    engine = HFEngine(
        EngineSpec(kind="hf", base=facts.path, base_digest=facts.digest, batch_size=4)
    )
    alone, through = answers(
        engine, Subject(id="b", base="b"), subject(found.named("b@zero", tmp_path / "zero"))
    )
    assert through.failure is None
    assert through.answers == alone.answers


def test_vllms_preflight_takes_it_where_no_effect_is_expected(
    zero: Adapter, tiny_base: Path
) -> None:
    preflight = Preflight(
        tiny_base,
        modules=["q_proj", "v_proj", "down_proj"],
        max_rank=8,
        adapter_settings=frozenset({"r", "lora_alpha", "target_modules", "bias"}),
    )
    files = open_adapter(zero)
    preflight.check(files, what="zero", expects_effect=False)
    with pytest.raises(CellError) as raised:
        preflight.check(files, what="zero")
    assert raised.value.kind == FailureKind.NO_EFFECT


@pytest.mark.parametrize(
    ("largest", "mean", "dtype", "is_refused"),
    [
        (1e-5, 1e-6, "float32", False),
        (2e-3, 1e-6, "float32", True),
        (0.3, 0.01, "bfloat16", False),
        (0.3, 0.1, "bfloat16", True),
        (float("nan"), 0.0, "float16", True),
    ],
)
def test_rounding_is_no_effect(largest: float, mean: float, dtype: str, is_refused: bool) -> None:
    assert bool(why_effect(largest, mean, dtype, "it")) is is_refused
