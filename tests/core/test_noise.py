import math
from dataclasses import replace

import numpy as np
import pytest

from raypeft.core.equivalence import Margin
from raypeft.core.gains import GainSettings, Verdict, compute_gains
from raypeft.core.noise import noise_floors
from raypeft.core.records import Group, Json
from tests.core.cells import make_cell

QUICK = GainSettings(resamples=499)


def bits(n: int, ones: int) -> list[Json]:
    return [1.0] * ones + [0.0] * (n - ones)


def floors(before: list[Json], again: list[Json]) -> list[float]:
    cells = [make_cell(v, adapter=a) for v, a in ((before, None), (again, "base@again"))]
    return [floor.size for floor in noise_floors(cells[:1], cells[1:], (), QUICK).values()]


def test_a_baseline_that_answers_alike_has_no_floor_to_speak_of() -> None:
    assert floors(bits(50, 20), bits(50, 20)) == [0.0]


def test_the_floor_is_at_least_the_difference_that_was_seen() -> None:
    assert floors([0.0] * 100, [0.05] * 99 + [0.0]) == [pytest.approx(0.0495)]


def test_documents_that_differ_in_both_directions_do_not_hide_each_other() -> None:
    before, again = bits(100, 50), bits(100, 50)
    for place in (0, 1, 98, 99):
        again[place] = 1.0 - float(again[place])
    (floor,) = floors(before, again)
    assert floor == pytest.approx(1.96 * math.sqrt(4) / 100)


def test_a_gain_below_the_floor_is_not_claimed_and_the_reason_is_given() -> None:
    before, again = bits(400, 200), bits(400, 200)
    for place in range(30):
        again[place] = 0.0
        again[399 - place] = 1.0
    after = bits(400, 212)
    cells = [make_cell(after, adapter="x"), make_cell(again, adapter="base@again")]
    (plain,) = compute_gains([make_cell(before)], cells[:1], settings=QUICK)
    (gain,) = compute_gains([make_cell(before)], cells[:1], (), QUICK, cells[1:])
    assert plain.verdict is Verdict.GAIN
    assert gain.verdict is Verdict.INCONCLUSIVE
    assert gain.noise_floor == pytest.approx(1.96 * math.sqrt(60) / 400)
    assert gain.reason == (
        "not claimed: the baseline, answered again, may differ from itself by 0.03796"
    )
    assert replace(gain, noise_floor=None, verdict=plain.verdict, reason="") == plain


def test_neither_is_an_equivalence_that_noise_may_hide() -> None:
    again = bits(2000, 1000)
    for place in range(100):
        again[place], again[1999 - place] = 0.0, 1.0
    cells = [make_cell(bits(2000, 1003), adapter="x"), make_cell(again, adapter="base@again")]
    settings = replace(QUICK, margins={"acc": Margin(0.01)})
    (plain,) = compute_gains([make_cell(bits(2000, 1000))], cells[:1], settings=settings)
    (gain,) = compute_gains([make_cell(bits(2000, 1000))], cells[:1], (), settings, cells[1:])
    assert plain.verdict is Verdict.EQUIVALENT
    assert (gain.verdict, gain.p_equivalent) == (Verdict.INCONCLUSIVE, plain.p_equivalent)
    assert gain.reason.startswith("not claimed: ")


def test_each_task_and_group_has_its_own_floor() -> None:
    rng = np.random.default_rng(1)
    both = {}
    for adapter in (None, "base@again", "x"):
        both[adapter] = [
            make_cell(
                (bits(40, 20) if task == "calm" else rng.integers(0, 2, 40).tolist()),
                adapter=adapter,
                task=task,
            )
            for task in ("calm", "noisy")
        ]
    group = Group(name="g", children=("calm", "noisy"), aggregate_metric_list=({"metric": "acc"},))
    gains = compute_gains(both[None], both["x"], [group], QUICK, both["base@again"])
    found = {gain.task: gain.noise_floor or 0.0 for gain in gains}
    assert found["calm"] == 0.0
    assert 0 < found["g"] < found["noisy"]


def test_without_a_second_answering_there_is_no_floor() -> None:
    cells = [make_cell(bits(40, k), adapter=a) for k, a in ((20, None), (25, "x"))]
    (gain,) = compute_gains(cells[:1], cells[1:], settings=QUICK)
    assert gain.noise_floor is None


def test_the_floor_of_one_engine_is_not_that_of_another() -> None:
    hf, vllm = ({"engine": kind, "dtype": "float32"} for kind in ("hf", "vllm"))
    baselines = [
        replace(make_cell(bits(40, 20)), numerics=vllm),
        replace(make_cell(bits(40, 20)), numerics=hf, subject="base@hf"),
    ]
    adapters = [
        replace(make_cell(bits(40, 30), adapter=name), numerics=numerics)
        for name, numerics in (("fast", vllm), ("odd", hf))
    ]
    again = replace(make_cell(bits(40, 22), adapter="base@again"), numerics=vllm)
    fast, odd = compute_gains(baselines, adapters, (), QUICK, [again])
    assert (fast.noise_floor or 0) > 0
    assert odd.noise_floor is None


@pytest.mark.parametrize("far", ["base@again", "base@zero"])
def test_of_two_further_answers_the_one_that_lies_farther_away_counts(far: str) -> None:
    cells = [make_cell(bits(100, 40)), make_cell(bits(100, 70), adapter="x")]
    others = {"base@again": bits(100, 42), "base@zero": bits(100, 42), far: bits(100, 48)}
    again = [make_cell(values, adapter=name) for name, values in others.items()]
    (gain,) = compute_gains(cells[:1], cells[1:], (), QUICK, again)
    assert gain.noise_floor == pytest.approx(0.08)
    assert (gain.adapter, gain.rank, gain.reason) == ("x", 1, "")


@pytest.mark.parametrize(
    ("there", "lacking"), [("base@again", "base@zero"), ("base@zero", "base@again")]
)
def test_a_floor_without_one_of_its_answers_says_so(there: str, lacking: str) -> None:
    cells = [make_cell(bits(100, 40)), make_cell(bits(100, 70), adapter="x")]
    settings = replace(QUICK, wants_noise_floor=True, zero_subjects=frozenset({"base@zero"}))
    again = [make_cell(bits(100, 45), adapter=there)]
    (gain,) = compute_gains(cells[:1], cells[1:], (), settings, again)
    assert gain.noise_floor == pytest.approx(0.05)
    assert gain.reason == f"its noise floor is without {lacking}"
    assert gain.verdict is Verdict.GAIN


def test_a_floor_that_was_asked_for_and_is_not_known_is_said_to_be_missing() -> None:
    cells = [make_cell(bits(60, 20)), make_cell(bits(60, 35), adapter="x")]
    again = make_cell(bits(60, 20), adapter="base@again")
    wanted = replace(QUICK, wants_noise_floor=True)
    (gain,) = compute_gains(cells[:1], cells[1:], settings=wanted)
    assert gain.reason.startswith("its noise floor is not known")
    (gain,) = compute_gains(cells[:1], cells[1:], (), wanted, [again])
    assert (gain.reason, gain.noise_floor) == ("", 0.0)
