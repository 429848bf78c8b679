"""Which unit a slot is given, which base a slot loads, and why.

Reads the state and says what should be done; doing it is `raypeft.core.schedule`'s business. The
rules:

- A slot keeps its base while there is work for it. It leaves it for another base only if that one
  has no slot and a unit so long that waiting would lengthen the night.
- Within a base the order is `raypeft.core.waiting`'s, except that a unit which takes as long as
  everything that is left, spread over all slots, goes at once (longest processing time first:
  Graham, Bounds on multiprocessing timing anomalies, 1969).
- A slot that is free loads a base that no slot holds, the one with most work; else the one that
  would end last, provided that the base is loaded before its other slots have taken all units.
- Before a deadline nothing is begun that may well not be finished.
"""

import math
from typing import NamedTuple

from raypeft.core.plan import Unit
from raypeft.core.state import BaseState, SlotState, State
from raypeft.core.waiting import SIZE_STEP

RECONSIDER_SECONDS = 10.0
"""How soon it is asked again whether a base wants another slot, if none did and nothing happened:
the answer costs time in the number of bases."""


class Choice(NamedTuple):
    """A unit for a slot, and why."""

    unit: Unit
    reason: str


def next_unit(state: State, slot: SlotState) -> Choice | None:
    """Take the next unit for an idle slot out of its base's queue; None if there is none for it."""
    base = state.bases[slot.base]
    last = slot.last_subjects
    within = _within_seconds(state, base)
    horizon = state.horizon_seconds
    longest = base.waiting.longest_seconds
    # Where not everything can be finished, what is long has no claim to go first.
    if horizon <= min(longest, seconds_left(state)) and longest <= within / SIZE_STEP:
        unit = base.waiting.pop_longest(last)
        if unit.has_baseline or len(base.waiting) == 0:
            return Choice(unit, _why_unit(state, unit, last))
        reason = f"about {unit.seconds:.0f} s long, and all that is left takes {horizon:.0f} s"
        return Choice(unit, reason)
    taken = base.waiting.pop(last, within_seconds=within)
    return None if taken is None else Choice(taken, _why_unit(state, taken, last))


def urgent_base(state: State) -> str | None:
    """Return a base without a slot for which a slot should leave its base, if there is one."""
    if state.unheld_longest is None:
        state.unheld_longest = max(
            (
                (base.cost.load_seconds + base.waiting.longest_seconds, name)
                for name in state.unheld
                if (base := state.bases[name]).wants_slot
            ),
            default=(0.0, ""),
        )
    seconds, name = state.unheld_longest
    horizon = state.horizon_seconds
    is_critical = horizon <= min(seconds, seconds_left(state))
    if name and is_critical and _can_begin(state, state.bases[name]):
        return name
    return None


def next_base(state: State) -> str | None:
    """Return the base that a free slot should load, if any is worth it."""
    if not state.changed and state.now_seconds < state.reconsider_seconds:
        return None
    found = _largest(state, state.unheld) or _last_to_end(state)
    if found is None:
        state.changed = False
        state.reconsider_seconds = state.now_seconds + RECONSIDER_SECONDS
    return found


def why_base(state: State, name: str) -> str:
    """Return why a slot is started for a base."""
    base = state.bases[name]
    work = f"{len(base.waiting)} units wait for base {name} (about {base.waiting.seconds:.0f} s)"
    if base.slots:
        others = f"{len(base.slots)} slots are on it"
        return f"{work}, {others}; loading takes about {base.cost.load_seconds:.0f} s and pays"
    return f"{work}, and no slot is on it"


def seconds_left(state: State) -> float:
    """Return the seconds until the deadline; infinite without one."""
    deadline = state.policy.deadline_seconds
    return math.inf if deadline is None else deadline - state.now_seconds


def _within_seconds(state: State, base: BaseState) -> float:
    """Return how long a unit may be expected to take that is to end before the deadline."""
    left = seconds_left(state)
    return left if math.isinf(left) else left / max(base.pace.upper(base.cost), 1e-9)


def _can_begin(state: State, base: BaseState) -> bool:
    """Whether a slot that is started now would finish a unit before the deadline."""
    left = seconds_left(state)
    if math.isinf(left):
        return True
    left -= base.cost.load_seconds * base.cost.upper
    return base.waiting.has_within(left / max(base.pace.upper(base.cost), 1e-9))


def _largest(state: State, names: dict[str, None]) -> str | None:
    """Return the base with most work of those that want a slot."""
    now = state.now_seconds
    wanting = (name for name in names if state.bases[name].wants_slot)
    able = [name for name in wanting if _can_begin(state, state.bases[name])]
    return max(able, key=lambda name: state.bases[name].end_with_one_more(now), default=None)


def _last_to_end(state: State) -> str | None:
    """Return the base that would end last even with one more slot, of those where it pays."""
    now = state.now_seconds
    paying = {
        name: None
        for name in state.hungry
        if (base := state.bases[name]).slots
        and base.wants_slot
        and base.queue_seconds(now) >= base.cost.load_seconds
    }
    return _largest(state, paying)


def _why_unit(state: State, unit: Unit, last_subjects: tuple[str, ...]) -> str:
    tally = state.tallies[unit.id]
    if tally.last is not None:
        return f"again after {tally.last.kind} ({tally.failed} failed, {tally.lost} lost)"
    if unit.has_baseline:
        return "the baseline goes first"
    if unit.subjects == last_subjects:
        return "the slot answered this subject last"
    first = "most urgent" if unit.urgency else "longest"
    return f"the {first} of base {unit.base} that waits (about {unit.seconds:.0f} s)"
