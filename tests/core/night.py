"""A made-up night: what slots would say to the schedule's commands, on a virtual clock."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

from raypeft.core.events import (
    CellScored,
    Command,
    Event,
    GiveUp,
    RunUnit,
    ScoreCell,
    SlotPlaced,
    SlotReady,
    StartSlot,
    StopSlot,
    Tick,
    UnitDone,
)
from raypeft.core.plan import Plan
from raypeft.core.retry import Policy
from raypeft.core.schedule import initial, step
from tests.support.plans import HARDWARE


@dataclass
class Night:
    """Plays a plan to its end and keeps what was commanded.

    Attributes:
        plan: What to play.
        policy: Under which policy.
        load_seconds: How long loading a base takes.
        unit_seconds: How long an attempt takes.
        fail: Returns the event that ends an attempt instead of its answer, if any.
    """

    plan: Plan
    policy: Policy
    load_seconds: float = 60.0
    unit_seconds: Callable[[RunUnit], float] = lambda run: 10.0
    fail: Callable[[RunUnit], Event | None] = lambda run: None
    now: float = 0.0
    busy_seconds: float = 0.0
    commands: list[Command] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.state, first = initial(self.plan, self.policy)
        self._agenda: list[tuple[float, int, Event]] = []
        self._count = 0
        self._alive: set[str] = set()
        self._carry_out(first)
        self.step(Tick(0.0))

    def play(self) -> "Night":
        while not self.state.finished:
            self.now, _, event = heapq.heappop(self._agenda)
            if getattr(event, "slot", None) in self._alive or isinstance(event, CellScored):
                self.step(event)
                self.step(Tick(self.now))
        return self

    def play_until(self, seconds: float) -> "Night":
        """Play what happens before a moment, with a tick every second, and that moment's tick."""
        while self.now < seconds and not self.state.finished:
            self.now = min(self.now + 1.0, seconds)
            while self._agenda and self._agenda[0][0] <= self.now:
                _, _, event = heapq.heappop(self._agenda)
                if getattr(event, "slot", None) in self._alive or isinstance(event, CellScored):
                    self.step(event)
            self.step(Tick(self.now))
        return self

    def step(self, event: Event) -> None:
        self._carry_out(step(self.state, event))

    def count(self, kind: type[Command]) -> int:
        return sum(isinstance(command, kind) for command in self.commands)

    def _carry_out(self, commands: list[Command]) -> None:
        self.commands += commands
        for command in commands:
            match command:
                case StartSlot(slot):
                    self._alive.add(slot)
                    self._later(0.0, SlotPlaced(slot))
                    self._later(self.load_seconds, SlotReady(slot, HARDWARE))
                case StopSlot(slot):
                    self._alive.remove(slot)
                case RunUnit(slot, unit_id, attempt, cells):
                    seconds = self.unit_seconds(command)
                    self.busy_seconds += seconds
                    done = UnitDone(slot, unit_id, attempt, dict.fromkeys(cells))
                    self._later(seconds, self.fail(command) or done)
                case ScoreCell(cell, attempt):
                    self._later(1.0, CellScored(cell, attempt))
                case GiveUp():
                    pass

    def _later(self, seconds: float, event: Event) -> None:
        self._count += 1
        heapq.heappush(self._agenda, (self.now + seconds, self._count, event))
