from io import StringIO

from rich.console import Console

from raypeft.core.status import Status, fold
from raypeft.core.why import explain_cells, find_cells
from raypeft.report.status import StatusDisplay, status_view, why_view
from tests.support.journals import Line, begins, line, runs, starts

C0, C1, C2 = ("c0c0c0c0", "c1c1c1c1", "c2c2c2c2")


def console(*, terminal: bool = False) -> Console:
    return Console(
        file=StringIO(), width=160, force_terminal=terminal, highlight=False, _environ={}
    )


def printed(out: Console) -> str:
    assert isinstance(out.file, StringIO)
    return out.file.getvalue()


def shown(status: Status, now: float) -> str:
    out = console()
    out.print(status_view(status, title="runs/night", now_seconds=now))
    return printed(out)


ANSWERED: list[Line] = [
    begins(0.0),
    *starts(0.0),
    runs(0.0, "u1", C1, C2),
    line(100.0, "unit_done", slot="slot-1", unit_id="u1", attempt=1),
    runs(100.0, "u0", C0),
]


def test_a_running_sweep_is_shown_with_slots_rest_and_failures() -> None:
    failed = line(101.0, "slot_failed", slot="slot-9", kind="load_failed", message="no weights")
    text = shown(fold([*ANSWERED, failed]), 160.0)
    for words in (
        "runs/night: running",
        "5 cells: 1 failed, 1 running, 3 waiting",
        "began 2m 40s ago; last heard of 59s ago",
        "about 4m 00s left at the pace so far (40% of this run's work is answered",
        "answers",
        "base on t, attempt 1",
        "node-7 H100",
        "load_failed",
        "no weights",
        "42 tensors are missing",
    ):
        assert words in text


def test_a_rest_that_is_not_known_is_not_guessed() -> None:
    text = shown(fold([begins(0.0), *starts(0.0), runs(1.0, "u0", C0)]), 50.0)
    assert "how long the rest takes is not known yet" in text


def test_an_ended_sweep_says_so_and_speaks_of_no_rest() -> None:
    text = shown(fold([*ANSWERED, line(200.0, "run_ends")]), 300.0)
    assert "runs/night: ended" in text
    assert "left" not in text


def test_names_and_messages_cannot_steer_the_terminal() -> None:
    hostile = "\x1b[2J[red]x\x07"
    cells = [["c0", hostile, "t", False]]
    lines = [begins(0.0, cells=cells, units=[], lost=[["s", "t", "spec", hostile]])]
    ended = {"kind": "crashed", "message": hostile, "attempts": 1, "reason": hostile}
    lines += [line(1.0, "give_up", cell="c0", **ended)]
    status = fold(lines)
    out = console()
    out.print(why_view(explain_cells(lines, find_cells(status, "t"), alive=True)))
    for text in (shown(status, 9.0), printed(out)):
        assert "\x1b" not in text
        assert "\x07" not in text
        assert "[red]x" in text


def test_a_pipe_gets_a_line_for_each_change_and_none_for_time_alone() -> None:
    out = console()
    with StatusDisplay(out, "night") as display:
        display.show(fold(ANSWERED[:5]), 50.0)
        display.show(fold(ANSWERED[:5]), 60.0)
        display.show(fold(ANSWERED), 110.0)
        display.show(fold([*ANSWERED, line(200.0, "run_ends")]), 201.0)
    lines = printed(out).splitlines()
    assert len(lines) == 3
    assert "2 running" in lines[0]
    assert "about" in lines[1]
    assert "ended" in lines[2]
    assert "\x1b" not in printed(out)


def test_a_terminal_is_drawn_anew() -> None:
    out = console(terminal=True)
    with StatusDisplay(out, "night") as display:
        display.show(fold(ANSWERED[:4]), 50.0)
        display.show(fold(ANSWERED), 110.0)
    assert "4 waiting" in printed(out)
    assert "1 running, 3 waiting" in printed(out)
    assert "\x1b[" in printed(out)
