"""How much a device takes at once, from one run to the next."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from raypeft.api.limits import (
    lower_after_loss,
    remember_limits,
    remembered_limits,
    with_limits,
)
from raypeft.core.identity import cell_numerics
from raypeft.core.records import (
    EngineSpec,
    Failure,
    FailureKind,
    Hardware,
    Shard,
    Subject,
    UnitAnswers,
)
from raypeft.engines.hf import HFEngine
from raypeft.runtime.slot import Slot
from raypeft.store.store import Store
from tests.engines.samples import mixed_calls, request_set
from tests.support.lab import Lab

SPEC = EngineSpec(kind="hf", base="base", base_digest="b0")
BASELINE = Subject(id="base", base="base")


def answers(fingerprint: str, limits: dict[int, int]) -> UnitAnswers:
    hardware = Hardware(fingerprint=fingerprint, device="gpu")
    return UnitAnswers(subjects=(), hardware=hardware, seconds=1.0, row_limits=limits)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def test_the_smaller_limit_counts_for_each_kind_of_hardware(store: Store) -> None:
    assert remembered_limits(store, SPEC) == {}
    for fingerprint, limits in (
        ("h100", {0: 4096}),
        ("h100", {0: 8192, 64: 1024}),
        ("l4", {0: 512}),
        ("l4", {}),
    ):
        remember_limits(store, SPEC, answers(fingerprint, limits))

    assert remembered_limits(store, SPEC) == {"h100": {0: 4096, 64: 1024}, "l4": {0: 512}}


@pytest.mark.parametrize(
    "change", [{"base_digest": "b1"}, {"dtype": "bfloat16"}, {"attn_implementation": "eager"}]
)
def test_another_base_or_dtype_has_limits_of_its_own(store: Store, change: dict[str, str]) -> None:
    remember_limits(store, SPEC, answers("h100", {0: 4096}))

    other = replace(SPEC, **change)  # type: ignore[arg-type]

    assert remembered_limits(store, other) == {}


def test_a_limit_is_no_part_of_any_identity() -> None:
    limited = replace(SPEC, row_limits={"h100": {0: 4096}})

    assert cell_numerics(limited, BASELINE) == cell_numerics(SPEC, BASELINE)


@pytest.mark.torch
def test_a_later_slot_starts_where_an_earlier_one_ran_out_of_memory(lab: Lab, store: Store) -> None:
    spec = replace(SPEC, base=str(lab.base), sharing=True)
    requests = Shard(request_set(mixed_calls()[:12]))
    first = HFEngine(spec)
    sizes = forward_sizes(first)
    (expected,) = first.answer(requests, [BASELINE])
    largest = max(sizes)
    first.row_limits[0] = largest // 2  # as after running out of memory with the largest
    (halved,) = first.answer(requests, [BASELINE])
    hardware = first.hardware()
    unit = UnitAnswers(
        subjects=(), hardware=hardware, seconds=1.0, row_limits=dict(first.row_limits)
    )
    remember_limits(store, spec, unit)

    built: list[HFEngine] = []

    def build(spec: EngineSpec) -> HFEngine:
        built.append(HFEngine(spec))
        return built[0]

    slot = Slot(replace(spec, row_limits=remembered_limits(store, spec)), build)
    assert isinstance(slot.ready(), Hardware)
    later = forward_sizes(built[0])
    (found,) = built[0].answer(requests, [BASELINE])

    assert max(later) <= largest // 2 < largest
    assert found.answers == halved.answers
    for left, right in zip(found.answers, expected.answers, strict=True):
        assert left.logprob == pytest.approx(right.logprob, abs=1e-4)


def forward_sizes(engine: HFEngine) -> list[int]:
    """Return a list that will hold how many tokens each forward pass was given."""
    sizes: list[int] = []

    def note(module: torch.nn.Module, inputs: tuple[object, ...], named: dict[str, object]) -> None:
        tokens = named["input_ids"] if "input_ids" in named else inputs[0]
        assert isinstance(tokens, torch.Tensor)
        sizes.append(tokens.numel())

    engine._base.register_forward_pre_hook(note, with_kwargs=True)
    return sizes


CARD = Hardware(fingerprint="a", device="H100", num_devices=1, memory_gib=79.2)
LOST = Failure(FailureKind.OUT_OF_MEMORY, "vLLM raised OutOfMemoryError", retryable=True)


def test_each_loss_of_a_vllm_slot_lowers_the_next_and_is_kept_for_that_hardware(
    store: Store,
) -> None:
    spec = replace(SPEC, kind="vllm", options={"max_num_seqs": 32})

    first = lower_after_loss(store, spec, CARD, LOST)
    second = lower_after_loss(store, first, CARD, LOST)
    elsewhere = lower_after_loss(store, second, replace(CARD, device="L4"), LOST)

    card, other = "1 x H100, 79 GiB", "1 x L4, 79 GiB"
    assert first.lowered == {card: {"max_num_seqs": 16}}
    assert second.lowered == {card: {"max_num_seqs": 8}}
    assert elsewhere.lowered == {card: {"max_num_seqs": 8}, other: {"max_num_seqs": 16}}
    # The next night begins there, and what the sweep file says stays what it is.
    assert with_limits(store, spec).lowered == elsewhere.lowered
    assert with_limits(store, spec).options == spec.options
    assert cell_numerics(elsewhere, BASELINE) == cell_numerics(spec, BASELINE)


def test_nothing_is_lowered_for_another_engine_or_another_reason(store: Store) -> None:
    vllm = replace(SPEC, kind="vllm")

    assert lower_after_loss(store, SPEC, CARD, LOST) == SPEC
    lost = replace(LOST, kind=FailureKind.SLOT_LOST)
    assert lower_after_loss(store, vllm, CARD, lost) == vllm
    assert with_limits(store, vllm) == vllm
