"""What the schedule knows, and the moves that keep its books.

Holds units, cells, slots and bases with the indexes between them, and moves one of them at a
time so that the indexes always agree (`raypeft.core.invariants` checks it). Which move is made,
and when, is decided in `raypeft.core.schedule`.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum

from raypeft.core.events import (
    Command,
    GiveUp,
    RunUnit,
    ScoreCell,
    SplitUnit,
    StartSlot,
    StopRequested,
    StopSlot,
)
from raypeft.core.plan import Plan, Unit, id_of_unit
from raypeft.core.records import Failure
from raypeft.core.retry import Policy
from raypeft.core.waiting import WaitingUnits


class CellPhase(StrEnum):
    """Where a cell stands."""

    ANSWERING = "answering"
    TO_SCORE = "to_score"
    SCORING = "scoring"
    DONE = "done"
    FAILED = "failed"


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
    """

    id: str
    base: str
    load_failures: int
    phase: SlotPhase = SlotPhase.PLACING
    unit: str | None = None
    last_subjects: tuple[str, ...] = ()

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


@dataclass(frozen=True, slots=True)
class Running:
    """An attempt that is under way: where, which, for which cells, since when."""

    slot: str
    attempt: int
    cells: tuple[str, ...]
    since_seconds: float


@dataclass(slots=True)
class BaseState:
    """What is left to do for one base, and who does it.

    Attributes:
        waiting: Units that wait.
        slots: Ids of its slots, as an ordered set.
        idle: Those that hold the base and run nothing.
        num_starting: How many do not hold the base yet.
        num_running: Attempts under way.
        load_failures: Failures to load it in a row.
        last_failure: The last of them.
    """

    waiting: WaitingUnits = field(default_factory=WaitingUnits)
    slots: dict[str, None] = field(default_factory=dict)
    idle: dict[str, None] = field(default_factory=dict)
    num_starting: int = 0
    num_running: int = 0
    load_failures: int = 0
    last_failure: Failure | None = None

    @property
    def is_held(self) -> bool:
        """Whether a slot holds the base at this moment."""
        return len(self.slots) > self.num_starting

    @property
    def wants_slot(self) -> bool:
        """Whether another slot would find work here."""
        if self.load_failures and not self.is_held:
            # One slot probes a doubtful base; the others have better things to load.
            return bool(self.waiting) and not self.num_starting
        return len(self.waiting) > self.num_starting

    @property
    def tokens_per_slot(self) -> float:
        """The share of the waiting work that one more slot would take."""
        return self.waiting.tokens / (len(self.slots) + 1)


class State:
    """Everything the schedule knows. Others may read it; only `schedule.step` changes it.

    Args:
        plan: What is to be done.
        policy: How much at once, and how often.
    """

    def __init__(self, plan: Plan, policy: Policy) -> None:
        self.plan = plan
        self.policy = policy
        self.now_seconds = 0.0
        self.stop: StopRequested | None = None
        self.capacity = policy.slots
        """Slots there is room for: `policy.slots`, less those that never came up."""
        self.commands: list[Command] = []
        """What the present step wants done."""
        self.slots: dict[str, SlotState] = {}
        self.idle: dict[str, None] = {}
        self.bases: dict[str, BaseState] = {name: BaseState() for name in plan.engines}
        self.units: dict[str, Unit] = {unit.id: unit for unit in plan.units}
        self.open_cells: dict[str, dict[str, None]] = {}
        """For each unit, its cells that still want an answer."""
        self.open_units: dict[str, dict[str, None]] = {}
        """For each cell that is being answered, its units that are not done."""
        self.tallies: dict[str, Tally] = {}
        self.running: dict[str, Running] = {}
        self.num_waiting = 0
        self.cells: dict[str, CellPhase] = {}
        self.scoring: dict[str, int] = {}
        """Attempts under way, by cell."""
        self.score_tallies: dict[str, Tally] = {}
        self.to_score: deque[str] = deque()
        self.failures: dict[str, Failure] = {}
        """Why cells were given up."""
        self.num_units_open = len(self.units)
        self.tokens = self.tokens_open = sum(unit.tokens for unit in plan.units)
        self.new_runs: list[tuple[str, int]] = []
        """Attempts whose time begins with the next tick; so none is charged for time in which
        it had not begun, however long ago the last tick was."""
        self.new_starts: list[tuple[str, SlotPhase]] = []
        self.unit_deadlines: deque[tuple[float, str, int]] = deque()
        self.start_deadlines: deque[tuple[float, str, SlotPhase]] = deque()
        self._num_slots_started = 0

    @property
    def finished(self) -> bool:
        """Whether nothing is under way and nothing more will be started."""
        if self.running or self.scoring:
            return False
        return self.stop is not None or not (self.num_waiting or self.to_score)

    def is_current(self, slot: str, unit_id: str, attempt: int) -> bool:
        """Whether this attempt is the one whose answer counts."""
        run = self.running.get(unit_id)
        return run is not None and run.slot == slot and run.attempt == attempt

    # --- slots --------------------------------------------------------------------------------

    def start_slot(self, base_name: str, reason: str) -> None:
        """Start a slot for a base."""
        self._num_slots_started += 1
        base = self.bases[base_name]
        slot = SlotState(f"slot-{self._num_slots_started}", base_name, base.load_failures)
        self.slots[slot.id] = slot
        base.slots[slot.id] = None
        base.num_starting += 1
        self.new_starts.append((slot.id, slot.phase))
        self.commands.append(StartSlot(slot.id, base_name, reason))

    def slot_placed(self, slot: SlotState) -> None:
        """Note that a slot has its hardware."""
        slot.phase = SlotPhase.LOADING
        self.new_starts.append((slot.id, slot.phase))

    def slot_ready(self, slot: SlotState) -> None:
        """Note that a slot holds its base."""
        base = self.bases[slot.base]
        base.num_starting -= 1
        base.load_failures = 0
        self._make_idle(slot)

    def stop_slot(self, slot: SlotState, reason: str) -> None:
        """Stop a slot; what it ran must have been taken from it before."""
        self.forget_slot(slot)
        self.commands.append(StopSlot(slot.id, reason))

    def forget_slot(self, slot: SlotState) -> None:
        """Strike out a slot that is gone."""
        base = self.bases[slot.base]
        del self.slots[slot.id]
        del base.slots[slot.id]
        base.idle.pop(slot.id, None)
        self.idle.pop(slot.id, None)
        if slot.is_starting:
            base.num_starting -= 1

    def _make_idle(self, slot: SlotState) -> None:
        slot.phase = SlotPhase.IDLE
        self.idle[slot.id] = None
        self.bases[slot.base].idle[slot.id] = None

    # --- units --------------------------------------------------------------------------------

    def push(self, unit: Unit) -> None:
        """Put a unit into the queue."""
        self.bases[unit.base].waiting.push(unit)
        self.num_waiting += 1

    def run(self, slot: SlotState, unit: Unit, reason: str) -> None:
        """Give a unit that was taken from the queue to an idle slot."""
        base = self.bases[slot.base]
        self.num_waiting -= 1
        tally = self.tallies[unit.id]
        tally.started += 1
        cells = tuple(cell for cell in unit.cells if cell in self.open_cells[unit.id])
        self.running[unit.id] = Running(slot.id, tally.started, cells, self.now_seconds)
        base.num_running += 1
        slot.phase = SlotPhase.BUSY
        slot.unit = unit.id
        slot.last_subjects = unit.subjects
        del self.idle[slot.id], base.idle[slot.id]
        self.new_runs.append((unit.id, tally.started))
        self.commands.append(RunUnit(slot.id, unit.id, tally.started, cells, reason))

    def end_run(self, unit_id: str) -> SlotState:
        """Strike out a running attempt; its slot is idle then."""
        run = self.running.pop(unit_id)
        slot = self.slots[run.slot]
        slot.unit = None
        self.bases[slot.base].num_running -= 1
        self._make_idle(slot)
        return slot

    def requeue(self, unit_ids: Iterable[str]) -> None:
        """Put units back that still have cells to answer."""
        for unit_id in unit_ids:
            if self.open_cells[unit_id]:
                self.push(self.units[unit_id])

    def split(self, unit: Unit, reason: str) -> None:
        """Put two halves in a unit's place, each with budgets of its own.

        Args:
            unit: A unit that neither waits nor runs, with several cells open.
            reason: Why.
        """
        cells = list(self.open_cells[unit.id])
        middle = len(cells) // 2
        halves = [self._part(unit, part) for part in (cells[:middle], cells[middle:])]
        self.open_cells[unit.id] = {}
        for half in halves:
            self.units[half.id] = half
            self.tallies[half.id] = Tally()
            self.open_cells[half.id] = dict.fromkeys(half.cells)
            for cell in half.cells:
                del self.open_units[cell][unit.id]
                self.open_units[cell][half.id] = None
        more = sum(half.tokens for half in halves) - unit.tokens
        self.tokens += more
        self.tokens_open += more
        self.num_units_open += 1
        self.commands.append(SplitUnit(unit.id, (halves[0].id, halves[1].id), reason))
        for half in halves:
            self.push(half)

    def _part(self, unit: Unit, cells: list[str]) -> Unit:
        subjects = dict(zip(unit.cells, unit.subjects, strict=True))
        return replace(
            unit,
            id=id_of_unit(cells, unit.shard_index, unit.shard_count),
            cells=tuple(cells),
            subjects=tuple(subjects[cell] for cell in cells),
            tokens=unit.tokens * len(cells) // len(unit.cells),
        )

    # --- cells --------------------------------------------------------------------------------

    def close(self, unit_id: str, cell: str) -> None:
        """Note that a cell has its answers of a unit."""
        self._settle(unit_id, cell)
        del self.open_units[cell][unit_id]
        if not self.open_units[cell]:
            del self.open_units[cell]
            self.queue_score(cell)

    def queue_score(self, cell: str) -> None:
        """Let a cell whose request set is answered wait for its scoring."""
        self.cells[cell] = CellPhase.TO_SCORE
        self.to_score.append(cell)

    def score(self, cell: str, reason: str) -> None:
        """Score a cell that was taken from the queue."""
        tally = self.score_tallies.setdefault(cell, Tally())
        tally.started += 1
        self.cells[cell] = CellPhase.SCORING
        self.scoring[cell] = tally.started
        self.commands.append(ScoreCell(cell, tally.started, reason))

    def give_up(self, cell: str, failure: Failure, attempts: int, reason: str) -> None:
        """End a cell without a result, and drop what only it needed."""
        self.cells[cell] = CellPhase.FAILED
        self.failures[cell] = failure
        for unit_id in self.open_units.pop(cell, {}):
            self._settle(unit_id, cell)
            waiting = self.bases[self.units[unit_id].base].waiting
            if not self.open_cells[unit_id] and unit_id in waiting:
                waiting.discard(unit_id)
                self.num_waiting -= 1
        self.commands.append(GiveUp(cell, failure, attempts, reason))

    def _settle(self, unit_id: str, cell: str) -> None:
        del self.open_cells[unit_id][cell]
        if not self.open_cells[unit_id]:
            self.num_units_open -= 1
            self.tokens_open -= self.units[unit_id].tokens

    # --- time ---------------------------------------------------------------------------------

    def begin_watching(self) -> None:
        """Let the time of what was begun since the last tick run from now on."""
        limit = self.policy.unit_timeout_seconds
        if limit is not None:
            deadline = self.now_seconds + limit
            self.unit_deadlines.extend((deadline, unit, attempt) for unit, attempt in self.new_runs)
        limit = self.policy.start_timeout_seconds
        if limit is not None:
            deadline = self.now_seconds + limit
            self.start_deadlines.extend((deadline, slot, phase) for slot, phase in self.new_starts)
        self.new_runs.clear()
        self.new_starts.clear()
