"""Reading what a sweep left behind: status and report. Nothing is computed by a model."""

import difflib
import time

from raypeft.api.outputs import LEFT_OUT_REASON, STOPPED_EARLY_REASON, write_outputs
from raypeft.api.stored import read_planned
from raypeft.core.status import CellState, CellStatus, RunPhase, Status, fold
from raypeft.core.why import Explanation, explain_cells, find_cells
from raypeft.errors import Problem, SpecError, StoreError
from raypeft.report.morning import Morning, summarise
from raypeft.store.journal import read_journal
from raypeft.store.lease import read_lease
from raypeft.store.output import open_output, tables_are_whole


def read_status(output: str) -> Status:
    """Return where a sweep stands, from its journal and the lease of its run.

    Raises:
        StoreError: If no sweep has run there.
    """
    status = fold(read_journal(output))
    lease = read_lease(output)
    is_alive = lease is not None and lease.is_alive(time.time())
    if lease is not None and is_alive and lease.began_seconds > (status.began_seconds or 0.0):
        # Of an earlier run, whose driver may have been killed, is what the journal tells.
        status.prepare()
    elif status.runs == 0:
        return _status_of_tables(output)
    elif status.phase is RunPhase.RUNNING and not is_alive:
        status.kill()
    return status


def explain_status(output: str, name: str) -> list[Explanation]:
    """Return why cells of a sweep stand where they stand, each with its history.

    Args:
        output: The sweep's output.
        name: `subject/task`, a subject, a task, or the beginning of a cell's key.

    Raises:
        StoreError: If no sweep has run there.
        SpecError: If no cell is meant by that name.
    """
    status = read_status(output)
    wanted = find_cells(status, name)
    if not wanted:
        names = [cell.name for cell in status.cells]
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.3) or names[:3]
        remedy = f"give a cell as subject/task, for instance {' or '.join(near) or 'base/task'}"
        raise SpecError((Problem("--why", f"no cell of {output} is called {name!r}", remedy),))
    is_alive = status.phase is RunPhase.RUNNING
    return explain_cells(read_journal(output), wanted, alive=is_alive)


_STATES = {
    "done": CellState.DONE,
    "failed": CellState.FAILED,
    LEFT_OUT_REASON: CellState.LEFT_OUT,
    STOPPED_EARLY_REASON: CellState.STOPPED_EARLY,
}
"""By what the `cells` table says: its state, and the reason of an open cell."""


def _status_of_tables(output: str) -> Status:
    """Return where a sweep stands that left tables and no journal: all was in the store before."""
    if not tables_are_whole(output):
        raise StoreError(output, "no sweep has run here", "give the `output` of a sweep")
    status = Status(phase=RunPhase.ENDED)
    for row in open_output(output).cells.to_pylist():
        state = _STATES.get(row["state"]) or _STATES.get(row["reason"])
        why = "" if row["reason"] is None else f"{row['reason']}: {row['message']}"
        why = str(row["message"]) if row["reason"] in _STATES else why  # the state says the rest
        status.cells.append(
            CellStatus(
                row["subject"], row["task"], state or CellState.WAITING, why, row["cell"] or ""
            )
        )
    return status


def read_report(output: str) -> Morning:
    """Return what a sweep found; of a run that has not ended, what it has found so far.

    Raises:
        SetupError: If no sweep has run there.
    """
    if not tables_are_whole(output) or read_lease(output) is not None:
        write_outputs(*read_planned(output), runs={})
    results = open_output(output)
    return summarise(
        results.results.to_pylist(), results.gains.to_pylist(), results.cells.to_pylist()
    )
