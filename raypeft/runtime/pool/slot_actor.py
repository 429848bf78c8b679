"""What runs in a slot's actor: a `Slot` that fetches from Ray, and a heart beside it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray

from raypeft.core.records import EngineSpec, Failure, Hardware, RequestSet, UnitAnswers
from raypeft.engines.build import import_engine
from raypeft.engines.travel import AdapterBytes
from raypeft.runtime.beats import Heart
from raypeft.runtime.pool.monitor import Voice
from raypeft.runtime.ports import Bring, Build, UnitWork
from raypeft.runtime.slot import Broken, Slot, Wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """How a slot says how far it is.

    Attributes:
        slot: Its id.
        monitor: Name of the actor that listens, once somebody wants to know.
        every_seconds: How often.
    """

    slot: str
    monitor: str
    every_seconds: float


class SlotActor:
    """What runs in the actor.

    Plain and synchronous: with any async method Ray would take the others off the main thread,
    where lm-eval's and the engines' signal handlers fail.
    """

    _slot: Slot
    _heart: Heart
    _name: str

    def prepare(self, kind: str) -> None:
        """Import what an engine of this kind needs."""
        import_engine(kind)

    def place(self) -> str:
        """Return as soon as the actor has its hardware: the id of its node."""
        return str(ray.get_runtime_context().get_node_id())

    def ready(self, spec: EngineSpec, build: Build, pulse: Pulse) -> Hardware | Failure:
        """Become the slot of a base, and load it."""
        self._name = pulse.slot
        self._heart = Heart(Voice(pulse.monitor), pulse.every_seconds)
        self._slot = Slot(spec, build)
        loaded = self._slot.ready()
        if isinstance(loaded, Failure):
            return loaded
        # Two nodes may be one machine, or have one name.
        return replace(loaded, node=f"{loaded.node}/{self.place()[:8]}")

    def run(
        self,
        work: UnitWork,
        attempt: int,
        request_set: list[Any],
        adapters: Mapping[str, list[Any]],
    ) -> UnitAnswers | Broken | Wanted:
        """Answer a unit; references stand in lists, so that Ray does not fetch them anew."""

        def fetch() -> RequestSet:
            fetched: RequestSet = ray.get(request_set[0])
            return fetched

        bring: dict[str, Bring] = {key: partial(_got, ref[0]) for key, ref in adapters.items()}
        self._heart.begin(self._name, work.unit_id, attempt)
        try:
            return self._slot.run(work, fetch, bring)
        finally:
            self._heart.end()


def _got(reference: Any) -> AdapterBytes | Failure:
    """Return what stands for an adapter: bytes in the object store, or why there are none."""
    if isinstance(reference, Failure):
        return reference
    fetched: AdapterBytes = ray.get(reference)
    return fetched
