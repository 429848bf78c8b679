"""What the schedule's state is made of: slots, bases, attempts, and how often things were tried.

Each part knows its own numbers; that they agree with one another is `raypeft.core.state`'s
business.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from raypeft.core.plan import EngineCost
from raypeft.core.records import Failure
from raypeft.core.waiting import WaitingUnits

MIN_OBSERVED = 5
"""Finished units of a base from which on its own pace counts and not the cost model's."""


class CellPhase(StrEnum):
    """Where a cell stands."""

    ANSWERING = "answering"
    TO_SCORE = "to_score"
    SCORING = "scoring"
    DONE = "done"
    FAILED = "failed"
    NOT_STARTED = "not_started"
    """Left out, in whole or in part, when the time was over."""
    STOPPED_EARLY = "stopped_early"
    """Left out since what was answered of it is hopeless."""


class SlotPhase(StrEnum):
    """What a slot does."""

    PLACING = "placing"
    LOADING = "loading"
    IDLE = "idle"
    BUSY = "busy"


@dataclass(slots=True)
class SlotState:
    """One slot, from its start to its stop.

    Attributes:
        id: Its id, never used twice.
        base: The base it loads and then holds.
        load_failures: Failures of its base in a row when it was started.
        phase: What it does.
        unit: What it runs, if it is busy.
        last_subjects: Whom it answered last.
        node: The node it is on, once it is ready.
        draining: Why it is given nothing more, once that is so; else empty.
        is_surplus: Whether that is because there is one slot too many, and may end.
        idle_since_seconds: When it last became idle, on the clock of `State.watch_seconds`.
    """

    id: str
    base: str
    load_failures: int
    phase: SlotPhase = SlotPhase.PLACING
    unit: str | None = None
    last_subjects: tuple[str, ...] = ()
    node: str = ""
    draining: str = ""
    is_surplus: bool = False
    idle_since_seconds: float = 0.0

    @property
    def is_starting(self) -> bool:
        """Whether its base is not loaded yet."""
        return self.phase in (SlotPhase.PLACING, SlotPhase.LOADING)


@dataclass(slots=True)
class Tally:
    """How often a unit or a scoring was tried, and how that ended.

    Attributes:
        started: Attempts begun; the number of the last attempt.
        failed: Attempts that failed by themselves.
        lost: Attempts whose slot was lost.
        last: The last failure.
    """

    started: int = 0
    failed: int = 0
    lost: int = 0
    last: Failure | None = None


@dataclass(slots=True)
class Running:
    """An attempt that is under way.

    Attributes:
        slot: Where.
        attempt: Which.
        cells: For which cells.
        since_seconds: Since when.
        end_milliseconds: When it is expected to end.
        progress: How far its slot said it was.
        progress_seconds: Since when it has been there.
    """

    slot: str
    attempt: int
    cells: tuple[str, ...]
    since_seconds: float
    end_milliseconds: int
    progress: int = 0
    progress_seconds: float = 0.0


@dataclass(slots=True)
class Pace:
    """How this run's finished units compare with what was expected of them.

    Attributes:
        num_units: Units seen.
        expected_seconds: What they were expected to take.
        seconds: What they took.
        worst: The largest ratio of one.
    """

    num_units: int = 0
    expected_seconds: float = 0.0
    seconds: float = 0.0
    worst: float = 0.0

    def add(self, expected_seconds: float, seconds: float) -> None:
        """Take note of a finished unit."""
        self.num_units += 1
        self.expected_seconds += expected_seconds
        self.seconds += seconds
        if expected_seconds > 0:
            self.worst = max(self.worst, seconds / expected_seconds)

    @property
    def is_known(self) -> bool:
        """Whether enough was seen."""
        return self.num_units >= MIN_OBSERVED and self.expected_seconds > 0

    @property
    def ratio(self) -> float:
        """Real seconds for each expected one; 1 before enough was seen."""
        return self.seconds / self.expected_seconds if self.is_known else 1.0

    def upper(self, cost: EngineCost) -> float:
        """Return how many times longer than expected a unit may well take."""
        return self.worst if self.is_known else max(cost.upper, self.worst)


@dataclass(slots=True)
class BaseState:
    """What is left to do for one base, and who does it.

    Attributes:
        cost: What loading it and answering with it is expected to take.
        waiting: Units that wait.
        slots: Ids of its slots, as an ordered set.
        idle: Those that hold the base and run nothing.
        num_starting: How many do not hold the base yet.
        num_running: Attempts under way.
        end_milliseconds: Sum of the times at which these are expected to end.
        pace: How its units compare with what was expected.
        load_failures: Failures to load it in a row.
        last_failure: The last of them.
    """

    cost: EngineCost = field(default_factory=EngineCost)
    waiting: WaitingUnits = field(default_factory=WaitingUnits)
    slots: dict[str, None] = field(default_factory=dict)
    idle: dict[str, None] = field(default_factory=dict)
    num_starting: int = 0
    num_running: int = 0
    end_milliseconds: int = 0
    pace: Pace = field(default_factory=Pace)
    load_failures: int = 0
    last_failure: Failure | None = None

    @property
    def is_held(self) -> bool:
        """Whether a slot holds the base at this moment."""
        return len(self.slots) > self.num_starting

    @property
    def wants_slot(self) -> bool:
        """Whether another slot would find work here, however long it takes to come up."""
        if self.load_failures and not self.is_held:
            # One slot probes a doubtful base; the others have better things to load.
            return bool(self.waiting) and not self.num_starting
        return len(self.waiting) > self.num_starting

    def ahead_seconds(self, now_seconds: float) -> float:
        """Return how long one slot alone would take for what waits and runs."""
        running = self.end_milliseconds / 1000 - self.num_running * now_seconds
        return (self.waiting.seconds + max(running, 0.0)) * self.pace.ratio

    def end_with_one_more(self, now_seconds: float) -> float:
        """Return in how many seconds its work would be done with one more slot."""
        loads = (self.num_starting + 1) * self.cost.load_seconds
        return (self.ahead_seconds(now_seconds) + loads) / (len(self.slots) + 1)

    def queue_seconds(self, now_seconds: float) -> float:
        """Return in how many seconds its slots will have taken the last unit that waits."""
        last = self.waiting.seconds / len(self.waiting) * self.pace.ratio
        loads = self.num_starting * self.cost.load_seconds
        return (self.ahead_seconds(now_seconds) - last + loads) / len(self.slots)
