"""Where work runs: on Ray, or in this process; opened only if there is work.

Starting Ray takes seconds and a model's packages more, so a sweep that is finished must open
nothing.
"""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

from raypeft.core.spec import HardwareSection, Sweep
from raypeft.errors import SetupError
from raypeft.runtime.local import LocalPool
from raypeft.runtime.options import HardwareProfile
from raypeft.runtime.ports import Pool

PoolKind: TypeAlias = Literal["ray", "local"]


def check_nodes(sweep: Sweep, kind: PoolKind) -> None:
    """Refuse a base that is to be held by several nodes where there is one.

    Raises:
        SetupError: If the pool is in this process.
    """
    hardware = sweep.hardware
    if kind == "local" and hardware.spans_nodes:
        raise SetupError(
            f"hardware.tensor_parallel is {hardware.tensor_parallel} and gpus_per_node "
            f"{hardware.gpus_per_node}, and a local pool is one node",
            "run it on a Ray cluster (--pool ray --address HOST:PORT)",
        )


@contextmanager
def open_pool(
    sweep: Sweep, *, kind: PoolKind = "ray", address: str | None = None
) -> Iterator[tuple[Pool, str]]:
    """Give a pool for a sweep, and the device its slots compute on.

    Args:
        sweep: Its hardware and number of slots.
        kind: On Ray, or in this process.
        address: The cluster; None takes RAY_ADDRESS, and starts a Ray here if there is none.

    Raises:
        SetupError: If the cluster cannot be reached or does not have the hardware.
    """
    if kind == "local":
        profile = hardware_profile(sweep.hardware, has_gpus=has_nvidia_gpu())
        local = LocalPool(num_slots=sweep.schedule.slots)
        try:
            yield local, _device(profile)
        finally:
            local.close()
        return
    from raypeft.runtime.pool import (
        LOOK_SECONDS,
        Claims,
        RayPool,
        claim_of,
        cluster_has_gpus,
        connect,
    )

    with connect(address) as connection:
        profile = hardware_profile(sweep.hardware, has_gpus=cluster_has_gpus())
        claim = claim_of(_name(sweep), secrets.token_hex(8), sweep.schedule.priority, profile)
        pool = RayPool(
            connection,
            profile=profile,
            num_slots=sweep.schedule.slots,
            allow_mixed=sweep.hardware.allow_mixed,
            # A Ray that was started for this sweep is its own.
            claims=Claims(claim, every_seconds=LOOK_SECONDS) if connection.can_grow else None,
        )
        try:
            yield pool, _device(profile)
        finally:
            pool.close()


def _name(sweep: Sweep) -> str:
    """Return what other sweeps on a cluster are told this one is called: its folder's name."""
    return sweep.output.rstrip("/").rpartition("/")[2]


def hardware_profile(hardware: HardwareSection, *, has_gpus: bool) -> HardwareProfile:
    """Return what one slot runs on.

    Args:
        hardware: As the sweep file has it.
        has_gpus: Whether there are GPUs; decides where the sweep file leaves it open.
    """
    gpus = hardware.gpus
    if gpus is None:
        gpus = hardware.tensor_parallel if has_gpus else 0
    memory = hardware.memory_bytes
    return HardwareProfile(
        gpus=gpus,
        cpus=hardware.cpus,
        accelerator=hardware.accelerator,
        memory_gib=None if memory is None else memory / 2**30,
        tensor_parallel=hardware.tensor_parallel,
        gpus_per_node=hardware.gpus_per_node,
        labels=hardware.labels,
    )


def _device(profile: HardwareProfile) -> str:
    return "cuda" if profile.gpus > 0 else "cpu"


def has_nvidia_gpu() -> bool:
    """Return whether this machine has a GPU."""
    # Asking torch would initialise CUDA in this process.
    return shutil.which("nvidia-smi") is not None
