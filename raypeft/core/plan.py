"""Subjects × request sets − what is done → cells and units."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from raypeft.core.identity import digest
from raypeft.core.records import EngineSpec, Subject


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
    """

    engines: Mapping[str, EngineSpec]
    subjects: Mapping[str, Subject]
    cells: Mapping[str, Cell]
    units: tuple[Unit, ...] = ()
    to_score: tuple[str, ...] = ()
    done: tuple[str, ...] = field(default=())


def id_of_unit(cells: Sequence[str], index: int, count: int) -> str:
    """Return the id of a unit: the same for the same cells and shard."""
    return digest("unit", 1, [list(cells), index, count])[:16]


def make_units(
    cells: Sequence[Cell],
    *,
    answered: Mapping[str, Collection[int]],
    subjects_per_unit: int = 1,
) -> tuple[Unit, ...]:
    """Cut cells into units, leaving out the shards that are already answered.

    Cells of one engine and request set whose open shards agree may share a unit; the baseline
    always gets a unit of its own, so that it can go first and stands in no adapter's way.

    Args:
        cells: Cells still to be answered.
        answered: For each cell key, indices of its shards in the store (of `cell.shards`).
        subjects_per_unit: Most subjects in one unit; 1 gives one unit for each cell and shard.
    """
    queues: dict[tuple[str, str, int, int, bool], list[Cell]] = {}
    for cell in cells:
        have = answered.get(cell.key, ())
        for index in range(cell.shards):
            if index not in have:
                key = (cell.engine_name, cell.request_set, index, cell.shards, cell.is_baseline)
                queues.setdefault(key, []).append(cell)
    units: list[Unit] = []
    for (base, request_set, index, count, is_baseline), members in queues.items():
        for start in range(0, len(members), subjects_per_unit):
            part = members[start : start + subjects_per_unit]
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
                )
            )
    return tuple(units)
