"""Keeps track of the looks of a run: which shards are to be looked at, and what is under way.

What is hopeless is `raypeft.core.interim`'s decision, what follows from it the schedule's. Here is
only the bookkeeping between answers that are stored, calls that score them, and events.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from raypeft.core.events import CellHopeless
from raypeft.core.interim import Interim, LookSettings, ShardValues
from raypeft.core.plan import Cell, Plan, Unit
from raypeft.core.records import Failure
from raypeft.core.state import CellPhase, State

WHOLE = (CellPhase.TO_SCORE, CellPhase.SCORING, CellPhase.DONE)


@dataclass(frozen=True, slots=True)
class Look:
    """One shard of one cell that is to be looked at.

    Attributes:
        cell: The cell's key.
        index: Which shard.
        count: Of how many; a baseline may be stored in another number, and whole.
    """

    cell: str
    index: int
    count: int

    @property
    def call(self) -> str:
        """The name of its call."""
        return f"look/{self.cell}/{self.index}-of-{self.count}"


class Looking:
    """The looks of one run.

    Args:
        plan: What is done.
        settings: What is looked at.
        at_once: Calls under way at the same time, at most.
    """

    def __init__(self, plan: Plan, settings: LookSettings, at_once: int) -> None:
        cells = {key: plan.cells[key] for key in settings.baselines}
        self._plan = plan
        self._at_once = at_once
        self.interim = Interim(settings, {key: cell.shards for key, cell in cells.items()})
        self._counts: dict[str, set[int]] = {}
        """For each baseline the numbers of shards its adapters' cells are cut into."""
        for key, baseline in settings.baselines.items():
            self._counts.setdefault(baseline, set()).add(cells[key].shards)
        self._queue: deque[Look] = deque()
        self._queued: set[Look] = set()
        self._under_way: dict[str, Look] = {}

    def begin(self, state: State) -> None:
        """Look at what earlier runs have stored."""
        left: dict[str, set[int]] = {}
        for unit in self._plan.units:
            for cell in unit.cells:
                left.setdefault(cell, set()).add(unit.shard_index)
        for key in (*self._counts, *self.interim.counts):
            begun = self._plan.cells[key]
            answered = set(range(begun.shards)) - left.get(key, set())
            self._answered(begun, sorted(answered), state)

    def unit_stored(self, unit: Unit, cells: Iterable[str], state: State) -> None:
        """Look at what a unit has answered; the schedule has been told of it."""
        for key in cells:
            if key in self._counts or key in self.interim.counts:
                self._answered(self._plan.cells[key], [unit.shard_index], state)

    def _answered(self, cell: Cell, indices: Iterable[int], state: State) -> None:
        if cell.key in self.interim.counts:
            self._add(Look(cell.key, index, cell.shards) for index in indices)
            return
        counts = self._counts[cell.key]
        if cell.by_documents and cell.shards in counts:
            self._add(Look(cell.key, index, cell.shards) for index in indices)
        if state.cells[cell.key] in WHOLE:
            self._add(Look(cell.key, index, count) for count in counts for index in range(count))

    def _add(self, looks: Iterable[Look]) -> None:
        for look in looks:
            if look not in self._queued:
                self._queued.add(look)
                self._queue.append(look)

    def take(self, state: State) -> list[Look]:
        """Return the looks to begin now; those that can stop nothing any more are dropped."""
        taken: list[Look] = []
        while self._queue and len(self._under_way) < self._at_once:
            look = self._queue.popleft()
            own = [look.cell] if look.cell in self.interim.counts else self._adapters(look)
            if any(state.cells[cell] is CellPhase.ANSWERING for cell in own):
                self._under_way[look.call] = look
                taken.append(look)
        return taken

    def _adapters(self, look: Look) -> list[str]:
        cells = self.interim.adapters_of(look.cell)
        return [cell for cell in cells if self.interim.counts[cell] == look.count]

    def is_look(self, call: str) -> bool:
        """Whether a call is a look, of this run or an earlier one on the same pool."""
        return call.startswith("look/")

    def ended(self, call: str, result: object) -> list[CellHopeless]:
        """Take note of a call's result, or its failure; return what turns out to be hopeless."""
        look = self._under_way.pop(call, None)
        if look is None:
            return []
        if isinstance(result, Failure):
            result = ShardValues(problem=f"{result.kind}: {result.message}")
        elif not isinstance(result, ShardValues):
            result = ShardValues(problem=f"the look gave {type(result).__name__}, not ShardValues")
        return self.interim.add(look.cell, look.index, look.count, result)
