"""A Ray that raypeft starts is nobody else's business: loopback and a token."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import ray

from raypeft.errors import SetupError
from raypeft.runtime.options import HardwareProfile
from raypeft.runtime.pool import RayConnection, RayPool, connect

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]


def listening(process: psutil.Process) -> set[str]:
    try:
        sockets = process.net_connections(kind="inet")
    except psutil.NoSuchProcess:
        return set()
    return {socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN}


def test_every_process_of_a_local_ray_listens_on_loopback_only(local_ray: RayConnection) -> None:
    assert local_ray.is_local
    this = psutil.Process()
    addresses = {process: listening(process) for process in [this, *this.children(recursive=True)]}
    names = {process.name() for process, found in addresses.items() if found}
    assert {"gcs_server", "raylet"} <= names
    every = set().union(*addresses.values())
    assert every <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, addresses


JOIN = """
import sys
from raypeft.errors import SetupError
from raypeft.runtime.pool import connect
try:
    with connect(sys.argv[1]) as connection:
        print("joined", connection.is_local, connection.is_ours)
except SetupError as error:
    print("refused", error)
"""


def join(address: str, home: Path, token: str | None, loopback: str = "0") -> str:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")
    }
    environment |= {
        "HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        # Else Ray looks for a loopback address at this machine's own, where nothing listens.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": loopback,
    }
    if token is not None:
        environment["RAY_AUTH_TOKEN"] = token
    ended = subprocess.run(
        [sys.executable, "-c", JOIN, address],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return ended.stdout


@pytest.mark.slow  # Ray tries a wrong token for twenty seconds
def test_who_has_the_token_may_join_and_nobody_else(
    local_ray: RayConnection, tmp_path: Path
) -> None:
    token = os.environ["RAY_AUTH_TOKEN"]
    assert len(token) == 64
    assert join(local_ray.address, tmp_path, token) == "joined True True\n"
    wrong = join(local_ray.address, tmp_path, "0" * 64)
    assert wrong.startswith(f"refused the Ray cluster at '{local_ray.address}' cannot be reached")
    assert "RAY_AUTH_TOKEN" in wrong
    none = join(local_ray.address, tmp_path, None)
    assert none.startswith("refused the Ray cluster at")


START = """
import os
from raypeft.runtime.pool import connect
before = dict(os.environ)
with connect(num_cpus=1, num_gpus=0, object_store_mib=100) as connection:
    print(connection.is_local, connection.is_ours)
changed = {name for name in {*before, *os.environ} if before.get(name) != os.environ.get(name)}
print(sorted(changed))
"""


def test_starting_a_local_ray_writes_nothing_into_the_home(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if "RAY_" not in name}
    ended = subprocess.run(
        [sys.executable, "-c", START],
        cwd=ROOT,
        env={**environment, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = ended.stdout.splitlines()
    assert first == "True True"
    assert second == "['RAY_AUTH_TOKEN']"
    assert list(tmp_path.iterdir()) == []
    assert ended.stderr == ""


def test_connecting_where_ray_is_up_joins_it_and_leaves_it_up(local_ray: RayConnection) -> None:
    with connect() as again:
        assert again.address == local_ray.address
        assert not again.is_ours
    assert ray.is_initialized()
    with pytest.raises(SetupError, match="this process is connected to Ray at"):
        connect("10.0.0.1:6379")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "the Ray cluster at '127.0.0.1:1' cannot be reached"),
        ("no-such-host.invalid:6379", "the Ray cluster at 'no-such-host.invalid:6379' cannot be"),
        ("10.0.0.1", "the address '10.0.0.1' is not HOST:PORT"),
        ("ray://10.0.0.1:10001", "a Ray client's server"),
    ],
)
def test_a_cluster_out_of_reach_is_refused_at_once(
    address: str, message: str, tmp_path: Path
) -> None:
    said = join(address, tmp_path, "0" * 64)
    assert said.startswith("refused")
    assert message in said


def test_a_ray_on_loopback_is_not_sought_at_this_machines_own_address(
    local_ray: RayConnection, tmp_path: Path
) -> None:
    said = join(local_ray.address, tmp_path, "0" * 64, loopback="1")
    assert said.startswith(f"refused the Ray cluster at '{local_ray.address}' cannot be reached")


def test_a_slot_that_does_not_fit_this_machine_is_refused_before_it_is_started(
    local_ray: RayConnection,
) -> None:
    with pytest.raises(SetupError) as caught:
        RayPool(local_ray, profile=HardwareProfile(gpus=1, cpus=2), num_slots=1)
    assert "no slot with 1 GPUs and 2 CPUs fits" in caught.value.message
    assert "0 GPUs, 8 CPUs" in caught.value.message


def test_no_more_slots_are_promised_than_fit_this_machine(local_ray: RayConnection) -> None:
    pool = RayPool(local_ray, profile=HardwareProfile(cpus=3), num_slots=5)
    assert pool.num_slots == 2
