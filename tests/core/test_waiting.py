from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypeft.core.plan import Unit
from raypeft.core.waiting import WaitingUnits, rank_of
from tests.support.plans import make_plan


def unit(name: str, tokens: int, *, subject: str = "s", baseline: bool = False) -> Unit:
    template = make_plan(adapters=0).units[0]
    return replace(template, id=name, tokens=tokens, subjects=(subject,), has_baseline=baseline)


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
        st.tuples(st.integers(0, 5000), st.sampled_from("abc"), st.booleans(), st.booleans()),
        max_size=40,
    )
)
def test_every_unit_that_is_not_discarded_comes_out_once_in_order_of_rank(
    drawn: list[tuple[int, str, bool, bool]],
) -> None:
    units = [
        unit(str(index), tokens, subject=subject, baseline=baseline)
        for index, (tokens, subject, baseline, _) in enumerate(drawn)
    ]
    waiting = queue(*units)
    kept = {each.id: each for each, (*_, discard) in zip(units, drawn, strict=True) if not discard}
    for each in units:
        if each.id not in kept:
            waiting.discard(each.id)
            waiting.discard(each.id)
    assert len(waiting) == len(kept)
    assert waiting.tokens == sum(each.tokens for each in kept.values())
    names = drained(waiting)
    assert sorted(names) == sorted(kept)
    ranks = [rank_of(kept[name]) for name in names]
    assert ranks == sorted(ranks, reverse=True)
    assert (len(waiting), waiting.tokens) == (0, 0)
