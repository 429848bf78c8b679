import asyncio
import gc
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.job_submission import JobStatus

from raypeft.errors import SetupError
from raypeft.runtime import submit
from raypeft.runtime.submit import JobServer, SeenLog, find_address, find_token, token_warning

pytestmark = pytest.mark.ray


def test_the_address_that_is_given_wins() -> None:
    variables = {"RAY_API_SERVER_ADDRESS": "http://a:8265", "RAY_ADDRESS": "http://b:8265"}
    assert find_address("https://c/ray/", variables) == "https://c/ray"
    assert find_address(None, variables) == "http://a:8265"
    del variables["RAY_API_SERVER_ADDRESS"]
    assert find_address(None, variables) == "http://b:8265"


@pytest.mark.parametrize("given", [None, "head:6379", "ray://head:10001", "http://"])
def test_what_is_no_job_server_is_refused_with_an_example(given: str | None) -> None:
    with pytest.raises(SetupError, match="8265"):
        find_address(given, {})


def test_the_token_is_sought_where_ray_seeks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("home\n")
    (tmp_path / "named").write_text("named\n")
    variables = {"RAY_AUTH_TOKEN": "given", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "named")}
    assert find_token(variables) == "given"
    del variables["RAY_AUTH_TOKEN"]
    assert find_token(variables) == "named"
    assert find_token({}) == "home"
    (tmp_path / ".ray" / "auth_token").unlink()
    assert find_token({}) is None


def test_a_token_that_is_wanted_and_not_there_is_an_error_before_anything_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SetupError, match="there is no token"):
        find_token({"RAY_AUTH_MODE": "token"})
    with pytest.raises(SetupError, match="cannot be read"):
        find_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "nowhere")})


def test_a_way_that_is_not_safe_is_said() -> None:
    assert "in clear" in token_warning("http://head:8265", "t")
    assert token_warning("http://127.0.0.1:8265", "t") == ""
    assert token_warning("https://head", "t") == ""
    assert "anybody's" in token_warning("http://127.0.0.1:8265", None)


def test_a_log_that_broke_off_goes_on_where_it_stopped() -> None:
    parts: list[str] = []
    log = SeenLog(parts.append)
    log.begin()
    log.pass_on("one\ntw")
    for again in (["one\n", "two\nth"], ["one\ntwo\nthree\n"], ["one\n", "two\nthree\n"]):
        log.begin()
        for part in again:
            log.pass_on(part)
    assert "".join(parts) == "one\ntwo\nthree\n"
    assert log.num_chars == len("one\ntwo\nthree\n")
    assert all(parts)


def test_a_server_out_of_reach_is_refused_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(SetupError, match="cannot be reached"):
            JobServer(address, None)


class Away:
    """A cluster's job client that cannot be reached for a while."""

    def __init__(self, *_: object, **__: object) -> None:
        self.answers = iter(["away", "RUNNING", "away", "SUCCEEDED", "SUCCEEDED"])

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        yield "one\n"

    def get_job_info(self, job: str) -> SimpleNamespace:
        status = next(self.answers)
        if status == "away":
            raise ConnectionError("the head is away")
        known = {"RUNNING": JobStatus.RUNNING, "SUCCEEDED": JobStatus.SUCCEEDED}[status]
        return SimpleNamespace(status=known, driver_exit_code=0, message="")

    def get_job_logs(self, job: str) -> str:
        return "one\ntwo\n"


@pytest.fixture
def follow(monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[str, str]]:
    """Follow a job of a cluster that is away now and then; gives its status and its log."""
    monkeypatch.setattr(submit, "JobSubmissionClient", Away)
    monkeypatch.setattr(submit, "_check_reachable", lambda address: None)
    monkeypatch.setattr(submit, "PAUSE_SECONDS", 0.0)

    def followed() -> tuple[str, str]:
        parts: list[str] = []
        end = JobServer("http://127.0.0.1:8265", "t").follow("night-1", parts.append)
        return end.status, "".join(parts)

    return followed


def test_a_job_is_followed_on_when_its_cluster_was_away(
    follow: Callable[[], tuple[str, str]],
) -> None:
    assert follow() == ("SUCCEEDED", "one\ntwo\n")


def test_a_job_is_followed_from_a_notebook_whose_thread_has_a_loop(
    follow: Callable[[], tuple[str, str]], recwarn: pytest.WarningsRecorder
) -> None:
    async def cell() -> tuple[str, str]:
        return follow()

    assert asyncio.run(cell()) == ("SUCCEEDED", "one\ntwo\n")
    gc.collect()
    assert not [str(warning.message) for warning in recwarn]


def test_an_interrupt_in_a_notebook_ends_following(
    follow: Callable[[], tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []
    main = threading.main_thread().ident
    assert main is not None

    async def endless(self: Away, job: str) -> AsyncIterator[str]:
        try:
            yield "one\n"
            signal.pthread_kill(main, signal.SIGINT)
            await asyncio.Event().wait()
        finally:
            ended.append(job)

    monkeypatch.setattr(Away, "tail_job_logs", endless)

    async def cell() -> tuple[str, str]:
        return follow()

    # A shell that starts tests in the background has them ignore interrupts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with closing(asyncio.new_event_loop()) as loop, pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(cell())
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended == ["night-1"]
