"""Reaches a cluster, or starts a Ray on this machine that nobody else can reach."""

import logging
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray
import ray._private.ray_constants
import ray.exceptions

import raypeft
from raypeft.errors import SetupError

MIB = 2**20
REACH_SECONDS = 10.0
"""A head that takes longer to accept a connection is down, or no head."""
_LOOPBACK = ("127.", "localhost", "[::1]", "::1")


@dataclass(slots=True)
class RayConnection:
    """A connection of this process to a Ray.

    Attributes:
        address: Of its head.
        is_local: Whether it listens on loopback only.
        is_ours: Whether closing this ends it.
        can_grow: Whether nodes may join it; a Ray that was started here is one node.
    """

    address: str
    is_local: bool
    is_ours: bool
    can_grow: bool = False

    def __enter__(self) -> "RayConnection":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect; ends a Ray that was started for this connection."""
        if self.is_ours:
            self.is_ours = False
            ray.shutdown()


def connect(
    address: str | None = None,
    *,
    num_cpus: int | None = None,
    num_gpus: int | None = None,
    object_store_mib: int = 512,
) -> RayConnection:
    """Connect to a cluster, or start a Ray on this machine that nobody else can reach.

    Args:
        address: The cluster's, or `local`; None takes `RAY_ADDRESS`, which is set inside a Ray
            job, and starts a local Ray if there is none.
        num_cpus: Of a local Ray; None counts the machine's.
        num_gpus: Of a local Ray; None counts the machine's.
        object_store_mib: Of a local Ray. Request sets and answers pass through it, which are
            small; what does not fit goes to the disk.

    Raises:
        SetupError: If the cluster cannot be reached, the local Ray would be reachable, or this
            process is connected to another one.
    """
    if ray.is_initialized():
        return _present(address)
    address = address or os.environ.get("RAY_ADDRESS")
    if address and address != "local":
        return _join(address)
    with _environment(_local_environment()), _loopback_only():
        ray.init(
            "local",
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            object_store_memory=object_store_mib * MIB,
            include_dashboard=False,
            namespace="raypeft",
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    connection = _connection(is_ours=True)
    if not connection.is_local:
        connection.close()
        raise SetupError(
            f"Ray listens on {connection.address}, where others can reach it",
            "set RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0, which keeps Ray on loopback, or give the "
            "address of a cluster",
        )
    return connection


def cluster_has_gpus() -> bool:
    """Whether any node of the connected Ray has a GPU."""
    return any(node["Resources"].get("GPU", 0) > 0 for node in ray.nodes() if node["Alive"])


def _present(address: str | None) -> RayConnection:
    """Return the connection that this process has, if it is the one asked for."""
    connection = _connection(is_ours=False)
    if address not in (None, "auto", "local", connection.address):
        raise SetupError(
            f"this process is connected to Ray at {connection.address}, not {address}",
            "end that connection first (ray.shutdown), or give no address",
        )
    return connection


def _join(address: str) -> RayConnection:
    _check_reachable(address)
    try:
        ray.init(address, namespace="raypeft", log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise _out_of_reach(address, error) from error
    return _connection(is_ours=True, can_grow=True)


def _check_reachable(address: str) -> None:
    """Refuse an address at which nothing listens: Ray would try it for a quarter of an hour."""
    if address.startswith("ray://"):
        raise SetupError(
            f"{address!r} is the address of a Ray client's server, through which slots cannot "
            "be driven",
            "run on the cluster itself (`ray job submit`), or give the head's address (host:6379)",
        )
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise SetupError(
            f"the address {address!r} is not HOST:PORT", "for instance 10.0.0.1:6379, or auto"
        )
    if host.startswith(_LOOPBACK):
        # Ray replaces it by this machine's address.
        host = ray.util.get_node_ip_address()
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS).close()
    except OSError as error:
        raise _out_of_reach(address, error) from error


def _out_of_reach(address: str, error: Exception) -> SetupError:
    return SetupError(
        f"the Ray cluster at {address!r} cannot be reached: {error}",
        "check the address (--address or RAY_ADDRESS), that the cluster is up, and its token "
        "(RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH)",
    )


def _connection(*, is_ours: bool, can_grow: bool = False) -> RayConnection:
    address = str(ray.get_runtime_context().gcs_address)
    return RayConnection(address, address.startswith(_LOOPBACK), is_ours, can_grow)


def _local_environment() -> dict[str, str | None]:
    """Return what must be set while a local Ray starts, for its processes to inherit."""
    # Drivers run from a checkout too, and its modules must be found by the workers.
    paths = [str(Path(raypeft.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    # Stays in this process and its children: other users cannot read it, and nothing is
    # written into the home. Kept for the life of the process, since Ray caches it.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    return {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        # None of them set, Ray turns token authentication on for a Ray it starts, and notices
        # that even if it was imported long before.
        "RAY_AUTH_MODE": None,
        "RAY_AUTH_TOKEN_PATH": None,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray ends idle processes beyond one for each core; the next call would import lm-eval anew.
        "RAY_num_workers_soft_limit": "16",
    }


@contextmanager
def _environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    """Set (or, for None, unset) variables, and put them back."""
    before = {name: os.environ.get(name) for name in changes}

    def put(variables: Mapping[str, str | None]) -> None:
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    put(changes)
    try:
        yield
    finally:
        put(before)


@contextmanager
def _loopback_only() -> Iterator[None]:
    """Let a starting Ray take 127.0.0.1 for this machine's address.

    Ray listens on all interfaces of a Linux machine, whatever address it is given; on macOS and
    Windows it stays on loopback. The variable for that is read when Ray is imported, which may
    be long ago, so the constant it ends up in is set as well. `connect` checks the effect.
    """
    constants = ray._private.ray_constants
    before = constants.ENABLE_RAY_CLUSTER
    constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before
