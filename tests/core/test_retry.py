import pytest

from raypeft.core.records import Failure, FailureKind
from raypeft.core.retry import (
    Action,
    Policy,
    after_load_failure,
    after_score_failure,
    after_slot_loss,
    after_unit_failure,
)

POLICY = Policy(attempts=3, slot_losses=2, load_attempts=2)
CRASH = Failure(FailureKind.CRASHED, "boom", retryable=True)
FINAL = Failure(FailureKind.DOES_NOT_FIT, "rank 8, not 16")


@pytest.mark.parametrize(
    ("kind", "failed", "action"),
    [
        (FailureKind.CRASHED, 1, Action.AGAIN),
        (FailureKind.CRASHED, 2, Action.AGAIN),
        (FailureKind.CRASHED, 3, Action.GIVE_UP),
        (FailureKind.OUT_OF_MEMORY, 1, Action.ELSEWHERE),
        (FailureKind.OUT_OF_MEMORY, 3, Action.GIVE_UP),
        (FailureKind.TIMED_OUT, 2, Action.ELSEWHERE),
    ],
)
def test_a_unit_is_tried_within_its_budget(kind: FailureKind, failed: int, action: Action) -> None:
    failure = Failure(kind, "", retryable=True)
    decision = after_unit_failure(failure, failed=failed, policy=POLICY)
    assert decision.action is action
    assert decision.reason.startswith(f"{kind}, attempt {failed} of 3")


def test_what_does_not_go_away_is_never_tried_again() -> None:
    reasons = [
        after_unit_failure(FINAL, failed=1, policy=POLICY),
        after_score_failure(FINAL, failed=1, policy=POLICY),
        after_load_failure(FINAL, failed=1, held_elsewhere=False, policy=POLICY),
    ]
    assert {decision.action for decision in reasons} == {Action.GIVE_UP}
    assert all("does not go away" in decision.reason for decision in reasons)


def test_a_unit_that_loses_slot_after_slot_is_held_to_be_the_cause() -> None:
    assert after_slot_loss(CRASH, lost=1, policy=POLICY).action is Action.AGAIN
    decision = after_slot_loss(CRASH, lost=2, policy=POLICY)
    assert decision.action is Action.GIVE_UP
    assert "the unit itself" in decision.reason


def test_a_base_is_given_up_after_its_loads_failed_in_a_row() -> None:
    first = after_load_failure(CRASH, failed=1, held_elsewhere=False, policy=POLICY)
    second = after_load_failure(CRASH, failed=2, held_elsewhere=False, policy=POLICY)
    assert (first.action, second.action) == (Action.AGAIN, Action.GIVE_UP)


@pytest.mark.parametrize("failure", [CRASH, FINAL])
def test_a_base_that_another_slot_holds_is_never_given_up(failure: Failure) -> None:
    decision = after_load_failure(failure, failed=2, held_elsewhere=True, policy=POLICY)
    assert decision.action is Action.ELSEWHERE


def test_a_scoring_has_the_attempts_of_a_unit() -> None:
    assert after_score_failure(CRASH, failed=2, policy=POLICY).action is Action.AGAIN
    assert after_score_failure(CRASH, failed=3, policy=POLICY).action is Action.GIVE_UP


@pytest.mark.parametrize("name", ["slots", "scoring", "attempts", "slot_losses", "load_attempts"])
def test_a_policy_under_which_nothing_could_run_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"policy\.{name} is 0; it must be 1 or more"):
        Policy(**{name: 0})  # type: ignore[arg-type]  # mypy thinks of all fields at once


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_a_time_limit_that_nothing_meets_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"policy\.unit_timeout_seconds is"):
        Policy(unit_timeout_seconds=value)
