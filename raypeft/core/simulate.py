"""A night on a virtual clock: the schedule's own decisions, made-up durations and failures.

Plays a plan through `raypeft.core.schedule`, as the driver would on real slots, and says how long
it took and how far that is from the best that any schedule could have reached. How long things
take is the plan's own estimate times chance; where chance comes from, and the plan, is decided by
the caller.
"""

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Literal, TypeAlias

from raypeft.core.events import (
    CellScored,
    Command,
    Event,
    RunUnit,
    ScoreCell,
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
from raypeft.core.plan import EngineCost, Plan
from raypeft.core.records import Failure, FailureKind, Hardware
from raypeft.core.retry import Policy
from raypeft.core.schedule import initial, step
from raypeft.core.state import CellPhase

HARDWARE = Hardware(fingerprint="simulated", device="simulated")

_LOST = Failure(FailureKind.SLOT_LOST, "simulated: the slot is gone", retryable=True)
_CRASH = Failure(FailureKind.CRASHED, "simulated: the unit failed", retryable=True)
_NO_LOAD = Failure(FailureKind.LOAD_FAILED, "simulated: the base was not loaded", retryable=True)

Activity: TypeAlias = Literal["loading", "answering", "lost"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chances:
    """How likely a simulated night goes wrong.

    Attributes:
        slot_loss: Share of attempts during which their slot is lost.
        unit_failure: Share of attempts that fail while their slot survives.
        load_failure: Share of loads that fail.
        noise: Standard deviation of the logarithm of what things take; 0.2 is a fifth up or down.
    """

    slot_loss: float = 0.0
    unit_failure: float = 0.0
    load_failure: float = 0.0
    noise: float = 0.2

    def __post_init__(self) -> None:
        """Refuse what is no probability."""
        for name in ("slot_loss", "unit_failure", "load_failure"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be from 0 to below 1")
        if self.slot_loss + self.unit_failure >= 1:
            raise ValueError("slot_loss and unit_failure must be below 1 together")
        if not 0 <= self.noise <= 3:
            raise ValueError(f"noise is {self.noise}; it must be from 0 to 3")


@dataclass(frozen=True, slots=True)
class Span:
    """What a slot did for a while.

    Attributes:
        slot: Its id.
        base: The base it held or loaded.
        activity: Loading, answering, or answering what was lost in the end.
        begin_seconds: From when.
        end_seconds: Until when.
    """

    slot: str
    base: str
    activity: Activity
    begin_seconds: float
    end_seconds: float

    @property
    def seconds(self) -> float:
        """How long."""
        return self.end_seconds - self.begin_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """How a simulated night went.

    Attributes:
        num_slots: Slots there were.
        num_units: Units there were at first.
        num_attempts: Attempts at them.
        num_retries: Those among them that were not the first at their unit.
        num_loads: Times a base was loaded or tried to.
        num_done: Cells with results at the end, those done before not among them.
        num_failed: Cells given up.
        num_left_out: Cells not finished by the deadline.
        num_steps: Events the schedule was told.
        makespan_seconds: When the last slot had ended its last unit.
        answering_seconds: Time in units that counted, all slots together.
        wasted_seconds: Time in units that did not.
        loading_seconds: Time in loads.
        lower_bound_seconds: See `lower_bound`; 0 where cells failed or were left out, since less
            work is no better schedule.
        spans: Everything that slots did, in order of its end.
    """

    num_slots: int
    num_units: int
    num_attempts: int
    num_retries: int
    num_loads: int
    num_done: int
    num_failed: int
    num_left_out: int
    num_steps: int
    makespan_seconds: float
    answering_seconds: float
    wasted_seconds: float
    loading_seconds: float
    lower_bound_seconds: float
    spans: tuple[Span, ...] = field(repr=False)

    @property
    def utilisation(self) -> float:
        """Share of all slots' time in which they answered what counted."""
        whole = self.num_slots * self.makespan_seconds
        return self.answering_seconds / whole if whole else 0.0

    @property
    def ratio(self) -> float | None:
        """The makespan over the lower bound; None where there is none."""
        bound = self.lower_bound_seconds
        return self.makespan_seconds / bound if bound else None


def lower_bound(
    unit_seconds: Iterable[tuple[str, float]], load_seconds: Mapping[str, float], slots: int
) -> float:
    """Return a time that no schedule can beat, however it knows the future.

    The larger of Graham's two bounds (Bounds on multiprocessing timing anomalies, SIAM J. Appl.
    Math. 17, 1969), with loads counted in: all work spread evenly over all slots, where every base
    is loaded at least once and every slot loads at least one; and the longest unit behind one load
    of its base.

    Args:
        unit_seconds: For each unit its base and what it takes.
        load_seconds: What loading each base takes.
        slots: How many slots there are.
    """
    work, longest = 0.0, 0.0
    bases: set[str] = set()
    for base, seconds in unit_seconds:
        work += seconds
        longest = max(longest, load_seconds[base] + seconds)
        bases.add(base)
    if not bases:
        return 0.0
    loads = [load_seconds[base] for base in bases]
    # With fewer slots at work the same sum is divided by less, so that this holds for them too.
    work += sum(loads) + max(0, slots - len(bases)) * min(loads)
    return max(work / slots, longest)


def simulate(plan: Plan, policy: Policy, chances: Chances, random: Random) -> Simulated:
    """Play a plan to its end.

    Args:
        plan: What is to be done; its units' seconds and its costs say what things take.
        policy: How much at once and how often.
        chances: What goes wrong, and how far durations are from what is expected.
        random: Decides it.
    """
    # Here every unit gets on, however long it takes: the limit is for those that hang.
    policy = replace(policy, unit_timeout_seconds=None)
    night = _Night(plan, policy, chances, random)
    night.play()
    return night.result()


class _Night:
    def __init__(self, plan: Plan, policy: Policy, chances: Chances, random: Random) -> None:
        self._plan, self._policy, self._chances, self._random = plan, policy, chances, random
        # Drawn beforehand: what a unit takes does not depend on when it runs.
        self._factors = {unit.id: self._factor() for unit in plan.units}
        self._loads = {name: self._cost(name).load_seconds for name in plan.engines}
        self._now = 0.0
        self._agenda: list[tuple[float, int, Event]] = []
        self._num_events = 0
        self._num_steps = 0
        self._alive: dict[str, str] = {}
        self._since: dict[str, float] = {}
        self._spans: list[Span] = []
        self._state, commands = initial(plan, policy)
        self._carry_out(commands)
        self._step(Tick(0.0))
        if policy.deadline_seconds is not None:
            self._later(max(0.0, policy.deadline_seconds), Tick(policy.deadline_seconds))

    def play(self) -> None:
        while not self._state.finished:
            self._now, _, event = heapq.heappop(self._agenda)
            self._step(Tick(self._now))
            slot = getattr(event, "slot", None)
            if slot is not None and slot not in self._alive:
                continue  # it was stopped meanwhile
            self._note(event)
            self._step(event)
            self._step(Tick(self._now))

    def result(self) -> Simulated:
        state = self._state
        seconds = dict.fromkeys(("loading", "answering", "lost"), 0.0)
        for span in self._spans:
            seconds[span.activity] += span.seconds
        phases = list(state.cells.values())
        is_whole = not (state.failures or CellPhase.NOT_STARTED in phases)
        units = ((unit.base, unit.seconds * self._factors[unit.id]) for unit in self._plan.units)
        attempts = sum(tally.started for tally in state.tallies.values())
        tried = sum(state.tallies[unit.id].started > 0 for unit in self._plan.units)
        bound = lower_bound(units, self._loads, self._policy.slots) if is_whole else 0.0
        return Simulated(
            num_slots=self._policy.slots,
            num_units=len(self._plan.units),
            num_attempts=attempts,
            num_retries=attempts - tried,
            num_loads=sum(span.activity == "loading" for span in self._spans),
            num_done=phases.count(CellPhase.DONE) - len(self._plan.done),
            num_failed=phases.count(CellPhase.FAILED),
            num_left_out=phases.count(CellPhase.NOT_STARTED),
            num_steps=self._num_steps,
            makespan_seconds=max((span.end_seconds for span in self._spans), default=0.0),
            answering_seconds=seconds["answering"],
            wasted_seconds=seconds["lost"],
            loading_seconds=seconds["loading"],
            lower_bound_seconds=bound,
            spans=tuple(self._spans),
        )

    # --- what happens -------------------------------------------------------------------------

    def _step(self, event: Event) -> None:
        self._num_steps += 1
        self._carry_out(step(self._state, event))

    def _carry_out(self, commands: Iterable[Command]) -> None:
        for command in commands:
            match command:
                case StartSlot(slot, base):
                    self._alive[slot] = base
                    self._since[slot] = self._now
                    self._load(slot, base)
                case StopSlot(slot):
                    if slot in self._since:  # in the middle of a load or a unit
                        self._end(slot, "lost")
                    del self._alive[slot]
                case RunUnit():
                    self._since[command.slot] = self._now
                    self._run(command)
                case ScoreCell(cell, attempt):
                    self._later(0.0, CellScored(cell, attempt))

    def _load(self, slot: str, base: str) -> None:
        self._later(0.0, SlotPlaced(slot))
        if self._random.random() < self._chances.load_failure:
            self._later(self._loads[base] * self._random.random(), SlotFailed(slot, _NO_LOAD))
        else:
            self._later(self._loads[base], SlotReady(slot, HARDWARE))

    def _run(self, run: RunUnit) -> None:
        # A half of a unit that was split takes as many times as long as expected as the whole.
        factor = self._factors.setdefault(run.unit_id, self._factor())
        seconds = self._state.units[run.unit_id].seconds * factor
        chance, part = self._random.random(), self._random.random()
        event: Event
        if chance < self._chances.slot_loss:
            event = SlotLost(run.slot, _LOST)
        elif chance < self._chances.slot_loss + self._chances.unit_failure:
            event = UnitFailed(run.slot, run.unit_id, run.attempt, _CRASH)
        else:
            part = 1.0
            event = UnitDone(run.slot, run.unit_id, run.attempt, dict.fromkeys(run.cells))
        self._later(seconds * part, event)

    def _note(self, event: Event) -> None:
        match event:
            case SlotReady(slot):
                self._end(slot, "loading")
            case UnitDone(slot):
                self._end(slot, "answering")
            case UnitFailed(slot):
                self._end(slot, "lost")
            case SlotFailed(slot) | SlotLost(slot):
                self._end(slot, "loading" if isinstance(event, SlotFailed) else "lost")
                del self._alive[slot]

    def _end(self, slot: str, activity: Activity) -> None:
        since = self._since.pop(slot)
        self._spans.append(Span(slot, self._alive[slot], activity, since, self._now))

    def _later(self, seconds: float, event: Event) -> None:
        self._num_events += 1
        heapq.heappush(self._agenda, (self._now + seconds, self._num_events, event))

    def _factor(self) -> float:
        return self._random.lognormvariate(0.0, self._chances.noise)

    def _cost(self, engine: str) -> EngineCost:
        return self._plan.costs.get(engine, EngineCost())
