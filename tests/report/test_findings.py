from dataclasses import replace

from raypeft.report.findings import FindingKind, findings
from raypeft.report.morning import Morning, summarise
from tests.support.gain_rows import failed_cell, gain_row, morning_of, result_row


def said(morning: Morning, kind: FindingKind) -> list[str]:
    return [finding.text for finding in findings(morning) if finding.kind is kind]


def test_the_adapter_that_gains_without_a_loss_is_to_be_shipped() -> None:
    morning = morning_of(
        [
            gain_row("mixed", "red", "gain", 0.3),
            gain_row("mixed", "blue", "loss", -0.2),
            gain_row("clean", "red", "gain", 0.2),
            gain_row("clean", "blue", "inconclusive", 0.01),
        ]
    )
    (text,) = said(morning, FindingKind.SHIP)
    assert text.startswith("Over base, ship clean: it gains on 1 of 2 tasks")
    assert "no loss was found" in text
    assert "+0.2 acc on red (+0.15 to +0.25, corrected p = 0.004)" in text
    (harm,) = said(morning, FindingKind.HARM)
    assert "mixed loses on 1 of 2: -0.2 acc on blue" in harm
    assert "it also gains on red" in harm


def test_what_an_adapter_costs_elsewhere_names_what_the_data_do_not_rule_out() -> None:
    morning = morning_of(
        [
            gain_row("one", "red", "gain", 0.2),
            gain_row("one", "blue", "inconclusive", 0.0),
            gain_row("one", "green", "equivalent", 0.001),
        ]
    )
    (text,) = said(morning, FindingKind.COST)
    assert "stay within the margin on green" in text
    assert "undecided on blue (its interval allows a loss of 0.05 on blue)" in text


def test_an_adapter_that_gains_everywhere_costs_nothing_that_was_measured() -> None:
    morning = morning_of([gain_row("one", task, "gain") for task in ("red", "blue")])
    (text,) = said(morning, FindingKind.COST)
    assert text == "What one costs elsewhere: nothing, it gains on everything that was measured."


def test_what_was_not_measured_is_named_and_stands_behind_what_was() -> None:
    gains = [
        gain_row("half", "red", "gain", 0.4),
        gain_row("whole", "red", "gain", 0.2),
        gain_row("whole", "blue", "inconclusive", 0.0),
    ]
    morning = morning_of(gains, [failed_cell("half", "blue")])
    (text,) = said(morning, FindingKind.SHIP)
    assert "ship whole" in text
    only = morning_of([gains[0], gain_row("half", "blue", "refused", None, reason="why")])
    (text,) = said(only, FindingKind.COST)
    assert "it is not known on blue" in text


def test_nothing_is_shipped_where_nothing_is_shown() -> None:
    (text,) = said(morning_of([gain_row("one", "red", "inconclusive", 0.04)]), FindingKind.SHIP)
    assert "No adapter of base is shown to gain anything" in text
    assert "Gains below 0.08 are easily missed even on red" in text


def test_a_gain_that_is_not_significant_after_correction_is_not_spoken_of() -> None:
    row = gain_row("one", "red", "inconclusive", 0.2, p=0.01, p_corrected=0.2)
    texts = [finding.text for finding in findings(morning_of([row]))]
    assert not any("Over base, ship" in text or "p = 0.01" in text for text in texts)


def test_where_every_adapter_loses_the_best_is_said_to_lose() -> None:
    morning = morning_of(
        [gain_row("bad", "red", "loss", -0.1), gain_row("worse", "red", "loss", -0.4)]
    )
    (text,) = said(morning, FindingKind.SHIP)
    assert "the best of them, bad, loses: -0.1 acc on red" in text


def test_adapters_are_ordered_by_the_shrunk_gain_which_is_said() -> None:
    morning = morning_of(
        [
            gain_row("lucky", "red", "gain", 0.4, shrunk_gain=0.1),
            gain_row("steady", "red", "gain", 0.3, shrunk_gain=0.25),
        ]
    )
    (text,) = said(morning, FindingKind.SHIP)
    assert "ship steady" in text
    assert "shrunk to +0.25" in text
    (text,) = said(morning, FindingKind.NEXT)
    assert "Next is lucky" in text
    assert "raypeft compare OUTPUT base/lucky base/steady" in text


def test_how_sure_says_the_correction_and_the_probability_of_being_best() -> None:
    row = gain_row("one", "red", "gain", correction="max-T", p_best=0.93)
    (text,) = said(morning_of([row]), FindingKind.SURE)
    assert "1 gain or loss among 1 comparison" in text
    assert "(max-T)" in text
    assert "at most 5%" in text
    assert "one is more likely than not the best of all on 1 of the 1 columns it gains on" in text


def test_where_lower_is_better_a_gain_is_said_to_be_one() -> None:
    row = gain_row("one", "red", "gain", -2.0, higher_is_better=False, metric="ppl")
    morning = morning_of([row], red={"higher_is_better": False, "metric": "ppl", "value": 10.0})
    (text,) = said(morning, FindingKind.SHIP)
    assert "-2 ppl on red (lower is better" in text
    assert "on average" not in text


def test_failures_and_refusals_are_named_each_subject_once() -> None:
    failures = [failed_cell(f"broken{i}", task) for i in range(5) for task in ("red", "blue")]
    refused = gain_row("odd", "red", "refused", None, reason="not comparable, engine differs")
    morning = morning_of([gain_row("one", "red", "gain"), refused], failures)
    texts = said(morning, FindingKind.FAILED)
    assert texts[0] == "base/broken0 failed on 2 tasks: does_not_fit."
    assert texts[-1].startswith("2 more subjects failed")
    assert len(texts) == 4
    (text,) = said(morning, FindingKind.REFUSED)
    assert "1 comparison with base refused: not comparable, engine differs." in text


def test_of_many_harmful_adapters_the_worst_are_named_and_the_rest_counted() -> None:
    gains = [
        gain_row(f"bad{i}", f"t{j}", "loss" if j <= i else "inconclusive", -0.2)
        for i in range(6)
        for j in range(6)
    ]
    texts = said(morning_of(gains), FindingKind.HARM)
    assert [text.split()[0] for text in texts[:3]] == ["bad5", "bad4", "bad3"]
    assert texts[3] == "2 more adapters of base lose somewhere."


def test_names_cannot_hide_or_move_anything_in_a_finding() -> None:
    morning = morning_of([gain_row("a\u202e\x1b[2J", "red\n", "gain")])
    for finding in findings(morning):
        assert finding.text.isprintable()


def test_an_unfinished_run_is_said_to_be_provisional() -> None:
    morning = morning_of(
        [gain_row("one", "red", "gain")], [failed_cell("two", "red", state="open")]
    )
    assert said(morning, FindingKind.OPEN)[0].startswith("1 of 1 cells have no result yet")


def test_where_one_task_was_measured_nothing_is_said_of_elsewhere() -> None:
    (text,) = said(morning_of([gain_row("one", "red", "gain")]), FindingKind.COST)
    assert text == "What one costs elsewhere was not measured: red is all there is."


def test_a_loss_under_another_metric_is_not_kept_back() -> None:
    first = [gain_row("one", task, "gain") for task in ("red", "blue")]
    other = gain_row("one", "red", "loss", -0.3, metric="acc_norm")
    morning = replace(morning_of(first), details=(*first, other))
    (text,) = said(morning, FindingKind.SHIP)
    assert "no loss was found under the first metric of each task." in text
    (text,) = said(morning, FindingKind.COST)
    assert "under another metric it loses -0.3 acc_norm on red" in text


def test_a_task_that_the_baseline_failed_on_is_not_known() -> None:
    gains = [
        gain_row("one", "red", "gain"),
        gain_row("one", "blue", "refused", None, reason="there is no baseline"),
    ]
    results = [result_row("red"), result_row("blue", subject="base/one", adapter="one")]
    (text,) = said(summarise(results, gains, []), FindingKind.COST)
    assert text == "What one costs elsewhere: it is not known on blue."


def test_a_loss_that_nothing_bounds_is_named() -> None:
    morning = morning_of(
        [
            gain_row("one", "red", "gain"),
            gain_row("one", "blue", "inconclusive", 0.0, low=None, high=None),
        ]
    )
    (text,) = said(morning, FindingKind.COST)
    assert "undecided on blue (nothing bounds a loss on blue)" in text


def test_the_first_of_equals_is_not_said_to_be_better() -> None:
    morning = morning_of([gain_row(name, "red", "gain") for name in ("one", "two")])
    (text,) = said(morning, FindingKind.NEXT)
    assert text.startswith("Level with it by its numbers is two")
    assert "That the first is better than it is not shown here" in text


def test_a_command_that_is_made_to_be_copied_runs_nothing_else() -> None:
    morning = morning_of([gain_row(name, "red", "gain") for name in ("one", "a; rm -rf ~")])
    (text,) = said(morning, FindingKind.NEXT)
    assert "OUTPUT 'base/a; rm -rf ~' base/one`" in text


def test_a_small_level_is_not_rounded_to_nothing() -> None:
    (text,) = said(morning_of([gain_row("one", "red", "gain", alpha=0.001)]), FindingKind.SURE)
    assert "a chance of at most 0.1%" in text
