"""Adapters with more tokens than their base: found from files, answered from an enlarged copy."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from raypeft.core.records import EngineSpec, FailureKind, Shard, Subject
from raypeft.engines.hf import HFEngine
from raypeft.engines.tensorfiles import TensorInfo
from raypeft.engines.vocabulary import enlarged, saved_vocabulary
from raypeft.errors import CellError
from tests.engines.samples import mixed_calls, request_set
from tests.engines.zoo import reference, reference_answers

PREFIX = "base_model.model."
BASE: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (10, 4),
    "lm_head.weight": (10, 4),
    "model.layers.0.mlp.up_proj.weight": (10, 4),
}


def infos(shapes: dict[str, tuple[int, ...]]) -> dict[str, TensorInfo]:
    return {name: TensorInfo("F32", shape, 0, 0) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        ({"lm_head.weight": (12, 4)}, 12),
        ({"model.embed_tokens.base_layer.weight": (12, 4), "lm_head.weight": (12, 4)}, 12),
        ({"lm_head.weight": (10, 4)}, None),
        ({"lm_head.weight": (8, 4)}, None),  # a smaller one is no larger one
        ({"lm_head.weight": (12, 5)}, None),  # another model
        ({"model.layers.0.self_attn.q_proj.lora_A.weight": (12, 4)}, None),
    ],
)
def test_only_whole_embeddings_with_more_rows_count(
    saved: dict[str, tuple[int, ...]], expected: int | None
) -> None:
    tensors = infos({PREFIX + name: shape for name, shape in saved.items()})

    found = saved_vocabulary(tensors, infos(BASE), 10, what="adapter 'x'")

    assert found == expected


def test_embeddings_of_several_sizes_are_refused() -> None:
    tensors = infos(
        {PREFIX + "lm_head.weight": (12, 4), PREFIX + "model.embed_tokens.weight": (11, 4)}
    )

    with pytest.raises(CellError, match="several sizes") as raised:
        saved_vocabulary(tensors, infos(BASE), 10, what="adapter 'x'")

    assert raised.value.kind == FailureKind.DOES_NOT_FIT


def test_only_embeddings_are_enlarged() -> None:
    shapes = {name: tensor.shape for name, tensor in enlarged(infos(BASE), 10, 12).items()}

    assert shapes == BASE | {"model.embed_tokens.weight": (12, 4), "lm_head.weight": (12, 4)}


@pytest.mark.torch
def test_an_enlarged_baseline_has_mean_rows_and_leaves_the_base_alone(
    tiny_base: Path, tiny_spec: EngineSpec
) -> None:
    requests = request_set(mixed_calls())
    vocab_size = 430
    expected = reference(tiny_base, None, batch_size=4)
    model = expected._model
    rows = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(vocab_size, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.weight[rows:] = layer.weight[:rows].mean(0)
    engine = HFEngine(replace(tiny_spec, sharing=False))
    plain = Subject(id="base", base="base")
    grown = Subject(id=f"base@{vocab_size}", base="base", vocab_size=vocab_size)
    (before,) = engine.answer(Shard(requests), [plain])

    (found,) = engine.answer(Shard(requests), [grown])
    (after,) = engine.answer(Shard(requests), [plain])

    assert found.answers == reference_answers(expected, requests)
    assert found.answers != before.answers
    assert after.answers == before.answers
    # New tokens that are as likely as an average one take next to nothing from the others.
    for ours, alone in zip(found.answers, before.answers, strict=True):
        if ours.logprob is not None and alone.logprob is not None:
            assert ours.logprob == pytest.approx(alone.logprob, rel=0.05, abs=0.3)
