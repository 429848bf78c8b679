"""Bases that turn out to be too much for vLLM while a sweep runs.

Decides: when a base is answered by hf after all: under `auto`, where vLLM gave nothing at all for
it because it could not load it or ran out of memory. Leaves to others: planning anew (`running`).

A base that has answers of vLLM keeps it: what failed beside them has reasons of its own, and to
answer everything again by another engine would cost more than it gives.
"""

from collections.abc import Callable, Mapping

from raypeft.api.outputs import CellRun
from raypeft.api.planning import Planned
from raypeft.api.surroundings import record_not_loaded
from raypeft.core.records import FailureKind

_TOO_MUCH = frozenset((FailureKind.OUT_OF_MEMORY, FailureKind.LOAD_FAILED, FailureKind.UNSUPPORTED))


def record_too_much(
    planned: Planned, runs: Mapping[str, CellRun], say: Callable[[str], None]
) -> bool:
    """Write down which bases vLLM could not answer, so that hf is assigned to them.

    Args:
        planned: What was run.
        runs: How its cells ended, by key.
        say: Told of each base.

    Returns:
        Whether there were any, so that the engines must be assigned anew.
    """
    resolved = planned.resolved
    if resolved.sweep.engine.kind != "auto":
        return False
    reasons = {base: _why_too_much(planned, runs, base) for base in resolved.bases}
    found = {base: why for base, why in reasons.items() if why}
    for base, why in found.items():
        say(f"vllm cannot answer for base {base}, which hf does instead: {why}")
    if found:
        record_not_loaded(
            resolved.sweep, {resolved.bases[base].digest: why for base, why in found.items()}
        )
    return bool(found)


def _why_too_much(planned: Planned, runs: Mapping[str, CellRun], base: str) -> str:
    """Return why vLLM gave nothing for a base; empty if it gave anything, or failed otherwise."""
    engines = planned.plan.engines
    cells = [
        cell
        for cell in planned.cells
        if cell.base == base
        and cell.engine_name in engines
        and engines[cell.engine_name].kind == "vllm"
    ]
    if {cell.key for cell in cells} & set(planned.plan.done):
        return ""
    failures = [runs[cell.key].failure if cell.key in runs else None for cell in cells]
    own = [one for one in failures if one is not None and one.kind in _TOO_MUCH]
    others = [one for one in failures if one is None or one.kind not in _TOO_MUCH]
    # What no engine can be asked is no sign that this one could have answered the rest.
    if all(one is not None and one.kind == FailureKind.TASK_FAILED for one in others) and own:
        return own[0].message
    return ""
