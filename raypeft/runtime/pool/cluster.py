"""What becomes of a cluster while a run goes on: nodes that go, nodes that come.

Asks Ray now and then, in one place: `get_draining_nodes` is not part of Ray's public interface
(Ray Train asks it likewise), and an actor that fits nowhere is otherwise never heard of.
"""

import logging
import time
from collections.abc import Mapping

import ray
from ray._private.state import state

from raypeft.core.records import Json
from raypeft.runtime.nodes import Node, why_not, why_nowhere
from raypeft.runtime.options import slots_that_fit

_logger = logging.getLogger(__name__)


def read_nodes() -> list[Node]:
    """Return the nodes that are alive."""
    draining = state.get_draining_nodes()
    return [
        Node(
            id=node["NodeID"],
            host=node["NodeManagerHostname"],
            resources=node["Resources"],
            labels=node.get("Labels") or {},
            drains=node["NodeID"] in draining,
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def free_slots(options: Mapping[str, Json]) -> int | None:
    """Return how many slots the nodes have free; None if no node could hold one.

    Args:
        options: Of a slot's actor.
    """
    nodes = [node for node in read_nodes() if not why_not(options, node)]
    if not nodes:
        return None
    free = state.available_resources_per_node()
    return slots_that_fit(options, [free.get(node.id, {}) for node in nodes])


class ClusterWatch:
    """Notices what changes.

    Args:
        options: Of a slot's actor; None where a slot is on several nodes, of which nothing is said.
        every_seconds: How often Ray is asked.
    """

    def __init__(self, options: Mapping[str, Json] | None, every_seconds: float) -> None:
        self._options = options
        self._every_seconds = every_seconds
        self._looked_seconds = time.monotonic()
        self._fitting: set[str] | None = None
        self._complaint = ""
        self.draining: frozenset[str] = frozenset()
        """Ids of nodes that will go away."""

    def look(self, *, waits: bool) -> bool:
        """Look at the cluster if it is time to; return whether a node has come that fits a slot.

        Args:
            waits: Whether a slot waits for its hardware.
        """
        now = time.monotonic()
        if now < self._looked_seconds + self._every_seconds:
            return False
        self._looked_seconds = now
        try:
            nodes = read_nodes()
        except Exception as error:  # noqa: BLE001 - the head may be away for a while
            _logger.warning("the cluster's nodes cannot be listed at the moment: %s", error)
            return False
        self.draining = frozenset(node.id for node in nodes if node.drains)
        if self._options is None:
            return False
        if waits:
            self._complain(nodes, self._options)
        fitting = {node.id for node in nodes if not why_not(self._options, node)}
        before, self._fitting = self._fitting, fitting | (self._fitting or set())
        return before is not None and not fitting <= before

    def _complain(self, nodes: list[Node], options: Mapping[str, Json]) -> None:
        """Say once why a slot waits for hardware that no node has."""
        why = why_nowhere(options, nodes)
        if why and why != self._complaint:
            _logger.warning("a slot waits for a node that the cluster does not have: %s", why)
        self._complaint = why
