"""One comparison stays on one kind of hardware: the first slot of a base says on which.

Labels and accelerator types choose nodes, and cannot promise that these are alike: every A100 is
an `A100` to Ray, and whoever labels nodes may err. What is read back in the slot decides. A slot
that is another is refused, and its node is not asked again for this base. Adapters are compared
with their own base alone, so each base may have another kind.
"""

from dataclasses import dataclass, field

from raypeft.core.records import EngineSpec, Failure, FailureKind, Hardware

MAX_REFUSED = 16
"""Slots in a row that are refused to one base; then its kind of hardware is taken to be gone."""


@dataclass(slots=True)
class _Pinned:
    hardware: Hardware
    unlike: set[str] = field(default_factory=set)
    refused: int = 0


class Pins:
    """What each base is pinned to.

    Args:
        are_held: Whether they hold; without, every slot is as good as any other.
    """

    def __init__(self, *, are_held: bool = True) -> None:
        self._are_held = are_held
        self._pinned: dict[tuple[str, str], _Pinned] = {}

    def unlike(self, spec: EngineSpec) -> frozenset[str]:
        """Return the nodes that are known to be of another kind than a base's first slot."""
        pinned = self._pinned.get(_key(spec))
        return frozenset() if pinned is None else frozenset(pinned.unlike)

    def refusal(self, spec: EngineSpec, hardware: Hardware, node: str) -> Failure | None:
        """Return why a slot must not be used for a base; the first one pins what the others are.

        The failure can be tried again on another node, unless too many were refused in a row.

        Args:
            spec: The base.
            hardware: What was read back in the slot.
            node: The node's id.
        """
        if not self._are_held:
            return None
        pinned = self._pinned.setdefault(_key(spec), _Pinned(hardware))
        if pinned.hardware.fingerprint == hardware.fingerprint:
            pinned.refused = 0
            return None
        pinned.unlike.add(node)
        pinned.refused += 1
        message = (
            f"base {spec.base!r} is pinned to {_words(pinned.hardware)} by its first slot, and "
            f"node {node} has {_words(hardware)}; name one kind (hardware.accelerator or "
            "hardware.labels), or set hardware.allow_mixed, which flags what is compared"
        )
        return Failure(FailureKind.LOAD_FAILED, message, retryable=pinned.refused < MAX_REFUSED)


def _key(spec: EngineSpec) -> tuple[str, str]:
    return spec.kind, spec.base_digest


def _words(hardware: Hardware) -> str:
    memory = f", {hardware.memory_gib:.0f} GiB" if hardware.memory_gib else ""
    return f"{hardware.device}{memory} (fingerprint {hardware.fingerprint[:8]})"
