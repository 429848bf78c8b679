from raypeft.core.status import fold
from raypeft.core.why import Explanation, explain_cells, find_cells
from tests.support.journals import Line, begins, line, runs, starts

C0, C1, C2 = ("c0c0c0c0", "c1c1c1c1", "c2c2c2c2")


def why(lines: list[Line], name: str, *, alive: bool = True) -> Explanation:
    (found,) = explain_cells(lines, find_cells(fold(lines), name), alive=alive)
    return found


def test_a_cell_is_found_by_its_name_its_subject_its_task_and_its_key() -> None:
    status = fold([begins()])
    names = {
        name: [cell.name for cell in find_cells(status, name)]
        for name in ("base/a/t", "base/b", "u", "c1c1c1", "c1", "nothing")
    }
    assert names == {
        "base/a/t": ["base/a/t"],
        "base/b": ["base/b/t", "base/b/u"],
        "u": ["base/b/u"],
        "c1c1c1": ["base/a/t"],
        "c1": [],
        "nothing": [],
    }


def test_a_cell_that_waits_says_for_what() -> None:
    lines = [begins(), *starts(0.0), runs(1.0, "u0", C0)]
    lines += [line(1.0, "start_slot", slot="slot-2", base="other", reason="r")]
    assert why(lines, "base/a/t").now == (
        "waits: waits for a slot; slots of its base: 1 answer other units; "
        "1 slots are on other bases"
    )
    assert why([begins()], "base/a/t").now == (
        "waits: waits for a slot; no slot has its base; 0 slots are on other bases"
    )


def test_a_history_has_every_attempt_and_its_end_and_nothing_of_others() -> None:
    failed = {"slot": "slot-1", "unit_id": "u1", "attempt": 1}
    lines = [begins(0.0), *starts(0.0), runs(1.0, "u1", C1, C2)]
    lines += [line(2.0, "unit_failed", **failed, kind="crashed", message="boom")]
    lines += [line(2.0, "split_unit", unit_id="u1", into=["h0", "h1"], reason="to find it")]
    lines += [runs(3.0, "h0", C1), line(4.0, "unit_done", slot="slot-1", unit_id="h0", attempt=1)]
    lines += [runs(5.0, "u0", C0), line(5.0, "slot_lost", slot="slot-1", kind="k", message="m")]
    lines += [line(6.0, "score_cell", cell=C1, attempt=1, reason="it is answered")]
    lines += [line(7.0, "cell_scored", cell=C1, attempt=1)]
    found = why(lines, "base/a/t")
    assert found.now == "is done"
    assert [(item.at_seconds, item.text) for item in found.history] == [
        (0.0, "a run begins"),
        (1.0, "attempt 1 at unit u1 in slot-1: the longest that waits"),
        (2.0, "unit u1 failed as a whole, crashed: boom"),
        (2.0, "unit u1 is halved: to find it"),
        (3.0, "attempt 1 at unit h0 in slot-1: the longest that waits"),
        (4.0, "unit h0 is answered"),
        (6.0, "scoring begins, attempt 1: it is answered"),
        (7.0, "is scored"),
    ]


def test_a_lost_slot_stands_in_the_history_of_what_it_was_at() -> None:
    lines = [begins(0.0), *starts(0.0), runs(1.0, "u0", C0)]
    lines += [line(2.0, "slot_lost", slot="slot-1", kind="slot_lost", message="node died")]
    lines += [*starts(3.0, "slot-2"), runs(4.0, "u0", C0, slot="slot-2", attempt=2)]
    lines += [line(5.0, "stop_slot", slot="slot-2", reason="ran longer than 60 seconds")]
    texts = [item.text for item in why(lines, "base/t").history]
    assert "its slot slot-1 is lost, slot_lost: node died" in texts
    assert "its slot slot-2 is stopped: ran longer than 60 seconds" in texts


def test_a_failed_cell_says_why_there_is_no_further_try() -> None:
    reason = {"kind": "timed_out", "message": "slow", "attempts": 3, "reason": "3 of 3 attempts"}
    lines = [begins(0.0), line(9.0, "give_up", cell=C0, **reason)]
    found = why(lines, "base/t")
    assert found.now == "failed: timed_out: slow"
    assert found.history[-1].text == (
        "is given up after 3 attempts: 3 of 3 attempts; the last ended with timed_out: slow"
    )


def test_a_cell_that_could_never_run_has_a_reason_and_no_history() -> None:
    found = why([begins()], "base/bad/t")
    assert (found.now, found.history) == ("failed: does_not_fit: 42 tensors are missing", ())


def test_a_cell_of_a_run_that_died_waits_for_the_next_one() -> None:
    lines = [begins(0.0), *starts(0.0), runs(1.0, "u0", C0)]
    assert why(lines, "base/t").now == "runs in slot-1, attempt 1"
    assert why(lines, "base/t", alive=False).now == (
        "waits for the next run; the last one is killed: the run was killed; start it again"
    )


def test_the_history_reaches_back_over_runs() -> None:
    lines = [begins(0.0), *starts(0.0), runs(1.0, "u0", C0), begins(50.0)]
    times = [item.at_seconds for item in why(lines, "base/t").history]
    assert times == [0.0, 1.0, 50.0]
