"""Subjects × request sets − what is done → cells and units."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from raypeft.core.identity import digest
from raypeft.core.records import EngineSpec, Subject

TOKENS_PER_SECOND = 1000.0
"""The pace of cells whose seconds nobody has estimated; orders work and nothing else."""

_MOST_SHARDS = 1_000_000
"""More than any cell has: an order of cells outweighs that of their shards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCost:
    """What an engine's work is expected to take, see `raypeft.core.cost`.

    Attributes:
        load_seconds: To load its base in a slot.
        upper: How many times longer than expected a unit or a load may well take.
    """

    load_seconds: float = 0.0
    upper: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """(subject, task): the smallest thing with a score.

    Attributes:
        key: See `raypeft.core.identity.cell_key`; what its answers are stored under.
        score_key: What its results are stored under.
        subject: The subject's id.
        base: The base's name.
        task: The leaf task.
        entry: The sweep's task entry.
        request_set: Digest of the request set.
        is_baseline: Whether the subject is the base alone.
        tokens: Estimated tokens through the model.
        shards: Into how many shards its request set is cut.
        engine: Name of the engine that answers it; empty is the one named as its base.
        seconds: Expected seconds in a slot; 0 where nobody has estimated them.
        urgency: What goes first where a baseline does not: the greater one.
        by_documents: Whether its shards are cut by documents, at random
            (`raypeft.core.document_shards`), so that it can be looked at before it is whole.
    """

    key: str
    score_key: str
    subject: str
    base: str
    task: str
    entry: str
    request_set: str
    is_baseline: bool
    tokens: int
    shards: int = 1
    engine: str = ""
    seconds: float = 0.0
    urgency: int = 0
    by_documents: bool = False

    @property
    def answers_key(self) -> str:
        """What its answers are stored under: shards of different cuts make no whole."""
        return by_documents_key(self.key) if self.by_documents else self.key

    @property
    def expected_seconds(self) -> float:
        """Expected seconds in a slot, by the tokens where nobody has estimated them."""
        return self.seconds or self.tokens / TOKENS_PER_SECOND

    @property
    def engine_name(self) -> str:
        """Name of the engine that answers it, see `Plan.engines`."""
        return self.engine or self.base


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What an actor is given at once: one shard for one or more subjects of one base.

    Attributes:
        id: Unique within the plan and the same in every plan of the same cells.
        base: What a slot must hold to run the unit: the name of an engine, which is its base's
            name but for a base's second engine.
        request_set: Digest of the request set.
        shard_index: Which shard.
        shard_count: Of how many.
        cells: Keys of the cells it works for, one for each subject.
        subjects: Ids of the subjects, same order as `cells`.
        has_baseline: Whether the base alone is among the subjects.
        tokens: Estimated tokens, all subjects together.
        seconds: Expected seconds in a slot, all subjects together.
        urgency: That of the most urgent of its cells; of shards cut by documents the first are
            the most urgent, so that there is something to look at.
        by_documents: Whether its shard is cut by documents.
    """

    id: str
    base: str
    request_set: str
    shard_index: int
    shard_count: int
    cells: tuple[str, ...]
    subjects: tuple[str, ...]
    has_baseline: bool
    tokens: int
    seconds: float
    urgency: int = 0
    by_documents: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything a run needs to know before it starts.

    Attributes:
        engines: What to load for each base, by the base's name; where some of its adapters need
            another engine, that one by the base's name and `@hf`.
        subjects: By id.
        cells: By key, every cell of the sweep that is not a failure from the start.
        units: What is left to answer, no order implied.
        to_score: Keys of cells that are answered but not scored.
        done: Keys of cells with stored results.
        costs: What each engine's work is expected to take, by the engine's name; those that are
            absent load in no time.
    """

    engines: Mapping[str, EngineSpec]
    subjects: Mapping[str, Subject]
    cells: Mapping[str, Cell]
    units: tuple[Unit, ...] = ()
    to_score: tuple[str, ...] = ()
    done: tuple[str, ...] = field(default=())
    costs: Mapping[str, EngineCost] = field(default_factory=dict)


def by_documents_key(cell: str) -> str:
    """Return what the answers of a cell are stored under whose shards are cut by documents."""
    return f"{cell}-by-documents"


def id_of_unit(cells: Sequence[str], index: int, count: int) -> str:
    """Return the id of a unit: the same for the same cells and shard."""
    return digest("unit", 1, [list(cells), index, count])[:16]


def make_units(
    cells: Sequence[Cell],
    *,
    answered: Mapping[str, Collection[int]],
    subjects_per_unit: int = 1,
    seconds_per_unit: float = math.inf,
) -> tuple[Unit, ...]:
    """Cut cells into units, leaving out the shards that are already answered.

    Cells of one engine and request set whose open shards agree may share a unit; the baseline
    always gets a unit of its own, so that it can go first and stands in no adapter's way.

    Args:
        cells: Cells still to be answered.
        answered: For each cell key, indices of its shards in the store (of `cell.shards`).
        subjects_per_unit: Most subjects in one unit; 1 gives one unit for each cell and shard.
        seconds_per_unit: Subjects are added to a unit as long as it is expected to take no longer.
    """
    queues: dict[tuple[str, str, int, int, bool, bool], list[Cell]] = {}
    scale = _MOST_SHARDS if any(cell.by_documents for cell in cells) else 1
    for cell in cells:
        have = answered.get(cell.key, ())
        for index in range(cell.shards):
            if index not in have:
                cut = (index, cell.shards, cell.is_baseline, cell.by_documents)
                key = (cell.engine_name, cell.request_set, *cut)
                queues.setdefault(key, []).append(cell)
    units: list[Unit] = []
    for (base, request_set, index, count, is_baseline, by_documents), members in queues.items():
        members.sort(key=lambda cell: -cell.urgency)  # what is urgent must not wait for what is not
        for part in _parts(members, count, subjects_per_unit, seconds_per_unit):
            keys = tuple(cell.key for cell in part)
            units.append(
                Unit(
                    id=id_of_unit(keys, index, count),
                    base=base,
                    request_set=request_set,
                    shard_index=index,
                    shard_count=count,
                    cells=keys,
                    subjects=tuple(cell.subject for cell in part),
                    has_baseline=is_baseline,
                    tokens=sum(cell.tokens for cell in part) // count,
                    seconds=sum(cell.expected_seconds for cell in part) / count,
                    urgency=scale * max(cell.urgency for cell in part) - index * by_documents,
                    by_documents=by_documents,
                )
            )
    return tuple(units)


def _parts(
    cells: Sequence[Cell], shards: int, most: int, most_seconds: float
) -> Iterator[list[Cell]]:
    """Yield the cells in units of at most so many subjects and seconds, evenly filled."""
    seconds = sum(cell.expected_seconds for cell in cells) / shards
    wanted = math.ceil(seconds / most_seconds) if most_seconds < math.inf else 1
    num_units = min(len(cells), max(wanted, -(-len(cells) // most)))
    for number in range(num_units):
        # Whole numbers, so that no cell is left out or taken twice.
        first, end = (len(cells) * n // num_units for n in (number, number + 1))
        yield list(cells[first:end])
