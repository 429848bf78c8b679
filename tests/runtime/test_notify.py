import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from raypeft.runtime.notify import tell

HOSTILE = "$(touch pwned); `touch pwned`\n\x1b[2J'\"; rm -rf /"
MESSAGE = {"sweep": HOSTILE, "num_failed": 2}


class Hook(HTTPServer):
    """A webhook on loopback that keeps what it is sent."""

    def __init__(self, status: int) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.status = status
        self.received: list[tuple[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/told?secret=hunter2"


class Receiver(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.headers["Content-Type"], json.loads(body)))
        self.send_response(self.server.status)
        if self.server.status == 302:
            self.send_header("Location", "http://192.0.2.1/elsewhere")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def hook(request: pytest.FixtureRequest) -> Iterator[Hook]:
    server = Hook(getattr(request, "param", 200))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_webhook_gets_the_message_as_json(hook: Hook) -> None:
    assert tell(MESSAGE, webhook=hook.url) == []
    assert hook.received == [("application/json", MESSAGE)]


def test_a_webhook_may_stand_in_a_variable(hook: Hook) -> None:
    assert tell(MESSAGE, webhook="env:HOOK", environment={"HOOK": hook.url}) == []
    assert len(hook.received) == 1
    (failure,) = tell(MESSAGE, webhook="env:HOOK", environment={})
    assert failure == "notify.webhook (env:HOOK): the variable HOOK is not set"


@pytest.mark.parametrize("hook", [500, 302], indirect=True)
def test_a_webhook_that_refuses_or_sends_elsewhere_is_a_failure_in_words(hook: Hook) -> None:
    (failure,) = tell(MESSAGE, webhook=hook.url)
    assert failure.startswith(f"notify.webhook answered with {hook.status}")
    assert "hunter2" not in failure


def test_a_webhook_out_of_reach_is_a_failure_that_keeps_its_secret() -> None:
    (failure,) = tell(MESSAGE, webhook="http://127.0.0.1:1/hunter2")
    assert failure == "notify.webhook could not be reached: URLError"
    (failure,) = tell(MESSAGE, webhook="env:HOOK", environment={"HOOK": "file:///etc/passwd"})
    assert "no http or https URL" in failure


def test_a_command_gets_the_message_on_its_standard_input_and_no_shell_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "told.py"
    script.write_text(
        "import sys\nopen('got', 'w').write(sys.stdin.read())\nopen('args', 'w').write(sys.argv[1])"
    )
    assert tell(MESSAGE, command=[sys.executable, str(script), HOSTILE]) == []
    assert json.loads((tmp_path / "got").read_text()) == MESSAGE
    assert (tmp_path / "args").read_text() == HOSTILE
    assert not (tmp_path / "pwned").exists()


def test_a_command_that_fails_is_a_failure_with_what_it_said() -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no mail today')"]
    (failure,) = tell(MESSAGE, command=command)
    assert failure.endswith("left with 1: no mail today")


def test_a_command_that_is_not_there_and_one_that_reads_nothing() -> None:
    (failure,) = tell(MESSAGE, command=["/nowhere/tell"])
    assert failure.startswith("notify.command '/nowhere/tell' could not be run")
    large = {"text": "x" * 1_000_000}
    assert tell(large, command=[sys.executable, "-c", "pass"]) == []


def test_both_are_told_whatever_becomes_of_one(hook: Hook) -> None:
    failures = tell(MESSAGE, command=["/nowhere/tell"], webhook=hook.url)
    assert len(failures) == 1
    assert len(hook.received) == 1


def test_nobody_is_told_where_nobody_is_named() -> None:
    assert tell(MESSAGE) == []
