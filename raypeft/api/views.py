"""What the public functions return, as plain records: for tables on a terminal and for JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

from raypeft.api.gating import Flips, GateReport
from raypeft.api.planning import Planned
from raypeft.api.running import RunReport
from raypeft.api.simulating import Expected
from raypeft.api.submitting import Submitted
from raypeft.core.engine_choice import with_request_types
from raypeft.core.gains import Gain
from raypeft.core.gate import AdapterGate
from raypeft.core.records import Subject
from raypeft.core.routing import Route, route
from raypeft.core.simulate import Simulated
from raypeft.core.status import CellState, Status
from raypeft.core.why import Explanation
from raypeft.report.morning import Morning
from raypeft.report.progress import duration_text

Record = dict[str, Any]


def plan_records(planned: Planned) -> list[Record]:
    """Return one record for each cell of a plan, failed ones at the end."""
    plan = planned.plan
    done, to_score = set(plan.done), set(plan.to_score)
    records = []
    for cell in planned.cells:
        state = "done" if cell.key in done else "to score" if cell.key in to_score else "to answer"
        state = "stopped early" if cell.key in planned.stopped else state
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
            "load_seconds": round(planned.outlooks[name].load_seconds, 1),
            "pace": planned.outlooks[name].expected.basis,
            "memory": planned.outlooks[name].memory.sentence(),
        }
        for name, facts in planned.resolved.bases.items()
    ]


def _why(planned: Planned, subject: Subject) -> str:
    """Return why a subject is answered by its engine, and in its lane."""
    types = {
        planned.frozen.headers[task.digest].output_type
        for task in planned.frozen.tasks(subject.id, subject.base)
        if task.digest in planned.frozen.headers  # not of what failed, or is not frozen yet
    }
    taken = with_request_types(planned.resolved.routes[subject.id], types)
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


def plan_summary(planned: Planned, expected: Expected) -> Record:
    """Return the plan's totals, and how long it is expected to take."""
    plan = planned.plan
    return {
        "cells": len(planned.cells) + len(planned.lost),
        "done": sum(1 for cell in planned.cells if cell.key in set(plan.done)),
        "to_score": len(plan.to_score),
        "units": len(plan.units),
        "tokens": sum(unit.tokens for unit in plan.units),
        "expected_seconds": round(expected.seconds, 1),
        "expected_seconds_low": round(expected.low_seconds, 1),
        "expected_seconds_high": round(expected.high_seconds, 1),
        "slot_seconds": round(expected.slot_seconds, 1),
        "left_out": expected.num_left_out,
        "failed": len(planned.lost),
        "warnings": [f"{name}: {text}" for name, text in planned.resolved.warnings.items()],
        "not_frozen": [job.entry for job in planned.frozen.missing],
    }


def expected_line(expected: Expected, now: datetime) -> str:
    """Return when the night is expected to be over, in words.

    Args:
        expected: How long it takes.
        now: When it begins, with its zone.
    """
    unknown = ""
    if expected.num_unknown:
        unknown = f"{expected.num_unknown} task entries are not frozen: what they take is unknown"
    if not expected.seconds:
        return unknown or "nothing is left to answer"
    ends = (expected.seconds, expected.low_seconds, expected.high_seconds)
    lengths = [duration_text(seconds) for seconds in ends]
    # Through the zone of this machine: the clocks may change in that night.
    times = [f"{(now + timedelta(seconds=s)).astimezone():%a %H:%M}" for s in ends]
    text = (
        f"Begun now it takes about {lengths[0]} and ends {times[0]} (80 %: {lengths[1]} to "
        f"{lengths[2]}, {times[1]} to {times[2]})"
    )
    if expected.num_left_out:
        text += f"; the deadline is expected to leave out {expected.num_left_out} cells"
    return f"{text}; {unknown}, and not counted" if unknown else text


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
        "left_out": [
            {"subject": subject, "task": task, "why": why}
            for (subject, task), why in report.left_out.items()
        ],
        "stopped_early": [
            {"subject": subject, "task": task, "why": why}
            for (subject, task), why in report.stopped_early.items()
        ],
        "seconds": round(report.seconds, 3),
    }


def status_record(status: Status, now_seconds: float) -> Record:
    """Return where a sweep stands."""
    return {
        "phase": str(status.phase),
        "runs": status.runs,
        "began_seconds": status.began_seconds,
        "last_seconds": status.last_seconds,
        "counts": {str(state): status.count(state) for state in CellState},
        "remaining_seconds": status.remaining_seconds(now_seconds),
        "work_seconds": round(status.work_seconds, 3),
        "work_done_seconds": round(status.work_done_seconds, 3),
        "cells": [asdict(cell) | {"state": str(cell.state)} for cell in status.cells],
        "slots": [
            asdict(slot)
            | {"does": str(slot.does), "for_seconds": round(now_seconds - slot.since_seconds, 3)}
            for slot in status.slots.values()
        ],
        "failures": [asdict(note) for note in status.failures],
    }


def why_records(found: Sequence[Explanation]) -> list[Record]:
    """Return why cells stand where they stand."""
    return [
        {
            **asdict(one.cell),
            "state": str(one.cell.state),
            "now": one.now,
            "history": [asdict(item) for item in one.history],
        }
        for one in found
    ]


def submitted_record(submitted: Submitted) -> Record:
    """Return what became of a sweep that was submitted."""
    return asdict(submitted)


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


def gate_record(report: GateReport) -> Record:
    """Return what a gate says: each adapter with its checks, losses and flipped documents."""
    return {
        "passed": report.passed,
        "adapters": [
            asdict(one)
            | {
                "decision": str(one.decision),
                "checks": [
                    asdict(check) | {"decision": str(check.decision)} for check in one.checks
                ],
            }
            for one in report.adapters
        ],
        "flips": [asdict(flips) for flips in report.flips],
    }


def check_records(report: GateReport) -> list[Record]:
    """Return one record for each check of each adapter."""
    return [
        {
            "adapter": one.adapter,
            "check": check.kind,
            "task": check.task,
            "metric": f"{check.metric},{check.filter}",
            "says": str(check.decision),
            "why": check.reason,
        }
        for one in report.adapters
        for check in one.checks
    ]


def adapter_records(report: GateReport) -> list[Record]:
    """Return one record for each adapter: what the gate says, and what it forgot most."""
    return [
        {
            "base": one.base,
            "adapter": one.adapter,
            "says": str(one.decision),
            "largest loss": _largest_loss(one),
            "better documents": sum(len(f.better) for f in _flips_of(report, one)),
            "worse documents": sum(len(f.worse) for f in _flips_of(report, one)),
        }
        for one in report.adapters
    ]


def _flips_of(report: GateReport, one: AdapterGate) -> list[Flips]:
    mine = (one.base, one.adapter)
    return [flips for flips in report.flips if (flips.base, flips.adapter) == mine]


def _largest_loss(one: AdapterGate) -> str:
    worst = next(iter(one.forgetting), None)
    if worst is None or worst.gain >= 0:
        return "none"
    interval = "" if worst.low is None else f" [{worst.low:+.3g}, {worst.high:+.3g}]"
    return f"{worst.task} {worst.gain:+.4g}{interval}"


def gain_records(gains: Sequence[Gain]) -> list[Record]:
    """Return gains as records, the verdict as text."""
    return [asdict(gain) | {"verdict": str(gain.verdict)} for gain in gains]


def simulated_record(night: Simulated) -> Record:
    """Return a simulated night as a plain record, for a table or JSON."""
    return {
        "slots": night.num_slots,
        "units": night.num_units,
        "attempts": night.num_attempts,
        "retries": night.num_retries,
        "loads": night.num_loads,
        "done": night.num_done,
        "failed": night.num_failed,
        "left_out": night.num_left_out,
        "makespan_seconds": round(night.makespan_seconds, 3),
        "lower_bound_seconds": round(night.lower_bound_seconds, 3) or None,
        "ratio": None if night.ratio is None else round(night.ratio, 4),
        "utilisation": round(night.utilisation, 4),
        "answering_seconds": round(night.answering_seconds, 3),
        "loading_seconds": round(night.loading_seconds, 3),
        "wasted_seconds": round(night.wasted_seconds, 3),
    }
