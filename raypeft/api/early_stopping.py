"""Early stopping of a sweep: which cells are looked at, and which were stopped before.

A cell that was stopped is remembered under its identity and under the settings of its looks, so
that the next run with the same settings starts nothing for it, and tables can be made again. With
other settings, or none, the next run goes on with what is missing.
"""

from collections.abc import Callable, Mapping, Sequence

from raypeft.api.freezing import FrozenTask
from raypeft.core.document_shards import MIN_DOCUMENTS, shards_for_looks
from raypeft.core.engine_choice import SECOND_SUFFIXES
from raypeft.core.identity import canonical, cell_numerics
from raypeft.core.interim import LookSettings
from raypeft.core.plan import Cell
from raypeft.core.records import EngineSpec, Subject
from raypeft.core.spec import Sweep
from raypeft.errors import SetupError
from raypeft.store.store import Store

Stopped = Callable[[Cell, LookSettings], str]
"""Returns why a cell was stopped before, under the same settings; empty if it was not."""


def never(cell: Cell, settings: LookSettings) -> str:
    """Return that a cell was not stopped before."""
    return ""


def shards_to_look_at(sweep: Sweep, task: FrozenTask) -> int:
    """Return into how many shards of documents a task is cut; 0 if it is not looked at."""
    if why_not_looked_at(sweep, task):
        return 0
    assert sweep.statistics.early_stopping is not None
    return shards_for_looks(task.num_documents, sweep.statistics.early_stopping.looks)


def why_not_looked_at(sweep: Sweep, task: FrozenTask) -> str:
    """Return why a task is answered whole; empty if it is looked at."""
    settings = sweep.statistics.early_stopping
    if settings is None:
        return "early stopping is off"
    if task.samples:
        return "its texts are sampled, and draws belong to the batches of the whole request set"
    if any(one.name == task.entry and one.cluster for one in sweep.tasks):
        return "its documents stand in clusters, and a look takes each one for itself"
    if shards_for_looks(task.num_documents, settings.looks) < 2:
        return f"it has {task.num_documents} documents, expected {2 * MIN_DOCUMENTS} or more"
    return ""


def look_settings(
    sweep: Sweep,
    cells: Sequence[Cell],
    subjects: Mapping[str, Subject],
    engines: Mapping[str, EngineSpec],
) -> LookSettings | None:
    """Return what is looked at; None with early stopping off.

    Args:
        sweep: The sweep.
        cells: All its cells that are not lost, shards chosen.
        subjects: By id.
        engines: By name.
    """
    settings = sweep.statistics.early_stopping
    if settings is None:
        return None

    def company(cell: Cell) -> tuple[str, str]:
        """Return what a cell must have in common with its baseline."""
        numerics = cell_numerics(engines[cell.engine_name], subjects[cell.subject])
        # A merged adapter is compared with the base as it is, and is noted for it.
        numerics.pop("merged", None)
        return cell.request_set, canonical(numerics)

    baselines = {
        company(cell): cell.key
        for cell in cells
        if cell.is_baseline and not cell.subject.endswith(SECOND_SUFFIXES)
    }
    found = {
        cell.key: baselines[company(cell)]
        for cell in cells
        if cell.by_documents and not cell.is_baseline and company(cell) in baselines
    }
    return LookSettings(
        baselines=found,
        metric=settings.metric,
        least_gain=settings.least_gain,
        alpha=settings.alpha,
        # All, answered or not: the share of each must not depend on how far the sweep is.
        num_tests=max(1, len({cell.key for cell in cells if not cell.is_baseline})),
    )


def remember_stopped(store: Store, cell: str, settings: LookSettings, reason: str) -> None:
    """Remember that a cell was stopped."""
    try:
        store.put_memo("stopped_early", _key(cell, settings), reason)
    except SetupError:
        return  # it is looked at again, which costs time and nothing else


def remembered_stop(store: Store, cell: Cell, settings: LookSettings) -> str:
    """Return why a cell was stopped before, under the same settings; empty if it was not."""
    if cell.key not in settings.baselines:
        return ""
    reason = store.get_memo("stopped_early", _key(cell.key, settings))
    return reason if isinstance(reason, str) else ""


def _key(cell: str, settings: LookSettings) -> str:
    level = [settings.metric, settings.least_gain, settings.alpha, settings.num_tests]
    return canonical([cell, settings.baselines[cell], *level])
