"""What routing is told about an adapter's tensors."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from raypeft.core.vllm_routing import AdapterFacts, why_not_vllm
from raypeft.engines.adapters import SAFE_WEIGHTS_FILE, read_adapter
from raypeft.engines.lora_facts import read_lora_facts
from tests.engines.zoo import make_adapter, make_base
from tests.support.tiny import pickled, tiny_lora

pytestmark = pytest.mark.torch

QUERY = "model.layers.{}.self_attn.q_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"), "llama")


def facts_of(folder: Path, base: Path) -> AdapterFacts:
    adapter = read_adapter(str(folder), name="mine", allow_pickle=True)
    return read_lora_facts(adapter, None, str(base))


def reason(folder: Path, base: Path, model_type: str = "llama") -> str:
    config = read_adapter(str(folder), name="mine", allow_pickle=True).config
    return why_not_vllm(config, facts_of(folder, base), model_type)


def renamed(source: Path, folder: Path, old: str, new: str) -> Path:
    shutil.copytree(source, folder)
    file = folder / SAFE_WEIGHTS_FILE
    save_file({name.replace(old, new): one for name, one in load_file(file).items()}, file)
    return folder


def test_each_module_has_the_rank_of_its_tensors(base: Path, tmp_path: Path) -> None:
    folder = tiny_lora(
        base,
        tmp_path / "lora",
        rank=8,
        target_modules=("q_proj",),
        rank_pattern={"layers.1.self_attn.q_proj": 2},
    )
    assert facts_of(folder, base) == AdapterFacts(
        ranks={QUERY.format(0): 8, QUERY.format(1): 2}, config_rank=8
    )
    assert reason(folder, base) == ""


@pytest.mark.parametrize("name", ["lora_r4", "lora_r8_all_linear", "rslora", "lora_one_layer"])
def test_plain_adapters_have_no_reason(base: Path, tmp_path: Path, name: str) -> None:
    assert reason(make_adapter(base, tmp_path / name, name), base) == ""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lora_embedding", "model.embed_tokens wrong"),
        ("lora_lm_head", "lm_head wrong"),
        ("lora_own_bias", "lora_bias"),
        ("lora_tokens", "trainable_token_indices"),
        ("saved_lm_head", "modules_to_save"),
        ("adalora", "type ADALORA"),
        ("dora", "use_dora"),
    ],
)
def test_real_adapters_that_vllm_cannot_do_are_named(
    base: Path, tmp_path: Path, name: str, words: str
) -> None:
    assert words in reason(make_adapter(base, tmp_path / name, name), base)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("base_model.model.model.", "base_model.model.language_model.", "the base lacks"),
        ("layers.1.", "layers.7.", "the base lacks: model.layers.7.self_attn.q_proj"),
        ("lora_A.weight", "lora_A.default.weight", "would not read"),
        ("base_model.model.", "", "would not read"),
    ],
)
def test_tensors_under_other_names_are_found_out(
    base: Path, tmp_path: Path, old: str, new: str, words: str
) -> None:
    source = tiny_lora(base, tmp_path / "lora", target_modules=("q_proj",))
    folder = renamed(source, tmp_path / "renamed", old, new)
    # Read without the checks against config and base, which refuse some of these earlier.
    adapter = read_adapter(str(source), name="mine")
    moved = replace(adapter, path=str(folder))
    found = read_lora_facts(moved, None, str(base))
    assert words in why_not_vllm(adapter.config, found, "llama")


def test_pickled_weights_are_said_to_be_pickled(base: Path, tmp_path: Path) -> None:
    folder = pickled(tiny_lora(base, tmp_path / "lora"), tmp_path / "pickled")
    assert "pickled" in reason(folder, base)
