from typing import Literal

from raypeft.core.records import EngineSpec, FailureKind, Hardware
from raypeft.runtime.pins import MAX_REFUSED, Pins

H100 = Hardware(fingerprint="1" * 16, device="NVIDIA H100 80GB HBM3", memory_gib=79.6)
A100 = Hardware(fingerprint="2" * 16, device="NVIDIA A100-SXM4-40GB", memory_gib=39.4)


def base(name: str, kind: Literal["hf", "vllm"] = "hf") -> EngineSpec:
    return EngineSpec(kind=kind, base=name, base_digest=f"digest of {name}")


def test_the_first_slot_of_a_base_says_what_its_others_must_be() -> None:
    pins = Pins()
    assert pins.refusal(base("b"), H100, "n1") is None
    assert pins.refusal(base("b"), H100, "n2") is None
    refusal = pins.refusal(base("b"), A100, "n3")
    assert refusal is not None
    assert (refusal.kind, refusal.retryable) == (FailureKind.LOAD_FAILED, True)
    for words in ("'b'", "NVIDIA H100 80GB HBM3, 80 GiB", "n3 has NVIDIA A100", "allow_mixed"):
        assert words in refusal.message
    assert pins.unlike(base("b")) == {"n3"}


def test_bases_and_engines_are_pinned_apart() -> None:
    pins = Pins()
    assert pins.refusal(base("b"), H100, "n1") is None
    assert pins.refusal(base("c"), A100, "n2") is None
    assert pins.refusal(base("b", "vllm"), A100, "n2") is None
    assert pins.unlike(base("b")) == pins.unlike(base("never")) == frozenset()


def test_hardware_that_seems_to_be_gone_is_not_waited_for_without_end() -> None:
    pins = Pins()
    assert pins.refusal(base("b"), H100, "n0") is None
    refusals = [pins.refusal(base("b"), A100, f"n{at}") for at in range(1, MAX_REFUSED + 1)]
    assert [one.retryable for one in refusals if one] == [True] * (MAX_REFUSED - 1) + [False]
    assert pins.refusal(base("b"), H100, "n0") is None
    again = pins.refusal(base("b"), A100, "n99")
    assert again is not None
    assert again.retryable


def test_mixed_hardware_is_let_through_where_it_is_allowed() -> None:
    pins = Pins(are_held=False)
    assert pins.refusal(base("b"), H100, "n1") is None
    assert pins.refusal(base("b"), A100, "n2") is None
    assert pins.unlike(base("b")) == frozenset()
