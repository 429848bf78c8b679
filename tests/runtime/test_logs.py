import json
import logging
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from raypeft.core.records import SubjectAnswers, UnitAnswers
from raypeft.errors import SetupError
from raypeft.runtime.logs import (
    SWITCH,
    CellLog,
    JsonLines,
    about,
    begin_in_slot,
    json_logs,
    log_words,
    logged_to,
)
from tests.support.journals import Line, begins, line, runs, starts
from tests.support.plans import HARDWARE, make_plan

C0, C1, C2 = ("c0c0c0c0", "c1c1c1c1", "c2c2c2c2")


def logged(*lines: Line) -> list[dict[str, Any]]:
    stream, log = StringIO(), CellLog("night")
    with json_logs(stream):
        for one in lines:
            log.noted({"event": one.kind, **one.fields})
    return read(stream.getvalue())


def read(text: str) -> list[dict[str, Any]]:
    return [json.loads(one) for one in text.splitlines()]


def test_every_line_about_a_unit_names_it_and_its_cells() -> None:
    done = {"slot": "slot-1", "unit_id": "u1", "attempt": 1}
    begun, *_, running, ended, scored = logged(
        begins(),
        *starts(0.0),
        runs(1.0, "u1", C1, C2),
        line(2.0, "unit_done", **done),
        line(3.0, "cell_scored", cell=C1, attempt=1),
    )
    assert (begun["event"], begun["num_cells"], begun["num_lost"]) == ("run_begins", 4, 1)
    for found in (running, ended):
        assert found["unit_id"] == "u1"
        assert found["cells"] == [C1, C2]
        assert found["names"] == ["base/a/t", "base/b/t"]
    assert (scored["cells"], scored["names"]) == ([C1], ["base/a/t"])
    assert {one["sweep"] for one in (begun, running, ended, scored)} == {"night"}
    assert running["message"] == "run unit"
    assert running["logger"] == "raypeft.cells"
    assert running["time"].endswith("+00:00")


def test_stored_answers_are_logged_with_tokens_and_place() -> None:
    unit = make_plan(adapters=1).units[0]
    subjects = tuple(SubjectAnswers(subject=name, tokens=5) for name in unit.subjects)
    stream = StringIO()
    with json_logs(stream):
        CellLog("night").answered(
            unit, UnitAnswers(subjects=subjects, hardware=HARDWARE, seconds=1.5)
        )
    (found,) = read(stream.getvalue())
    assert (found["unit_id"], found["cells"]) == (unit.id, list(unit.cells))
    assert (found["tokens"], found["seconds"]) == (5 * len(subjects), 1.5)


def test_what_a_library_logs_while_a_unit_runs_carries_its_id() -> None:
    stream = StringIO()
    library = logging.getLogger("some.library")
    with json_logs(stream):
        with about(unit_id="u7", subjects=["base/a"]):
            library.warning("slow %s", "disk")
        library.warning("afterwards")
        try:
            raise ValueError("boom\nsecond line")
        except ValueError:
            library.exception("failed")
    inside, outside, failed = read(stream.getvalue())
    assert (inside["unit_id"], inside["subjects"]) == ("u7", ["base/a"])
    assert (inside["message"], inside["level"]) == ("slow disk", "warning")
    assert "unit_id" not in outside
    assert "boom" in failed["traceback"]


def test_after_the_block_everything_is_as_before() -> None:
    before = logging.getLogger().handlers[:]
    stream = StringIO()
    with json_logs(stream):
        pass
    logging.getLogger("raypeft.cells").warning("not there")
    assert stream.getvalue() == ""
    assert logging.getLogger().handlers == before


def test_a_file_is_appended_to_and_slots_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    path = tmp_path / "log.jsonl"
    path.write_text('{"message": "older"}\n')
    import os

    with logged_to(str(path)):
        assert os.environ[SWITCH] == "1"
        log_words("connecting to Ray")
    assert SWITCH not in os.environ
    assert [one["message"] for one in read(path.read_text())] == ["older", "connecting to Ray"]


def test_standard_error_is_a_place_too(capsys: pytest.CaptureFixture[str]) -> None:
    with logged_to("-"):
        log_words("hello\x1b[2J")
    assert [one["message"] for one in read(capsys.readouterr().err)] == ["hello\x1b[2J"]


def test_a_file_that_cannot_be_opened_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with (
        pytest.raises(SetupError, match=r"cannot be opened.*--log-json"),
        logged_to(str(tmp_path / "no" / "log")),
    ):
        pass


def test_a_slot_logs_so_only_if_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", root.handlers[:])
    monkeypatch.setattr(logging.getLogger("raypeft.cells"), "level", logging.NOTSET)
    stream = StringIO()
    monkeypatch.setattr(sys, "stderr", stream)

    def ours() -> list[logging.Handler]:
        return [one for one in root.handlers if isinstance(one.formatter, JsonLines)]

    begin_in_slot({})
    assert ours() == []
    begin_in_slot({SWITCH: "1"})
    begin_in_slot({SWITCH: "1"})  # the next slot of the same process
    assert len(ours()) == 1
    with about(unit_id="u1"):
        logging.getLogger("some.library").warning("hm")
    (found,) = read(stream.getvalue())
    assert (found["unit_id"], found["message"]) == ("u1", "hm")
