"""A Ray cluster of several nodes on this machine, in a process of its own, to be broken.

`python -m tests.chaos.hosts` is the process: it starts a head without GPUs, takes commands as
JSON lines, and ends all it has started when its input ends. `Hosts` is how tests speak to it.
Nothing of it can be reached from elsewhere: it listens on loopback and wants a token.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
GPUS = 2
"""Of each worker node; nobody looks whether they are there."""

# A killed node is noticed within two seconds and one that hangs within seven, which is right on a
# machine where nobody waits for anything else. They belong to the head, and so to its environment.
_HEALTH_CHECK = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
_ANSWER = "@"
_STORE_BYTES = 80 * 2**20


@dataclass(frozen=True)
class Host:
    """One worker node.

    Attributes:
        id: Ray's.
        raylet: The process on which all others of the node hang.
        options: What it was started with.
    """

    id: str
    raylet: int
    options: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def slots(self) -> list[psutil.Process]:
        """Return the processes of its slots."""
        try:
            family = psutil.Process(self.raylet).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return [one for one in family if is_slot(one)]


def is_slot(process: psutil.Process) -> bool:
    try:
        return process.name().startswith("ray::SlotActor") or any(
            "ray::SlotActor" in word for word in process.cmdline()[:1]
        )
    except psutil.Error:
        return False


class Hosts:
    """A cluster, seen from a test.

    Args:
        environment: Of all its processes.
        temp: Folder for what Ray writes.
    """

    def __init__(self, environment: Mapping[str, str], temp: Path) -> None:
        self.environment = dict(environment)
        self._log = (temp / "hosts.log").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.hosts", str(temp)],
            cwd=ROOT,
            env={**environment, **_HEALTH_CHECK},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
        )
        self.workers: list[Host] = []
        self._gone: list[Host] = []
        self.address = str(self._hear()["address"])

    def add(self, **options: Any) -> Host:
        """Start a worker node."""
        told = self._ask({"do": "add", "options": {"num_cpus": 4, "num_gpus": GPUS, **options}})
        host = Host(told["id"], told["raylet"], options)
        self.workers.append(host)
        return host

    def drain(self, host: Host) -> None:
        """Let Ray say that a node will go away, as a spot notice does; it stays until `have`."""
        assert self._ask({"do": "drain", "id": host.id})["accepted"]
        self._leave(host)

    def kill(self, host: Host) -> None:
        """Kill a node's raylet, and see to it that it is not left half dead."""
        os.kill(host.raylet, signal.SIGKILL)
        self._ask({"do": "reap", "id": host.id})
        for hosts in (self.workers, self._gone):
            if host in hosts:
                hosts.remove(host)

    def hang(self, host: Host) -> None:
        """Stop a node's raylet: its slots work on while the cluster takes it for dead."""
        os.kill(host.raylet, signal.SIGSTOP)
        self._leave(host)

    def have(self, *wanted: Mapping[str, Any]) -> None:
        """Let there be exactly these workers: end others, and those that hang or drain."""
        missing = list(wanted)
        for host in (*self._gone, *self.workers):
            if host in self.workers and host.options in missing:
                missing.remove(host.options)
            else:
                self.kill(host)
        for options in missing:
            self.add(**options)

    def busy(self, random: Random) -> psutil.Process | None:
        """Return the process of some slot; None if there is none at this moment."""
        found = [slot for host in self.workers for slot in host.slots()]
        return random.choice(sorted(found, key=lambda one: one.pid)) if found else None

    def close(self) -> None:
        """End every process."""
        family = psutil.Process(self._process.pid).children(recursive=True)
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        self._process.kill()
        self._process.wait()
        psutil.wait_procs(family, timeout=60)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._log.close()

    def _leave(self, host: Host) -> None:
        self.workers.remove(host)
        self._gone.append(host)

    def _ask(self, command: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        self._process.stdin.flush()
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(_ANSWER.encode()):
                told: dict[str, Any] = json.loads(line[1:])
                return told
        raise AssertionError(f"the hosts ended; see {self._log.name}")


@contextmanager
def started_hosts() -> Iterator[Hosts]:
    """Give a head without workers; ends it with all its processes."""
    temp = Path(tempfile.mkdtemp(prefix="rc-", dir="/tmp"))  # short: sockets lie below it
    (temp / "ray").mkdir()
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("RAY_", "PYTEST"))}
    environment = {
        **kept,
        "HOME": str(temp),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_TMPDIR": str(temp),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
    }
    try:
        hosts = Hosts(environment, temp)
        try:
            yield hosts
        finally:
            hosts.close()
    finally:
        shutil.rmtree(temp, ignore_errors=True)


# --- the process ------------------------------------------------------------------------------


def _say(told: Mapping[str, Any]) -> None:
    print(_ANSWER + json.dumps(told), flush=True)


def main() -> None:
    import ray._raylet
    from ray.cluster_utils import Cluster
    from ray.core.generated import autoscaler_pb2

    common = {"node_ip_address": "127.0.0.1", "object_store_memory": _STORE_BYTES}
    head = {"num_cpus": 4, "num_gpus": 0, "include_dashboard": False, **common}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    gcs = ray._raylet.GcsClient(address=cluster.address)
    preemption = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    nodes: dict[str, Any] = {}
    _say({"address": cluster.address})
    for line in sys.stdin:
        command = json.loads(line)
        match command["do"]:
            case "add":
                node = cluster.add_node(**common, **command["options"])
                nodes[node.node_id] = node
                raylet = node.all_processes["raylet"][0].process
                _say({"id": node.node_id, "raylet": raylet.pid})
            case "drain":
                accepted, _ = gcs.drain_node(command["id"], preemption, "spot notice", 600_000)
                _say({"accepted": accepted})
            case "reap":
                # A zombie counts as alive for its workers, which then go on for ever.
                nodes[command["id"]].all_processes["raylet"][0].process.wait()
                _say({})


if __name__ == "__main__":
    main()
