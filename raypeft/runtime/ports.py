"""What the driver needs from the world: slots, and a place for what they answer.

The promises of `Pool` are checked for every implementation by `tests/contract/pool_contract.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from raypeft.core.events import (
    CapacityChanged,
    Heartbeat,
    NodeDraining,
    SlotFailed,
    SlotLost,
    SlotPlaced,
    SlotReady,
    UnitFailed,
)
from raypeft.core.plan import Cell, Unit
from raypeft.core.records import (
    Answer,
    EngineSpec,
    Failure,
    Json,
    Scored,
    Subject,
    UnitAnswers,
)
from raypeft.engines.base import Engine
from raypeft.engines.travel import AdapterBytes

Build: TypeAlias = Callable[[EngineSpec], Engine]
"""Loads a base; runs in the slot."""


Bring: TypeAlias = Callable[[], AdapterBytes | Failure]
"""Brings an adapter's files to a slot, or says why there are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitWork:
    """One attempt at a unit, as it travels to a slot.

    Attributes:
        unit_id: The unit.
        request_set: Key under which the request set was shared; its digest.
        shard_index: Which shard.
        shard_count: Of how many.
        subjects: Who is to answer.
    """

    unit_id: str
    request_set: str
    shard_index: int
    shard_count: int
    subjects: tuple[Subject, ...]


@dataclass(frozen=True, slots=True)
class Shared:
    """Stands for a shared value among the arguments of a call."""

    key: str


@dataclass(frozen=True, slots=True)
class UnitAnswered:
    """A slot has answered a unit."""

    slot: str
    unit_id: str
    attempt: int
    answers: UnitAnswers


@dataclass(frozen=True, slots=True)
class CallDone:
    """A call returned."""

    call: str
    result: object


@dataclass(frozen=True, slots=True)
class CallFailed:
    """A call raised, or the process it ran in died."""

    call: str
    failure: Failure


PoolEvent: TypeAlias = (
    SlotPlaced
    | SlotReady
    | SlotFailed
    | SlotLost
    | Heartbeat
    | NodeDraining
    | CapacityChanged
    | UnitAnswered
    | UnitFailed
    | CallDone
    | CallFailed
)


class Pool(Protocol):
    """Slots that run units, and processes that run calls.

    Promises:
        - `start_slot` returns at once; `wait` tells `SlotPlaced` (its hardware is there), then
          `SlotReady`, or `SlotFailed`. A slot id is used once.
        - A slot that is ready takes one unit at a time.
        - What is raised while a unit is answered becomes `UnitFailed`, with the traceback as the
          failure's detail. `EngineFatalError`, and the death of the slot's process, become
          `SlotLost`. The pool never raises for what happens in a slot or a call.
        - After `SlotFailed`, `SlotLost` and `stop_slot` a slot is gone with its memory, and no
          event speaks of it again.
        - What is shared reaches a slot once, however many units want it.
        - Slots of one base are on one kind of hardware, unless the pool was told otherwise; one
          that is not is replaced before it is ready.
        - A parallel pool tells how far slots are with attempts that take long (`Heartbeat`), and of
          nodes that go (`NodeDraining`, by the name in `SlotReady`) or come (`CapacityChanged`).
        - An adapter that is offered, and whose content the node of a slot lacks, is brought there;
          one that is there is not touched. If it cannot be brought, that is its subjects' failure.
    """

    @property
    def num_slots(self) -> int:
        """How many slots there is room for."""
        ...

    @property
    def is_parallel(self) -> bool:
        """Whether slots work at the same time and can be stopped at work."""
        ...

    @property
    def calls_at_once(self) -> int:
        """How many calls should be under way at the same time, at most."""
        ...

    def prepare_slots(self, count: int, kind: str) -> None:
        """Expect up to this many slots soon: begin what they need that no base decides.

        Args:
            count: How many.
            kind: The kind of their engine.
        """
        ...

    def drop_spares(self) -> None:
        """Give back what was prepared and not used."""
        ...

    def start_slot(self, slot: str, spec: EngineSpec) -> None:
        """Start a slot and load a base in it."""
        ...

    def stop_slot(self, slot: str) -> None:
        """Stop a slot, whatever it does; stopping one that is gone is harmless."""
        ...

    def share(self, key: str, value: object) -> None:
        """Put a value where slots and calls can read it; a key that is known is not sent again."""
        ...

    def offer(self, key: str, load: Callable[[], AdapterBytes]) -> None:
        """Say where an adapter's files come from; they are loaded when a slot lacks them.

        Args:
            key: What the adapter is; see `raypeft.engines.travel.content_key`.
            load: Reads them.
        """
        ...

    def release(self, key: str) -> None:
        """Forget a value shared or offered; work submitted with a shared one still gets it."""
        ...

    def submit(self, slot: str, work: UnitWork, attempt: int) -> None:
        """Give a slot a unit."""
        ...

    def submit_call(self, call: str, function: Callable[..., object], *args: object) -> None:
        """Run a module-level function on a CPU; `Shared` arguments are replaced by their values."""
        ...

    def wait(self, timeout_seconds: float) -> list[PoolEvent]:
        """Return what has happened; wait for something to happen at most so long.

        With a timeout of 0 nothing new is begun.
        """
        ...

    def close(self) -> None:
        """Stop every slot and forget everything; calling it twice is harmless."""
        ...


class Sink(Protocol):
    """Where answers and results go. Only the driver writes, and before it goes on.

    A method that returns has stored what it was given, whole; one that cannot raises `OSError`
    and has stored nothing.
    """

    def answers(self, unit: Unit, attempt: int, answers: UnitAnswers) -> None:
        """Store answers; unit and answers hold exactly the cells that were answered."""
        ...

    def load_answers(self, cell: Cell) -> Sequence[Answer]:
        """Return a cell's answers of all shards, by index."""
        ...

    def load_shard(self, cell: Cell, index: int) -> Sequence[Answer]:
        """Return a cell's answers of one shard."""
        ...

    def scored(self, cell: Cell, scored: Scored) -> None:
        """Store a cell's results."""
        ...

    def gave_up(self, cell: str, failure: Failure, attempts: int) -> None:
        """Store why a cell has no results."""
        ...

    def note(self, line: dict[str, Json]) -> None:
        """Append a line to the journal."""
        ...
