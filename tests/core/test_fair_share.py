"""How many slots a sweep keeps while another one waits."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypeft.core.fair_share import (
    Claim,
    Share,
    claim_json,
    fair_share,
    read_claim,
    rivals_of,
    shared_size,
    shown_name,
)


def claim(run: str, held: int = 0, wanted: int = 8, priority: int = 1, **more: object) -> Claim:
    waits = held < wanted
    base = Claim(
        sweep=f"sweep {run}", run=run, held=held, wanted=wanted, priority=priority, waits=waits
    )
    return replace(base, **more)  # type: ignore[arg-type]


def share_of(own: Claim, *others: Claim, free: float = 0) -> Share | None:
    rivals = rivals_of(own, others)
    return fair_share(own, rivals, shared_size(own, rivals, free))


def slots(own: Claim, *others: Claim, free: float = 0) -> int | None:
    share = share_of(own, *others, free=free)
    return None if share is None else share.slots


def test_a_sweep_keeps_what_it_has_while_nobody_waits() -> None:
    early, late = claim("a", held=8), claim("b", held=4, wanted=4)
    assert share_of(early) is None
    assert share_of(early, late) is None


def test_a_sweep_that_came_first_keeps_its_half_when_another_comes() -> None:
    share = share_of(claim("a", held=8), claim("b"))
    assert share == Share(
        4, "sweep b (priority 1) waits for hardware; the fair share of priority 1 is 4"
    )


@pytest.mark.parametrize(
    ("own", "other", "expected"), [(1, 1, 6), (2, 1, 8), (1, 2, 4), (1, 5, 2), (1, 1000, 1)]
)
def test_slots_follow_priorities(own: int, other: int, expected: int) -> None:
    mine = claim("a", held=12, wanted=12, priority=own)
    assert slots(mine, claim("b", wanted=12, priority=other)) == expected


def test_what_a_sweep_does_not_want_goes_to_the_others() -> None:
    assert slots(claim("a", held=8), claim("b", held=0, wanted=2)) == 6


def test_of_an_odd_number_exactly_one_sweep_gets_one_more() -> None:
    first, second = claim("a", held=3), claim("b", held=0)
    assert slots(first, second) == 2
    assert slots(replace(first, run="c"), second) == 1


def test_sweeps_on_other_hardware_are_no_rivals() -> None:
    early = claim("a", held=8, labels={"hw": "a100", "zone": "1"})
    assert slots(early, claim("b", labels={"hw": "h100"})) is None
    assert slots(early, claim("b", resource="CPU")) is None
    assert slots(early, claim("b", labels={"hw": "a100"})) == 4
    assert slots(early, claim("b", labels={"disk": "fast"})) == 4
    assert slots(early, replace(early, waits=True)) is None  # its own


def test_labels_that_name_several_kinds_may_be_those_of_a_rival() -> None:
    early = claim("a", held=8, labels={"hw": "in(a100,h100)"})
    assert slots(early, claim("b", labels={"hw": "a100"})) == 4
    assert slots(claim("a", held=8, labels={"hw": "!h100"}), claim("b", labels={"hw": "a100"})) == 4


def test_what_is_free_is_shared_too_so_that_giving_back_lowers_no_share() -> None:
    # The other one cannot use it: a slot of it is larger than any node has free.
    waiting = claim("b", wanted=1, slot_size=4.0)
    kept = [slots(claim("a", held=held), waiting, free=8 - held) for held in (8, 7, 5, 4)]
    assert kept == [4, 4, 4, 4]


def test_a_sweep_that_is_held_to_its_share_waits_as_well() -> None:
    limited = claim("a", held=4, waits=False, is_limited=True)
    other = claim("b", held=4)
    assert slots(other, limited) == 4
    assert slots(other, replace(limited, wanted=4)) is None
    assert slots(limited, replace(other, is_limited=True, waits=False)) == 4


def test_a_claim_of_a_newer_version_is_read() -> None:
    assert read_claim({**claim_json(claim("a")), "unknown": 1}) == claim("a")


def test_large_slots_count_for_more() -> None:
    # 8 GPUs: 4 for each is one slot of four, or four of one.
    assert slots(claim("a", held=8), claim("b", slot_size=4.0, wanted=2)) == 4
    assert slots(claim("a", held=2, wanted=2, slot_size=4.0), claim("b")) == 1
    # Two to a GPU.
    assert slots(claim("a", held=16, wanted=16, slot_size=0.5), claim("b")) == 8


def test_many_that_wait_are_named_as_far_as_they_fit() -> None:
    share = share_of(claim("a", held=8), *(claim(run) for run in "edcb"))
    assert share is not None
    assert share.slots == 2
    assert share.reason.startswith("sweep b (priority 1), sweep c (priority 1), sweep d")
    assert "and 1 more wait for" in share.reason


claims = st.lists(
    st.builds(
        claim,
        run=st.uuids().map(str),
        held=st.integers(0, 12),
        wanted=st.integers(0, 20),
        priority=st.integers(1, 9),
        slot_size=st.sampled_from([0.25, 0.5, 1.0, 2.0]),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda one: one.run,
).map(lambda found: [replace(one, wanted=max(one.held, one.wanted)) for one in found])


@given(claims)
def test_all_agree_and_nobody_is_left_without(found: list[Claim]) -> None:
    kept = {}
    for own in found:
        others = [other for other in found if other is not own]
        share = share_of(own, *others)
        kept[own.run] = own.wanted if share is None else share.slots
        assert share is None or 1 <= share.slots < own.wanted
        assert share is None or any(other.lacks for other in others)
    if sum(one.lacks for one in found) < 2:
        return  # whoever waits alone is held to nothing
    # One slot each is never taken away; beyond that no more is given than is there.
    whole = sum(one.held * one.slot_size for one in found)
    floor = sum(min(1, one.wanted) * one.slot_size for one in found)
    limited = sum(
        kept[one.run] * one.slot_size for one in found if kept[one.run] < max(1, one.wanted)
    )
    assert limited <= max(whole, floor) + 1e-6


@given(claims)
def test_nobody_is_below_a_level_that_another_is_above(found: list[Claim]) -> None:
    """Max-min: a slot less for who has more would not lift who has less over it."""
    own, *others = found
    share = share_of(own, *others)
    if share is None or share.slots == 1:
        return
    level = share.slots * own.slot_size / own.priority
    for other in others:
        theirs = share_of(other, *(one for one in found if one is not other))
        if theirs is not None and theirs.slots < other.wanted:
            after = (theirs.slots + 1) * other.slot_size / other.priority
            assert after >= level - 1e-9 or other.slot_size > own.slot_size


@given(claims)
def test_a_claim_is_read_back_as_it_was_told(found: list[Claim]) -> None:
    for one in found:
        assert read_claim(json.loads(json.dumps(claim_json(one)))) == one


@pytest.mark.parametrize(
    "change",
    [
        {"priority": 0},
        {"priority": 1001},
        {"held": -1},
        {"held": 1.5},
        {"held": True},
        {"wanted": 10**9},
        {"slot_size": 0},
        {"slot_size": math.nan},
        {"slot_size": math.inf},
        {"slot_size": "1"},
        {"labels": ["a"]},
        {"labels": {"a": ["b"]}},
        {"waits": "yes"},
        {"is_limited": 1},
        {"sweep": None},
    ],
)
def test_what_is_no_claim_is_none(change: dict[str, object]) -> None:
    assert read_claim({**claim_json(claim("a")), **change}) is None


@pytest.mark.parametrize("value", [None, [], "claim", {}, {"sweep": "a"}])
def test_what_is_nothing_like_a_claim_is_none(value: object) -> None:
    assert read_claim(value) is None


def test_a_name_is_shown_on_one_short_line() -> None:
    assert shown_name("night\n\x1b[31m\u202e" + "x" * 500) == "night??[31m?" + "x" * 88
