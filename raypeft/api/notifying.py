"""A run that tells somebody when it is over, however it ends."""

from collections.abc import Mapping
from typing import Any

from raypeft.api.pools import PoolKind
from raypeft.api.running import Listener, RunReport, run_sweep
from raypeft.core.records import Json
from raypeft.core.spec import Sweep
from raypeft.errors import Interrupted
from raypeft.runtime.notify import tell
from raypeft.runtime.stopping import interruptible

MAX_FAILED = 50
"""So many failed cells are told by name; all of them are counted."""

MAX_MESSAGE_CHARS = 500


def run_and_tell(
    sweep: Sweep,
    *,
    pool: PoolKind = "ray",
    address: str | None = None,
    listener: Listener | None = None,
) -> RunReport:
    """Run a sweep to its end, and tell whom its `notify` names.

    Args:
        sweep: The sweep, adapters expanded.
        pool: On Ray, or in this process.
        address: The Ray cluster; None takes RAY_ADDRESS, and starts a Ray here if there is none.
        listener: Who is told what goes on.

    Raises:
        SpecError: If nothing of the sweep could run.
        SetupError: If output, store or cluster cannot be used.
        Interrupted: After Ctrl-C or SIGTERM; what was finished is stored.
    """
    listener = listener or Listener()
    try:
        with interruptible():
            report = run_sweep(sweep, pool=pool, address=address, listener=listener)
    except Interrupted as error:
        _tell(sweep, _ended(sweep, "interrupted", error.signal_name), listener)
        raise
    except Exception as error:
        _tell(sweep, _ended(sweep, "error", f"{type(error).__name__}: {error}"), listener)
        raise
    _tell(sweep, _finished(sweep, report), listener)
    return report


def _finished(sweep: Sweep, report: RunReport) -> dict[str, Json]:
    failed = [
        {
            "subject": subject,
            "task": task,
            "reason": str(failure.kind),
            "message": failure.message[:MAX_MESSAGE_CHARS],
        }
        for (subject, task), failure in report.failed.items()
    ]
    return {
        **_ended(sweep, _how(report), ""),
        "num_cells": report.num_cells,
        "num_done": report.num_done,
        "num_reused": report.num_reused,
        "num_failed": len(failed),
        "num_left_out": len(report.left_out),
        "num_stopped_early": len(report.stopped_early),
        "failed": failed[:MAX_FAILED],
        "seconds": round(report.seconds, 3),
    }


def _how(report: RunReport) -> str:
    """Return how a run ended that came to its end, in words."""
    if report.failed:
        return "finished with failed cells"
    if report.left_out:
        return "ended by its deadline with open cells"
    return "finished"


def _ended(sweep: Sweep, state: str, message: str) -> dict[str, Any]:
    return {
        "sweep": sweep.name,
        "state": state,
        "message": message[:MAX_MESSAGE_CHARS],
        "output": sweep.output,
        "tables": f"{sweep.output.rstrip('/')}/tables",
    }


def _tell(sweep: Sweep, message: Mapping[str, Json], listener: Listener) -> None:
    section = sweep.notify
    for failure in tell(message, command=section.command, webhook=section.webhook):
        listener.say(f"nobody was told: {failure}")
