import json
import signal
import sys
from pathlib import Path

import pytest

from raypeft import api
from raypeft.errors import Interrupted, SetupError, SpecError
from raypeft.store.lease import read_lease
from tests.support.lab import MakeSweep

pytestmark = pytest.mark.torch

FAKE = {"kind": "fake"}


def telling(path: Path) -> dict[str, list[str]]:
    code = "import sys; open(sys.argv[1], 'w').write(sys.stdin.read())"
    return {"command": [sys.executable, "-c", code, str(path)]}


def test_a_night_that_is_over_is_told_with_its_counts(
    make_lab_sweep: MakeSweep, tmp_path: Path
) -> None:
    told = tmp_path / "told.json"
    sweep = make_lab_sweep(
        engine=FAKE, notify=telling(told), tasks=["tiny_letters", "no_such_task"]
    )
    api.run(sweep, pool="local")
    message = json.loads(told.read_text())
    assert message["state"] == "finished with failed cells"
    assert (message["num_cells"], message["num_done"], message["num_failed"]) == (6, 3, 3)
    assert message["failed"][0]["task"] == "no_such_task"
    assert message["output"] == sweep.output
    api.run(make_lab_sweep(engine=FAKE, notify=telling(told), tasks=["tiny_letters"]), pool="local")
    message = json.loads(told.read_text())
    assert (message["state"], message["num_reused"], message["failed"]) == ("finished", 3, [])


def test_a_night_that_its_deadline_ended_is_not_told_as_finished(
    make_lab_sweep: MakeSweep, tmp_path: Path
) -> None:
    told = tmp_path / "told.json"
    short = {"deadline": "0.001s"}
    api.run(make_lab_sweep(engine=FAKE, notify=telling(told), schedule=short), pool="local")
    message = json.loads(told.read_text())
    assert message["state"] == "ended by its deadline with open cells"
    assert (message["num_done"], message["num_failed"], message["num_left_out"]) == (0, 0, 9)


def test_a_night_that_could_not_begin_is_told_too(
    make_lab_sweep: MakeSweep, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    told = tmp_path / "told.json"
    sweep = make_lab_sweep(engine=FAKE, notify=telling(told), output=str(tmp_path / "file" / "run"))
    with pytest.raises(SetupError):
        api.run(sweep, pool="local")
    assert json.loads(told.read_text())["state"] == "error"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_night_that_is_interrupted_before_its_loop_is_told(
    make_lab_sweep: MakeSweep, tmp_path: Path, number: signal.Signals
) -> None:
    told = tmp_path / "told.json"
    # Of this task something is said while the sweep is planned.
    sweep = make_lab_sweep(engine=FAKE, notify=telling(told), tasks=["tiny_letters", "no_such"])

    def say(text: str) -> None:
        if text.startswith("a task cannot be evaluated"):
            signal.raise_signal(number)

    with pytest.raises(Interrupted):
        api.run(sweep, pool="local", listener=api.Listener(say=say))
    message = json.loads(told.read_text())
    assert (message["state"], message["message"]) == ("interrupted", number.name)
    assert not Path(sweep.output, "journal").exists()
    assert read_lease(sweep.output) is None


def test_a_message_that_cannot_be_delivered_fails_nothing_and_is_said(
    make_lab_sweep: MakeSweep,
) -> None:
    said: list[str] = []
    sweep = make_lab_sweep(
        engine=FAKE, tasks=["tiny_letters"], notify={"command": ["/nowhere/tell"]}
    )
    report = api.run(sweep, pool="local", listener=api.Listener(say=said.append))
    assert report.failed == {}
    assert said[-1].startswith("nobody was told: notify.command '/nowhere/tell'")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x", "hooks", "env:not a name", ""])
def test_a_webhook_that_is_none_is_refused_in_the_sweep_file(
    make_lab_sweep: MakeSweep, url: str
) -> None:
    with pytest.raises(SpecError, match=r"notify\.webhook"):
        make_lab_sweep(notify={"webhook": url})
