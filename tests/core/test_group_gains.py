from dataclasses import replace

import numpy as np
import pytest

from raypeft.core.comparable import ScoredCell
from raypeft.core.gains import Gain, GainSettings, Verdict, compute_gains
from raypeft.core.records import Group, Json
from raypeft.core.stats import mcnemar
from tests.core.cells import make_cell

QUICK = GainSettings(resamples=499)


def suite(*children: str, name: str = "suite", **config: Json) -> Group:
    return Group(name=name, children=children, aggregate_metric_list=({"metric": "acc", **config},))


def bits(n: int, ones: int) -> list[Json]:
    return [1.0] * ones + [0.0] * (n - ones)


def cells(ones: dict[str, int], adapter: str | None) -> list[ScoredCell]:
    sizes = {"small": 10, "large": 90}
    return [make_cell(bits(sizes[t], k), adapter=adapter, task=t) for t, k in ones.items()]


BASELINE = cells({"small": 5, "large": 30}, None)
ADAPTER = cells({"small": 9, "large": 45}, "lora")


def group_gains(*groups: Group, adapter: list[ScoredCell] | None = None) -> list[Gain]:
    found = compute_gains(BASELINE, ADAPTER if adapter is None else adapter, groups, QUICK)
    return [gain for gain in found if gain.is_group]


def test_a_group_weights_its_tasks_by_size_unless_told_otherwise() -> None:
    (by_size,) = group_gains(suite("small", "large"))
    (equal,) = group_gains(suite("small", "large", weight_by_size=False))
    assert by_size.baseline_value == (0.5 * 10 + 30 / 90 * 90) / 100
    assert by_size.gain == pytest.approx(19 / 100)
    assert equal.baseline_value == (0.5 + 30 / 90) / 2
    assert equal.gain == pytest.approx((0.4 + 15 / 90) / 2)
    assert (by_size.n, by_size.wins, by_size.losses) == (100, 19, 0)


def test_a_group_weighted_by_size_is_tested_by_mcnemar_over_all_its_documents() -> None:
    (gain,) = group_gains(suite("small", "large"))
    assert gain.p == mcnemar(19, 0)
    assert gain.verdict is Verdict.GAIN
    assert gain.request_set is None


def test_an_unweighted_group_is_tested_by_swaps() -> None:
    (gain,) = group_gains(suite("small", "large", weight_by_size=False))
    assert "swap test" in gain.method
    assert gain.verdict is Verdict.GAIN


def test_groups_of_groups_reach_down_to_their_tasks() -> None:
    inner = Group(name="inner", children=("large",))
    (gain,) = group_gains(suite("small", "inner"), inner)
    assert gain.n == 100


def test_a_group_without_an_aggregation_has_no_gain() -> None:
    assert group_gains(Group(name="tag", children=("small", "large"))) == []


def test_a_group_with_a_missing_task_is_refused_by_name() -> None:
    (gain,) = group_gains(suite("small", "large"), adapter=ADAPTER[:1])
    assert gain.verdict is Verdict.REFUSED
    assert gain.reason == "lora has no result on large, a task of the group"


def test_a_group_with_an_incomparable_task_is_refused_with_the_field() -> None:
    other = [ADAPTER[0], replace(ADAPTER[1], request_set="other")]
    (gain,) = group_gains(suite("small", "large"), adapter=other)
    assert gain.verdict is Verdict.REFUSED
    assert "request_set differs" in gain.reason


def test_a_task_that_was_run_twice_makes_its_group_ambiguous() -> None:
    (gain,) = group_gains(
        suite("small", "large"), adapter=[*ADAPTER, replace(ADAPTER[0], request_set="other")]
    )
    assert gain.reason == "lora has 2 results on small, a task of the group"


def test_a_task_without_the_metric_is_left_out_as_lm_eval_does() -> None:
    other = [make_cell(bits(10, 5), task="odd", metric="em", adapter=a) for a in (None, "lora")]
    gains = compute_gains(
        [*BASELINE, other[0]], [*ADAPTER, other[1]], [suite("small", "large", "odd")], QUICK
    )
    (gain,) = (gain for gain in gains if gain.is_group)
    assert gain.n == 100


def test_a_group_of_a_metric_that_is_no_mean_has_a_gain_without_interval() -> None:
    def odd(adapter: str | None) -> ScoredCell:
        values: list[Json] = [[0, 0], [1, 1], [1, 0]]
        return make_cell(values, adapter=adapter, task="odd", aggregation="f1", value=2 / 3)

    gains = compute_gains(
        [*BASELINE, odd(None)], [*ADAPTER, odd("lora")], [suite("small", "large", "odd")], QUICK
    )
    (gain,) = (gain for gain in gains if gain.is_group)
    assert gain.gain is not None
    assert gain.verdict is Verdict.INCONCLUSIVE
    assert gain.reason == "no interval: a task of the group is aggregated by 'f1'"


def test_filters_are_those_given_or_all_that_are_there() -> None:
    rng = np.random.default_rng(0)

    def filtered(adapter: str | None, name: str) -> ScoredCell:
        values = rng.integers(0, 2, 20).astype(float).tolist()
        return make_cell(values, adapter=adapter, task="gen", filter_name=name)

    for name in ("strict", "flexible"):
        pair = [filtered(adapter, name) for adapter in (None, "lora")]
        for config in ({}, {"filter_list": name}, {"filter_list": [name]}):
            gains = compute_gains(pair[:1], pair[1:], [suite("gen", **config)], QUICK)
            assert [gain.filter for gain in gains if gain.is_group] == [name]
