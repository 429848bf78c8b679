"""What a cluster's nodes are, as values: which of them could hold a slot, and why others could not.

Ray lets an actor that fits nowhere wait without a word, for ever: an autoscaler may be at work.
So this says what it waits for.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from raypeft.core.records import Json
from raypeft.runtime.options import fits_often, needs_of

_SET = re.compile(r"(!?)in\((.*)\)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node of a cluster.

    Attributes:
        id: Ray's.
        host: What its machine is called.
        resources: What it has in all, under Ray's names.
        labels: Its labels.
        drains: Whether it will go away, and takes no new slots.
    """

    id: str
    host: str
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    drains: bool = False


def label_fits(wanted: str, value: str | None) -> bool:
    """Return whether a node's label is as wanted: `x`, `!x`, `in(x,y)` or `!in(x,y)`."""
    if match := _SET.fullmatch(wanted):
        among = value in [one.strip() for one in match[2].split(",")]
        return among != bool(match[1])
    if wanted.startswith("!"):
        return value != wanted[1:]
    return value == wanted


def why_not(options: Mapping[str, Json], node: Node) -> str:
    """Return why a node could not hold a slot even if it were empty; empty if it could.

    Args:
        options: From `raypeft.runtime.options.actor_options`.
        node: The node.
    """
    if node.drains:
        return "is going away"
    for name, wanted in options.get("label_selector", {}).items():
        found = node.labels.get(name)
        if not label_fits(wanted, found):
            have = "no such label" if found is None else f"{found!r}"
            return f"has {have} where {name} must be {wanted!r}"
    for name, amount in needs_of(options).items():
        if not fits_often(amount, node.resources.get(name, 0.0)):
            return f"has {node.resources.get(name, 0.0):g} {name} of {amount:g}"
    return ""


def why_nowhere(options: Mapping[str, Json], nodes: Sequence[Node]) -> str:
    """Return why no node could hold a slot, node by node; empty if one could.

    Args:
        options: From `raypeft.runtime.options.actor_options`.
        nodes: All nodes that are alive.
    """
    reasons = [(node, why_not(options, node)) for node in nodes]
    if any(not reason for _, reason in reasons):
        return ""
    told = [f"{node.host} ({node.id[:8]}) {reason}" for node, reason in reasons[:MAX_NODES]]
    more = len(reasons) - len(told)
    return "; ".join(told) + (f"; and {more} more" if more else "")


MAX_NODES = 8
"""Nodes that a message names."""
