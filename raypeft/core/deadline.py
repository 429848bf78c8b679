"""When a night is over: `07:00`, a date with a time, or a duration.

Decides how a deadline is written and which moment it means, seen from a moment that is passed in.
"""

import re
from collections.abc import Callable
from datetime import MAXYEAR, MINYEAR, datetime, time, timedelta

from raypeft.core.quantities import DURATION_PATTERN, duration_seconds

# Also the `pattern` of the JSON Schema, so in the syntax that ECMAScript and Python share.
CLOCK_PATTERN = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"
MOMENT_PATTERN = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(:[0-9]{2})?(Z|[+-][0-9]{2}:[0-9]{2})?$"
)
DEADLINE_PATTERN = f"{CLOCK_PATTERN}|{MOMENT_PATTERN}|{DURATION_PATTERN}"

DEADLINE_ALLOWED = (
    'a time of day ("07:00", the next one), a date with a time ("2026-11-25T07:00", in local time '
    'unless it names its own, as "…+01:00" or "…Z"), or a duration from the start of the run '
    '("9h")'
)

Localize = Callable[[datetime], datetime]
"""Returns a moment of local time, which names no zone, with the zone that holds there and then."""


def check_deadline(text: str) -> None:
    """Check that a text is a deadline.

    Raises:
        ValueError: If it is none; the message says what is allowed.
    """
    if re.fullmatch(CLOCK_PATTERN, text):
        return
    if re.fullmatch(MOMENT_PATTERN, text):
        _moment(text)
        return
    try:
        duration_seconds(text)
    except ValueError as error:
        raise ValueError(f"is not allowed, expected {DEADLINE_ALLOWED}") from error


def seconds_until(deadline: str, now: datetime, localize: Localize = datetime.astimezone) -> float:
    """Return how far away a deadline is; below zero if it is over.

    Args:
        deadline: As the sweep file has it, checked.
        now: The moment from which it is seen, with its zone.
        localize: Gives local times their zone; by default that of this machine.
    """
    if re.fullmatch(CLOCK_PATTERN, deadline):
        local = now.replace(tzinfo=None)
        then = datetime.combine(local.date(), time.fromisoformat(deadline))
        if then <= local:
            then += timedelta(days=1)
        # Through the zone, since a night in which the clocks change has 23 or 25 hours a day, and
        # an hour that comes twice: there the first of two moments may be over.
        left = [localize(then.replace(fold=fold)).timestamp() - now.timestamp() for fold in (0, 1)]
        return left[0] if left[0] > 0 else left[1]
    if re.fullmatch(MOMENT_PATTERN, deadline):
        moment = _moment(deadline)
        moment = localize(moment) if moment.tzinfo is None else moment
        return moment.timestamp() - now.timestamp()
    return duration_seconds(deadline)


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"is no date with a time: {error}") from error
    if not MINYEAR < moment.year < MAXYEAR:  # in another zone it may be in none of the years
        raise ValueError(f"is no date with a time: year {moment.year} is out of range")
    return moment
