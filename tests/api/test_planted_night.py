"""A whole night of 32 adapters × 12 tasks with planted effects: what its report says of them."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from raypeft import api
from raypeft.report.terminal import print_report
from tests.support.planted import Night, judge, write_night

pytestmark = [pytest.mark.torch, pytest.mark.slow]

NIGHT = Night(documents=100, effect=0.42)


def test_a_night_of_planted_effects_is_reported_as_it_was_planted(tmp_path: Path) -> None:
    sweep = write_night(tmp_path, NIGHT)
    run = api.run(sweep, pool="local")
    assert (run.num_done, run.failed) == (12 * 33, {})
    effects = NIGHT.effects()
    gains = api.open(sweep.output).gains.to_pylist()
    verdicts = judge(gains, effects)
    assert verdicts.missed == []
    # The chance of any false one is at most 5 %, and this night is always the same.
    assert verdicts.false == []
    assert {adapter for adapter, _ in verdicts.too_small} == {"adapter-30"}
    assert len(verdicts.found) == len(effects) - len(verdicts.too_small) == 25
    # Those without an effect do differ from the base, both ways: there was something to resist.
    null = [row["gain"] for row in gains if (row["adapter"], row["task"]) not in effects]
    assert min(null) < -0.05
    assert max(null) > 0.05

    morning = api.report(sweep.output)
    screen = StringIO()
    print_report(morning, Console(file=screen, width=160), title="planted")
    # Two tasks are gained on and none lost: these are in front, those that cost behind them.
    costly = {adapter for adapter, size in ((a, s) for (a, _), s in effects.items()) if size < 0}
    (ship,) = [line for line in screen.getvalue().splitlines() if "ship" in line]
    best = ship.split("ship ")[1].split(":")[0]
    assert best in {adapter for adapter, _ in effects} - costly
    page = Path(api.html_report(sweep.output))
    assert best in page.read_text(encoding="utf-8")
