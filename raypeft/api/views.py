"""What the public functions return, as plain records: for tables on a terminal and for JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from raypeft.api.planning import Planned
from raypeft.api.running import RunReport
from raypeft.core.gains import Gain
from raypeft.core.records import Subject
from raypeft.core.routing import Route, route
from raypeft.core.status import Status
from raypeft.report.morning import Morning

Record = dict[str, Any]


def plan_records(planned: Planned) -> list[Record]:
    """Return one record for each cell of a plan, failed ones at the end."""
    plan = planned.plan
    done, to_score = set(plan.done), set(plan.to_score)
    records = []
    for cell in planned.cells:
        state = "done" if cell.key in done else "to score" if cell.key in to_score else "to answer"
        records.append(
            {
                "subject": cell.subject,
                "task": cell.task,
                "state": state,
                "engine": plan.engines[cell.engine_name].kind,
                "tokens": cell.tokens,
                "shards": cell.shards,
                "why": _why(planned, plan.subjects[cell.subject]),
            }
        )
    for lost in planned.lost:
        records.append(
            {
                "subject": lost.subject,
                "task": lost.task,
                "state": "failed",
                "engine": "–",
                "tokens": 0,
                "shards": 0,
                "why": f"{lost.failure.kind}: {lost.failure.message}",
            }
        )
    return records


def base_records(planned: Planned) -> list[Record]:
    """Return one record for each base: what it is and what it needs."""
    return [
        {
            "base": name,
            "type": facts.model_type,
            "parameters": facts.num_parameters,
            "dtype": facts.dtype,
            "weights_gib": round(facts.num_bytes / 2**30, 3),
            "max_length_tokens": facts.max_length,
            "digest": facts.digest,
        }
        for name, facts in planned.resolved.bases.items()
    ]


def _why(planned: Planned, subject: Subject) -> str:
    """Return why a subject is answered by its engine, and in its lane."""
    taken = planned.resolved.routes[subject.id]
    return taken.reason if taken.kind == "vllm" else f"{taken.reason}{_lane_reason(subject)}"


def _lane_reason(subject: Subject) -> str:
    """Return how an adapter shares its base, and why; empty for the base alone."""
    if subject.adapter is None:
        return ""
    if subject.adapter.merge or subject.vocab_size is not None:
        return "; lane isolated: it answers from a copy of the base"
    found = route(subject.adapter.config)
    # An adapter that cannot be evaluated is a failed record, and not planned.
    lane = f"lane {found.lane}: " if isinstance(found, Route) else ""
    return f"; {lane}{found.reason}"


def plan_summary(planned: Planned) -> Record:
    """Return the plan's totals."""
    plan = planned.plan
    return {
        "cells": len(planned.cells) + len(planned.lost),
        "done": sum(1 for cell in planned.cells if cell.key in set(plan.done)),
        "to_score": len(plan.to_score),
        "units": len(plan.units),
        "tokens": sum(unit.tokens for unit in plan.units),
        "failed": len(planned.lost),
        "warnings": [f"{name}: {text}" for name, text in planned.resolved.warnings.items()],
        "not_frozen": [job.entry for job in planned.frozen.missing],
    }


def run_record(report: RunReport) -> Record:
    """Return how a run ended."""
    return {
        "output": report.output,
        "cells": report.num_cells,
        "done": report.num_done,
        "reused": report.num_reused,
        "failed": [
            {
                "subject": subject,
                "task": task,
                "reason": str(failure.kind),
                "message": failure.message,
            }
            for (subject, task), failure in report.failed.items()
        ],
        "seconds": round(report.seconds, 3),
    }


def status_record(status: Status) -> Record:
    """Return where a sweep stands."""
    return asdict(status) | {
        "phase": str(status.phase),
        "cells": [asdict(cell) | {"state": str(cell.state)} for cell in status.cells],
    }


def report_record(morning: Morning) -> Record:
    """Return what a sweep found: every gain, the baselines and the failures."""
    return {
        "cells": morning.num_cells,
        "done": morning.num_done,
        "baselines": [
            {
                "base": report.base,
                "task": column.task,
                "metric": column.metric,
                "filter": column.filter,
                **asdict(score),
            }
            for report in morning.bases
            for column, score in report.baseline.items()
        ],
        "gains": [dict(row) for row in morning.details],
        "failures": [
            {name: row[name] for name in ("subject", "task", "state", "reason", "message")}
            for row in morning.failures
        ],
    }


def gain_records(gains: Sequence[Gain]) -> list[Record]:
    """Return gains as records, the verdict as text."""
    return [asdict(gain) | {"verdict": str(gain.verdict)} for gain in gains]
