import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from raypeft.core.comparable import ScoredCell
from raypeft.core.equivalence import Margin
from raypeft.core.gains import Gain, GainSettings, Verdict, compute_gains
from raypeft.core.records import Json
from raypeft.core.stats import holm, mcnemar
from tests.core.cells import HARDWARE, make_cell, with_sample

QUICK = GainSettings(resamples=499)


def gain_of(before: list[Json], after: list[Json], **metric: Any) -> Gain:
    baseline = make_cell(before, **{k: v for k, v in metric.items() if k != "after_value"})
    changed = metric | {"value": metric.get("after_value", metric.get("value"))}
    changed.pop("after_value", None)
    adapter = make_cell(after, adapter="lora", **changed)
    settings = replace(QUICK, aggregates={"median": lambda v: float(np.median(v))})
    (gain,) = compute_gains([baseline], [adapter], settings=settings)
    return gain


def bits(n: int, ones: int) -> list[Json]:
    return [1.0] * ones + [0.0] * (n - ones)


# --- verdicts ---------------------------------------------------------------------------------


def test_a_clear_gain_on_a_zero_one_metric() -> None:
    gain = gain_of(bits(60, 20), bits(60, 35))
    assert gain.verdict is Verdict.GAIN
    assert (gain.wins, gain.losses, gain.n) == (15, 0, 60)
    assert gain.gain == pytest.approx(15 / 60)
    assert gain.p == gain.p_corrected == mcnemar(15, 0)
    assert gain.low is not None
    assert gain.high is not None
    assert 0 < gain.low < 0.25 < gain.high
    assert gain.method == "exact McNemar, BCa bootstrap"
    assert gain.reason == ""


def test_a_clear_loss() -> None:
    gain = gain_of(bits(60, 35), bits(60, 20))
    assert gain.verdict is Verdict.LOSS
    assert (gain.wins, gain.losses) == (0, 15)


def test_a_difference_within_noise_is_inconclusive() -> None:
    gain = gain_of(bits(60, 20), bits(60, 22))
    assert gain.verdict is Verdict.INCONCLUSIVE
    assert gain.smallest_detectable_gain is not None
    assert gain.smallest_detectable_gain > 2 / 60


def test_where_lower_is_better_less_is_a_gain() -> None:
    rng = np.random.default_rng(0)
    before = [[-float(w) * 3, float(w)] for w in rng.integers(5, 20, 40)]
    after = [[ll * 0.8 + float(rng.normal(0, 0.5)), w] for ll, w in before]

    def perplexity(pairs: list[Json]) -> float:
        return math.exp(-sum(ll for ll, _ in pairs) / sum(w for _, w in pairs))

    gain = gain_of(
        before,
        after,
        metric="word_perplexity",
        aggregation="weighted_perplexity",
        higher_is_better=False,
        value=perplexity(before),
        after_value=perplexity(after),
    )
    assert gain.verdict is Verdict.GAIN
    assert gain.gain == pytest.approx(perplexity(after) - perplexity(before))
    assert gain.gain is not None
    assert gain.gain < 0
    assert gain.wins is None


def test_wins_and_losses_follow_the_direction() -> None:
    gain = gain_of(bits(30, 5), bits(30, 20), metric="error", higher_is_better=False)
    assert (gain.wins, gain.losses) == (0, 15)
    assert gain.verdict is Verdict.LOSS


def test_an_unknown_direction_is_no_verdict() -> None:
    gain = gain_of(bits(60, 20), bits(60, 35), higher_is_better=None)
    assert gain.verdict is Verdict.INCONCLUSIVE
    assert "does not say whether higher is better" in gain.reason


def test_values_are_lm_evals_own_to_the_bit() -> None:
    before, after = [0.1, 0.2, 0.7], [0.3, 0.3, 0.4]
    gain = gain_of(before, after)
    assert gain.baseline_value == sum(before) / 3
    assert gain.adapter_value == sum(after) / 3
    assert gain.gain == sum(after) / 3 - sum(before) / 3


# --- family -----------------------------------------------------------------------------------


def test_p_is_corrected_over_adapters_tasks_and_groups_of_one_base_and_metric() -> None:
    ones = {"a": 26, "b": 29, "c": 35}
    baselines = [make_cell(bits(60, 20), task=t) for t in ("t1", "t2")]
    adapters = [
        make_cell(bits(60, n), adapter=name, task=task)
        for task in ("t1", "t2")
        for name, n in ones.items()
    ]
    other_metric = make_cell(bits(60, 40), adapter="d", task="t3", metric="f")
    baselines.append(make_cell(bits(60, 20), task="t3", metric="f"))
    gains = compute_gains(baselines, [*adapters, other_metric], settings=QUICK)
    family = [gain for gain in gains if gain.metric == "acc"]
    raw = [gain.p or 0.0 for gain in family]
    for gain, one in zip(family, holm(raw), strict=True):
        # The swaps of 999 draws know the correlation that Holm must fear, and their own luck.
        assert (gain.p or 0.0) <= (gain.p_corrected or 0.0) <= one + 3 * math.sqrt(one / 999)
    assert {gain.correction for gain in family} == {"max-T"}
    assert [gain.q for gain in family] == pytest.approx(stats.false_discovery_control(raw))
    assert {gain.family_size for gain in family} == {6}
    assert gains[-1].p_corrected == gains[-1].p
    assert gains[-1].family_size == 1


def test_a_larger_family_makes_gains_harder_to_detect() -> None:
    baseline = make_cell(bits(60, 20))
    one = compute_gains([baseline], [make_cell(bits(60, 25), adapter="a")], settings=QUICK)
    rng = np.random.default_rng(2)
    others = [make_cell(rng.integers(0, 2, 60).tolist(), adapter=name) for name in "bcdefgh"]
    many = compute_gains(
        [baseline], [make_cell(bits(60, 25), adapter="a"), *others], settings=QUICK
    )
    assert (many[0].smallest_detectable_gain or 0) > (one[0].smallest_detectable_gain or 0)
    assert many[0].p == one[0].p


def test_rows_that_early_stopping_took_from_a_family_count_as_tested() -> None:
    baseline, ones = make_cell(bits(60, 20)), {"a": 31, "b": 35}
    adapters = [make_cell(bits(60, n), adapter=name) for name, n in ones.items()]
    family = ("base", "acc", "none")
    settings = replace(QUICK, untested={family: 6, ("base", "f", "none"): 9})
    gains = compute_gains([baseline], adapters, settings=settings)
    raw = [gain.p or 0.0 for gain in gains]
    assert [gain.p_corrected for gain in gains] == list(holm([*raw, *[1.0] * 6])[:2])
    rates = stats.false_discovery_control([*raw, *[1.0] * 6])[:2]
    assert [gain.q for gain in gains] == pytest.approx(list(rates))
    assert {(gain.family_size, gain.correction) for gain in gains} == {(8, "Holm")}
    usual = compute_gains([baseline], adapters, settings=QUICK)
    for fewer, more in zip(usual, gains, strict=True):
        assert (fewer.smallest_detectable_gain or 0) < (more.smallest_detectable_gain or 0)


def test_what_cannot_be_swapped_as_often_is_corrected_by_holm_and_says_so() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(size=(3, 30)).tolist()

    def gains(aggregation: str, settings: GainSettings) -> list[Gain]:
        cells = [
            make_cell(v, adapter=a, aggregation=aggregation, value=float(np.median(v)))
            if aggregation == "median"
            else make_cell(v, adapter=a)
            for v, a in zip(values, (None, "a", "b"), strict=True)
        ]
        return compute_gains(cells[:1], cells[1:], settings=settings)

    slow = gains("median", replace(QUICK, aggregates={"median": lambda v: float(np.median(v))}))
    too_few = gains("mean", replace(QUICK, resamples=199))
    enough = gains("mean", QUICK)
    for found, correction in ((slow, "Holm"), (too_few, "Holm"), (enough, "max-T")):
        assert {gain.correction for gain in found} == {correction}
        if correction == "Holm":
            assert [gain.p_corrected for gain in found] == list(holm([g.p or 0 for g in found]))


def test_bases_are_families_of_their_own() -> None:
    cells = [make_cell(bits(60, 20), base=base) for base in ("b1", "b2")]
    adapters = [make_cell(bits(60, 28), adapter="a", base=base) for base in ("b1", "b2")]
    gains = compute_gains(cells, adapters, settings=QUICK)
    assert [gain.base for gain in gains] == ["b1", "b2"]
    assert {gain.family_size for gain in gains} == {1}


def test_each_adapter_is_drawn_against_the_baseline_of_its_own_engine() -> None:
    rng = np.random.default_rng(5)
    terms = {name: -rng.gamma(3, scale, 40) for name, scale in (("fast", 1.0), ("slow", 2.0))}
    kinds = {"fast": {"engine": "vllm"}, "slow": {"engine": "hf"}}

    def cell(engine: str, adapter: str | None, subject: str) -> ScoredCell:
        values = terms[engine] * (1.0 if adapter is None else 0.9)
        made = make_cell(
            values.tolist(),
            adapter=adapter,
            aggregation="perplexity",
            higher_is_better=False,
            value=float(np.exp(-values.mean())),
        )
        return replace(made, numerics=kinds[engine], subject=subject)

    baselines = [cell("fast", None, "base"), cell("slow", None, "base@hf")]
    adapters = [cell(name, name, f"base/{name}") for name in terms]
    for gain in compute_gains(baselines, adapters, settings=QUICK):
        assert gain.low is not None
        assert gain.high is not None
        assert gain.low < (gain.gain or 0) < gain.high < 0


def test_gains_do_not_depend_on_the_order_or_number_of_other_cells() -> None:
    rng = np.random.default_rng(1)
    baseline = make_cell(rng.normal(size=40).tolist())
    cells = [make_cell(rng.normal(0.2, 1, 40).tolist(), adapter=name, task="toy") for name in "abc"]
    forward = compute_gains([baseline], cells, settings=QUICK)
    backward = compute_gains([baseline], cells[::-1], settings=QUICK)[::-1]
    alone = compute_gains([baseline], cells[1:2], settings=QUICK)
    for one, other in zip(forward, backward, strict=True):
        assert one.p == other.p
        assert (one.low, one.high) == pytest.approx((other.low, other.high), rel=1e-12)
    assert alone[0].p == forward[1].p


# --- refusals ---------------------------------------------------------------------------------


def refused(baseline: ScoredCell, adapter: ScoredCell) -> Gain:
    (gain,) = compute_gains([baseline], [adapter], settings=QUICK)
    assert gain.verdict is Verdict.REFUSED
    assert (gain.gain, gain.low, gain.p, gain.p_corrected) == (None, None, None, None)
    return gain


def test_other_conditions_are_refused_but_both_values_are_shown() -> None:
    gpu = replace(HARDWARE, fingerprint="f2", device="GPU")
    adapter = replace(make_cell(bits(9, 5), adapter="a"), hardware=(gpu,))
    gain = refused(make_cell(bits(9, 3)), adapter)
    assert "hardware.device differs: 'CPU' against 'GPU'" in gain.reason
    assert (gain.baseline_value, gain.adapter_value) == (3 / 9, 5 / 9)


def test_mixed_hardware_is_flagged_where_it_is_allowed() -> None:
    gpu = replace(HARDWARE, fingerprint="f2", device="GPU")
    adapter = replace(make_cell(bits(60, 35), adapter="a"), hardware=(gpu,))
    settings = replace(QUICK, allow_mixed_hardware=True)
    (gain,) = compute_gains([make_cell(bits(60, 20))], [adapter], settings=settings)
    assert gain.verdict is Verdict.GAIN
    assert gain.reason == "mixed hardware: hardware.device is CPU against GPU"


def test_another_prompt_is_refused_by_document() -> None:
    changed = with_sample(make_cell(bits(9, 5), adapter="a"), 4, prompt_hash="x")
    assert "prompt_hash of document 4" in refused(make_cell(bits(9, 3)), changed).reason


def test_without_a_baseline_there_is_no_gain() -> None:
    adapter = make_cell(bits(9, 5), adapter="a")
    gain = refused(make_cell(bits(9, 5), task="other"), adapter)
    assert gain.reason == "no baseline: base alone has no result on toy"
    assert (gain.baseline_value, gain.adapter_value) == (None, 5 / 9)


def test_a_metric_that_one_side_lacks_is_refused() -> None:
    baseline, adapter = make_cell(bits(9, 5)), make_cell(bits(9, 5), adapter="a", metric="f1")
    gains = compute_gains([baseline], [adapter], settings=QUICK)
    assert [(gain.metric, gain.verdict) for gain in gains] == [
        ("acc", Verdict.REFUSED),
        ("f1", Verdict.REFUSED),
    ]


def test_a_refused_gain_does_not_enlarge_the_family() -> None:
    lone = make_cell(bits(60, 30), adapter="b", request_set="other")
    cells = [make_cell(bits(60, 30), adapter="a"), lone]
    gains = compute_gains([make_cell(bits(60, 20))], cells, settings=QUICK)
    assert [gain.family_size for gain in gains] == [1, 0]


# --- no interval ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "fields", "reason"),
    [
        ([["a"], ["b"]], {"aggregation": "custom", "value": 0.5}, "aggregated by 'custom'"),
        ([1.0, 0.0], {"aggregation": "bypass", "value": 999.0}, "aggregated by 'bypass'"),
        ([[True, False], [True]], {"value": 0.5}, "are no numbers"),
        ([1.0, 0.0], {"aggregation": "weighted_perplexity", "value": 2.0}, "no pairs of numbers"),
        ([1.0, 0.0], {"value": 0.75}, "give 0.5, lm-eval says 0.75"),
        ([[], []], {"aggregation": "other"}, "is null, no number"),
    ],
)
def test_what_cannot_be_resampled_has_a_gain_and_a_reason(
    values: list[Json], fields: dict[str, Any], reason: str
) -> None:
    gain = gain_of(values, values, **fields)
    assert gain.verdict is Verdict.INCONCLUSIVE
    assert gain.reason.startswith("no interval: ")
    assert reason in gain.reason
    assert gain.gain == (None if "value" not in fields else 0.0)
    assert (gain.low, gain.p, gain.family_size) == (None, None, 0)


def test_a_value_that_is_nan_is_no_gain() -> None:
    gain = gain_of([0.5, 1.0], [math.nan, 1.0])
    assert (gain.gain, gain.low, gain.p) == (None, None, None)
    assert gain.reason == "no interval: not finite"


def test_degenerate_data_are_named() -> None:
    assert gain_of([1.0], [0.0]).reason == "no interval: one document"
    assert gain_of([1.0, 0.0], [1.0, 0.0]).reason == "no interval: identical on every document"
    reason = gain_of([1.0, 0.0, 0.0], [1.0, 1.0, 0.0]).reason
    assert reason.startswith("one document differs; 3 documents are too few")


def test_an_aggregation_given_as_a_function_is_drawn_anew() -> None:
    rng = np.random.default_rng(2)
    before = rng.normal(size=25).tolist()
    after = (np.asarray(before) + rng.normal(1, 0.3, 25)).tolist()
    gain = gain_of(
        before,
        after,
        aggregation="median",
        value=float(np.median(before)),
        after_value=float(np.median(after)),
    )
    assert gain.verdict is Verdict.GAIN
    assert gain.method == "sampled swap test, percentile bootstrap"


def test_a_function_that_fails_is_a_reason_and_not_a_crash() -> None:
    def broken(values: list[Json]) -> float:
        raise ZeroDivisionError("no words")

    settings = replace(QUICK, aggregates={"bleu": broken})
    cells = [make_cell([["a"]], adapter=a, aggregation="bleu", value=1.0) for a in (None, "x")]
    (gain,) = compute_gains(cells[:1], cells[1:], settings=settings)
    assert "input that bleu takes: no words" in gain.reason


def test_a_function_that_would_take_too_long_is_left_out_with_its_size() -> None:
    settings = replace(QUICK, aggregates={"sum": sum}, aggregate_documents=3_000)
    cells = [make_cell([1.0] * 10, adapter=a, aggregation="sum", value=10.0) for a in (None, "x")]
    (gain,) = compute_gains(cells[:1], cells[1:], settings=settings)
    assert "enough draws of 1 adapters × 10 documents" in gain.reason


# --- what cannot be found, whatever its size ----------------------------------------------------


def test_of_a_few_documents_no_gain_is_called_detectable() -> None:
    before: list[Json] = [0.0, 0.0, 0.0, 0.0, 1.0]
    gain = gain_of(before, [1.0, 1.0, 0.0, 0.0, 1.0])
    assert gain.smallest_detectable_gain is None
    assert gain.documents_needed is not None
    assert gain.documents_needed >= 6
    assert gain.reason == "5 documents are too few to claim any gain: corrected p is 0.062 or more"


def test_of_a_few_draws_no_gain_is_called_detectable() -> None:
    rng = np.random.default_rng(1)
    before = rng.normal(0, 1, 40).tolist()
    cells = [make_cell(before)]
    adapters = [
        make_cell((np.asarray(before) + 9 + rng.normal(0, 1, 40)).tolist(), adapter=f"a{k}")
        for k in range(6)
    ]
    settings = GainSettings(resamples=99)
    gains = compute_gains(cells, adapters, settings=settings)
    assert {gain.correction for gain in gains} == {"Holm"}
    for gain in gains:
        assert gain.verdict is Verdict.INCONCLUSIVE
        assert gain.smallest_detectable_gain is gain.documents_needed is None
        assert gain.reason.startswith("99 draws are too few to claim any gain: corrected p is 0.06")


def test_a_margin_that_allows_everything_makes_nothing_equivalent() -> None:
    settings = replace(QUICK, margins={"acc": Margin(2.0)})
    cells = [make_cell(bits(60, 35)), make_cell(bits(60, 33), adapter="lora")]
    (gain,) = compute_gains(cells[:1], cells[1:], settings=settings)
    assert gain.verdict is Verdict.INCONCLUSIVE
    assert gain.p_equivalent is None
    assert "a margin of 2 allows everything" in gain.reason
