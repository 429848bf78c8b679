"""What must hold of the schedule's state between any two events.

Costs time in proportion to the plan: tests call it after every event, a run never does.
"""

from collections import Counter

from raypeft.core.state import CellPhase, SlotPhase, State
from raypeft.core.waiting import milliseconds

LEFT_OUT = (CellPhase.NOT_STARTED, CellPhase.STOPPED_EARLY)


def check(state: State) -> None:
    """Check the whole state.

    Raises:
        AssertionError: If something is lost, runs twice, or was tried too often.
    """
    _check_units(state)
    _check_cells(state)
    _check_slots(state)
    _check_budgets(state)


def _check_units(state: State) -> None:
    waiting: Counter[str] = Counter()
    for base in state.bases.values():
        waiting.update(base.waiting)
        time = sum(milliseconds(state.units[unit_id]) for unit_id in base.waiting)
        assert time == base.waiting.milliseconds, (time, base.waiting.milliseconds)
    assert state.num_waiting == waiting.total(), (state.num_waiting, waiting.total())
    time = sum(base.waiting.milliseconds for base in state.bases.values())
    assert state.waiting_milliseconds == time, (state.waiting_milliseconds, time)
    assert not (state.closed and waiting), "time is over, and units wait"
    ends = sum(run.end_milliseconds for run in state.running.values())
    assert state.end_milliseconds == ends, (state.end_milliseconds, ends)
    for unit_id, cells in state.open_cells.items():
        places = waiting[unit_id] + (unit_id in state.running)
        if cells:
            # Nothing lost, nothing twice.
            assert places == 1, f"unit {unit_id} waits or runs {places} times"
        else:
            # Finished never again; an attempt whose cells were given up may still be running.
            assert not waiting[unit_id], f"unit {unit_id} has nothing open and waits"


def _check_cells(state: State) -> None:
    assert state.cells.keys() >= state.plan.cells.keys()
    to_score = Counter(state.to_score)
    for cell, phase in state.cells.items():
        is_open = bool(state.open_units.get(cell))
        assert is_open == (phase is CellPhase.ANSWERING), (cell, phase)
        assert to_score[cell] == (phase is CellPhase.TO_SCORE), (cell, phase)
        assert (cell in state.scoring) == (phase is CellPhase.SCORING), (cell, phase)
        assert (cell in state.failures) == (phase is CellPhase.FAILED), (cell, phase)
        assert (cell in state.left_out) == (phase in LEFT_OUT), (cell, phase)
    for cell, unit_ids in state.open_units.items():
        for unit_id in unit_ids:
            assert cell in state.open_cells[unit_id], (cell, unit_id)
    assert len(state.scoring) <= state.policy.scoring


def _check_slots(state: State) -> None:
    assert 1 <= state.capacity <= state.policy.slots, state.capacity
    draining = [slot for slot in state.slots.values() if slot.draining]
    assert state.num_draining == len(draining), (state.num_draining, draining)
    # What drains goes of itself; it is given nothing and stands in nobody's way.
    assert all(slot.phase is SlotPhase.BUSY for slot in draining), draining
    assert len(state.slots) - len(draining) <= state.capacity, (len(state.slots), state.capacity)
    for unit_id, run in state.running.items():
        assert state.slots[run.slot].unit == unit_id, (unit_id, run)
        assert state.slots[run.slot].base == state.units[unit_id].base, (unit_id, run)
    for slot in state.slots.values():
        is_busy = slot.phase is SlotPhase.BUSY
        assert is_busy == (slot.unit is not None), slot
        assert is_busy == (slot.unit in state.running), slot
        assert (slot.id in state.idle) == (slot.phase is SlotPhase.IDLE), slot
        assert (slot.id in state.bases[slot.base].idle) == (slot.id in state.idle), slot
        assert slot.id in state.bases[slot.base].slots, slot
    for name, base in state.bases.items():
        slots = [slot for slot in state.slots.values() if slot.base == name]
        assert base.slots.keys() == {slot.id for slot in slots}, name
        assert base.num_starting == sum(slot.is_starting for slot in slots), name
        assert base.num_running == sum(slot.unit is not None for slot in slots), name
        ends = [state.running[slot.unit].end_milliseconds for slot in slots if slot.unit]
        assert base.end_milliseconds == sum(ends), (name, base.end_milliseconds, ends)
        assert (name in state.hungry) == bool(base.waiting), name
        assert (name in state.unheld) == (bool(base.waiting) and not base.slots), name
        if state.stop is None and base.idle:
            assert not base.waiting, f"base {name} has idle slots and waiting units"
    if state.stop is None and state.num_waiting and not state.slots:
        # Only time is a reason to begin nothing, and it ends the run with the next tick.
        assert state.policy.deadline_seconds is not None, "units wait, and no slot is started"


def _check_budgets(state: State) -> None:
    policy = state.policy
    for unit_id, tally in state.tallies.items():
        assert tally.failed <= policy.attempts, (unit_id, tally)
        assert tally.lost <= policy.slot_losses, (unit_id, tally)
        # One more may be under way; one more may have succeeded or been interrupted.
        assert tally.started <= policy.attempts + policy.slot_losses, (unit_id, tally)
    for cell, tally in state.score_tallies.items():
        assert tally.started <= policy.attempts, (cell, tally)
    for name, base in state.bases.items():
        if not base.is_held and base.waiting:
            assert base.load_failures <= policy.load_attempts, (name, base.load_failures)
