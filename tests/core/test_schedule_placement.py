"""Which base a slot loads and when it moves, by what loading costs; and a cluster that changes."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from raypeft.core.events import (
    CapacityChanged,
    Command,
    Event,
    NodeDraining,
    RunUnit,
    SlotFailed,
    SlotLost,
    SlotPlaced,
    SlotReady,
    StartSlot,
    StopSlot,
    Tick,
    UnitDone,
    UnitFailed,
)
from raypeft.core.invariants import check
from raypeft.core.plan import EngineCost, Plan
from raypeft.core.records import Failure, FailureKind
from raypeft.core.retry import Policy
from raypeft.core.schedule import IDLE_SECONDS, initial, step
from raypeft.core.state import State
from tests.core.night import Night
from tests.support.plans import HARDWARE, make_plan

CRASH = Failure(FailureKind.CRASHED, "boom", retryable=True)
LOST = Failure(FailureKind.SLOT_LOST, "the node is gone", retryable=True)
NO_MEMORY = Failure(FailureKind.OUT_OF_MEMORY, "CUDA out of memory", retryable=True)


def play(state: State, *events: Event) -> list[Command]:
    commands: list[Command] = []
    for event in events:
        commands += step(state, event)
        check(state)
    return commands


def begun(plan: Plan, policy: Policy) -> tuple[State, list[Command]]:
    """Bring up every slot that is asked for at first, each on a node of its own."""
    state, commands = initial(plan, policy)
    commands = [*commands, *play(state, Tick(0.0))]
    for slot in starts(commands):
        ready = SlotReady(slot.slot, replace(HARDWARE, node=f"node of {slot.slot}"))
        commands += play(state, ready)
    return state, commands


def starts(commands: Iterable[Command]) -> list[StartSlot]:
    return [command for command in commands if isinstance(command, StartSlot)]


def stops(commands: Iterable[Command]) -> list[StopSlot]:
    return [command for command in commands if isinstance(command, StopSlot)]


def runs(commands: Iterable[Command]) -> list[RunUnit]:
    return [command for command in commands if isinstance(command, RunUnit)]


def done(run: RunUnit) -> UnitDone:
    return UnitDone(run.slot, run.unit_id, run.attempt, dict.fromkeys(run.cells))


def with_seconds(plan: Plan, **seconds: float) -> Plan:
    """Return a plan whose units take so long, by their base."""
    units = tuple(replace(unit, seconds=seconds[unit.base]) for unit in plan.units)
    return replace(plan, units=units)


# --- what loading costs -----------------------------------------------------------------------


def test_a_free_slot_does_not_load_a_base_that_will_be_done_before_it_is_loaded() -> None:
    plan = make_plan(bases=2, adapters=2, load_seconds=1000.0)
    plan = with_seconds(plan, base0=100.0, base1=1.0)
    night = Night(
        plan,
        Policy(slots=2),
        load_seconds=1000.0,
        unit_seconds=lambda run: 100.0 if run.cells[0].startswith("base0") else 1.0,
    ).play()
    # base1 is done after three seconds; base0 has two more units of 100 s then.
    assert sorted(start.base for start in starts(night.commands)) == ["base0", "base1"]


def test_a_free_slot_loads_a_base_that_will_not_be_done_before_it_is_loaded() -> None:
    plan = make_plan(bases=2, adapters=9, load_seconds=50.0)
    plan = with_seconds(plan, base0=100.0, base1=1.0)
    night = Night(
        plan,
        Policy(slots=2),
        load_seconds=50.0,
        unit_seconds=lambda run: 100.0 if run.cells[0].startswith("base0") else 1.0,
    ).play()
    assert Counter(start.base for start in starts(night.commands)) == {"base0": 2, "base1": 1}
    assert night.now < 700.0


def test_a_slot_leaves_its_base_for_one_with_a_unit_that_would_lengthen_the_night() -> None:
    plan = with_seconds(make_plan(bases=2, adapters=9, load_seconds=5.0), base0=10.0, base1=1.0)
    units = [unit for unit in plan.units if unit.base == "base0" or unit.has_baseline]
    cells = {cell for unit in units for cell in unit.cells}
    kept = {key: cell for key, cell in plan.cells.items() if key in cells}
    plan = replace(plan, units=tuple(units), cells=kept)
    state, commands = begun(plan, Policy(slots=3))
    lone = next(run for run in runs(commands) if run.cells == ("base1:task0",))
    # base1's slot goes with its node, and the cluster has no other; base1 is not urgent yet.
    play(state, CapacityChanged(2), NodeDraining(f"node of {lone.slot}"))
    play(state, UnitFailed(lone.slot, lone.unit_id, lone.attempt, CRASH))
    assert state.unheld == {"base1": None}
    running = [run for run in runs(commands) if run is not lone]
    moved: list[StartSlot] = []
    while not moved:
        more = play(state, Tick(state.now_seconds + 10.0), done(running.pop(0)))
        moved = starts(more)
        running += runs(more)
    (start,) = moved
    assert start.base == "base1"
    assert state.bases["base0"].waiting
    assert stops(more)[0].reason == "base base1 has a unit that would lengthen the night"


def test_the_last_slot_of_a_base_stays_however_long_others_wait() -> None:
    plan = make_plan(bases=2, adapters=1, load_seconds=1000.0)
    plan = with_seconds(plan, base0=1.0, base1=1.0)
    night = Night(plan, Policy(slots=1), load_seconds=1000.0, unit_seconds=lambda run: 1.0).play()
    assert len(starts(night.commands)) == 2


def test_a_long_unit_goes_first_when_everything_else_takes_no_longer() -> None:
    plan = make_plan(adapters=5, load_seconds=0.0)
    units = tuple(replace(u, seconds=10.0, urgency=9) for u in plan.units[:-1])
    plan = replace(plan, units=(*units, replace(plan.units[-1], seconds=100.0)))
    _, commands = begun(plan, Policy(slots=2))
    by_cell = {run.cells[0]: run.reason for run in runs(commands)}
    assert by_cell["base0/a4:task0"] == "about 100 s long, and all that is left takes 75 s"


def test_a_base_that_runs_slower_than_expected_is_given_another_slot() -> None:
    plan = make_plan(bases=2, adapters=19, load_seconds=100.0)
    plan = with_seconds(plan, base0=10.0, base1=1.0)
    # Ten seconds were expected of a unit, it takes ninety; and base1 is done at once.
    night = Night(
        plan,
        Policy(slots=2),
        load_seconds=100.0,
        unit_seconds=lambda run: 90.0 if run.cells[0].startswith("base0") else 1.0,
    ).play()
    assert [start.base for start in starts(night.commands)].count("base0") == 2


def test_why_a_slot_is_started_names_the_work_and_the_cost() -> None:
    plan = with_seconds(make_plan(adapters=3, load_seconds=20.0), base0=60.0)
    _, commands = initial(plan, Policy(slots=2))
    first, second = (command.reason for command in starts(commands))
    assert first == "4 units wait for base base0 (about 240 s), and no slot is on it"
    assert second == (
        "4 units wait for base base0 (about 240 s), 1 slots are on it; loading takes about 20 s "
        "and pays"
    )


def test_what_nobody_wants_is_asked_again_only_after_a_while() -> None:
    plan = with_seconds(make_plan(adapters=1, load_seconds=500.0), base0=300.0)
    state, _ = begun(plan, Policy(slots=2))
    assert len(state.slots) == 2
    state, _ = begun(replace(plan, costs={"base0": EngineCost()}), Policy(slots=1))
    assert len(state.slots) == 1


# --- a cluster that changes -------------------------------------------------------------------


def test_a_slot_on_a_node_that_goes_away_ends_its_unit_and_is_replaced() -> None:
    state, commands = begun(make_plan(adapters=4), Policy(slots=2))
    first, second = runs(commands)
    commands = play(state, NodeDraining(f"node of {first.slot}", "spot notice"))
    # Its successor does not wait for it: it may have a node of its own.
    assert [type(command) for command in commands] == [StartSlot]
    commands = play(state, done(first))
    assert [stop.slot for stop in stops(commands)] == [first.slot]
    assert "goes away: spot notice" in stops(commands)[0].reason
    assert not [run for run in runs(commands) if run.slot == first.slot]
    assert runs(play(state, done(second)))[0].slot == second.slot


def test_a_unit_that_fails_on_a_draining_slot_runs_elsewhere() -> None:
    state, commands = begun(make_plan(adapters=0), Policy(slots=1))
    (run,) = runs(commands)
    (fresh,) = [
        *starts(play(state, NodeDraining(f"node of {run.slot}"))),
        *starts(play(state, UnitFailed(run.slot, run.unit_id, run.attempt, CRASH))),
    ]
    (again,) = runs(play(state, SlotPlaced(fresh.slot), SlotReady(fresh.slot, HARDWARE)))
    assert again.attempt == 2


def test_an_idle_slot_on_a_node_that_goes_away_is_stopped_at_once() -> None:
    state, commands = begun(make_plan(adapters=1), Policy(slots=2))
    first, second = runs(commands)
    play(state, done(first))
    assert state.idle
    commands = play(state, NodeDraining(f"node of {first.slot}"))
    assert [stop.slot for stop in stops(commands)] == [first.slot]
    # Told twice, and of a node nobody is on.
    assert play(state, NodeDraining(f"node of {first.slot}"), NodeDraining("elsewhere")) == []
    assert second.slot in state.slots


def test_a_slot_idle_for_as_long_as_its_base_takes_to_load_is_given_back() -> None:
    state, commands = begun(make_plan(adapters=2, load_seconds=100.0), Policy(slots=3))
    first, second, third = runs(commands)
    play(state, Tick(10.0), done(first), Tick(20.0), done(second))
    assert not stops(play(state, Tick(109.9)))
    commands = play(state, Tick(110.0))
    assert [stop.slot for stop in stops(commands)] == [first.slot]
    assert "idle for 100 s" in stops(commands)[0].reason
    failed = UnitFailed(third.slot, third.unit_id, third.attempt, CRASH)
    assert [run.slot for run in runs(play(state, failed))] == [second.slot]
    # Idle since now, and not since it last worked.
    assert not stops(play(state, Tick(150.0)))


def test_no_slot_is_given_back_at_once_however_fast_its_base_loads() -> None:
    state, commands = begun(make_plan(adapters=1, load_seconds=0.0), Policy(slots=2))
    play(state, done(runs(commands)[0]))
    assert not stops(play(state, Tick(IDLE_SECONDS - 1)))
    assert len(stops(play(state, Tick(IDLE_SECONDS)))) == 1
    # What still runs may fail, and is given another slot then.
    run = runs(commands)[1]
    commands = play(state, SlotLost(run.slot, LOST))
    assert len(starts(commands)) == 1


def test_a_slot_for_which_no_hardware_is_free_yet_is_not_waited_for_when_nothing_waits() -> None:
    state, commands = initial(make_plan(adapters=2), Policy(slots=3))
    first, second, third = starts(commands)
    play(state, SlotPlaced(second.slot))
    commands = play(state, SlotReady(first.slot, HARDWARE))
    (run,) = runs(commands)
    commands = play(state, done(run))
    (run,) = runs(commands)
    assert not stops(commands)
    commands = play(state, done(run))
    assert [stop.slot for stop in stops(commands)] == [third.slot]
    assert "waits any more" in stops(commands)[0].reason
    (run,) = runs(commands)
    assert second.slot in state.slots


def test_a_draining_slot_that_runs_out_of_memory_is_stopped_once() -> None:
    state, commands = begun(make_plan(adapters=2), Policy(slots=1))
    (run,) = runs(commands)
    play(state, NodeDraining(f"node of {run.slot}"))
    commands = play(state, UnitFailed(run.slot, run.unit_id, run.attempt, NO_MEMORY))
    assert [stop.slot for stop in stops(commands)] == [run.slot]


def test_a_cluster_that_shrinks_lets_slots_end_their_units() -> None:
    state, commands = begun(make_plan(adapters=5), Policy(slots=4))
    running = runs(commands)
    assert play(state, CapacityChanged(1)) == []
    draining = [run for run in running if state.slots[run.slot].draining]
    assert len(draining) == 3
    commands = play(state, *(done(run) for run in draining))
    assert [stop.slot for stop in stops(commands)] == [run.slot for run in draining]
    assert not runs(commands)
    assert not starts(commands)


def test_what_another_sweep_is_to_have_is_given_back_with_its_reason() -> None:
    state, commands = begun(make_plan(adapters=3), Policy(slots=2))
    running = runs(commands)
    assert play(state, CapacityChanged(1, "sweep b waits for hardware")) == []
    commands = play(state, *(done(run) for run in running))
    (stop,) = stops(commands)
    assert stop.reason == "sweep b waits for hardware"
    assert len(runs(commands)) == 1
    assert len(starts(play(state, CapacityChanged(2)))) == 1


def test_what_was_to_be_given_back_is_kept_when_there_is_room_again() -> None:
    state, commands = begun(make_plan(adapters=7), Policy(slots=4))
    first, second, third, fourth = runs(commands)
    play(state, CapacityChanged(1, "sweep b waits for hardware"))
    gone = [run.slot for run in runs(commands) if state.slots[run.slot].draining]
    # One of those that are too many is on a node that goes away, which is another matter.
    play(state, NodeDraining(f"node of {gone[0]}"))
    commands = play(state, CapacityChanged(3))
    assert [slot.id for slot in state.slots.values() if slot.draining] == [gone[0]]
    assert not starts(commands)
    commands = play(state, CapacityChanged(4))
    assert len(starts(commands)) == 1
    finished = play(state, *(done(run) for run in (first, second, third, fourth)))
    assert [stop.slot for stop in stops(finished)] == [gone[0]]


def test_of_slots_that_wait_for_hardware_the_last_goes_first() -> None:
    state, commands = initial(make_plan(adapters=5), Policy(slots=3))
    begun_slots = [start.slot for start in starts(commands)]
    commands = play(state, CapacityChanged(1))
    assert [stop.slot for stop in stops(commands)] == begun_slots[:0:-1]


def test_hardware_that_other_sweeps_have_is_waited_for_without_end() -> None:
    state, commands = initial(make_plan(adapters=1), Policy(slots=2, start_timeout_seconds=100.0))
    play(state, Tick(0.0), CapacityChanged(2, is_shared=True))
    assert play(state, Tick(150.0), Tick(260.0), Tick(900.0)) == []
    assert state.capacity == 2
    # They have ended, and still there is none.
    play(state, CapacityChanged(2))
    assert not state.failures
    commands = play(state, Tick(1100.0))
    assert len(stops(commands)) == 2


def test_slots_that_load_go_before_slots_that_work() -> None:
    state, commands = initial(make_plan(adapters=5), Policy(slots=3))
    first, second, third = starts(commands)
    play(state, SlotReady(first.slot, HARDWARE), SlotPlaced(second.slot))
    commands = play(state, CapacityChanged(2))
    assert [stop.slot for stop in stops(commands)] == [third.slot]
    commands = play(state, CapacityChanged(0))
    assert [stop.slot for stop in stops(commands)] == [second.slot]
    assert state.capacity == 1


def test_a_slot_that_drains_is_not_told_twice() -> None:
    state, commands = begun(make_plan(adapters=5), Policy(slots=1))
    (run,) = runs(commands)
    play(state, NodeDraining(f"node of {run.slot}", "first"))
    play(state, NodeDraining(f"node of {run.slot}", "second"))
    assert "first" in stops(play(state, done(run)))[0].reason


def test_a_cluster_that_grows_is_used_up_to_what_the_sweep_allows() -> None:
    state, commands = begun(make_plan(adapters=9), Policy(slots=3))
    play(state, CapacityChanged(1), *(done(run) for run in runs(commands)))
    commands = play(state, CapacityChanged(100))
    assert state.capacity == 3
    assert len(starts(commands)) == 2


def test_room_is_never_less_than_one_slot() -> None:
    state, commands = begun(make_plan(adapters=5), Policy(slots=2, load_attempts=1))
    first = runs(commands)[0]
    play(state, CapacityChanged(1))
    draining = next(slot.id for slot in state.slots.values() if slot.draining)
    stays = next(slot.id for slot in state.slots.values() if not slot.draining)
    commands = play(state, NodeDraining(f"node of {stays}"))
    (fresh,) = starts(commands)
    # The base is held by slots that drain, so what failed is the place.
    play(state, SlotFailed(fresh.slot, CRASH))
    assert state.capacity == 1
    assert {draining, stays} <= state.slots.keys()
    assert first.unit_id in state.running
