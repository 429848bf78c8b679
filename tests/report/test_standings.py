from typing import Any

import pytest

from raypeft.report.morning import Morning
from raypeft.report.standings import (
    Standing,
    Tier,
    adapters_without_results,
    averaged_columns,
    standings,
    worst_bound,
)
from tests.support.gain_rows import failed_cell, gain_row, morning_of


def ranked(morning: Morning) -> list[Standing]:
    (report,) = morning.bases
    return list(standings(report, adapters_without_results(morning, "base")))


def test_adapters_stand_by_what_may_be_said_and_then_by_their_mean_gain() -> None:
    verdicts = {
        "loser": ("loss", "inconclusive"),
        "mixed": ("gain", "loss"),
        "small": ("gain", "inconclusive"),
        "large": ("gain", "gain"),
        "idle": ("inconclusive", "inconclusive"),
    }
    sizes = {"gain": 0.2, "loss": -0.2, "inconclusive": 0.0}
    gains = [
        gain_row(name, task, verdict, sizes[verdict])
        for name, both in verdicts.items()
        for task, verdict in zip(("red", "blue"), both, strict=True)
    ]
    found = ranked(morning_of(gains, [failed_cell("broken", "red")]))
    assert [one.adapter for one in found] == ["large", "small", "mixed", "idle", "loser", "broken"]
    assert [one.place for one in found] == [1, 2, 3, 4, 5, 6]
    assert found[-1].tier is Tier.NO_RESULTS
    assert found[0].mean_gain == pytest.approx(0.2)


def test_a_group_that_was_asked_for_counts_once_and_not_by_its_tasks() -> None:
    gains = [
        *(gain_row("one", f"part{i}", "gain", 0.4) for i in range(9)),
        gain_row("one", "whole", "gain", 0.4, is_group=True),
        gain_row("one", "alone", "inconclusive", 0.0),
    ]
    entries: dict[str, Any] = {f"part{i}": {"entry": "whole"} for i in range(9)}
    (report,) = morning_of(gains, (), **entries).bases
    assert {column.task for column in averaged_columns(report)} == {"whole", "alone"}
    (one,) = standings(report)
    assert one.mean_gain == pytest.approx(0.2)


def test_metrics_of_other_units_are_not_averaged() -> None:
    gains = [
        gain_row("one", "red", "gain", 0.2),
        gain_row("one", "text", "gain", -3.0, higher_is_better=False, metric="ppl"),
    ]
    text = {"metric": "ppl", "value": 12.0, "higher_is_better": False}
    (one,) = ranked(morning_of(gains, text=text))
    assert one.mean_gain == pytest.approx(0.2)
    assert len(one.gains) == 2


def test_a_mean_is_not_taken_over_a_task_that_is_missing() -> None:
    gains = [
        gain_row("half", "red", "gain", 0.9),
        gain_row("whole", "red", "gain", 0.1),
        gain_row("whole", "blue", "gain", 0.1),
    ]
    first, second = ranked(morning_of(gains))
    assert (first.adapter, second.adapter) == ("whole", "half")
    assert second.mean_gain is None
    assert [column.task for column in second.missing] == ["blue"]


def test_the_worst_bound_is_the_upper_end_where_lower_is_better() -> None:
    assert worst_bound(gain_row("one", "red", "gain", 0.1)) == pytest.approx(0.05)
    row = gain_row("one", "red", "gain", 0.1, higher_is_better=False)
    assert worst_bound(row) == pytest.approx(-0.15)
    assert worst_bound(gain_row("one", "red", "refused", None)) is None
