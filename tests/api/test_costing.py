"""What a sweep will cost: by assumption, by what the store has measured; and what cannot fit."""

from dataclasses import replace
from typing import Any

import pytest

from raypeft.api.costing import (
    MAX_KEPT,
    CostKeeper,
    Costs,
    Measurements,
    refuse_what_cannot_fit,
    remembered_costs,
)
from raypeft.api.sweeps import Resolved
from raypeft.core.cost import Work
from raypeft.core.engine_choice import EngineRoute
from raypeft.core.records import Hardware, Subject
from raypeft.core.spec import make_sweep
from raypeft.engines.bases import BaseFacts
from raypeft.errors import SpecError
from raypeft.store.store import Store

WORK = Work(tokens=10**6, shared_tokens=10**6, num_requests=1000)
H100 = Hardware(fingerprint="f", device="NVIDIA H100 80GB HBM3", num_devices=1, memory_gib=79.6)


def resolved(parameters: int = 8 * 10**9, digest: str = "d", **sections: Any) -> Resolved:
    sweep = make_sweep(
        {"output": "runs/x", "bases": ["org/large"], "tasks": ["arc_easy"], **sections}
    )
    facts = BaseFacts(
        path="org/large",
        digest=digest,
        quick_digest="",
        dtype="bfloat16",
        model_type="llama",
        num_parameters=parameters,
        num_bytes=2 * parameters,
        max_length=8192,
    )
    return Resolved(
        sweep=sweep,
        bases={"large": facts},
        subjects={"large": Subject(id="large", base="large")},
        routes={"large": EngineRoute("hf", "asked for")},
    )


def keeper(store: Store, planned: Resolved) -> CostKeeper:
    engines = {"large": planned.engine("large")}
    seconds = Costs(planned).reference_seconds("large", WORK)
    return CostKeeper(store, engines, {"cell": seconds})


def on_gpu(**hardware: Any) -> dict[str, Any]:
    return {"hardware": {"gpus": 1, **hardware}}


def test_before_anything_is_measured_the_device_is_assumed_and_the_interval_is_wide() -> None:
    fast = Costs(resolved(**on_gpu(accelerator="H100")))
    slow = Costs(resolved(**on_gpu()))
    cpu = Costs(resolved(hardware={"gpus": 0, "cpus": 4}))
    times = [costs.seconds("large", WORK) for costs in (fast, slow, cpu)]
    assert times[0] < times[1] / 10 < times[2] / 1000
    outlook = fast.outlook("large")
    assert (outlook.expected.low, outlook.expected.high) == (0.25, 4.0)
    assert outlook.expected.basis == "nothing measured; assumed of H100"
    assert "an unknown GPU" in slow.outlook("large").expected.basis


def test_what_was_measured_takes_the_place_of_what_is_assumed(tmp_path: Any) -> None:
    store = Store(str(tmp_path))
    planned = resolved(**on_gpu())
    kept = keeper(store, planned)
    for seconds in (100.0, 104.0, 96.0, 100.0):
        kept.unit("large", ("cell",), 1, H100, seconds)
    costs = Costs(planned, remembered_costs(store))
    assert costs.seconds("large", WORK) == pytest.approx(100.0, rel=0.02)
    assert costs.outlook("large").expected.high < 1.2
    assert "on NVIDIA H100 80GB HBM3" in costs.outlook("large").expected.basis
    assert costs.engine_cost("large").upper == costs.outlook("large").expected.high


def test_another_base_is_judged_by_what_was_measured_on_its_device(tmp_path: Any) -> None:
    store = Store(str(tmp_path))
    kept = keeper(store, resolved(**on_gpu()))
    for _ in range(4):
        kept.unit("large", ("cell",), 1, H100, 100.0)
    half = Costs(resolved(4 * 10**9, "other", **on_gpu()), remembered_costs(store))
    # Half as many parameters; requests cost the same.
    assert 45.0 < half.seconds("large", WORK) < 60.0


@pytest.mark.parametrize(
    "hardware", [{"gpus": 0}, {"gpus": 1, "accelerator": "A100"}, {"gpus": 1, "accelerator": "L4"}]
)
def test_what_was_measured_on_other_hardware_says_nothing(
    tmp_path: Any, hardware: dict[str, Any]
) -> None:
    store = Store(str(tmp_path))
    kept = keeper(store, resolved(**on_gpu()))
    for _ in range(4):
        kept.unit("large", ("cell",), 1, H100, 100.0)
    costs = Costs(resolved(hardware=hardware), remembered_costs(store))
    assert "nothing measured" in costs.outlook("large").expected.basis


def test_loads_are_measured_from_the_journal(tmp_path: Any) -> None:
    store = Store(str(tmp_path))
    planned = resolved(**on_gpu())
    kept = keeper(store, planned)
    for slot, took in (("s1", 40.0), ("s2", 44.0), ("s3", 300.0)):
        kept.journal_line("start_slot", {"slot": slot, "base": "large", "at_seconds": 1.0})
        kept.journal_line("slot_placed", {"slot": slot, "at_seconds": 100.0})
        ready = {"slot": slot, "at_seconds": 100.0 + took, "device": H100.device}
        kept.journal_line("slot_ready", ready)
    kept.journal_line("slot_ready", {"slot": "unheard of", "at_seconds": 5.0, "device": "d"})
    assert Costs(planned, remembered_costs(store)).outlook("large").load_seconds == 15.0 + 16.0
    kept.unit("large", ("cell",), 1, H100, 100.0)
    kept.write()
    assert Costs(planned, remembered_costs(store)).outlook("large").load_seconds == 44.0


def test_of_a_base_and_device_only_the_last_measurements_are_kept(tmp_path: Any) -> None:
    store = Store(str(tmp_path))
    kept = keeper(store, resolved(**on_gpu()))
    for number in range(2 * MAX_KEPT):
        kept.unit("large", ("cell",), 1, H100, float(number + 1))
    kept.write()
    found = [one.seconds for one in remembered_costs(store).units]
    assert found == [float(number + 1) for number in range(MAX_KEPT, 2 * MAX_KEPT)]


def test_what_two_runs_measure_is_kept_side_by_side(tmp_path: Any) -> None:
    store = Store(str(tmp_path))
    for digest in ("d", "other"):
        kept = keeper(store, resolved(digest=digest, **on_gpu()))
        kept.unit("large", ("cell",), 2, replace(H100, device=f"gpu of {digest}"), 10.0)
        kept.write()
    found = remembered_costs(store)
    assert [one.base_digest for one in found.units] == ["d", "other"]
    assert list(found.devices) == ["gpu of d", "gpu of other"]


# --- memory -----------------------------------------------------------------------------------


def refuse(planned: Resolved, measured: Measurements | None = None) -> None:
    costs = Costs(planned, measured)
    refuse_what_cannot_fit(planned, {"large": costs.outlook("large")})


def test_a_base_that_cannot_fit_is_refused_with_the_numbers_and_the_remedy() -> None:
    with pytest.raises(SpecError) as caught:
        refuse(resolved(70 * 10**9, **on_gpu(accelerator="H100")))
    text = str(caught.value)
    assert "bases[0]: large needs about" in text
    assert "weights 130.4" in text
    assert "a slot has 94.0 GiB for it (the largest H100)" in text
    assert "quantise it" in text


def test_what_the_sweep_says_of_its_devices_counts_first() -> None:
    refuse(resolved(70 * 10**9, **on_gpu(accelerator="H100", device_memory="192GiB")))
    with pytest.raises(SpecError, match=r"hardware\.device_memory"):
        refuse(resolved(**on_gpu(device_memory="8GiB")))


def test_a_memory_that_was_measured_counts(tmp_path: Any) -> None:
    store = Store(str(tmp_path))
    planned = resolved(60 * 10**9, **on_gpu())
    kept = keeper(store, planned)
    kept.unit("large", ("cell",), 1, H100, 10.0)
    kept.write()
    with pytest.raises(SpecError, match=r"79\.6 GiB for it \(measured on NVIDIA H100"):
        refuse(planned, remembered_costs(store))


def test_an_unknown_memory_refuses_nothing() -> None:
    planned = resolved(700 * 10**9, **on_gpu())
    refuse(planned)
    assert "is not known" in Costs(planned).outlook("large").memory.sentence()


def test_slots_that_share_a_device_have_their_share_of_it() -> None:
    refuse(resolved(**on_gpu(device_memory="24GiB")))
    with pytest.raises(SpecError, match=r"a slot has 12\.0 GiB"):
        refuse(resolved(hardware={"gpus": 0.5, "device_memory": "24GiB"}))


def test_a_quantised_base_needs_less() -> None:
    bases = [{"path": "org/large", "quantization": "bnb-4bit"}]
    refuse(resolved(70 * 10**9, bases=bases, **on_gpu(device_memory="48GiB")))
