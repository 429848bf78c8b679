"""Slots and calls on Ray: the only package that imports it.

`connection` reaches or starts a Ray, `actors` runs slots and calls on it, `ray_failures` says
what Ray's exceptions mean.
"""

from raypeft.runtime.pool.actors import RayPool
from raypeft.runtime.pool.connection import RayConnection, cluster_has_gpus, connect
from raypeft.runtime.pool.ray_failures import failure_of

__all__ = ["RayConnection", "RayPool", "cluster_has_gpus", "connect", "failure_of"]
