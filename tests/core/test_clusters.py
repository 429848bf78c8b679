import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from raypeft.core.clusters import ClusterMeanGain, Clusters, clusters_of, codes_of, joined, summed
from raypeft.core.gains import Gain, GainSettings, Verdict, compute_gains
from raypeft.core.records import Document, Group, Json
from raypeft.core.resampling import MeanGain, SumsGain, bootstrap_counts, random_signs
from raypeft.core.stats import compare, mcnemar
from tests.core.cells import make_cell

RNG = np.random.default_rng(3)
QUICK = GainSettings(resamples=999)


def document(doc_id: int, doc: Json) -> Document:
    return Document(doc_id, doc, "", "", "")


def test_documents_of_one_value_are_one_cluster() -> None:
    documents = [document(i, {"meta": {"passage": p}}) for i, p in enumerate(["a", "b", "a", 1])]
    found = clusters_of(documents, "meta.passage").by_document
    assert found[0] == found[2]
    assert len({found[0], found[1], found[3]}) == 3


@pytest.mark.parametrize("doc", [{"other": 1}, "text", {"meta": "text"}])
def test_a_field_that_a_document_lacks_is_named(doc: Json) -> None:
    found = clusters_of([document(7, doc)], "meta.passage")
    assert found.by_document == {}
    assert "document 7 has no field 'meta.passage'" in found.problem


def test_sums_and_lists_of_clusters() -> None:
    codes = codes_of(["b", "a", "b"])
    assert codes.tolist() == [1, 0, 1]
    np.testing.assert_array_equal(summed(np.asarray([1.0, 2.0, 4.0]), codes), [2.0, 5.0])
    assert joined(["x", "y", "z"], codes) == [["y"], ["x", "z"]]


def test_clusters_of_one_document_are_documents() -> None:
    rows, base = RNG.normal(size=(2, 12)), RNG.normal(size=12)
    plain = MeanGain(rows, (5, 7), (0.3, 0.7), base)
    clustered = ClusterMeanGain(rows, np.ones(12), (5, 7), (0.3, 0.7), base)
    (counts,) = bootstrap_counts((5, 7), 20, np.random.default_rng(0))
    (signs,) = random_signs(12, 20, np.random.default_rng(0))
    np.testing.assert_allclose(plain.observed(), clustered.observed())
    np.testing.assert_allclose(plain.resampled(counts), clustered.resampled(counts))
    np.testing.assert_allclose(plain.swapped(signs), clustered.swapped(signs))
    np.testing.assert_allclose(plain.influence(), clustered.influence())
    np.testing.assert_allclose(plain.swap_scale(), clustered.swap_scale())
    expected = plain.resampled_baseline(counts)
    assert expected is not None
    np.testing.assert_allclose(expected, clustered.resampled_baseline(counts))


def test_a_clustered_mean_is_the_ratio_of_sum_and_size() -> None:
    sizes = np.asarray([3.0, 1.0, 5.0, 2.0])
    base, over = RNG.normal(size=4), RNG.normal(size=(2, 4))
    means = ClusterMeanGain(over - base, sizes, (4,), (1.0,), base)
    ratio = SumsGain(
        np.stack([base, sizes], axis=1),
        np.stack([over, np.tile(sizes, (2, 1))], axis=2),
        lambda sums: np.asarray(sums[..., 0] / sums[..., 1]),
    )
    (counts,) = bootstrap_counts((4,), 30, np.random.default_rng(0))
    np.testing.assert_allclose(means.resampled(counts), ratio.resampled(counts))
    np.testing.assert_allclose(means.influence(), ratio.influence())


# --- gains ------------------------------------------------------------------------------------


def passages(num: int, size: int, shift: float = 0.0) -> tuple[list[Json], list[Json], Clusters]:
    """0/1 metrics whose documents of one passage fall alike."""
    rng = np.random.default_rng(num)
    before = np.repeat(rng.random(num) < 0.5, size).astype(float)
    after = np.repeat(rng.random(num) < 0.5 + shift, size).astype(float)
    names = {i: f"p{i // size}" for i in range(num * size)}
    return before.tolist(), after.tolist(), Clusters(names)


def gain_of(before: list[Json], after: list[Json], clusters: Clusters | None) -> Gain:
    cells = [make_cell(v, adapter=a) for v, a in ((before, None), (after, "x"))]
    known = {} if clusters is None else {"requests of toy": clusters}
    (gain,) = compute_gains(cells[:1], cells[1:], settings=replace(QUICK, clusters=known))
    return gain


def test_copies_of_a_document_add_no_certainty() -> None:
    before, after, clusters = passages(30, 8)
    plain, clustered = gain_of(before, after, None), gain_of(before, after, clusters)
    once = gain_of(before[::8], after[::8], None)
    assert plain.method.startswith("exact McNemar")
    assert clustered.method == "sampled swap test, BCa bootstrap"
    assert (clustered.n, clustered.num_clusters, plain.num_clusters) == (240, 30, None)
    assert (clustered.wins, clustered.losses) == (plain.wins, plain.losses)
    assert clustered.gain == plain.gain
    assert clustered.standard_error == pytest.approx(once.standard_error)
    assert clustered.standard_error == pytest.approx(
        (plain.standard_error or 0) * math.sqrt(8), rel=0.05
    )
    assert clustered.p == pytest.approx(once.p, abs=0.04)
    assert (clustered.baseline_high or 0) > (plain.baseline_high or 0)


def test_an_unknown_cluster_gives_a_reason_and_no_interval() -> None:
    before, after, _ = passages(5, 2)
    gain = gain_of(before, after, Clusters({}, "document 0 has no field 'p'"))
    assert gain.reason == "no interval: document 0 has no field 'p'"
    assert (gain.p, gain.verdict) == (None, Verdict.INCONCLUSIVE)
    partly = Clusters(dict.fromkeys(range(9), "a"))
    assert "cluster of document 9 is not known" in gain_of(before, after, partly).reason


def test_a_single_cluster_is_named() -> None:
    gain = gain_of([1.0, 0.0, 0.0], [1.0, 1.0, 0.0], Clusters(dict.fromkeys(range(3), "p")))
    assert gain.reason == "no interval: one cluster"
    assert gain.num_clusters == 1


def test_a_perplexity_and_a_slow_metric_are_drawn_by_cluster() -> None:
    rng = np.random.default_rng(4)
    before = np.repeat(-rng.gamma(3, 1, 20), 5).tolist()
    after = [v * 0.9 for v in before]
    clusters = Clusters({i: str(i // 5) for i in range(100)})
    aggregations: dict[str, Callable[[list[Json]], float]] = {
        "perplexity": lambda v: float(np.exp(-np.mean(v))),
        "median": lambda v: float(np.median(v)),
    }
    for aggregation, value in aggregations.items():
        cells = [
            make_cell(v, adapter=a, aggregation=aggregation, value=value(v))
            for v, a in ((before, None), (after, "x"))
        ]
        aggregates = {"median": aggregations["median"]}
        errors = []
        for known in ({}, {"requests of toy": clusters}):
            settings = replace(QUICK, clusters=known, aggregates=aggregates)
            (gain,) = compute_gains(cells[:1], cells[1:], settings=settings)
            assert gain.standard_error is not None
            errors.append(gain.standard_error)
        assert errors[1] > 1.4 * errors[0]


def test_a_group_draws_each_task_as_it_is() -> None:
    before, after, clusters = passages(12, 4)
    cells = {
        adapter: [
            make_cell(values, adapter=adapter, task="read"),
            make_cell(values[:20], adapter=adapter, task="plain"),
        ]
        for adapter, values in ((None, before), ("x", after))
    }
    group = Group(name="g", children=("read", "plain"), aggregate_metric_list=({"metric": "acc"},))
    settings = replace(QUICK, clusters={"requests of read": clusters})
    *_, gain = compute_gains(cells[None], cells["x"], [group], settings)
    assert gain.is_group
    assert gain.num_clusters == 12 + 20
    assert gain.method.startswith("exact swap test")
    without = compute_gains(cells[None], cells["x"], [group], QUICK)[-1]
    assert (gain.standard_error or 0) > 1.2 * (without.standard_error or 0)
    assert gain.gain == without.gain


def test_mcnemars_test_is_wrong_with_clusters_and_swapping_them_is_not() -> None:
    rng = np.random.default_rng(6)
    trials, size, num = 400, 6, 30
    alarms = {"documents": 0, "clusters": 0}
    moves = np.repeat(rng.choice([-1.0, 0.0, 1.0], (trials, num), p=[0.2, 0.6, 0.2]), size, axis=1)
    for move in moves:
        alarms["documents"] += mcnemar(int((move > 0).sum()), int((move < 0).sum())) <= 0.05
    sums = moves.reshape(trials, num, size).sum(axis=2)
    sizes = np.full(num, float(size))
    statistic = ClusterMeanGain(sums, sizes, (num,), (1.0,), np.zeros(num))
    found = compare(statistic, seed=1, resamples=999)
    alarms["clusters"] = sum((one.p or 0) <= 0.05 for one in found)
    assert alarms["documents"] / trials > 0.15
    assert alarms["clusters"] / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)
