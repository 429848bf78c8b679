"""The schedule: a state machine, events in, commands out.

It decides which slot loads which base, which unit runs next, what is tried again, what is given
up and what is scored. It starts nothing, waits for nothing and reads no clock: time comes as
`Tick` events, so a night on a thousand slots is simulated in seconds. An event takes constant
time in the number of units and cells.

Which unit goes where is `raypeft.core.placement`'s policy; what becomes of a failure is
`raypeft.core.retry`'s. `raypeft.core.explain` says why a cell waits, and
`raypeft.core.invariants` what must hold between any two events.
"""

import heapq
import math
from collections.abc import Mapping

from raypeft.core.events import (
    CapacityChanged,
    CellHopeless,
    CellScored,
    Command,
    Event,
    Heartbeat,
    NodeDraining,
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
from raypeft.core.placement import next_base, next_unit, seconds_left, urgent_base, why_base
from raypeft.core.plan import Plan
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

IDLE_SECONDS = 30.0
"""No slot is given back before that: what loading a base is taken to cost is an estimate, and
starting the slot itself takes time too."""


def initial(plan: Plan, policy: Policy) -> tuple[State, list[Command]]:
    """Return the state before the first event, and the first commands.

    Raises:
        ValueError: If the plan contradicts itself.
    """
    state = State(plan, policy)
    # Shortest first, since a queue hands out the last one added first.
    for unit in sorted(plan.units, key=lambda unit: unit.seconds):
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
    if isinstance(event, Tick):
        _give_back(state)
    if state.num_waiting and not state.slots and _is_timed(state):
        _close(state, "nothing that is left can be finished before the deadline")
    return state.commands


# --- events -----------------------------------------------------------------------------------


def _apply(state: State, event: Event) -> str | None:
    """Apply an event; return the base whose slots may have lost their work, if any."""
    match event:
        case Tick(now, unheard):
            state.pass_time(now, unheard)
            _expire(state)
            state.begin_watching()
            if seconds_left(state) <= 0 and _is_timed(state):
                _close(state, "the deadline came first")
        case Heartbeat(slot, unit_id, attempt, progress):
            if state.is_current(slot, unit_id, attempt):
                state.note_progress(unit_id, progress)
        case NodeDraining(node, reason):
            for each in tuple(state.slots.values()):
                if each.node == node:
                    state.drain_slot(each, f"node {node} goes away: {reason or 'no reason given'}")
        case CapacityChanged():
            _change_capacity(state, event)
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
        case CellHopeless(cell, reason):
            # What was answered whole in the meantime is scored: nothing would be saved.
            if state.cells.get(cell) is CellPhase.ANSWERING:
                state.leave_out(cell, reason, CellPhase.STOPPED_EARLY)
                return state.plan.cells[cell].engine_name
        case UnitDone(slot, unit_id, attempt) | UnitFailed(slot, unit_id, attempt):
            # A late or repeated answer: the attempt was ended, and counted, before.
            if state.is_current(slot, unit_id, attempt):
                if isinstance(event, UnitDone):
                    state.note_pace(unit_id)
                    _unit_done(state, unit_id, event.outcomes)
                else:
                    _unit_failed(state, unit_id, state.end_run(unit_id), event.failure)
                if slot in state.slots and state.slots[slot].draining:
                    state.stop_slot(state.slots[slot], state.slots[slot].draining)
                return state.units[unit_id].base
        case _:
            if event.slot in state.slots:
                slot_state = state.slots[event.slot]
                _slot_changed(state, slot_state, event)
                return slot_state.base
    return None


def _slot_changed(
    state: State, slot: SlotState, event: SlotPlaced | SlotReady | SlotFailed | SlotLost
) -> None:
    match event:
        case SlotPlaced():
            if slot.phase is SlotPhase.PLACING:
                state.slot_placed(slot)
        case SlotReady(_, hardware):
            if slot.is_starting:
                state.slot_ready(slot, hardware.node)
        case _:
            failure = event.failure
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
    if num_cells < 2 or state.closed:
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
        state.lose_place()
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


def _is_timed(state: State) -> bool:
    """Whether a deadline is still ahead of a run that goes on."""
    return seconds_left(state) < math.inf and state.stop is None and not state.closed


def _close(state: State, reason: str) -> None:
    """Begin nothing more: time is over. What is answered by then is still scored."""
    state.closed = reason
    for slot in tuple(state.slots.values()):
        if slot.phase is SlotPhase.BUSY and state.policy.drains_at_deadline:
            continue
        if slot.unit is not None:
            state.end_run(slot.unit)
        state.stop_slot(slot, reason)
    for cell, unit_ids in tuple(state.open_units.items()):
        if any(unit_id not in state.running for unit_id in unit_ids):
            state.leave_out(cell, reason)


def _change_capacity(state: State, event: CapacityChanged) -> None:
    """Use more slots, or fewer: those that have least to lose go first, and are the first back."""
    state.capacity = max(1, min(event.slots, state.policy.slots))
    state.is_shared = event.is_shared
    state.changed = True
    phases = (SlotPhase.PLACING, SlotPhase.LOADING, SlotPhase.IDLE, SlotPhase.BUSY)
    staying = [slot for slot in state.slots.values() if not slot.draining]
    # Of those that wait for hardware the last goes first: the others are before it in Ray's queue.
    staying.reverse()
    staying.sort(key=lambda slot: phases.index(slot.phase))
    for slot in staying[: max(0, len(staying) - state.capacity)]:
        reason = event.reason or f"the cluster has room for {state.capacity} slots"
        state.drain_slot(slot, reason, is_surplus=True)
    surplus = [slot for slot in state.slots.values() if slot.is_surplus]
    for slot in surplus[: max(0, state.capacity - len(staying))]:
        state.keep_slot(slot)


# --- time -------------------------------------------------------------------------------------


def _expire(state: State) -> None:
    """End what is beyond its time."""
    state.begin_progress()
    while state.unit_deadlines and state.unit_deadlines[0][0] <= state.watch_seconds:
        _, unit_id, attempt = heapq.heappop(state.unit_deadlines)
        run = state.running.get(unit_id)
        limit = state.policy.unit_timeout_seconds
        if run is None or run.attempt != attempt or limit is None:
            continue
        if run.progress and run.progress_seconds + limit > state.watch_seconds:
            # Slow, and not hung: it has got on since its time began.
            again = (run.progress_seconds + limit, unit_id, attempt)
            heapq.heappush(state.unit_deadlines, again)
            continue
        what = f"made no progress for {limit:g}" if run.progress else f"ran longer than {limit:g}"
        message = f"{what} seconds (unit_timeout) in {run.slot}"
        slot = state.end_run(unit_id)
        state.stop_slot(slot, message)
        failure = Failure(FailureKind.TIMED_OUT, message, retryable=True)
        _unit_failed(state, unit_id, slot, failure)
    # The limit is the same for all, so the oldest start has the first deadline.
    while state.start_deadlines and state.start_deadlines[0][0] <= state.watch_seconds:
        _, slot_id, phase = state.start_deadlines.popleft()
        if slot_id in state.slots and state.slots[slot_id].phase is phase:
            _start_timed_out(state, state.slots[slot_id])


def _start_timed_out(state: State, slot: SlotState) -> None:
    limit = state.policy.start_timeout_seconds
    is_placed = slot.phase is SlotPhase.LOADING
    if not is_placed and state.is_shared:
        state.new_starts.append((slot.id, slot.phase))  # other sweeps have it, and end some time
        return
    what = "did not load its base" if is_placed else "found no node with its hardware free"
    message = f"{slot.id} {what} within {limit:g} seconds"
    state.stop_slot(slot, message)
    others_placed = any(other.phase is not SlotPhase.PLACING for other in state.slots.values())
    if not is_placed and others_placed:
        # The others hold all the hardware there is, which says nothing about the base.
        state.lose_place()
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
    if len(state.idle) <= len(state.hungry):
        idle = tuple(state.idle)
    else:
        idle = tuple(slot for name in state.hungry for slot in state.bases[name].idle)
    for slot_id in idle:
        _serve(state, state.slots[slot_id])
    # What waits now has no idle slot on its base.
    while state.has_room or state.idle:
        base = next_base(state)
        if base is None:
            break
        if not state.has_room:
            slot = state.slots[next(iter(state.idle))]
            state.stop_slot(slot, f"no unit of base {slot.base} waits; goes on with base {base}")
        state.start_slot(base, why_base(state, base))


def _serve(state: State, slot: SlotState) -> None:
    """Give an idle slot a unit of its base, or another base that cannot wait for a free slot."""
    base = state.bases[slot.base]
    if not base.waiting:
        return
    # The last slot of a base stays: another would have to load it again.
    urgent = urgent_base(state) if len(base.slots) > 1 and not state.has_room else None
    if urgent is not None:
        state.stop_slot(slot, f"base {urgent} has a unit that would lengthen the night")
        state.start_slot(urgent, why_base(state, urgent))
        return
    choice = next_unit(state, slot)
    if choice is None:
        state.stop_slot(slot, "nothing that waits can be finished before the deadline")
    else:
        state.run(slot, choice.unit, choice.reason)


def _release(state: State, base_name: str) -> None:
    """Stop slots of a base that has nothing left, not even a running unit that might fail."""
    base = state.bases[base_name]
    if state.stop is not None or state.closed:
        reason = state.closed if state.stop is None else f"stopped: {state.stop.reason}"
        for slot_id in tuple(base.idle):
            state.stop_slot(state.slots[slot_id], reason)
    elif not base.waiting and not base.num_running:
        for slot_id in tuple(base.slots):
            state.stop_slot(state.slots[slot_id], f"nothing is left to do for base {base_name}")
    elif not base.waiting and base.num_starting:
        for slot_id in tuple(base.slots):
            slot = state.slots[slot_id]
            if slot.phase is SlotPhase.PLACING:  # an autoscaler would start a node for it
                state.stop_slot(slot, f"no unit of base {base_name} waits any more")


def _give_back(state: State) -> None:
    """Stop slots that have been idle for as long as it takes to load their base anew.

    A running unit of the base may still fail and want a slot. Waiting for that costs no more than
    twice what would have been best, however it turns out: the rule of Karlin, Manasse, Rudolph
    and Sleator, Competitive snoopy caching, Algorithmica 3, 1988, "rent or buy".
    """
    for slot_id in tuple(state.idle):  # the longest idle first
        slot = state.slots[slot_id]
        base = state.bases[slot.base]
        idle_seconds = state.watch_seconds - slot.idle_since_seconds
        if idle_seconds < IDLE_SECONDS:
            break
        if not base.waiting and idle_seconds >= base.cost.load_seconds:
            state.stop_slot(slot, f"idle for {idle_seconds:.0f} s, and no unit of its base waits")
