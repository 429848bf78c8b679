"""What the schedule is allowed: from the sweep's settings and the clocks of this machine."""

import time
from dataclasses import replace
from datetime import datetime

from raypeft.core.deadline import seconds_until
from raypeft.core.retry import Policy
from raypeft.core.spec import Sweep
from raypeft.errors import Problem, SpecError


def policy_of(sweep: Sweep) -> Policy:
    """Return what the schedule is allowed, the deadline aside."""
    schedule = sweep.schedule
    return Policy(
        slots=schedule.slots,
        attempts=schedule.attempts,
        unit_timeout_seconds=schedule.unit_timeout_seconds,
        drains_at_deadline=schedule.at_deadline == "drain",
    )


def deadline_seconds(sweep: Sweep) -> float | None:
    """Return when the night is over, on the clock `time.monotonic`; None if it has no end.

    Raises:
        SpecError: If that is in the past.
    """
    text = sweep.schedule.deadline
    if text is None:
        return None
    left = seconds_until(text, datetime.now().astimezone())
    if left <= 0:
        message = f'"{text}" is over'
        remedy = 'give a later one, a time of day ("07:00") or a duration ("9h")'
        raise SpecError((Problem("schedule.deadline", message, remedy),))
    return time.monotonic() + left


def with_deadline(policy: Policy, deadline: float | None) -> Policy:
    """Return a policy that ends at a moment of `time.monotonic`."""
    return replace(policy, deadline_seconds=deadline)
