"""Private copies: with no memory of the base's, and a base that is clean when they are gone."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from raypeft.core.records import EngineSpec, FailureKind, Shard, Subject
from raypeft.engines.adapters import read_adapter
from raypeft.engines.hf import HFEngine
from raypeft.engines.hf_private import copy_of
from raypeft.errors import CellError
from tests.engines.samples import mixed_calls, request_set
from tests.support.tiny import tiny_lora

pytestmark = pytest.mark.torch

BASELINE = Subject(id="base", base="base")
GROWN = Subject(id="base@430", base="base", vocab_size=430)
REQUESTS = Shard(request_set(mixed_calls()[:4]))


class Shared(torch.nn.Linear):
    """A layer that gives itself away instead of a copy, as wrappers of foreign memory do."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Shared":
        return self


class View(torch.nn.Linear):
    """A layer whose copy looks into its memory from another place."""

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.nn.Linear:
        copied = torch.nn.Linear(self.in_features, self.out_features, bias=False)
        copied.weight = torch.nn.Parameter(self.weight.detach().view_as(self.weight)[:, :])
        copied.register_buffer("part", self.weight.detach()[1:])
        return copied


def small(*, tied: bool) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("kind", [Shared, View])
def test_a_copy_that_lies_in_the_bases_memory_is_refused(kind: type[torch.nn.Module]) -> None:
    model = small(tied=False)
    model.model.layers[0].mlp.up_proj.__class__ = kind

    with pytest.raises(CellError, match=r"mlp\.up_proj\.") as raised:
        copy_of(model, "subject 'x'")

    assert raised.value.kind == FailureKind.UNSUPPORTED
    assert "the base's own memory" in raised.value.message


def test_a_copy_tied_to_the_base_is_refused() -> None:
    model = small(tied=True)
    # What a copy shares with the base is what its memo says it need not copy.
    memo = {id(model.lm_head.weight): model.lm_head.weight}
    model.__class__ = type(
        "Tied", (LlamaForCausalLM,), {"__deepcopy__": lambda self, _: _copied(self, memo)}
    )

    with pytest.raises(CellError, match=r"lm_head\.weight with"):
        copy_of(model, "subject 'x'")


def _copied(model: Any, memo: dict[int, Any]) -> Any:
    model.__class__ = LlamaForCausalLM
    return copy.deepcopy(model, memo)


@pytest.mark.parametrize("tied", [False, True])
def test_a_private_copy_has_its_own_memory_and_the_ties_of_the_base(tied: bool) -> None:
    model = small(tied=tied)

    copied = copy_of(model, "subject 'x'")
    with torch.no_grad():
        copied.lm_head.weight.fill_(0)

    assert (copied.lm_head.weight is copied.model.embed_tokens.weight) is tied
    assert bool(model.lm_head.weight.any())


@pytest.mark.parametrize("following", ["baseline", "adapter", "copy"])
def test_a_base_that_changed_under_a_private_copy_is_loaded_again(
    tiny_base: Path, tiny_spec: EngineSpec, tmp_path: Path, following: str
) -> None:
    folder = tiny_lora(tiny_base, tmp_path / "lora", scale=0.3)
    subjects = {
        "baseline": BASELINE,
        "adapter": Subject(
            id="a", base="base", adapter=read_adapter(str(folder), name="a", any_base=True)
        ),
        "copy": Subject(id="base@440", base="base", vocab_size=440),
    }
    engine = HFEngine(tiny_spec)
    (before,) = engine.answer(REQUESTS, [subjects[following]])
    engine.answer(REQUESTS, [GROWN])
    with torch.no_grad():
        engine._base.model.norm.weight.mul_(1.5)

    (after,) = engine.answer(REQUESTS, [subjects[following]])

    assert after.answers == before.answers
