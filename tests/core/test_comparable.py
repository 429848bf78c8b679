from dataclasses import replace
from typing import Any

import pytest

from raypeft.core.comparable import (
    Pair,
    ScoredCell,
    check_comparable,
    check_metric,
    match_baseline,
    paired_samples,
)
from raypeft.errors import IncomparableError
from tests.core.cells import HARDWARE, NUMERICS, make_cell, with_sample

BASELINE = make_cell([0, 1, 1])
ADAPTER = make_cell([1, 1, 1], adapter="lora")
OTHER_TORCH = replace(HARDWARE, software={**HARDWARE.software, "torch": "2.14"})
NO_PEFT = replace(HARDWARE, software={"torch": "2.13"})
OTHER_GPU = replace(HARDWARE, fingerprint="f2", device="GPU")
OTHER_THREADS = replace(HARDWARE, fingerprint="f3", threads=2)


def test_equal_conditions_are_comparable_and_need_no_note() -> None:
    assert check_comparable(BASELINE, ADAPTER) == ""


@pytest.mark.parametrize(
    ("change", "field", "left", "right"),
    [
        ({"base_digest": "x"}, "base_digest", "digest of base", "x"),
        ({"request_set": "x"}, "request_set", "requests of toy", "x"),
        ({"numerics": {**NUMERICS, "dtype": "bfloat16"}}, "numerics.dtype", '"float32"',
         '"bfloat16"'),
        ({"numerics": {**NUMERICS, "attn": "sdpa"}}, "numerics.attn", "(absent)", '"sdpa"'),
        ({"numerics": {"engine": "vllm"}}, "numerics.engine", '"hf"', '"vllm"'),
        ({"sampling_seed": 7}, "sampling_seed", "None", "7"),
        ({"scoring": "s2"}, "scoring", "", "s2"),
        ({"hardware": (OTHER_TORCH,)}, "software.torch", "2.13", "2.14"),
        ({"hardware": (NO_PEFT,)}, "software.peft", "0.21", "(absent)"),
        ({"hardware": (HARDWARE, OTHER_TORCH)}, "software.torch", "2.13", "2.13 and 2.14"),
        ({"hardware": (OTHER_GPU,)}, "hardware.device", "CPU", "GPU"),
        ({"hardware": (OTHER_THREADS,)}, "hardware.threads", "1", "2"),
        ({"hardware": (HARDWARE, OTHER_GPU)}, "hardware", "f1 (CPU)", "f1 (CPU) and f2 (GPU)"),
        ({"hardware": ()}, "software.peft", "0.21", "(absent)"),
    ],
)  # fmt: skip
def test_a_difference_is_refused_with_its_field_and_both_values(
    change: dict[str, Any], field: str, left: str, right: str
) -> None:
    with pytest.raises(IncomparableError) as caught:
        check_comparable(BASELINE, replace(ADAPTER, **change))
    error = caught.value
    assert (error.field, error.left, error.right) == (field, left, right)
    assert "base/lora against base on toy" in str(error)


def test_a_merged_adapter_is_comparable_and_the_note_names_side_and_dtype() -> None:
    merged = replace(ADAPTER, numerics={**NUMERICS, "merged": True})

    note = check_comparable(BASELINE, merged)

    assert "base/lora is merged into float32 weights" in note
    assert check_comparable(merged, merged) == ""


def test_one_side_that_shared_contexts_in_16_bits_is_noted() -> None:
    half = {**NUMERICS, "dtype": "bfloat16"}
    shared = replace(BASELINE, numerics=half, paths=("shared context",) * 2)
    plain = replace(ADAPTER, numerics=half, paths=("plain, lane one_type: it owns the cache",) * 2)
    alike = replace(ADAPTER, numerics=half, paths=("shared context, lane shared: 1 of 9 plain",))

    assert "shared context, base/lora by plain: the rounding of bfloat16" in check_comparable(
        shared, plain
    )
    assert check_comparable(shared, alike) == ""
    full = [replace(cell, numerics=NUMERICS) for cell in (shared, plain)]
    assert check_comparable(*full) == ""


def test_several_baselines_none_of_which_is_alike_are_a_refusal_and_no_crash() -> None:
    grown = {**NUMERICS, "vocab_size": 406}
    baselines = [
        replace(BASELINE, subject="base@406", numerics=grown),
        BASELINE,
        replace(BASELINE, subject="base@406-own", numerics={**grown, "tokenizer": "d1"}),
    ]
    other = replace(ADAPTER, numerics={**NUMERICS, "vocab_size": 412, "tokenizer": "d2"})

    for order in (baselines, baselines[::-1]):
        found = match_baseline(other, order)
        assert found.pair is None
        assert found.baseline is BASELINE
        assert "tokenizer" in found.refusal


def test_another_tokenizer_is_the_field_that_differs_even_where_requests_differ_too() -> None:
    own = replace(ADAPTER, numerics={**NUMERICS, "tokenizer": "d1"}, request_set="other")

    with pytest.raises(IncomparableError) as caught:
        check_comparable(BASELINE, own)

    assert (caught.value.field, caught.value.left) == ("tokenizer", "the base's")


def test_a_larger_vocabulary_is_matched_with_the_baseline_of_its_size() -> None:
    def with_tokens(cell: ScoredCell) -> ScoredCell:
        return replace(cell, numerics={**NUMERICS, "vocab_size": 430})

    enlarged, grown = with_tokens(BASELINE), with_tokens(ADAPTER)

    for order in ([BASELINE, enlarged], [enlarged, BASELINE]):
        assert match_baseline(grown, order).baseline is enlarged
        assert match_baseline(ADAPTER, order).baseline is BASELINE
    alone = match_baseline(grown, [BASELINE])
    assert alone.pair is None
    assert "numerics.vocab_size" in alone.refusal


def test_an_adapter_is_matched_with_the_baseline_of_its_engine() -> None:
    def on_vllm(cell: ScoredCell) -> ScoredCell:
        return replace(cell, numerics={**NUMERICS, "engine": "vllm"})

    fast = on_vllm(BASELINE)
    enlarged = replace(BASELINE, numerics={**NUMERICS, "vocab_size": 430})
    grown = replace(ADAPTER, numerics={**NUMERICS, "vocab_size": 430})

    for order in ([fast, BASELINE, enlarged], [enlarged, BASELINE, fast]):
        assert match_baseline(on_vllm(ADAPTER), order).baseline is fast
        assert match_baseline(ADAPTER, order).baseline is BASELINE
        assert match_baseline(grown, order).baseline is enlarged
    alone = match_baseline(ADAPTER, [fast])
    assert alone.pair is None
    assert "numerics.engine" in alone.refusal


def test_another_lm_eval_is_refused() -> None:
    newer = replace(ADAPTER, scored=replace(ADAPTER.scored, lm_eval_version="0.5"))
    with pytest.raises(IncomparableError, match=r"lm_eval_version differs: '0.4.13' against '0.5'"):
        check_comparable(BASELINE, newer)


@pytest.mark.parametrize("mixture", [(HARDWARE, OTHER_GPU), (HARDWARE, OTHER_TORCH), ()])
def test_the_same_mixture_on_both_sides_is_not_the_same_conditions(mixture: Any) -> None:
    with pytest.raises(IncomparableError):
        check_comparable(replace(BASELINE, hardware=mixture), replace(ADAPTER, hardware=mixture))


def test_shards_on_several_nodes_of_one_kind_are_comparable() -> None:
    nodes = (HARDWARE, replace(HARDWARE, node="n2"))
    assert check_comparable(BASELINE, replace(ADAPTER, hardware=nodes)) == ""


def test_different_hardware_is_let_through_on_request_and_noted() -> None:
    note = check_comparable(
        BASELINE, replace(ADAPTER, hardware=(OTHER_GPU,)), allow_mixed_hardware=True
    )
    assert note == "mixed hardware: hardware.device is CPU against GPU"


def test_a_cell_finds_the_baseline_of_its_request_set() -> None:
    other = make_cell([0, 0], request_set="other")
    match = match_baseline(ADAPTER, [other, BASELINE])
    assert match.pair == Pair(baseline=BASELINE, adapter=ADAPTER)


def test_a_cell_without_a_baseline_says_so() -> None:
    match = match_baseline(ADAPTER, [make_cell([1], task="elsewhere"), make_cell([1], base="b2")])
    assert match.pair is None
    assert match.refusal == "no baseline: base alone has no result on toy"


def test_a_baseline_of_other_requests_is_named_in_the_refusal() -> None:
    match = match_baseline(ADAPTER, [make_cell([0, 0], request_set="other")])
    assert "request_set differs: 'other' against 'requests of toy'" in match.refusal


@pytest.mark.parametrize("field", ["doc_hash", "prompt_hash", "target_hash"])
def test_documents_must_be_the_same_in_every_hash(field: str) -> None:
    changed = with_sample(ADAPTER, 1, **{field: "x"})
    with pytest.raises(IncomparableError, match=f"{field} of document 1 differs"):
        paired_samples(Pair(baseline=BASELINE, adapter=changed), "none")


def test_documents_are_paired_by_number_in_any_order() -> None:
    shuffled = replace(
        ADAPTER, scored=replace(ADAPTER.scored, samples=ADAPTER.scored.samples[::-1])
    )
    pairs = paired_samples(Pair(baseline=BASELINE, adapter=shuffled), "none")
    assert [(one.doc_id, other.doc_id) for one, other in pairs] == [(0, 0), (1, 1), (2, 2)]


def test_a_missing_document_is_refused_by_number() -> None:
    short = replace(ADAPTER, scored=replace(ADAPTER.scored, samples=ADAPTER.scored.samples[:2]))
    with pytest.raises(IncomparableError, match=r"document 2 differs: 'present' against"):
        paired_samples(Pair(baseline=BASELINE, adapter=short), "none")


def test_metrics_must_be_defined_alike() -> None:
    pair = Pair(baseline=BASELINE, adapter=ADAPTER)
    (metric,) = ADAPTER.scored.metrics
    check_metric(pair, metric, metric)
    with pytest.raises(IncomparableError, match=r"metric acc,none differs: '\(absent\)'"):
        check_metric(pair, None, metric)
    with pytest.raises(IncomparableError, match="aggregation of acc,none differs: 'mean' against"):
        check_metric(pair, metric, replace(metric, aggregation="median"))
