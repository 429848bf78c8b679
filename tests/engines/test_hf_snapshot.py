"""Nothing an adapter may leave behind on a base escapes a snapshot."""

from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from raypeft.engines.hf_snapshot import take_snapshot

pytestmark = pytest.mark.torch


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def test_looking_and_answering_change_nothing(model: Any) -> None:
    before = take_snapshot(model)

    model(torch.zeros(1, 3, dtype=torch.long))
    model.generate(torch.ones(1, 3, dtype=torch.long), max_new_tokens=2, pad_token_id=0)

    assert before.difference(take_snapshot(model)) == ""


def weight(model: Any) -> torch.Tensor:
    data: torch.Tensor = model.model.layers[1].mlp.up_proj.weight.data
    return data


def swap_values(model: Any) -> None:
    flat = weight(model).view(-1)
    flat[[0, 9]] = flat[[9, 0]]


def swap_rows(model: Any) -> None:
    weight(model)[[0, 1]] = weight(model)[[1, 0]]


def negate(model: Any) -> None:
    weight(model).neg_()


def last_bit(model: Any) -> None:
    weight(model).view(torch.int32)[3, 4] += 1


def buffer(model: Any) -> None:
    model.model.rotary_emb.inv_freq.mul_(1.01)


def tie(model: Any) -> None:
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() + 1)


def dtype(model: Any) -> None:
    model.model.norm.to(torch.bfloat16)


def wrapped(model: Any) -> None:
    class Wrapper(type(model.model.layers[0].mlp.up_proj)):  # type: ignore[misc]
        pass

    model.model.layers[0].mlp.up_proj.__class__ = Wrapper


def added(model: Any) -> None:
    model.model.layers.append(model.model.layers[0])


def hook(model: Any) -> None:
    model.model.layers[0].register_forward_pre_hook(lambda module, inputs: None)


def patched(model: Any) -> None:
    model.model.layers[0].self_attn.forward = lambda *args, **kwargs: None


def mode(model: Any) -> None:
    model.model.layers[0].train()


def setting(model: Any) -> None:
    model.config.num_hidden_layers = 3


def generation_setting(model: Any) -> None:
    model.generation_config.repetition_penalty = 2.0


@pytest.mark.parametrize(
    "change",
    [
        swap_values,
        swap_rows,
        negate,
        last_bit,
        buffer,
        tie,
        dtype,
        wrapped,
        added,
        hook,
        patched,
        mode,
        setting,
        generation_setting,
    ],
)
def test_a_change_is_seen(model: Any, change: Callable[[Any], None]) -> None:
    before = take_snapshot(model)

    change(model)

    assert before.difference(take_snapshot(model)) != ""


def test_a_method_put_back_as_an_attribute_is_no_change(model: Any) -> None:
    before = take_snapshot(model)

    method = type(model).prepare_inputs_for_generation
    model.prepare_inputs_for_generation = MethodType(method, model)

    assert before.difference(take_snapshot(model)) == ""


@pytest.mark.parametrize(
    "kind",
    [torch.bool, torch.uint8, torch.int64, torch.float16, torch.complex64, torch.float8_e4m3fn],
)
def test_tensors_of_every_type_and_shape_are_summed(kind: torch.dtype) -> None:
    module = torch.nn.Module()
    module.register_buffer("many", torch.ones(3, 2, 5).to(kind))
    module.register_buffer("one", torch.ones(()).to(kind))
    module.register_buffer("none", torch.ones(0, 3).to(kind))
    before = take_snapshot(module)

    module.many = torch.cat([torch.zeros(1, 2, 5), torch.ones(2, 2, 5)]).to(kind)

    assert "many" in before.difference(take_snapshot(module))
