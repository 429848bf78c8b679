"""Why a cell waits, in a sentence. Reads the schedule's state and changes nothing."""

from raypeft.core.state import BaseState, CellPhase, State


def why_waiting(state: State, cell: str) -> str:
    """Return where a cell stands and what it waits for.

    Args:
        state: The schedule's state.
        cell: The cell's key.
    """
    phase = state.cells.get(cell)
    match phase:
        case None:
            return "is not part of this run"
        case CellPhase.DONE:
            return "is done"
        case CellPhase.FAILED:
            failure = state.failures[cell]
            return f"was given up: {failure.kind}: {failure.message}"
        case CellPhase.NOT_STARTED | CellPhase.STOPPED_EARLY:
            return f"was left out: {state.left_out[cell]}"
        case CellPhase.SCORING:
            return f"is being scored (attempt {state.scoring[cell]})"
        case CellPhase.TO_SCORE:
            return f"is answered and waits for one of {state.policy.scoring} scoring places"
        case _:
            return _why_not_answered(state, cell)


def _why_not_answered(state: State, cell: str) -> str:
    open_units = state.open_units[cell]
    running = [unit_id for unit_id in open_units if unit_id in state.running]
    waiting = [unit_id for unit_id in open_units if unit_id not in state.running]
    parts: list[str] = []
    for unit_id in running:
        run, unit = state.running[unit_id], state.units[unit_id]
        seconds = state.now_seconds - run.since_seconds
        parts.append(
            f"shard {unit.shard_index + 1} of {unit.shard_count} runs in {run.slot} "
            f"(attempt {run.attempt}, for {seconds:.0f} s)"
        )
    if waiting:
        unit = state.units[waiting[0]]
        parts.append(
            f"{len(waiting)} of {unit.shard_count} shards wait: "
            + _why_no_slot(state, unit.base, state.bases[unit.base])
        )
    for unit_id in waiting:
        tally = state.tallies[unit_id]
        if tally.last is not None:
            parts.append(f"the last attempt ended with {tally.last.kind}: {tally.last.message}")
            break
    return "; ".join(parts)


def _why_no_slot(state: State, name: str, base: BaseState) -> str:
    if state.stop is not None:
        return f"the run is stopping ({state.stop.reason})"
    ahead = f"{len(base.waiting)} units of base {name} wait"
    if base.is_held:
        num_holding = len(base.slots) - base.num_starting
        return f"{ahead}, {num_holding} slots hold the base and are busy"
    if base.num_starting:
        return f"{ahead}, {base.num_starting} slots wait for hardware or load the base"
    if base.last_failure is not None and base.load_failures:
        return f"{ahead}, loading the base failed: {base.last_failure.message}"
    return f"{ahead}, no slot holds the base, all {state.capacity} slots are on other bases"
