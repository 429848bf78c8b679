"""What the schedule is told, and what it tells the driver to do.

Plain frozen data. An event says what happened and nothing about what follows from it; a command
says what to do and why. Carrying a command out is the driver's business, deciding is
`raypeft.core.schedule`'s.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from raypeft.core.records import Failure, Hardware

# --- events -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SlotPlaced:
    """A slot has its hardware and begins to load its base."""

    slot: str


@dataclass(frozen=True, slots=True)
class SlotReady:
    """A slot has loaded its base.

    Attributes:
        slot: Its id.
        hardware: What it runs on, read back in the slot.
    """

    slot: str
    hardware: Hardware


@dataclass(frozen=True, slots=True)
class SlotFailed:
    """A slot could not be started, or could not load its base; it is gone."""

    slot: str
    failure: Failure


@dataclass(frozen=True, slots=True)
class SlotLost:
    """A slot that had loaded its base is gone, with the unit it ran, if any."""

    slot: str
    failure: Failure


@dataclass(frozen=True, slots=True)
class UnitDone:
    """A slot gave an outcome for every cell of an attempt; what was answered is stored.

    Attributes:
        slot: Who.
        unit_id: The unit.
        attempt: Which try at it.
        outcomes: For each cell of the attempt None if it was answered, else why not.
    """

    slot: str
    unit_id: str
    attempt: int
    outcomes: Mapping[str, Failure | None]


@dataclass(frozen=True, slots=True)
class UnitFailed:
    """An attempt failed as a whole; the slot can be used again."""

    slot: str
    unit_id: str
    attempt: int
    failure: Failure


@dataclass(frozen=True, slots=True)
class CellScored:
    """A cell's results are stored."""

    cell: str
    attempt: int


@dataclass(frozen=True, slots=True)
class ScoreFailed:
    """A cell's answers could not be scored."""

    cell: str
    attempt: int
    failure: Failure


@dataclass(frozen=True, slots=True)
class CellHopeless:
    """The documents answered so far rule out that a cell has a gain worth waiting for.

    Attributes:
        cell: The cell's key.
        reason: What was looked at, and with which certainty.
    """

    cell: str
    reason: str


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A slot is alive and says how far it is with its attempt.

    Attributes:
        slot: Who.
        unit_id: The unit.
        attempt: Which try at it.
        progress: Anything that grows while the unit gets on, requests answered for instance. Time
            (`Policy.unit_timeout_seconds`) is counted from when it last grew.
    """

    slot: str
    unit_id: str
    attempt: int
    progress: int


@dataclass(frozen=True, slots=True)
class NodeDraining:
    """A node will go away: its slots finish what they run and are given nothing more.

    Attributes:
        node: Its name, as in `Hardware.node`.
        reason: Why, as far as the cluster says.
    """

    node: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class CapacityChanged:
    """The cluster has grown or shrunk, or another sweep is to have its share of it.

    Attributes:
        slots: Slots there is room for now; never more than `Policy.slots` are used, and one is
            always tried for.
        reason: Why, where it is not the cluster's size.
        is_shared: Whether others hold hardware that slots could have: one that waits for it is
            then waiting for them.
    """

    slots: int
    reason: str = ""
    is_shared: bool = False


@dataclass(frozen=True, slots=True)
class Tick:
    """What time it is, on a clock that never goes back.

    It ends what is overdue, so events that happened before it are told before it.

    Attributes:
        now_seconds: The time.
        unheard_seconds: For how long before it nobody listened: what slots said then is still to
            be told, so that no attempt and no start is charged for it.
    """

    now_seconds: float
    unheard_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class StopRequested:
    """Somebody wants the run to end.

    Attributes:
        reason: Who or what, for instance `SIGTERM`.
        drain: Whether what runs may finish; if not, it is stopped and stays unfinished.
    """

    reason: str
    drain: bool = False


Event: TypeAlias = (
    SlotPlaced
    | SlotReady
    | SlotFailed
    | SlotLost
    | UnitDone
    | UnitFailed
    | CellScored
    | ScoreFailed
    | CellHopeless
    | Heartbeat
    | NodeDraining
    | CapacityChanged
    | Tick
    | StopRequested
)

# --- commands ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartSlot:
    """Start a slot, under an id never used before, and load a base in it."""

    slot: str
    base: str
    reason: str


@dataclass(frozen=True, slots=True)
class StopSlot:
    """Stop a slot, whatever it does; nothing it says afterwards counts."""

    slot: str
    reason: str


@dataclass(frozen=True, slots=True)
class RunUnit:
    """Give a unit to a slot.

    Attributes:
        slot: A slot that holds the unit's base and runs nothing.
        unit_id: The unit.
        attempt: Number of this try, from 1.
        cells: Those of the unit's cells that still want an answer, in the unit's order.
        reason: Why this unit now.
    """

    slot: str
    unit_id: str
    attempt: int
    cells: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class ScoreCell:
    """Score a cell whose request set is answered."""

    cell: str
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Record that a cell will not be finished in this run.

    Attributes:
        cell: The cell's key.
        failure: The last failure.
        attempts: How many tries its unit (or its scoring) had.
        reason: Why there is no further try.
    """

    cell: str
    failure: Failure
    attempts: int
    reason: str


@dataclass(frozen=True, slots=True)
class LeaveOut:
    """Record that a cell is not finished, which is nobody's failure.

    Either the run's time is over or the cell is hopeless.

    Attributes:
        cell: The cell's key.
        reason: Why, and how much of it is answered.
    """

    cell: str
    reason: str


@dataclass(frozen=True, slots=True)
class SplitUnit:
    """Record that a unit failed as a whole, and that its subjects go on in two halves.

    Attributes:
        unit_id: The unit; it is not run again.
        into: The two that stand for it.
        reason: Why.
    """

    unit_id: str
    into: tuple[str, str]
    reason: str


Command: TypeAlias = StartSlot | StopSlot | RunUnit | ScoreCell | GiveUp | LeaveOut | SplitUnit
