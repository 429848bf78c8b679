from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest

from raypeft.core.deadline import check_deadline, seconds_until
from raypeft.core.spec import make_sweep
from raypeft.errors import SpecError

BERLIN = ZoneInfo("Europe/Berlin")


def in_berlin(moment: datetime) -> datetime:
    return moment.replace(tzinfo=BERLIN)


def hours(deadline: str, now: datetime) -> float:
    return seconds_until(deadline, now, in_berlin) / 3600


def test_a_time_of_day_is_the_next_one() -> None:
    assert hours("07:00", datetime(2026, 11, 24, 22, 0, tzinfo=BERLIN)) == 9.0
    assert hours("23:30", datetime(2026, 11, 24, 22, 0, tzinfo=BERLIN)) == 1.5
    assert hours("22:00", datetime(2026, 11, 24, 22, 0, tzinfo=BERLIN)) == 24.0


def test_a_night_in_which_the_clocks_change_is_longer_or_shorter() -> None:
    assert hours("07:00", datetime(2026, 10, 24, 22, 0, tzinfo=BERLIN)) == 10.0
    assert hours("07:00", datetime(2026, 3, 28, 22, 0, tzinfo=BERLIN)) == 8.0


def test_in_an_hour_that_comes_twice_it_is_the_next_of_both_moments() -> None:
    twice = datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN)
    assert hours("02:45", twice) == 0.25
    assert hours("02:45", twice.replace(fold=1)) == 0.25


def test_a_moment_is_local_unless_it_names_its_zone() -> None:
    now = datetime(2026, 11, 24, 22, 0, tzinfo=BERLIN)
    assert hours("2026-11-25T07:00", now) == 9.0
    assert hours("2026-11-25 07:00:00", now) == 9.0
    assert hours("2026-11-25T07:00Z", now) == 10.0
    assert hours("2026-11-25T07:00+02:00", now) == 8.0
    assert hours("2026-11-24T21:00", now) == -1.0


def test_a_duration_counts_from_now() -> None:
    assert hours("9h", datetime(2026, 11, 24, tzinfo=UTC)) == 9.0
    assert hours("90m", datetime(2026, 11, 24, tzinfo=UTC)) == 1.5


def test_the_zone_of_this_machine_is_taken_where_none_is_given() -> None:
    now = datetime(2026, 11, 24, 12, 0, tzinfo=timezone(timedelta(hours=3)))
    local = now.astimezone().replace(tzinfo=None) + timedelta(hours=5)
    assert seconds_until(local.isoformat(timespec="minutes"), now) == 5 * 3600


@pytest.mark.parametrize(
    "text", ["7:00", "24:00", "07:60", "tomorrow", "2026-11-25", "0h", "9", "", "07:00\n"]
)
def test_what_is_no_deadline_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match="expected a time of day"):
        check_deadline(text)


@pytest.mark.parametrize("text", ["0001-01-01T00:00", "9999-12-31T23:59"])
def test_a_year_that_another_zone_may_not_have_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is out of range"):
        check_deadline(text)


def test_a_date_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="no date with a time"):
        check_deadline("2026-02-30T07:00")


def test_the_sweep_file_says_what_is_wrong_with_a_deadline() -> None:
    values = {"output": "runs/x", "bases": ["gpt2"], "tasks": ["arc_easy"]}
    sweep = make_sweep(values | {"schedule": {"deadline": "07:00"}})
    assert sweep.schedule.deadline == "07:00"
    for wrong, says in ((420, "write it in quotes"), ("7 am", "expected a time of day")):
        with pytest.raises(SpecError, match=says):
            make_sweep(values | {"schedule": {"deadline": wrong}})


def test_rows_go_first_where_time_is_short_and_what_is_long_where_it_is_not() -> None:
    values = {"output": "runs/x", "bases": ["gpt2"], "tasks": ["arc_easy"]}

    def order(**schedule: str) -> str:
        return make_sweep(values | {"schedule": schedule}).schedule.chosen_order

    assert order() == "longest"
    assert order(deadline="07:00") == "rows"
    assert order(deadline="07:00", order="sweep") == "sweep"
