import pytest

from raypeft.core.status import CellState, RunPhase, SlotDoes, Status, fold
from raypeft.core.why import explain_cells, find_cells
from tests.support.journals import Line, begins, line, runs, starts

C0, C1, C2, C3 = ("c0c0c0c0", "c1c1c1c1", "c2c2c2c2", "c3c3c3c3")


def cell(status: Status, name: str) -> tuple[CellState, str]:
    (found,) = (one for one in status.cells if one.name == name)
    return found.state, found.why


def test_nothing_has_run_where_there_is_no_journal() -> None:
    assert fold([]).phase is RunPhase.NEVER_RUN


def test_a_run_begins_with_cells_that_wait_and_cells_that_cannot_be() -> None:
    status = fold([begins(5.0)])
    assert (status.phase, status.runs, status.began_seconds) == (RunPhase.RUNNING, 1, 5.0)
    assert cell(status, "base/t") == (CellState.WAITING, "waits for a slot")
    assert cell(status, "base/bad/t") == (
        CellState.FAILED,
        "does_not_fit: 42 tensors are missing",
    )
    assert [one.num_units for one in status.cells] == [1, 1, 2, 1, 0]
    assert status.work_seconds == 100.0


def test_what_a_slot_does_and_since_when() -> None:
    lines = [begins(), line(1.0, "start_slot", slot="slot-1", base="base", reason="r")]
    placing = fold(lines).slots["slot-1"]
    assert (placing.does, placing.since_seconds) == (SlotDoes.PLACING, 1.0)
    lines += [line(2.0, "slot_placed", slot="slot-1")]
    assert fold(lines).slots["slot-1"].does is SlotDoes.LOADING
    lines += [line(3.0, "slot_ready", slot="slot-1", node="n", device="H100"), runs(4.0, "u0", C0)]
    slot = fold(lines).slots["slot-1"]
    assert (slot.does, slot.since_seconds, slot.unit) == (SlotDoes.ANSWERING, 4.0, "u0")
    assert (slot.subject, slot.task, slot.node, slot.device) == ("base", "t", "n", "H100")
    lines += [line(5.0, "unit_done", slot="slot-1", unit_id="u0", attempt=1)]
    slot = fold(lines).slots["slot-1"]
    assert (slot.does, slot.since_seconds, slot.unit) == (SlotDoes.IDLE, 5.0, "")
    lines += [line(6.0, "stop_slot", slot="slot-1", reason="nothing is left")]
    assert fold(lines).slots == {}


def test_a_cell_goes_through_answering_and_scoring_to_its_end() -> None:
    lines: list[Line] = [begins(), *starts(0.0)]
    seen = []
    for event in (
        runs(1.0, "u0", C0),
        line(2.0, "unit_done", slot="slot-1", unit_id="u0", attempt=1),
        line(3.0, "score_cell", cell=C0, attempt=1, reason="r"),
        line(4.0, "cell_scored", cell=C0, attempt=1),
    ):
        lines.append(event)
        seen.append(cell(fold(lines), "base/t"))
    assert seen == [
        (CellState.RUNNING, "in slot-1, attempt 1"),
        (CellState.WAITING, "is answered and waits to be scored"),
        (CellState.SCORING, "attempt 1"),
        (CellState.DONE, ""),
    ]


def test_a_cell_of_several_units_says_how_many_are_answered() -> None:
    lines = [begins(), *starts(0.0), runs(1.0, "u1", C1, C2)]
    lines += [line(2.0, "unit_done", slot="slot-1", unit_id="u1", attempt=1)]
    status = fold(lines)
    assert cell(status, "base/a/t") == (CellState.WAITING, "is answered and waits to be scored")
    assert cell(status, "base/b/t") == (CellState.WAITING, "1 of 2 units are answered")


def test_a_failed_attempt_is_told_and_what_it_was_about() -> None:
    lines = [begins(), *starts(0.0), runs(1.0, "u1", C1, C2)]
    failed = {"slot": "slot-1", "unit_id": "u1", "attempt": 1}
    lines += [line(2.0, "unit_failed", **failed, kind="out_of_memory", message="no room")]
    status = fold(lines)
    assert cell(status, "base/a/t")[1] == "its last attempt ended with out_of_memory: no room"
    (note,) = status.failures
    assert (note.at_seconds, note.kind, note.message) == (2.0, "out_of_memory", "no room")
    assert note.what == "base/a/t and 1 more"


def test_one_cell_of_a_unit_may_fail_alone() -> None:
    lines = [begins(), *starts(0.0), runs(1.0, "u1", C1, C2)]
    done = {"slot": "slot-1", "unit_id": "u1", "attempt": 1}
    lines += [line(2.0, "unit_done", **done, failed={C1: "not_finite: NaN: in layer 3"})]
    status = fold(lines)
    assert cell(status, "base/a/t")[1] == "its last attempt ended with not_finite: NaN: in layer 3"
    assert cell(status, "base/b/t")[1] == "1 of 2 units are answered"
    assert status.work_done_seconds == 20.0
    (note,) = status.failures
    assert (note.what, note.kind, note.message) == ("base/a/t", "not_finite", "NaN: in layer 3")


def test_a_lost_slot_takes_its_unit_along_and_is_a_failure() -> None:
    lines = [begins(), *starts(0.0), runs(1.0, "u0", C0)]
    lines += [line(2.0, "slot_lost", slot="slot-1", kind="slot_lost", message="node died")]
    status = fold(lines)
    assert status.slots == {}
    assert cell(status, "base/t") == (CellState.WAITING, "its slot slot-1 ended: node died")
    (note,) = status.failures
    assert note.what == "slot-1 of base base"


def test_a_slot_that_is_stopped_at_work_is_a_failure_and_one_that_is_idle_is_none() -> None:
    slow = line(9.0, "stop_slot", slot="slot-1", reason="ran longer than 8 seconds")
    status = fold([begins(), *starts(0.0), runs(1.0, "u0", C0), slow])
    (note,) = status.failures
    assert (note.what, note.kind) == ("base/t", "stopped_at_work")
    assert cell(status, "base/t")[1] == "its slot slot-1 ended: ran longer than 8 seconds"
    assert not fold([begins(), *starts(0.0), slow]).failures


def test_a_late_answer_of_an_attempt_that_was_ended_counts_for_nothing() -> None:
    lines = [begins(), *starts(0.0), runs(1.0, "u0", C0)]
    lines += [line(9.0, "stop_slot", slot="slot-1", reason="too slow")]
    lines += [*starts(10.0, "slot-2"), runs(10.0, "u0", C0, slot="slot-2", attempt=2)]
    lines += [line(11.0, "unit_done", slot="slot-1", unit_id="u0", attempt=1)]
    status = fold(lines)
    assert cell(status, "base/t") == (CellState.RUNNING, "in slot-2, attempt 2")
    assert status.work_done_seconds == 0.0


def test_only_the_last_failures_are_kept() -> None:
    lines = [begins(), *starts(0.0)]
    for number in range(50):
        lines.append(runs(number, "u0", C0, attempt=number + 1))
        failed = {"slot": "slot-1", "unit_id": "u0", "attempt": number + 1}
        lines.append(line(number, "unit_failed", **failed, kind="crashed", message=str(number)))
    notes = fold(lines).failures
    assert (len(notes), notes[-1].message) == (20, "49")


def test_what_is_given_up_or_left_out_says_why() -> None:
    lines = [begins()]
    lines += [line(1.0, "give_up", cell=C0, kind="timed_out", message="slow", attempts=3)]
    lines += [line(1.0, "leave_out", cell=C3, reason="the deadline is in 3 minutes")]
    status = fold(lines)
    assert cell(status, "base/t") == (CellState.FAILED, "timed_out: slow")
    assert cell(status, "base/b/u") == (CellState.LEFT_OUT, "the deadline is in 3 minutes")


def test_who_is_stopped_early_is_not_left_out_by_a_deadline() -> None:
    lines = [begins(), *starts(0.0), line(1.0, "cell_hopeless", cell=C2, reason="no gain")]
    lines += [line(1.0, "leave_out", cell=C2, reason="no gain; 1 of 2 shards are answered")]
    # Hopeless only when it was answered whole, or not counted: time was over.
    lines += [line(2.0, "cell_hopeless", cell=C3, reason="no gain")]
    lines += [line(3.0, "leave_out", cell=C3, reason="the deadline is in 3 minutes; nothing of it")]
    status = fold(lines)
    early = (CellState.STOPPED_EARLY, "no gain; 1 of 2 shards are answered")
    assert cell(status, "base/b/t") == early
    assert cell(status, "base/b/u")[0] is CellState.LEFT_OUT
    (found,) = explain_cells(lines, find_cells(status, "base/b/t"), alive=True)
    assert found.now == f"was stopped early: {early[1]}"
    assert "is found hopeless: no gain" in [one.text for one in found.history]


@pytest.mark.parametrize("failed", [{}, {"failed": {C2: "not_finite: NaN"}}])
def test_a_unit_that_comes_back_later_brings_no_ended_cell_back(failed: dict[str, object]) -> None:
    lines = [begins(), *starts(0.0), runs(0.0, "u1", C1, C2)]
    lines += [line(1.0, "cell_hopeless", cell=C2, reason="no gain")]
    lines += [line(1.0, "leave_out", cell=C2, reason="no gain; nothing of it is answered")]
    done = {"slot": "slot-1", "unit_id": "u1", "attempt": 1}
    status = fold([*lines, line(2.0, "unit_done", **done, **failed)])
    assert cell(status, "base/b/t")[0] is CellState.STOPPED_EARLY
    assert cell(status, "base/a/t") == (CellState.WAITING, "is answered and waits to be scored")
    assert status.work_done_seconds == 20.0 + 20.0 + 20.0  # dropped with it, and the rest of u1


def test_who_was_stopped_in_an_earlier_run_waits_for_nothing() -> None:
    status = fold([begins(stopped={C3: "no gain; nothing of it is answered"})])
    expected = (CellState.STOPPED_EARLY, "no gain; nothing of it is answered")
    assert cell(status, "base/b/u") == expected
    assert cell(status, "base/b/t")[0] is CellState.WAITING
    status.kill()
    assert cell(status, "base/b/u") == expected
    assert cell(fold([begins(stopped={C3: "x"}), begins(9.0)]), "base/b/u")[0] is CellState.WAITING


def test_a_run_that_plans_anew_is_the_same_run_with_other_cells() -> None:
    lines = [begins(5.0), *starts(6.0), runs(7.0, "u0", C0)]
    lines += [line(8.0, "slot_lost", slot="slot-1", kind="slot_lost", message="node died")]
    again = begins(9.0, cells=[[C0, "base", "t", False]], units=[["u7", 1000, 10.0, [0]]], lost=[])
    lines += [Line(9.0, "run_plans_anew", again.fields)]
    status = fold(lines)
    assert (status.phase, status.runs, status.began_seconds) == (RunPhase.RUNNING, 1, 5.0)
    assert [one.name for one in status.cells] == ["base/t"]
    assert (status.work_seconds, status.work_done_seconds, len(status.failures)) == (10.0, 0.0, 1)
    (found,) = explain_cells([*lines, runs(9.0, "u7", C0)], status.cells, alive=True)
    assert [one.text for one in found.history][-2:] == [
        "the run plans anew",
        "attempt 1 at unit u7 in slot-1: the longest that waits",
    ]


def test_the_rest_takes_as_long_as_the_pace_says() -> None:
    lines = [begins(), *starts(100.0), runs(200.0, "u1", C1, C2)]
    assert fold(lines).remaining_seconds(300.0) is None  # nothing is answered yet
    lines += [line(300.0, "unit_done", slot="slot-1", unit_id="u1", attempt=1)]
    status = fold(lines)
    assert status.work_done_seconds == 40.0
    # 40 of 100 in 100 s since the first unit began; loading before it says nothing about pace.
    assert status.remaining_seconds(300.0) == pytest.approx(150.0)
    # While nothing comes the pace falls.
    assert status.remaining_seconds(400.0) == pytest.approx(300.0)
    assert fold([*lines, line(301.0, "run_ends")]).remaining_seconds(301.0) is None


def test_work_that_is_given_up_is_no_work_left() -> None:
    lines = [begins(), *starts(0.0), runs(0.0, "u0", C0)]
    lines += [line(10.0, "unit_done", slot="slot-1", unit_id="u0", attempt=1)]
    lines += [line(10.0, "give_up", cell=C2, kind="crashed", message="x", attempts=3)]
    status = fold(lines)
    assert status.work_done_seconds == 10.0 + 20.0 + 20.0  # its half of u1, and u2
    lines += [runs(11.0, "u1", C1), line(12.0, "unit_done", slot="slot-1", unit_id="u1", attempt=1)]
    assert fold(lines).work_done_seconds == 70.0


def test_halves_stand_for_the_unit_that_was_split() -> None:
    lines = [begins(), *starts(0.0)]
    lines += [line(1.0, "split_unit", unit_id="u1", into=["h0", "h1"], reason="to find it")]
    lines += [runs(2.0, "h1", C2)]
    lines += [line(3.0, "unit_done", slot="slot-1", unit_id="h1", attempt=1)]
    status = fold(lines)
    assert status.work_done_seconds == 20.0
    assert cell(status, "base/b/t")[1] == "1 of 2 units are answered"


def test_a_second_run_starts_afresh() -> None:
    first = [begins(), *starts(0.0), runs(1.0, "u0", C0)]
    status = fold([*first, begins(50.0)])
    assert (status.runs, status.began_seconds, status.slots) == (2, 50.0, {})
    assert cell(status, "base/t") == (CellState.WAITING, "waits for a slot")


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_run_that_was_cut_short_runs_nothing(how: str) -> None:
    lines = [begins(), *starts(0.0), runs(1.0, "u0", C0)]
    if how == "stopped":
        lines += [line(2.0, "stop_requested", reason="SIGTERM")]
    status = fold(lines)
    if how == "killed":
        status.kill()
    assert status.phase == how
    assert status.slots == {}
    assert cell(status, "base/t")[0] is CellState.WAITING
    assert how in cell(status, "base/t")[1]


def test_journals_without_units_and_lines_of_the_future_are_read() -> None:
    old = begins()
    fields = {name: value for name, value in old.fields.items() if name != "units"}
    lines = [Line(0.0, "run_begins", fields), *starts(0.0), line(1.0, "moon_rises", moon=1)]
    lines += [runs(1.0, "u9", C0)]
    lines += [line(2.0, "unit_done", slot="slot-1", unit_id="u9", attempt=1)]
    status = fold(lines)
    assert cell(status, "base/t")[1] == "is answered and waits to be scored"
    assert status.remaining_seconds(9.0) is None
