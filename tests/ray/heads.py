"""A head of a Ray cluster on loopback, with its own folder, ports and token, for tests of jobs.

Its processes are ended one by one by their ids: `ray stop` would end every Ray of the machine.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
TOKEN = "f" * 64
READY_SECONDS = 120


@dataclass(frozen=True)
class Head:
    """A head that takes jobs.

    Attributes:
        address: Of its job server.
        gcs_port: Where drivers on this machine join.
        metrics_port: Where its node offers metrics.
        process: What it hangs on.
        environment: Of whoever may submit to it.
    """

    address: str
    gcs_port: int
    metrics_port: int
    process: "subprocess.Popen[bytes]"
    environment: Mapping[str, str]

    @property
    def without_token(self) -> dict[str, str]:
        """The environment of somebody who does not know the token."""
        return {name: v for name, v in self.environment.items() if "RAY_AUTH" not in name}

    def family(self) -> list[psutil.Process]:
        """Return the processes of the head, those of its jobs among them."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def driver(self) -> psutil.Process:
        """Return the driver of the job that runs."""
        (found,) = (one for one in self.family() if is_driver(one))
        return found


def is_driver(process: psutil.Process) -> bool:
    """Whether a process is `raypeft run`, and not the shell that started it."""
    try:
        words = process.cmdline()
    except psutil.NoSuchProcess:
        return False
    return "raypeft" in " ".join(words) and "run" in words and "python" in Path(words[0]).name


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def started_head(num_cpus: int = 4) -> Iterator[Head]:
    """Start a head, and end all its processes when the block ends."""
    folder = Path(tempfile.mkdtemp(prefix="rh-", dir="/tmp"))  # short: sockets lie below it
    gcs, dashboard, agent, grpc, client, metrics = _free_ports(6)
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("RAY_", "PYTEST"))}
    environment = {
        **kept,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    options = {
        "port": gcs,
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": agent,
        "dashboard-agent-grpc-port": grpc,
        "ray-client-server-port": client,
        "metrics-export-port": metrics,
        "num-cpus": num_cpus,
        "num-gpus": 0,
        "object-store-memory": 100 * 2**20,
    }
    ray = Path(sys.executable).parent / "ray"
    command = [str(ray), "start", "--head", "--block", "--disable-usage-stats"]
    command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"]
    command += ["--include-dashboard=true", f"--temp-dir={folder}"]
    command += [f"--{name}={value}" for name, value in options.items()]
    with (folder / "head.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, cwd=folder, start_new_session=True
        )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        _wait_until_ready(address, process, folder)
        yield Head(address, gcs, metrics, process, environment)
    finally:
        _end(process)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_ready(address: str, process: "subprocess.Popen[bytes]", folder: Path) -> None:
    request = urllib.request.Request(
        f"{address}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"}
    )
    for _ in range(READY_SECONDS * 4):
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except OSError:
            pass
        try:
            process.wait(timeout=0.25)
        except subprocess.TimeoutExpired:
            continue
        break
    raise AssertionError((folder / "head.log").read_text(errors="replace"))


def _end(process: "subprocess.Popen[bytes]") -> None:
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(True)]
    except psutil.NoSuchProcess:
        return
    for one in family:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
    psutil.wait_procs(family, timeout=60)
