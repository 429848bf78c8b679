"""A failure → again, elsewhere or give up, and the reason.

Decides from counts alone. Budgets are separate: a base that cannot be loaded, a unit that fails
and a unit that loses its slot are different faults, and one must not eat the other's tries.
What a decision does to slots and units is `raypeft.core.schedule`'s business.
"""

from dataclasses import dataclass
from enum import StrEnum

from raypeft.core.records import Failure, FailureKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How much is done at once and how often it is tried.

    Attributes:
        slots: Most slots at once.
        scoring: Most cells that are scored at once; each holds its answers in memory.
        attempts: Tries of a unit or of a scoring that fail by themselves.
        slot_losses: Slots a unit may lose before it is held to be the cause.
        load_attempts: Failures to load one base in a row.
        unit_timeout_seconds: Longest an attempt may run without getting on: since it began, or
            since its slot last told of progress (`Heartbeat`); None is no limit.
        start_timeout_seconds: Longest a slot may wait for its hardware, and then for its base;
            None is no limit.
        deadline_seconds: When the night is over, on the clock of `Tick`; None is never. What is
            not expected to be finished by then is not begun.
        drains_at_deadline: Whether what still runs at the deadline may finish.
    """

    slots: int = 1
    scoring: int = 2
    attempts: int = 3
    slot_losses: int = 3
    load_attempts: int = 2
    unit_timeout_seconds: float | None = None
    start_timeout_seconds: float | None = 1800.0
    deadline_seconds: float | None = None
    drains_at_deadline: bool = False

    def __post_init__(self) -> None:
        """Refuse what would never finish."""
        counts = ("slots", "scoring", "attempts", "slot_losses", "load_attempts")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"policy.{name} is {getattr(self, name)}; it must be 1 or more")
        for name in ("unit_timeout_seconds", "start_timeout_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"policy.{name} is {value}; it must be above 0, or None")


class Action(StrEnum):
    """What to do about a failure."""

    AGAIN = "again"
    """Another attempt, on any slot."""
    ELSEWHERE = "elsewhere"
    """Another attempt, and the slot it failed on is replaced first."""
    GIVE_UP = "give_up"


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, and why."""

    action: Action
    reason: str


_SLOT_IS_SUSPECT = frozenset({FailureKind.OUT_OF_MEMORY, FailureKind.TIMED_OUT})
"""After these the slot's memory or its work cannot be trusted; only a new process is clean."""


def after_unit_failure(failure: Failure, *, failed: int, policy: Policy) -> Decision:
    """Decide about a unit that failed while its slot survived, or was stopped for its sake.

    Args:
        failure: What happened.
        failed: How many attempts of this unit failed by themselves, this one included.
        policy: The budgets.
    """
    if not failure.retryable:
        return Decision(Action.GIVE_UP, f"{failure.kind} does not go away by trying again")
    count = f"attempt {failed} of {policy.attempts}"
    if failed >= policy.attempts:
        return Decision(Action.GIVE_UP, f"{failure.kind}, {count}")
    if failure.kind in _SLOT_IS_SUSPECT:
        return Decision(Action.ELSEWHERE, f"{failure.kind}, {count}; again on a fresh slot")
    return Decision(Action.AGAIN, f"{failure.kind}, {count}; again")


def after_slot_loss(failure: Failure, *, lost: int, policy: Policy) -> Decision:
    """Decide about a unit whose slot is gone.

    Args:
        failure: Why the slot is gone.
        lost: How many slots this unit lost, this one included.
        policy: The budgets.
    """
    count = f"slot loss {lost} of {policy.slot_losses}"
    if lost >= policy.slot_losses:
        return Decision(
            Action.GIVE_UP, f"{failure.kind}, {count}; the unit itself is held to be the cause"
        )
    return Decision(Action.AGAIN, f"{failure.kind}, {count}; again on another slot")


def after_load_failure(
    failure: Failure, *, failed: int, held_elsewhere: bool, policy: Policy
) -> Decision:
    """Decide about a base that could not be loaded.

    Args:
        failure: What happened.
        failed: How many loads of this base failed in a row, this one included.
        held_elsewhere: Whether another slot holds the base at this moment: then the base is
            good, and what is wrong is the place.
        policy: The budgets.
    """
    count = f"load {failed} of {policy.load_attempts}"
    if held_elsewhere:
        if failed >= policy.load_attempts or not failure.retryable:
            return Decision(
                Action.ELSEWHERE, f"{failure.kind}, {count}; other slots hold the base, one less"
            )
        return Decision(Action.AGAIN, f"{failure.kind}, {count}; again")
    if not failure.retryable:
        return Decision(Action.GIVE_UP, f"{failure.kind} does not go away by loading again")
    if failed >= policy.load_attempts:
        return Decision(Action.GIVE_UP, f"{failure.kind}, {count}")
    return Decision(Action.AGAIN, f"{failure.kind}, {count}; again")


def after_score_failure(failure: Failure, *, failed: int, policy: Policy) -> Decision:
    """Decide about a cell that could not be scored.

    Args:
        failure: What happened.
        failed: How many scorings of this cell failed, this one included.
        policy: The budgets.
    """
    if not failure.retryable:
        return Decision(Action.GIVE_UP, f"{failure.kind} does not go away by scoring again")
    count = f"scoring {failed} of {policy.attempts}"
    if failed >= policy.attempts:
        return Decision(Action.GIVE_UP, f"{failure.kind}, {count}")
    return Decision(Action.AGAIN, f"{failure.kind}, {count}; again")
