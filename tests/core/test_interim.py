import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from raypeft.core.events import CellHopeless
from raypeft.core.interim import (
    Interim,
    LookSettings,
    ShardValues,
    untested_rows,
    values_of,
)
from raypeft.core.looks import should_stop
from raypeft.core.records import Group, Scored
from raypeft.core.stats import holm, mcnemar
from tests.core.cells import make_cell, make_scored

HALF = 40


def interim(count: int = 2, **settings: float) -> Interim:
    baselines = {"bad": "base", "good": "base"}
    chosen = LookSettings(baselines=baselines, alpha=0.05, num_tests=2, **settings)  # type: ignore[arg-type]
    return Interim(chosen, dict.fromkeys(baselines, count))


def shard(value: float, n: int = HALF, metric: str = "acc,none", sign: int = 1) -> ShardValues:
    return ShardValues(metric, sign, (value,) * n)


# --- what is looked at ------------------------------------------------------------------------


def both(name: str, values: Sequence[float], other: Scored) -> Scored:
    """Return a scored task with one metric more."""
    more = make_scored("t", values, metric=name)
    samples = tuple(
        replace(old, metrics={**old.metrics, **new.metrics})
        for old, new in zip(other.samples, more.samples, strict=True)
    )
    return replace(other, metrics=(*other.metrics, *more.metrics), samples=samples)


def test_values_come_in_the_order_of_the_shard() -> None:
    scored = make_scored("t", [0.0, 1.0, 0.5])
    assert values_of(scored, [2, 0, 1], "") == ShardValues("acc,none", 1, (0.5, 0.0, 1.0))


def test_of_several_metrics_the_first_known_one_is_taken_or_the_one_that_is_named() -> None:
    scored = both("acc_norm", [0.0, 0.0], make_scored("t", [1.0, 1.0]))
    assert values_of(scored, [0, 1], "").metric == "acc_norm,none"
    assert values_of(scored, [0, 1], "acc").values == (1.0, 1.0)
    assert values_of(scored, [0, 1], "acc,none").values == (1.0, 1.0)


def test_less_is_better_where_lm_eval_says_so() -> None:
    scored = make_scored("t", [0.5], metric="brier", higher_is_better=False)
    assert values_of(scored, [0], "brier") == ShardValues("brier,none", -1, (0.5,))


@pytest.mark.parametrize(
    ("scored", "metric", "problem"),
    [
        (make_scored("t", [1.0], metric="bleu"), "", "the task's metrics are bleu,none"),
        (make_scored("t", [1.0]), "acc,strict", "looked at is acc,strict"),
        (make_scored("t", [3.0]), "acc", "it is 3.0 for document 0"),
        (make_scored("t", [math.nan]), "acc", "it is nan for document 0"),
        (make_scored("t", [[1, 2]], aggregation="f1", value=0.5), "acc", "aggregation is 'f1'"),
        (make_scored("t", [1.0], higher_is_better=None), "acc", "whether more of it is better"),
    ],
)
def test_what_cannot_be_looked_at_says_why(scored: Scored, metric: str, problem: str) -> None:
    found = values_of(scored, [0], metric)
    assert problem in found.problem
    assert found.values == ()


def test_a_document_without_a_value_is_a_problem_and_not_a_zero() -> None:
    assert "None for document 7" in values_of(make_scored("t", [1.0]), [7], "acc").problem


# --- looks ------------------------------------------------------------------------------------


def test_a_cell_is_hopeless_as_soon_as_both_sides_have_answered_enough() -> None:
    looks = interim()
    assert looks.add("bad", 0, 2, shard(0.0)) == []
    assert looks.add("good", 0, 2, shard(1.0)) == []
    (event,) = looks.add("base", 0, 2, shard(1.0))
    assert isinstance(event, CellHopeless)
    assert event.cell == "bad"
    assert "stopped early by acc,none: hopeless after" in event.reason
    assert f"{HALF} documents were seen" in event.reason
    assert "alpha 0.05 is shared by 2 cells" in event.reason
    # Said once.
    assert looks.add("bad", 1, 2, shard(0.0)) + looks.add("base", 1, 2, shard(1.0)) == []


def test_a_look_waits_for_the_shards_before_however_fast_the_later_ones_came() -> None:
    looks = interim()
    assert looks.add("base", 1, 2, shard(1.0)) + looks.add("bad", 1, 2, shard(0.0)) == []
    assert looks.add("base", 0, 2, shard(1.0)) == []
    assert [event.cell for event in looks.add("bad", 0, 2, shard(0.0))] == ["bad"]


def test_shards_of_another_number_are_not_mixed() -> None:
    looks = interim(count=2)
    assert looks.add("base", 0, 4, shard(1.0)) + looks.add("bad", 0, 2, shard(0.0)) == []
    assert len(looks.add("base", 0, 2, shard(1.0))) == 1


def test_where_less_is_better_more_is_hopeless() -> None:
    looks = interim()
    looks.add("base", 0, 2, shard(0.0, sign=-1))
    assert looks.add("good", 0, 2, shard(0.0, sign=-1)) == []
    assert len(looks.add("bad", 0, 2, shard(1.0, sign=-1))) == 1


@pytest.mark.parametrize(
    ("ours", "theirs", "why"),
    [
        (ShardValues(problem="no such metric"), shard(1.0), "no such metric"),
        (shard(0.0), ShardValues(problem="crashed"), "crashed"),
        (shard(0.0), shard(1.0, metric="em,none"), "metric is acc,none and the baseline's em,none"),
    ],
)
def test_a_problem_of_either_side_ends_the_looks_and_is_kept(
    ours: ShardValues, theirs: ShardValues, why: str
) -> None:
    looks = interim()
    assert looks.add("bad", 0, 2, ours) + looks.add("base", 0, 2, theirs) == []
    assert why in looks.problems["bad"]
    assert looks.add("bad", 1, 2, shard(0.0)) == []


def test_settings_for_some_cells_keep_the_level_of_all() -> None:
    chosen = interim().settings.among({"bad"})
    assert (dict(chosen.baselines), chosen.num_tests) == ({"bad": "base"}, 2)


# --- error rates ------------------------------------------------------------------------------

TRIALS, ADAPTERS, DOCUMENTS, LOOKS = 300, 12, 400, 8


def night(rng: np.random.Generator, least_gain: float) -> tuple[list[float], int]:
    """Return the p-values of adapters without any gain that were not stopped, and their luck."""
    p_values: list[float] = []
    for _ in range(ADAPTERS):
        differences = rng.choice([-1.0, 0.0, 1.0], DOCUMENTS, p=[0.1, 0.8, 0.1])
        settings = {"alpha": 0.2, "least_gain": least_gain, "num_tests": ADAPTERS}
        whole = should_stop(list(differences), **settings)  # type: ignore[arg-type]
        # `should_stop` says after which document it could have; a look comes at a shard's end.
        if whole.stops and math.ceil(whole.num_documents / (DOCUMENTS // LOOKS)) < LOOKS:
            continue
        p_values.append(mcnemar(int((differences > 0).sum()), int((differences < 0).sum())))
    return p_values, ADAPTERS - len(p_values)


def test_adapters_without_a_gain_that_survive_their_looks_are_no_false_gains() -> None:
    rng = np.random.default_rng(1)
    counted, not_counted, num_stopped = 0, 0, 0
    for _ in range(TRIALS):
        p_values, untested = night(rng, least_gain=0.12)
        num_stopped += untested
        counted += any(p <= 0.05 for p in holm([*p_values, *[1.0] * untested])[: len(p_values)])
        not_counted += any(p <= 0.05 for p in holm(p_values))
    assert num_stopped > TRIALS * ADAPTERS / 2
    error = 3 * math.sqrt(0.05 * 0.95 / TRIALS)
    assert counted / TRIALS <= 0.05 + error
    # Without counting those that were stopped the promise would be broken.
    assert not_counted / TRIALS > 0.05 + error


def test_rows_that_were_not_computed_are_counted_in_each_family_and_once_for_each_group() -> None:
    cells = [make_cell([1.0, 0.0], task=task) for task in ("t1", "t2", "t3")]
    groups = [
        Group(name="g", children=("inner",), aggregate_metric_list=({"metric": "acc"},)),
        Group(name="inner", children=("t1", "t2")),
    ]
    stopped = [("base/a", "t1"), ("base/a", "t2"), ("base/b", "t3"), ("base/b", "unknown")]
    # Three tasks, and the group of one adapter.
    assert untested_rows(stopped, cells, groups) == {("base", "acc", "none"): 4}
    assert untested_rows([], cells, groups) == {}
