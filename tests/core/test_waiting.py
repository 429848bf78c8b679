from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypeft.core.plan import Unit
from raypeft.core.waiting import SIZE_STEP, WaitingUnits, milliseconds, rank_of
from tests.support.plans import make_plan


def unit(
    name: str, seconds: float, *, subject: str = "s", baseline: bool = False, urgency: int = 0
) -> Unit:
    template = make_plan(adapters=0).units[0]
    return replace(
        template,
        id=name,
        seconds=seconds,
        subjects=(subject,),
        has_baseline=baseline,
        urgency=urgency,
    )


def queue(*units: Unit) -> WaitingUnits:
    waiting = WaitingUnits()
    for each in units:
        waiting.push(each)
    return waiting


def drained(waiting: WaitingUnits) -> list[str]:
    names: list[str] = []
    while (next_unit := waiting.pop()) is not None:
        names.append(next_unit.id)
    return names


def test_the_baseline_goes_before_longer_units() -> None:
    waiting = queue(unit("long", 9000), unit("baseline", 10, baseline=True))
    assert drained(waiting) == ["baseline", "long"]


def test_the_subject_answered_last_is_preferred_only_among_units_of_about_equal_length() -> None:
    units = (unit("a", 1000, subject="a"), unit("b", 1010, subject="b"))
    longer = unit("longer", 5000, subject="b")
    assert [queue(*units).pop((subject,)) for subject in ("a", "b")] == [units[0], units[1]]
    assert queue(*units, longer).pop(("a",)) == longer


def test_slots_without_a_preference_start_on_different_subjects() -> None:
    subjects = ("a", "b", "c")
    units = [unit(f"{s}{n}", 100, subject=s) for s in subjects for n in range(3)]
    waiting = queue(*units)
    taken = [waiting.pop() for _ in range(3)]
    assert {each.subjects[0] for each in taken if each is not None} == set(subjects)


def test_a_unit_cannot_wait_twice() -> None:
    waiting = queue(unit("a", 1))
    with pytest.raises(ValueError, match="unit a already waits"):
        waiting.push(unit("a", 1))


@given(
    st.lists(
        st.tuples(
            st.floats(0, 5000),
            st.sampled_from("abc"),
            st.booleans(),
            st.integers(0, 2),
            st.booleans(),
        ),
        max_size=40,
    )
)
def test_every_unit_that_is_not_discarded_comes_out_once_in_order_of_rank(
    drawn: list[tuple[float, str, bool, int, bool]],
) -> None:
    units = [
        unit(str(index), seconds, subject=subject, baseline=baseline, urgency=urgency)
        for index, (seconds, subject, baseline, urgency, _) in enumerate(drawn)
    ]
    waiting = queue(*units)
    kept = {each.id: each for each, (*_, discard) in zip(units, drawn, strict=True) if not discard}
    for each in units:
        if each.id not in kept:
            waiting.discard(each.id)
            waiting.discard(each.id)
    assert len(waiting) == len(kept)
    assert waiting.milliseconds == sum(milliseconds(each) for each in kept.values())
    names = drained(waiting)
    assert sorted(names) == sorted(kept)
    ranks = [rank_of(kept[name]) for name in names]
    assert ranks == sorted(ranks, reverse=True)
    assert (len(waiting), waiting.milliseconds, waiting.longest_seconds) == (0, 0, 0.0)


def test_what_is_urgent_goes_before_what_is_long() -> None:
    waiting = queue(unit("long", 900.0), unit("urgent", 1.0, urgency=1))
    assert drained(waiting) == ["urgent", "long"]


def test_the_longest_unit_can_be_asked_for_whatever_its_urgency() -> None:
    waiting = queue(unit("urgent", 1.0, urgency=1), unit("long", 900.0), unit("other", 30.0))
    assert 600.0 < waiting.longest_seconds <= 900.0
    assert waiting.pop_longest().id == "long"
    assert drained(waiting) == ["urgent", "other"]


def test_what_would_take_too_long_stays() -> None:
    waiting = queue(unit("long", 900.0, urgency=1), unit("short", 30.0), unit("shorter", 5.0))
    assert waiting.has_within(10.0)
    assert not waiting.has_within(4.9)
    taken = [waiting.pop(within_seconds=100.0) for _ in range(3)]
    assert [None if each is None else each.id for each in taken] == ["short", "shorter", None]
    assert drained(waiting) == ["long"]


@given(st.lists(st.floats(0.001, 1e5), min_size=1, max_size=30), st.floats(0.001, 1e5))
def test_no_unit_beyond_a_limit_is_taken_and_none_well_within_it_stays(
    seconds: list[float], limit: float
) -> None:
    waiting = queue(*(unit(str(index), each) for index, each in enumerate(seconds)))
    taken: set[str] = set()
    while (next_unit := waiting.pop(within_seconds=limit)) is not None:
        taken.add(next_unit.id)
    for index, each in enumerate(seconds):
        if str(index) in taken:
            assert each <= limit * 1.001  # times are whole milliseconds
        elif each > 0.01:
            assert each * SIZE_STEP * 1.1 > limit
