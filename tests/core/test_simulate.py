import itertools
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypeft.core.plan import EngineCost, Plan
from raypeft.core.retry import Policy
from raypeft.core.simulate import Chances, Simulated, lower_bound, simulate
from tests.support.plans import make_plan

CALM = Chances(noise=0.0)


def played(plan: Plan, chances: Chances = CALM, *, slots: int = 2, seed: int = 1) -> Simulated:
    policy = Policy(slots=slots, attempts=6, slot_losses=6, load_attempts=6)
    return simulate(plan, policy, chances, Random(seed))


def test_one_slot_takes_the_load_and_every_unit() -> None:
    night = played(make_plan(adapters=3, load_seconds=7.0), slots=1)
    assert night.makespan_seconds == pytest.approx(7.0 + 4.0)
    assert night.lower_bound_seconds == pytest.approx(11.0)
    assert night.ratio == pytest.approx(1.0)
    assert (night.num_units, night.num_attempts, night.num_loads, night.num_done) == (4, 4, 1, 4)
    assert night.utilisation == pytest.approx(4.0 / 11.0)


def test_the_same_seed_gives_the_same_night_and_another_one_another() -> None:
    plan = make_plan(bases=3, adapters=5, tasks=3, shards=2, load_seconds=5.0)
    rough = Chances(slot_loss=0.05, unit_failure=0.05, load_failure=0.05, noise=0.3)
    first, second, third = (played(plan, rough, seed=seed) for seed in (1, 1, 2))
    assert first == second
    assert first != third


def test_failures_cost_attempts_and_time() -> None:
    plan = make_plan(bases=2, adapters=9, tasks=3, shards=4, load_seconds=2.0)
    calm, rough = played(plan), played(plan, Chances(slot_loss=0.05, unit_failure=0.1, noise=0.0))
    assert rough.num_attempts > calm.num_attempts == calm.num_units
    assert rough.num_loads > calm.num_loads
    assert rough.wasted_seconds > calm.wasted_seconds == 0.0
    assert rough.makespan_seconds > calm.makespan_seconds
    assert rough.num_done == calm.num_done


def test_a_cell_that_is_given_up_leaves_no_bound_to_compare_with() -> None:
    plan = make_plan(adapters=5, tasks=3)
    policy = Policy(slots=2, attempts=1)
    night = simulate(plan, policy, Chances(unit_failure=0.3), Random(1))
    assert night.num_failed > 0
    assert night.num_done + night.num_failed == 18
    assert night.ratio is None


def test_a_deadline_leaves_out_what_does_not_fit() -> None:
    plan = make_plan(adapters=9, load_seconds=2.0)
    night = simulate(plan, Policy(slots=1, deadline_seconds=7.5), CALM, Random(1))
    assert (night.num_done, night.num_left_out) == (5, 5)
    assert night.makespan_seconds <= 7.5
    assert night.ratio is None


def test_nothing_to_do_takes_no_time() -> None:
    plan = make_plan()
    night = played(replace(plan, units=(), done=tuple(plan.cells)))
    assert (night.makespan_seconds, night.utilisation, night.ratio) == (0.0, 0.0, None)


def test_what_slots_do_never_overlaps() -> None:
    plan = make_plan(bases=4, adapters=4, tasks=3, shards=2, load_seconds=3.0)
    night = played(plan, Chances(slot_loss=0.1, unit_failure=0.1, load_failure=0.1), slots=3)
    by_slot: dict[str, list[tuple[float, float]]] = {}
    for span in night.spans:
        assert span.begin_seconds <= span.end_seconds <= night.makespan_seconds
        by_slot.setdefault(span.slot, []).append((span.begin_seconds, span.end_seconds))
    for spans in by_slot.values():
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
    busiest = max(
        sum(span.begin_seconds <= at < span.end_seconds for span in night.spans)
        for at in (span.begin_seconds for span in night.spans)
    )
    assert busiest <= 3
    assert {span.activity for span in night.spans} == {"loading", "answering", "lost"}


@settings(max_examples=60, deadline=None)
@given(
    bases=st.integers(1, 5),
    adapters=st.integers(0, 6),
    tasks=st.integers(1, 4),
    slots=st.integers(1, 9),
    load=st.floats(0.0, 50.0),
    noise=st.floats(0.0, 1.5),
    seed=st.integers(0, 99),
)
def test_no_night_is_shorter_than_the_bound_and_none_twice_as_long_and_a_load(
    bases: int, adapters: int, tasks: int, slots: int, load: float, noise: float, seed: int
) -> None:
    plan = make_plan(bases=bases, adapters=adapters, tasks=tasks, load_seconds=load)
    night = simulate(plan, Policy(slots=slots), Chances(noise=noise), Random(seed))
    assert night.makespan_seconds >= night.lower_bound_seconds * (1 - 1e-9)
    longest = max((s.seconds for s in night.spans if s.activity == "answering"), default=0.0)
    # Graham's bound for any list order, with the loads that a slot may have to make on its way.
    assert night.makespan_seconds <= 2 * night.lower_bound_seconds + bases * load + longest


def test_the_bound_is_the_larger_of_work_and_chain() -> None:
    loads = {"a": 10.0, "b": 30.0}
    assert lower_bound([("a", 5.0)] * 4, loads, 1) == 30.0
    # Two slots load a, at the least: 20 seconds of work and 20 of loads.
    assert lower_bound([("a", 5.0)] * 4, loads, 2) == 20.0
    assert lower_bound([("a", 5.0), ("b", 50.0)], loads, 2) == 80.0
    assert lower_bound([], loads, 2) == 0.0


def test_three_shapes_are_within_a_twentieth_of_the_bound() -> None:
    random = Random(7)
    for bases, adapters in ((40, 9), (1, 399), (5, 79)):
        plan = make_plan(bases=bases, adapters=adapters, tasks=1, shards=5)
        tail = [100.0 * random.paretovariate(1.5) for _ in plan.units]
        seconds = [min(each, 3000.0) if bases == 5 else 100.0 + each % 200.0 for each in tail]
        units = tuple(replace(u, seconds=s) for u, s in zip(plan.units, seconds, strict=True))
        costs = {name: EngineCost(load_seconds=60.0, upper=1.5) for name in plan.engines}
        night = played(replace(plan, units=units, costs=costs), Chances(noise=0.2), slots=20)
        assert night.ratio is not None
        assert night.ratio < 1.05, (bases, night.ratio)


@pytest.mark.parametrize(
    "values",
    [
        {"slot_loss": -0.1},
        {"unit_failure": 1.0},
        {"load_failure": 2.0},
        {"slot_loss": 0.5, "unit_failure": 0.5},
        {"noise": -1.0},
    ],
)
def test_chances_that_are_none_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"must be|below 1"):
        Chances(**values)


def test_a_unit_that_takes_longer_than_units_may_without_progress_gets_on() -> None:
    plan = make_plan(adapters=3)
    policy = Policy(slots=2, unit_timeout_seconds=0.5)
    night = simulate(plan, policy, CALM, Random(1))
    assert (night.num_attempts, night.num_done, night.num_failed) == (4, 4, 0)


def test_what_a_deadline_leaves_out_is_no_retry() -> None:
    policy = Policy(slots=1, deadline_seconds=-5.0)
    night = simulate(make_plan(adapters=3), policy, CALM, Random(1))
    assert (night.num_attempts, night.num_retries, night.num_left_out) == (0, 0, 4)
