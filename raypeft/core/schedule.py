"""The schedule: a state machine, events in, commands out.

It decides which slot loads which base, which unit runs next, what is tried again, what is given
up and what is scored. It starts nothing, waits for nothing and reads no clock: time comes as
`Tick` events, so a night on a thousand slots is simulated in seconds. An event takes constant
time in the number of units and cells.

The policy: a slot keeps its base while there is work for it, then takes the base with the most
work left for each slot that is on it; the order within a base is `raypeft.core.waiting`'s; what
becomes of a failure is `raypeft.core.retry`'s. `raypeft.core.explain` says why a cell waits, and
`raypeft.core.invariants` what must hold between any two events.
"""

from collections.abc import Mapping

from raypeft.core.events import (
    CellScored,
    Command,
    Event,
    ScoreFailed,
    SlotFailed,
    SlotLost,
    SlotPlaced,
    SlotReady,
    StopRequested,
    Tick,
    UnitDone,
    UnitFailed,
)
from raypeft.core.plan import Plan, Unit
from raypeft.core.records import Failure, FailureKind
from raypeft.core.retry import (
    Action,
    Decision,
    Policy,
    after_load_failure,
    after_score_failure,
    after_slot_loss,
    after_unit_failure,
)
from raypeft.core.state import CellPhase, SlotPhase, SlotState, State, Tally


def initial(plan: Plan, policy: Policy) -> tuple[State, list[Command]]:
    """Return the state before the first event, and the first commands.

    Raises:
        ValueError: If the plan contradicts itself.
    """
    state = State(plan, policy)
    # Shortest first, since a queue hands out the last one added first.
    for unit in sorted(plan.units, key=lambda unit: unit.tokens):
        if unit.base not in state.bases or unit.id in state.tallies:
            raise ValueError(f"unit {unit.id} stands twice, or its base {unit.base!r} nowhere")
        state.open_cells[unit.id] = dict.fromkeys(unit.cells)
        state.tallies[unit.id] = Tally()
        state.push(unit)
        for cell in unit.cells:
            state.cells[cell] = CellPhase.ANSWERING
            state.open_units.setdefault(cell, {})[unit.id] = None
    for cell in (*plan.to_score, *plan.done):
        if cell in state.cells:
            raise ValueError(f"cell {cell} is to be answered and is answered")
        state.cells[cell] = CellPhase.DONE
    for cell in plan.to_score:
        state.queue_score(cell)
    if lost := plan.cells.keys() - state.cells.keys():
        raise ValueError(f"nothing is planned for the cells {sorted(lost)}")
    _fill(state)
    return state, state.commands


def step(state: State, event: Event) -> list[Command]:
    """Apply one event to the state and return what is to be done, in order."""
    state.commands = []
    base = _apply(state, event)
    if state.stop is None:
        _fill(state)
    if base is not None:
        _release(state, base)
    return state.commands


# --- events -----------------------------------------------------------------------------------


def _apply(state: State, event: Event) -> str | None:
    """Apply an event; return the base whose slots may have lost their work, if any."""
    match event:
        case Tick(now):
            state.now_seconds = max(state.now_seconds, now)
            _expire(state)
            state.begin_watching()
        case StopRequested():
            _stop(state, event)
        case CellScored(cell, attempt):
            if state.scoring.get(cell) == attempt:
                del state.scoring[cell]
                state.cells[cell] = CellPhase.DONE
        case ScoreFailed(cell, attempt, failure):
            if state.scoring.get(cell) == attempt:
                del state.scoring[cell]
                _score_failed(state, cell, failure)
        case UnitDone(slot, unit_id, attempt) | UnitFailed(slot, unit_id, attempt):
            # A late or repeated answer: the attempt was ended, and counted, before.
            if state.is_current(slot, unit_id, attempt):
                if isinstance(event, UnitDone):
                    _unit_done(state, unit_id, event.outcomes)
                else:
                    _unit_failed(state, unit_id, state.end_run(unit_id), event.failure)
                return state.units[unit_id].base
        case SlotPlaced(slot) | SlotReady(slot) | SlotFailed(slot) | SlotLost(slot):
            if slot in state.slots:
                base = state.slots[slot].base
                _slot_changed(state, state.slots[slot], event)
                return base
    return None


def _slot_changed(
    state: State, slot: SlotState, event: SlotPlaced | SlotReady | SlotFailed | SlotLost
) -> None:
    match event:
        case SlotPlaced():
            if slot.phase is SlotPhase.PLACING:
                state.slot_placed(slot)
        case SlotReady():
            if slot.is_starting:
                state.slot_ready(slot)
        case SlotFailed(_, failure) | SlotLost(_, failure):
            was_starting, unit_id = slot.is_starting, slot.unit
            if unit_id is not None:
                state.end_run(unit_id)
            state.forget_slot(slot)
            if was_starting:
                _load_failed(state, slot, failure)
            elif unit_id is not None:
                _unit_lost(state, unit_id, failure)


def _unit_done(state: State, unit_id: str, outcomes: Mapping[str, Failure | None]) -> None:
    cells = state.running[unit_id].cells
    slot = state.end_run(unit_id)
    again: Failure | None = None
    for cell in cells:
        failure = outcomes[cell]
        if cell not in state.open_cells[unit_id]:
            continue  # given up while the unit ran
        if failure is None:
            state.close(unit_id, cell)
        elif failure.retryable:
            again = failure
        else:
            reason = f"{failure.kind} does not go away by trying again"
            state.give_up(cell, failure, state.tallies[unit_id].started, reason)
    if again is not None:
        _unit_failed(state, unit_id, slot, again, is_whole=False)


def _unit_failed(
    state: State, unit_id: str, slot: SlotState, failure: Failure, *, is_whole: bool = True
) -> None:
    """Decide about a unit that failed; one that failed as a whole has its subjects set apart."""
    tally = state.tallies[unit_id]
    tally.failed += 1
    tally.last = failure
    decision = after_unit_failure(failure, failed=tally.failed, policy=state.policy)
    if decision.action is Action.ELSEWHERE and slot.id in state.slots:
        state.stop_slot(slot, decision.reason)
    if is_whole and _split(state, unit_id, failure):
        return
    _retry_unit(state, unit_id, failure, decision)


def _split(state: State, unit_id: str, failure: Failure) -> bool:
    """Run the two halves of a unit's subjects instead, to find the one that fails."""
    num_cells = len(state.open_cells[unit_id])
    if num_cells < 2:
        return False
    reason = f"{failure.kind} of {num_cells} subjects together: in halves, to find whose it is"
    state.split(state.units[unit_id], reason)
    return True


def _unit_lost(state: State, unit_id: str, failure: Failure) -> None:
    tally = state.tallies[unit_id]
    tally.lost += 1
    tally.last = failure
    decision = after_slot_loss(failure, lost=tally.lost, policy=state.policy)
    # A slot may go for reasons of its own once; a unit that costs several is to blame.
    if decision.action is Action.GIVE_UP and _split(state, unit_id, failure):
        return
    _retry_unit(state, unit_id, failure, decision)


def _retry_unit(state: State, unit_id: str, failure: Failure, decision: Decision) -> None:
    if decision.action is not Action.GIVE_UP:
        state.requeue([unit_id])
        return
    for cell in tuple(state.open_cells[unit_id]):
        state.give_up(cell, failure, state.tallies[unit_id].started, decision.reason)


def _load_failed(state: State, slot: SlotState, failure: Failure) -> None:
    """Charge a base for a slot that is already gone."""
    base = state.bases[slot.base]
    base.last_failure = failure
    if slot.load_failures < base.load_failures and failure.retryable:
        return  # started before the last failure: the same trouble, and counted once
    base.load_failures += 1
    decision = after_load_failure(
        failure, failed=base.load_failures, held_elsewhere=base.is_held, policy=state.policy
    )
    if decision.action is Action.ELSEWHERE:
        state.capacity -= 1
    elif decision.action is Action.GIVE_UP:
        for unit_id in tuple(base.waiting):
            for cell in tuple(state.open_cells[unit_id]):
                state.give_up(cell, failure, base.load_failures, decision.reason)


def _score_failed(state: State, cell: str, failure: Failure) -> None:
    tally = state.score_tallies[cell]
    tally.failed += 1
    tally.last = failure
    decision = after_score_failure(failure, failed=tally.failed, policy=state.policy)
    if decision.action is Action.GIVE_UP:
        state.give_up(cell, failure, tally.started, decision.reason)
    else:
        state.queue_score(cell)


def _stop(state: State, event: StopRequested) -> None:
    state.stop = event
    for slot in tuple(state.slots.values()):
        if slot.phase is SlotPhase.BUSY and event.drain:
            continue
        if slot.unit is not None:
            # Interrupted, which is nobody's fault: no budget is charged.
            unit_id = slot.unit
            state.end_run(unit_id)
            state.requeue([unit_id])
        state.stop_slot(slot, f"stopped: {event.reason}")
    if not event.drain:
        for cell in state.scoring:
            state.queue_score(cell)
        state.scoring.clear()


# --- time -------------------------------------------------------------------------------------


def _expire(state: State) -> None:
    """End what is beyond its time. Limits are constant, so the oldest deadline is the first."""
    while state.unit_deadlines and state.unit_deadlines[0][0] <= state.now_seconds:
        _, unit_id, attempt = state.unit_deadlines.popleft()
        run = state.running.get(unit_id)
        if run is not None and run.attempt == attempt:
            limit = state.policy.unit_timeout_seconds
            message = f"ran longer than {limit:g} seconds (unit_timeout) in {run.slot}"
            slot = state.end_run(unit_id)
            state.stop_slot(slot, message)
            failure = Failure(FailureKind.TIMED_OUT, message, retryable=True)
            _unit_failed(state, unit_id, slot, failure)
    while state.start_deadlines and state.start_deadlines[0][0] <= state.now_seconds:
        _, slot_id, phase = state.start_deadlines.popleft()
        if slot_id in state.slots and state.slots[slot_id].phase is phase:
            _start_timed_out(state, state.slots[slot_id])


def _start_timed_out(state: State, slot: SlotState) -> None:
    limit = state.policy.start_timeout_seconds
    is_placed = slot.phase is SlotPhase.LOADING
    what = "did not load its base" if is_placed else "found no node with its hardware free"
    message = f"{slot.id} {what} within {limit:g} seconds"
    state.stop_slot(slot, message)
    others_placed = any(other.phase is not SlotPhase.PLACING for other in state.slots.values())
    if not is_placed and others_placed:
        # The others hold all the hardware there is, which says nothing about the base.
        state.capacity -= 1
        return
    _load_failed(state, slot, Failure(FailureKind.TIMED_OUT, message, retryable=True))


# --- decisions --------------------------------------------------------------------------------


def _fill(state: State) -> None:
    """Give idle slots work, start slots and scorings, as far as there is any of each."""
    if state.num_waiting:
        _fill_slots(state)
    while state.to_score and len(state.scoring) < state.policy.scoring:
        state.score(state.to_score.popleft(), "its request set is answered")


def _fill_slots(state: State) -> None:
    for slot_id in tuple(state.idle):
        slot = state.slots[slot_id]
        last = slot.last_subjects
        unit = state.bases[slot.base].waiting.pop(last)
        if unit is not None:
            state.run(slot, unit, _why_unit(state, unit, last))
    # What waits now has no idle slot on its base.
    while len(state.slots) < state.capacity or state.idle:
        base = _next_base(state)
        if base is None:
            break
        if len(state.slots) >= state.capacity:
            slot = state.slots[next(iter(state.idle))]
            state.stop_slot(slot, f"no unit of base {slot.base} waits; goes on with base {base}")
        state.start_slot(base, _why_base(state, base))


def _next_base(state: State) -> str | None:
    """Return the base that a new slot should load."""
    if not state.num_waiting:
        return None
    wanting = [name for name, base in state.bases.items() if base.wants_slot]
    return max(wanting, key=lambda name: state.bases[name].tokens_per_slot, default=None)


def _release(state: State, base_name: str) -> None:
    """Stop slots of a base that has nothing left, not even a running unit that might fail."""
    base = state.bases[base_name]
    if state.stop is not None:
        for slot_id in tuple(base.idle):
            state.stop_slot(state.slots[slot_id], f"stopped: {state.stop.reason}")
    elif not base.waiting and not base.num_running:
        for slot_id in tuple(base.slots):
            state.stop_slot(state.slots[slot_id], f"nothing is left to do for base {base_name}")


def _why_unit(state: State, unit: Unit, last_subjects: tuple[str, ...]) -> str:
    tally = state.tallies[unit.id]
    if tally.last is not None:
        return f"again after {tally.last.kind} ({tally.failed} failed, {tally.lost} lost)"
    if unit.has_baseline:
        return "the baseline goes first"
    if unit.subjects == last_subjects:
        return "the slot answered this subject last"
    return f"the longest of base {unit.base} that waits (about {unit.tokens} tokens)"


def _why_base(state: State, base_name: str) -> str:
    base = state.bases[base_name]
    count = len(base.waiting)
    return f"{count} units wait for base {base_name} (about {base.waiting.tokens} tokens)"
