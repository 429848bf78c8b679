"""A sweep as a job of a Ray cluster: handed over, followed, and what became of it.

Talks to the cluster by Ray's own job client. Decides: how the cluster is reached and with which
token, that one output has one job at a time, and what is said when the cluster refuses. The
token goes into the header of a request and nowhere else: whoever may look at a cluster can read
the entrypoint, the environment and the metadata of its jobs. What travels is
`raypeft.api.packing`'s business.
"""

import asyncio
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray.exceptions
from ray.job_submission import JobSubmissionClient

from raypeft.errors import SetupError

ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Where the address is taken from if none is given. Ray's client prefers them to what it is told,
so they are hidden from it."""

TOKEN_FILE = Path("~/.ray/auth_token")
"""Where Ray itself looks last."""

REACH_SECONDS = 10.0
PAUSE_SECONDS = 1.0
"""Between two questions about a job whose log broke off."""
MAX_BREAKS = 30
"""So often in a row the log may break off before following it is given up."""

_ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})

_TALKATIVE = ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk")
"""Loggers of Ray's client, which comment on every upload and every end of a log."""

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """What a cluster is given.

    Attributes:
        entrypoint: The command.
        package: The archive that becomes the command's working directory.
        modules: Folders of Python packages that travel beside it.
        variables: Environment of the command; no secrets.
        metadata: What `ray job list` shows beside it.
    """

    entrypoint: str
    package: Path
    modules: tuple[Path, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnd:
    """What became of a job.

    Attributes:
        status: Ray's word for it: `SUCCEEDED`, `FAILED` or `STOPPED`.
        exit_code: Of its command; None if it did not get to one.
        message: What Ray says about it.
    """

    status: str
    exit_code: int | None
    message: str


def find_address(given: str | None, environment: Mapping[str, str] = os.environ) -> str:
    """Return the address of a cluster's job server.

    Args:
        given: On the command line; None takes `RAY_API_SERVER_ADDRESS`, else `RAY_ADDRESS`.
        environment: Where those are looked up.

    Raises:
        SetupError: If there is none, or it is not that of a job server.
    """
    found = [given, *(environment.get(name) for name in ADDRESS_VARIABLES)]
    address = next((text for text in found if text), None)
    remedy = "give that of the dashboard, for instance --address http://127.0.0.1:8265"
    if address is None:
        raise SetupError(f"no cluster is named, nor does {ADDRESS_VARIABLES[0]} name one", remedy)
    parts = urlsplit(address)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise SetupError(f"jobs cannot be submitted to {address!r}", remedy)
    return address.rstrip("/")


def find_token(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the cluster's token as Ray would find it; None if there is none.

    Raises:
        SetupError: If it cannot be read, or Ray was told to use one and there is none.
    """
    if token := environment.get("RAY_AUTH_TOKEN", "").strip():
        return token
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else TOKEN_FILE.expanduser()
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        if named:
            raise SetupError(
                f"the token in {named} (RAY_AUTH_TOKEN_PATH) cannot be read: {error}",
                "name a file that holds the cluster's token",
            ) from error
        token = ""
    if not token and environment.get("RAY_AUTH_MODE") == "token":
        raise SetupError("RAY_AUTH_MODE is `token`, and there is no token", _TOKEN_REMEDY)
    return token or None


_TOKEN_REMEDY = (
    "give the cluster's in RAY_AUTH_TOKEN, or name the file that holds it in RAY_AUTH_TOKEN_PATH"
)


class JobServer:
    """A cluster that takes jobs.

    Args:
        address: From `find_address`.
        token: From `find_token`.

    Raises:
        SetupError: If it cannot be reached, or refuses the token.
    """

    def __init__(self, address: str, token: str | None) -> None:
        self.address = address
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        _check_reachable(address)
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        with self._refusals(), _hidden(ADDRESS_VARIABLES):
            self._client = JobSubmissionClient(address, headers=headers)

    def running(self, prefix: str) -> str | None:
        """Return the id of the job that runs or waits under a prefix; None if none does."""
        for job, status in self._jobs(prefix).items():
            if status not in _ENDED:
                return job
        return None

    def submit(self, prefix: str, handover: Handover) -> str:
        """Hand a job over and return its id, the prefix and the next free number.

        Raises:
            SetupError: If a job of the prefix is not over, or the cluster refuses.
        """
        if (running := self.running(prefix)) is not None:
            raise _running_already(running, self.address)
        numbers = [int(job.rpartition("-")[2]) for job in self._jobs(prefix)]
        job = f"{prefix}-{max(numbers, default=0) + 1}"
        runtime_env: dict[str, Any] = {
            "working_dir": str(handover.package),
            "env_vars": dict(handover.variables),
        }
        if handover.modules:
            runtime_env["py_modules"] = [str(path) for path in handover.modules]
            runtime_env["excludes"] = ["__pycache__"]
        try:
            with self._refusals():
                self._client.submit_job(
                    entrypoint=handover.entrypoint,
                    submission_id=job,
                    runtime_env=runtime_env,
                    metadata=dict(handover.metadata),
                )
        except SetupError:
            # Ids are given once: somebody else may have taken this one a moment ago.
            if (running := self.running(prefix)) is not None:
                raise _running_already(running, self.address) from None
            raise
        return job

    def follow(self, job: str, write: Callable[[str], None]) -> JobEnd:
        """Pass a job's log on until it ends, and return what became of it.

        Args:
            job: Its id.
            write: Given the log part by part, newlines included.

        Raises:
            SetupError: If the log cannot be had any more; the job goes on.
        """
        seen, breaks = SeenLog(write), 0
        while True:
            before = seen.num_chars
            error: Exception | None = None
            try:
                _run(self._tail(job, seen))
            except Exception as caught:  # noqa: BLE001 - a log that breaks off is asked for again
                error = caught
            ends = False
            try:
                with self._refusals():
                    ends = self._client.get_job_info(job).status in _ENDED
            except SetupError as refused:  # the head, or the way to it, may be away for a while
                error = refused
            if ends:
                return self._ended(job, seen)
            breaks = 0 if seen.num_chars > before else breaks + 1
            if breaks > MAX_BREAKS:
                raise SetupError(
                    f"the log of {job} cannot be followed any more: {error}",
                    f"the job goes on; {follow_hint(job, self.address)}",
                )
            time.sleep(PAUSE_SECONDS)

    def _ended(self, job: str, seen: "SeenLog") -> JobEnd:
        """Pass on what of the log came after its last part, which Ray may still be writing."""
        with self._refusals():
            log, last = self._client.get_job_logs(job), None
            while log != last:
                time.sleep(PAUSE_SECONDS)
                log, last = self._client.get_job_logs(job), log
            info = self._client.get_job_info(job)
        seen.begin()
        seen.pass_on(log)
        return JobEnd(
            status=str(info.status.value),
            exit_code=info.driver_exit_code,
            message=info.message or "",
        )

    async def _tail(self, job: str, seen: "SeenLog") -> None:
        """Pass on the parts of a job's log as they come, from its beginning."""
        seen.begin()
        async for part in self._client.tail_job_logs(job):
            seen.pass_on(part)

    def _jobs(self, prefix: str) -> dict[str, str]:
        with self._refusals():
            jobs = self._client.list_jobs()
        found = {}
        for job in jobs:
            name, _, number = (job.submission_id or "").rpartition("-")
            if name == prefix and number.isdecimal():
                found[job.submission_id] = str(job.status.value)
        return found

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Say what the cluster refuses, and what to do about it."""
        try:
            yield
        except ray.exceptions.AuthenticationError as error:
            why = "wants a token" if "required" in str(error) else "refuses the token"
            raise SetupError(f"the cluster at {self.address} {why}", _TOKEN_REMEDY) from error
        except (RuntimeError, ValueError, ConnectionError) as error:
            raise SetupError(f"the cluster at {self.address} refused: {error}") from error
        except OSError as error:  # what `requests` raises
            raise _out_of_reach(self.address, error) from error


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end, also where the thread has a loop that runs, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    loop, ended, raised = asyncio.new_event_loop(), threading.Event(), list[BaseException]()
    task = loop.create_task(work)

    def in_its_thread() -> None:
        try:
            with closing(loop):
                try:
                    loop.run_until_complete(task)
                finally:
                    loop.run_until_complete(loop.shutdown_asyncgens())
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            raised.append(error)
        ended.set()

    try:
        threading.Thread(target=in_its_thread, name="log of a job", daemon=True).start()
        ended.wait()
    except BaseException:
        # An interrupt comes to this thread, at any point of it, and the other one has to end too.
        with suppress(RuntimeError):  # over in this very moment
            loop.call_soon_threadsafe(task.cancel)
        ended.wait(REACH_SECONDS)
        raise
    if raised:
        raise raised[0]


class SeenLog:
    """Passes a log on that begins anew whenever it broke off, every character once.

    Args:
        write: Given what is new.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._skip = 0
        self.num_chars = 0

    def begin(self) -> None:
        """Expect the log from its beginning."""
        self._skip = self.num_chars

    def pass_on(self, part: str) -> None:
        """Take the next part of the log."""
        fresh, self._skip = part[self._skip :], max(0, self._skip - len(part))
        self.num_chars += len(fresh)
        if fresh:
            self._write(fresh)


def token_warning(address: str, token: str | None) -> str:
    """Return what to know about how safe this way to the cluster is; empty if nothing."""
    parts = urlsplit(address)
    if token and parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        return (
            f"the token travels in clear to {parts.hostname}: prefer https, or an SSH tunnel to "
            "the head's 127.0.0.1:8265"
        )
    if not token:
        return f"no token is given: if {address} takes jobs all the same, it takes anybody's"
    return ""


def follow_hint(job: str, address: str) -> str:
    """Return how a job is followed and stopped, for a message."""
    return (
        f"follow it with `ray job logs --follow {job} --address {address}`, stop it with "
        f"`ray job stop {job} --address {address}`"
    )


def _running_already(job: str, address: str) -> SetupError:
    return SetupError(
        f"this sweep's output has a job already, {job}, which is not over",
        follow_hint(job, address),
    )


def _check_reachable(address: str) -> None:
    """Refuse an address at which nothing listens; requests alone would wait without an end."""
    parts = urlsplit(address)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((str(parts.hostname), port), REACH_SECONDS).close()
    except OSError as error:
        raise _out_of_reach(address, error) from error


def _out_of_reach(address: str, error: Exception) -> SetupError:
    return SetupError(
        f"the cluster at {address} cannot be reached: {error}",
        "check the address, that the cluster is up, and the tunnel to its dashboard's port",
    )


@contextmanager
def _hidden(names: tuple[str, ...]) -> Iterator[None]:
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)
