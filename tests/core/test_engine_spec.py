"""Which settings of an engine enter a cell's identity."""

from dataclasses import replace
from typing import Any

import pytest

from raypeft.core.engine_spec import EngineSpec
from raypeft.core.identity import cell_key

SPEC = EngineSpec(kind="hf", base="b", base_digest="d")


def key(spec: EngineSpec) -> str:
    return cell_key(base_digest="d", adapter_digest=None, request_set="r", numerics=spec.numerics())


def test_answers_that_shared_contexts_are_never_taken_for_lm_evals_own() -> None:
    assert key(SPEC) != key(replace(SPEC, sharing=False))


@pytest.mark.parametrize(
    "change",
    [{"batch_size": 3}, {"batch_tokens": 512}, {"device": "cuda"}, {"row_limits": {"f": {0: 9}}}],
)
def test_what_moves_answers_by_rounding_at_most_keeps_the_identity(change: dict[str, Any]) -> None:
    assert key(SPEC) == key(replace(SPEC, **change))


@pytest.mark.parametrize(
    "change",
    [{"dtype": "bfloat16"}, {"softmax_dtype": None}, {"max_length": 9}, {"kind": "vllm"}],
)
def test_what_can_change_a_score_is_another_identity(change: dict[str, Any]) -> None:
    assert key(SPEC) != key(replace(SPEC, **change))


def test_of_vllms_options_only_batch_invariance_is_part_of_the_identity() -> None:
    vllm = replace(SPEC, kind="vllm", options={"max_num_seqs": 8})
    assert key(vllm) == key(replace(vllm, options={"block_size": 32}, sharing=False))
    assert key(vllm) != key(replace(vllm, options={"batch_invariant": True}))
