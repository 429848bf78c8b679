"""Two sweeps on one cluster."""

from pathlib import Path

import pytest

from raypeft.core.spec import Sweep
from tests.chaos.conftest import StartNight

pytestmark = [pytest.mark.ray, pytest.mark.torch, pytest.mark.slow]


@pytest.mark.usefixtures("hosts")
def test_a_sweep_that_comes_later_is_given_its_share_and_both_end_right(
    start_night: StartNight, calm: Sweep, tmp_path: Path
) -> None:
    early = start_night(script={"waits": True, "seconds": 4.0}, schedule={"slots": 4, "shards": 5})
    assert early.wait_for("run_unit", 4), early.said()  # every GPU there is
    late = start_night(
        output=str(tmp_path / "late-run"),
        store=str(tmp_path / "late-store"),
        schedule={"slots": 3, "shards": 5, "priority": 2},
        starts=False,
    )
    late.folder = tmp_path / "late"
    late.start()
    assert late.end() == 0, late.said()
    assert early.count("run_ends") == 0, "the second sweep only began when the first had ended"
    assert early.end() == 0, early.said()
    given = [str(one.fields["reason"]) for one in early.entries() if one.kind == "stop_slot"]
    assert any("late-run (priority 2) waits for hardware" in reason for reason in given), given
    early.check(calm)
    late.check(calm)
