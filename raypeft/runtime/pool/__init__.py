"""Slots and calls on Ray: the only package that imports it.

`connection` reaches or starts a Ray, `actors` runs slots and calls on it, `claims` shares it with
other sweeps, `ray_failures` says what Ray's exceptions mean.
"""

from raypeft.runtime.pool.actors import LOOK_SECONDS, RayPool
from raypeft.runtime.pool.claims import Claims, claim_of
from raypeft.runtime.pool.connection import RayConnection, cluster_has_gpus, connect
from raypeft.runtime.pool.ray_failures import failure_of

__all__ = [
    "LOOK_SECONDS",
    "Claims",
    "RayConnection",
    "RayPool",
    "claim_of",
    "cluster_has_gpus",
    "connect",
    "failure_of",
]
