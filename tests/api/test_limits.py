"""How much a device takes at once, from one run to the next."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from raypeft.api.limits import remember_limits, remembered_limits
from raypeft.core.identity import cell_numerics
from raypeft.core.records import EngineSpec, Hardware, Shard, Subject, UnitAnswers
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
