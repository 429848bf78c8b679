from raypeft.core.events import (
    RunUnit,
    SlotFailed,
    SlotLost,
    SlotPlaced,
    SlotReady,
    StartSlot,
    StopSlot,
    UnitDone,
)
from raypeft.core.records import Failure, FailureKind
from raypeft.core.retry import Policy
from raypeft.core.schedule import initial
from raypeft.runtime.meter import Meter
from tests.support.plans import HARDWARE, make_plan

LOST = Failure(FailureKind.SLOT_LOST, "gone", retryable=True)


def test_time_is_counted_as_loading_or_busy_and_waiting_for_hardware_as_neither() -> None:
    meter = Meter(100.0)
    state, _ = initial(make_plan(), Policy())
    meter.see(StartSlot("a", "base0", ""), 100.0)
    meter.see(SlotPlaced("a"), 110.0)
    meter.see(SlotReady("a", HARDWARE), 113.0)
    meter.see(RunUnit("a", "u", 1, ("c",), ""), 113.0)
    meter.see(UnitDone("a", "u", 1, {}), 120.0)
    meter.see(RunUnit("a", "v", 1, ("c",), ""), 121.0)
    meter.see(SlotLost("a", LOST), 124.0)
    meter.see(StopSlot("a", ""), 130.0)
    outcome = meter.outcome(state, 160.0)
    assert outcome.loading_seconds == 3.0
    assert outcome.busy_seconds == 10.0
    assert outcome.seconds == 60.0
    assert outcome.num_slots_started == 1


def test_a_load_that_fails_took_its_time_too() -> None:
    meter = Meter(0.0)
    state, _ = initial(make_plan(), Policy())
    meter.see(SlotPlaced("a"), 1.0)
    meter.see(SlotFailed("a", LOST), 5.0)
    assert meter.outcome(state, 9.0).loading_seconds == 4.0


def test_the_rest_is_estimated_from_the_pace_so_far() -> None:
    meter = Meter(0.0)
    plan = make_plan(adapters=3, tokens=100)
    state, _ = initial(plan, Policy())
    assert meter.progress(state, 5.0).remaining_seconds is None
    state.close(plan.units[0].id, plan.units[0].cells[0])
    progress = meter.progress(state, 10.0)
    assert (progress.num_units, progress.num_units_open) == (4, 3)
    assert (progress.tokens, progress.tokens_open) == (400, 300)
    assert progress.remaining_seconds == 30.0
