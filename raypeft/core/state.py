"""What the schedule knows, and the moves that keep its books.

Holds units, cells, slots and bases with the indexes between them, and moves one of them at a
time so that the indexes always agree (`raypeft.core.invariants` checks it). Which move is made,
and when, is decided in `raypeft.core.schedule`.
"""

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import replace

from raypeft.core.events import (
    Command,
    GiveUp,
    LeaveOut,
    RunUnit,
    ScoreCell,
    SplitUnit,
    StartSlot,
    StopRequested,
    StopSlot,
)
from raypeft.core.plan import EngineCost, Plan, Unit, id_of_unit
from raypeft.core.records import Failure
from raypeft.core.retry import Policy
from raypeft.core.state_parts import BaseState as BaseState
from raypeft.core.state_parts import CellPhase as CellPhase
from raypeft.core.state_parts import Running as Running
from raypeft.core.state_parts import SlotPhase as SlotPhase
from raypeft.core.state_parts import SlotState as SlotState
from raypeft.core.state_parts import Tally as Tally
from raypeft.core.waiting import milliseconds


class State:
    """Everything the schedule knows. Others may read it; only `schedule.step` changes it.

    Args:
        plan: What is to be done.
        policy: How much at once, and how often.
    """

    def __init__(self, plan: Plan, policy: Policy) -> None:
        self.plan = plan
        self.policy = policy
        self.now_seconds = self.unheard_seconds = 0.0
        """The second is for how long, all in all, nobody listened."""
        self.stop: StopRequested | None = None
        self.closed = ""
        """Why nothing is begun any more although nobody asked for a stop: the deadline."""
        self.capacity, self.is_shared = policy.slots, False
        """Slots there is room for, and whether other sweeps hold hardware that slots could have."""
        self.commands: list[Command] = []
        """What the present step wants done."""
        self.slots: dict[str, SlotState] = {}
        self.idle: dict[str, None] = {}
        self.num_draining = self.num_waiting = 0
        self.bases: dict[str, BaseState] = {
            name: BaseState(plan.costs.get(name, EngineCost())) for name in plan.engines
        }
        self.hungry: dict[str, None] = {}
        """Bases with units that wait."""
        self.unheld: dict[str, None] = {}
        """Those of them that have no slot."""
        self.changed = True
        """Whether a base may have come to want a slot since this was last looked at."""
        self.reconsider_seconds = 0.0
        """When it is looked at again although nothing has changed."""
        self.unheld_longest: tuple[float, str] | None = None
        """Of the bases without a slot the longest way to the end of one unit; None: not known."""
        self.waiting_milliseconds = 0
        """Expected time of all units that wait."""
        self.end_milliseconds = 0
        """Sum of the times at which what runs is expected to end."""
        self.units: dict[str, Unit] = {unit.id: unit for unit in plan.units}
        self.open_cells: dict[str, dict[str, None]] = {}
        """For each unit, its cells that still want an answer."""
        self.open_units: dict[str, dict[str, None]] = {}
        """For each cell that is being answered, its units that are not done."""
        self.tallies: dict[str, Tally] = {}
        self.running: dict[str, Running] = {}
        self.cells: dict[str, CellPhase] = {}
        self.scoring: dict[str, int] = {}
        """Attempts under way, by cell."""
        self.score_tallies: dict[str, Tally] = {}
        self.to_score: deque[str] = deque()
        self.failures: dict[str, Failure] = {}
        """Why cells were given up."""
        self.left_out: dict[str, str] = {}
        """Why cells were left out when time was over, or since they are hopeless."""
        self.num_units_open = len(self.units)
        self.tokens = self.tokens_open = sum(unit.tokens for unit in plan.units)
        self.moved: dict[tuple[str, int], None] = {}
        """Attempts that have got on since the last tick."""
        self.new_runs: list[tuple[str, int]] = []
        """Attempts whose time begins with the next tick; so none is charged for time in which
        it had not begun, however long ago the last tick was."""
        self.new_starts: list[tuple[str, SlotPhase]] = []
        self.unit_deadlines: list[tuple[float, str, int]] = []
        """A heap: an attempt that gets on has its time moved on."""
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

    @property
    def watch_seconds(self) -> float:
        """The time without that in which nobody listened: on it limits are counted."""
        return self.now_seconds - self.unheard_seconds

    @property
    def has_room(self) -> bool:
        """Whether there is room for another slot."""
        return len(self.slots) - self.num_draining < self.capacity

    @property
    def horizon_seconds(self) -> float:
        """In how many seconds all would be done if it were spread evenly over all slots."""
        running = self.end_milliseconds / 1000 - len(self.running) * self.now_seconds
        return (self.waiting_milliseconds / 1000 + max(running, 0.0)) / self.capacity

    # --- slots --------------------------------------------------------------------------------

    def start_slot(self, base_name: str, reason: str) -> None:
        """Start a slot for a base."""
        self._num_slots_started += 1
        base = self.bases[base_name]
        slot = SlotState(f"slot-{self._num_slots_started}", base_name, base.load_failures)
        self.slots[slot.id] = slot
        base.slots[slot.id] = None
        base.num_starting += 1
        self._held(base_name)
        self.new_starts.append((slot.id, slot.phase))
        self.commands.append(StartSlot(slot.id, base_name, reason))

    def slot_placed(self, slot: SlotState) -> None:
        """Note that a slot has its hardware."""
        slot.phase = SlotPhase.LOADING
        self.new_starts.append((slot.id, slot.phase))

    def slot_ready(self, slot: SlotState, node: str) -> None:
        """Note that a slot holds its base."""
        base = self.bases[slot.base]
        base.num_starting -= 1
        base.load_failures = 0
        slot.node = node
        self.changed = True
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
        self.num_draining -= bool(slot.draining)
        if base.waiting:
            self.changed = True
            if not base.slots:
                self._unheld(slot.base)

    def lose_place(self) -> None:
        """Note that there is room for one slot less than was thought."""
        self.capacity = max(1, self.capacity - 1)

    def drain_slot(self, slot: SlotState, reason: str, *, is_surplus: bool = False) -> None:
        """Give a slot nothing more: it ends with what it runs, at once if it runs nothing.

        Args:
            slot: The slot.
            reason: Why.
            is_surplus: Whether there are only too many, and it is as good as any.
        """
        if slot.phase is not SlotPhase.BUSY:
            self.stop_slot(slot, reason)
            return
        slot.is_surplus = is_surplus
        if not slot.draining:
            slot.draining = reason
            self.num_draining += 1
            self.changed = True

    def keep_slot(self, slot: SlotState) -> None:
        """Let a slot that drained as one too many go on."""
        slot.draining, slot.is_surplus = "", False
        self.num_draining -= 1

    def _unheld(self, base_name: str) -> None:
        self.unheld[base_name] = None
        self.unheld_longest = None

    def _held(self, base_name: str) -> None:
        if base_name in self.unheld:
            del self.unheld[base_name]
            self.unheld_longest = None

    def _make_idle(self, slot: SlotState) -> None:
        slot.phase = SlotPhase.IDLE
        slot.idle_since_seconds = self.watch_seconds
        self.idle[slot.id] = None
        self.bases[slot.base].idle[slot.id] = None

    # --- units --------------------------------------------------------------------------------

    def push(self, unit: Unit) -> None:
        """Put a unit into the queue."""
        base = self.bases[unit.base]
        base.waiting.push(unit)
        self.num_waiting += 1
        self.waiting_milliseconds += milliseconds(unit)
        self.hungry[unit.base] = None
        if not base.slots:
            self._unheld(unit.base)
        self.changed = True

    def _left_queue(self, unit: Unit) -> None:
        self.num_waiting -= 1
        self.waiting_milliseconds -= milliseconds(unit)
        if not self.bases[unit.base].waiting:
            del self.hungry[unit.base]
            self._held(unit.base)

    def run(self, slot: SlotState, unit: Unit, reason: str) -> None:
        """Give a unit that was taken from the queue to an idle slot."""
        base = self.bases[slot.base]
        self._left_queue(unit)
        tally = self.tallies[unit.id]
        tally.started += 1
        cells = tuple(cell for cell in unit.cells if cell in self.open_cells[unit.id])
        end = round(self.now_seconds * 1000) + milliseconds(unit)
        run = Running(slot.id, tally.started, cells, self.now_seconds, end)
        self.running[unit.id] = run
        base.num_running += 1
        base.end_milliseconds += end
        self.end_milliseconds += end
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
        base = self.bases[slot.base]
        base.num_running -= 1
        base.end_milliseconds -= run.end_milliseconds
        self.end_milliseconds -= run.end_milliseconds
        self._make_idle(slot)
        return slot

    def requeue(self, unit_ids: Iterable[str]) -> None:
        """Put units back that still have cells to answer; when time is over, leave these out."""
        for unit_id in unit_ids:
            if self.closed:
                for cell in tuple(self.open_cells[unit_id]):
                    self.leave_out(cell, self.closed)
            elif self.open_cells[unit_id]:
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
            seconds=unit.seconds * len(cells) / len(unit.cells),
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
        self._drop(cell)
        self.commands.append(GiveUp(cell, failure, attempts, reason))

    def leave_out(self, cell: str, why: str, phase: CellPhase = CellPhase.NOT_STARTED) -> None:
        """End a cell that nothing was wrong with, and drop what only it needed."""
        self.cells[cell] = phase
        shards = self.plan.cells[cell].shards
        done = shards - len(self.open_units[cell])
        self._drop(cell)
        begun = f"{done} of {shards} shards are answered" if done else "nothing of it is answered"
        self.left_out[cell] = f"{why}; {begun}"
        self.commands.append(LeaveOut(cell, self.left_out[cell]))

    def _drop(self, cell: str) -> None:
        for unit_id in self.open_units.pop(cell, {}):
            self._settle(unit_id, cell)
            waiting = self.bases[self.units[unit_id].base].waiting
            if not self.open_cells[unit_id] and unit_id in waiting:
                waiting.discard(unit_id)
                self._left_queue(self.units[unit_id])

    def _settle(self, unit_id: str, cell: str) -> None:
        del self.open_cells[unit_id][cell]
        if not self.open_cells[unit_id]:
            self.num_units_open -= 1
            self.tokens_open -= self.units[unit_id].tokens

    # --- time ---------------------------------------------------------------------------------

    def pass_time(self, now_seconds: float, unheard_seconds: float) -> None:
        """Let it be later, if it is; of the time that has passed a part may have been unheard."""
        passed = max(0.0, now_seconds - self.now_seconds)
        self.now_seconds = max(self.now_seconds, now_seconds)
        self.unheard_seconds += min(passed, unheard_seconds)

    def note_pace(self, unit_id: str) -> None:
        """Note how long a unit that is about to end has taken."""
        run, unit = self.running[unit_id], self.units[unit_id]
        self.bases[unit.base].pace.add(unit.seconds, self.now_seconds - run.since_seconds)

    def note_progress(self, unit_id: str, progress: int) -> None:
        """Note how far a running attempt is."""
        run = self.running[unit_id]
        if progress > run.progress:
            run.progress = progress
            self.moved[unit_id, run.attempt] = None

    def begin_progress(self) -> None:
        """Let the time of what has got on since the last tick run from now on."""
        for unit_id, attempt in self.moved:
            run = self.running.get(unit_id)
            if run is not None and run.attempt == attempt:
                run.progress_seconds = self.watch_seconds
        self.moved.clear()

    def begin_watching(self) -> None:
        """Let the time of what was begun since the last tick run from now on."""
        limit = self.policy.unit_timeout_seconds
        if limit is not None:
            deadline = self.watch_seconds + limit
            for unit, attempt in self.new_runs:
                heapq.heappush(self.unit_deadlines, (deadline, unit, attempt))
        limit = self.policy.start_timeout_seconds
        if limit is not None:
            deadline = self.watch_seconds + limit
            self.start_deadlines.extend((deadline, slot, phase) for slot, phase in self.new_starts)
        self.new_runs.clear()
        self.new_starts.clear()
