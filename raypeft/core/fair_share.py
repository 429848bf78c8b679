"""How sweeps that run at the same time share a cluster.

Ray hands hardware out first come, first served, so that a sweep that came an hour earlier would
hold every slot all night. Each sweep says what it holds and wants (`Claim`); while another one
waits for hardware, a sweep keeps no more than its fair share: slots go one by one to whoever has
least for its priority, until all is given or nobody wants more (weighted max-min fairness;
Bertsekas and Gallager, Data Networks, 2nd edition, 1992, section 6.5.2). What is above the share
is given back as its units end. As every sweep works from the same claims, they need no referee.

What is shared is what the rivals hold and what is free, and not only the former: a sweep that
waits for what it cannot use would else have the others give up one slot after the other. A sweep
that is held to its share counts as waiting too, or two that want everything would take turns.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

from raypeft.core.records import Json

MAX_PRIORITY = 1000

_NAME_LENGTH = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a sweep holds and wants of a cluster.

    Attributes:
        sweep: Its name, for people.
        run: Its run, which no other has.
        priority: Its weight; a sweep of priority 2 gets twice as many slots as one of 1.
        resource: What its slots are counted in, `GPU` or `CPU`.
        slot_size: How much of that one slot takes.
        labels: Labels of the nodes it can use; none is any node.
        held: Slots that have their hardware.
        wanted: Slots that it would use, those included.
        waits: Whether a slot has waited for hardware for a while, and none is free.
        is_limited: Whether it is held to its share, and asks for no more.
    """

    sweep: str
    run: str
    priority: int = 1
    resource: str = "GPU"
    slot_size: float = 1.0
    labels: Mapping[str, str] = field(default_factory=dict)
    held: int = 0
    wanted: int = 0
    waits: bool = False
    is_limited: bool = False

    @property
    def lacks(self) -> bool:
        """Whether it would use more than it can have at the moment."""
        return self.waits or (self.is_limited and self.held < self.wanted)

    def rivals(self, other: "Claim") -> bool:
        """Whether the two are after the same hardware, as far as can be told."""
        return (
            self.run != other.run
            and self.resource == other.resource
            and all(
                _may_be_one(self.labels[name], other.labels[name])
                for name in self.labels.keys() & other.labels.keys()
            )
        )


def _may_be_one(label: str, other: str) -> bool:
    """Whether one node may have both labels; of `!x` and `in(x,y)` that is not known."""
    is_plain = not any(one.startswith(("!", "in(")) for one in (label, other))
    return label == other or not is_plain


@dataclass(frozen=True, slots=True)
class Share:
    """How many slots a sweep is to keep, and why.

    Attributes:
        slots: How many; one or more.
        reason: Who waits.
    """

    slots: int
    reason: str


def rivals_of(own: Claim, others: Sequence[Claim]) -> list[Claim]:
    """Return the claims of sweeps that are after the same hardware."""
    return [other for other in others if own.rivals(other)]


def shared_size(own: Claim, rivals: Sequence[Claim], free_slots: float) -> float:
    """Return how much there is to share, in the unit of `Claim.resource`.

    Args:
        own: A sweep's claim.
        rivals: From `rivals_of`.
        free_slots: How many slots of its own the cluster has free.
    """
    held = sum(one.held * one.slot_size for one in (own, *rivals))
    return held + free_slots * own.slot_size


def fair_share(own: Claim, rivals: Sequence[Claim], size: float) -> Share | None:
    """Return what a sweep is to keep; None if it may have what it wants.

    Args:
        own: Its claim.
        rivals: From `rivals_of`.
        size: What is shared, from `shared_size`; best the most of it in the last minute, since
            hardware that changes hands is nobody's for some seconds.
    """
    lacking = sorted((one for one in rivals if one.lacks), key=lambda one: one.run)
    if not lacking:
        return None
    slots = _slots_of(own, [own, *rivals], size)
    if slots >= own.wanted:
        return None
    names = ", ".join(f"{one.sweep} (priority {one.priority})" for one in lacking[:3])
    more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
    wait = "waits" if len(lacking) == 1 else "wait"
    return Share(
        slots,
        f"{names}{more} {wait} for hardware; the fair share of priority {own.priority} is {slots}",
    )


def _slots_of(own: Claim, claims: Sequence[Claim], size: float) -> int:
    """Return how many slots of what is shared are one sweep's."""
    # Nobody can go below one slot, so that is given first.
    given = {one.run: min(1, one.wanted) for one in claims}
    left = size - sum(given[one.run] * one.slot_size for one in claims)
    queue = [(_next_level(one, given[one.run]), one.run, one) for one in claims]
    heapq.heapify(queue)
    while queue:
        _, run, claim = heapq.heappop(queue)
        if given[run] < claim.wanted and claim.slot_size <= left + 1e-9:
            given[run] += 1
            left -= claim.slot_size
            heapq.heappush(queue, (_next_level(claim, given[run]), run, claim))
    return max(1, given[own.run])


def _next_level(claim: Claim, slots: int) -> float:
    """Return how much a sweep has for its priority once it is given one more slot."""
    return (slots + 1) * claim.slot_size / claim.priority


def claim_json(claim: Claim) -> dict[str, Json]:
    """Return a claim as JSON."""
    return {
        "sweep": claim.sweep,
        "run": claim.run,
        "priority": claim.priority,
        "resource": claim.resource,
        "slot_size": claim.slot_size,
        "labels": dict(claim.labels),
        "held": claim.held,
        "wanted": claim.wanted,
        "waits": claim.waits,
        "is_limited": claim.is_limited,
    }


_FIELDS = tuple(one.name for one in fields(Claim))


def read_claim(value: object) -> Claim | None:
    """Return the claim that a JSON value is; None for anything else.

    Others write it, of another version perhaps, and anybody who may use the cluster can.
    """
    if not isinstance(value, Mapping):
        return None
    known = {name: value[name] for name in _FIELDS if name in value}
    try:
        claim = Claim(**known)
    except TypeError:
        return None
    texts = (claim.sweep, claim.run, claim.resource)
    counts = (claim.held, claim.wanted, claim.priority)
    is_sound = (
        all(isinstance(text, str) for text in texts)
        and all(type(count) is int and 0 <= count <= 10**6 for count in counts)
        and 1 <= claim.priority <= MAX_PRIORITY
        and isinstance(claim.slot_size, int | float)
        and 1e-4 <= claim.slot_size <= 10**4
        and isinstance(claim.labels, Mapping)
        and all(isinstance(text, str) for label in claim.labels.items() for text in label)
        and isinstance(claim.waits, bool)
        and isinstance(claim.is_limited, bool)
    )
    return claim if is_sound else None


def shown_name(name: str) -> str:
    """Return a sweep's name as others are shown it: one short line."""
    return "".join(char if char.isprintable() else "?" for char in name)[:_NAME_LENGTH]
