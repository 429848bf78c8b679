"""How beats travel on Ray: slots tell a small actor, and the driver asks it.

A slot's actor is plain and synchronous, so it cannot be asked anything while it answers. The
monitor is started only when an attempt takes long; until then slots find nobody to tell, and a
run of short units pays nothing.
"""

import logging
import time
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raypeft.core.events import Heartbeat
from raypeft.core.records import Json
from raypeft.runtime.beats import Beat

_logger = logging.getLogger(__name__)


class Monitor:
    """Keeps the last beat of each slot until somebody asks."""

    def __init__(self) -> None:
        self._beats: dict[str, Beat] = {}

    def hear(self, beat: Beat) -> None:
        """Take note of a beat."""
        self._beats[beat.slot] = beat

    def heard(self) -> list[Beat]:
        """Return what was said since this was last asked."""
        beats, self._beats = self._beats, {}
        return list(beats.values())


class Voice:
    """Tells a monitor beats, one at a time: what is not taken yet is not piled up.

    Args:
        monitor: Its name.
    """

    def __init__(self, monitor: str) -> None:
        self._monitor = monitor
        self._last: Any = None

    def __call__(self, beat: Beat) -> None:
        """Tell a beat.

        Raises:
            ValueError: If there is no monitor (yet).
        """
        if self._last is None or ray.wait([self._last], timeout=0)[0]:
            self._last = ray.get_actor(self._monitor).hear.remote(beat)


class Ear:
    """The driver's side: starts the monitor, and asks it one thing at a time.

    Args:
        name: What the monitor is called.
        options: Of its actor, see `raypeft.runtime.options.monitor_options`.
        every_seconds: How often it is asked, and how long an attempt takes before it is started.
    """

    def __init__(self, name: str, options: dict[str, Json], every_seconds: float) -> None:
        self.name = name
        self.every_seconds = every_seconds
        self._options = options
        self._actor: Any = None
        self._asked: Any = None
        self._asked_seconds = 0.0

    @property
    def listens(self) -> bool:
        """Whether the monitor was started."""
        return self._actor is not None

    def begin(self) -> None:
        """Start the monitor, beside the driver if there is room, which outlives other nodes."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self._actor = (
            ray.remote(Monitor)
            .options(**self._options, name=self.name, scheduling_strategy=here)
            .remote()
        )

    def question(self) -> Any:
        """Return the reference of the question that is under way; None if there is none."""
        due = time.monotonic() >= self._asked_seconds + self.every_seconds
        if self._actor is not None and self._asked is None and due:
            self._asked = self._actor.heard.remote()
            self._asked_seconds = time.monotonic()
        return self._asked

    def answer(self) -> list[Heartbeat]:
        """Return what slots said, once the question is answered."""
        asked, self._asked = self._asked, None
        try:
            beats: list[Beat] = ray.get(asked)
        except ray.exceptions.RayError as error:
            # It holds nothing worth keeping: Ray starts it again, and the next beats are heard.
            _logger.warning("the monitor of the slots did not answer: %s", error)
            return []
        return [Heartbeat(one.slot, one.unit_id, one.attempt, one.progress) for one in beats]

    def end(self) -> None:
        """Stop the monitor."""
        if self._actor is not None:
            ray.kill(self._actor, no_restart=True)
        self._actor = self._asked = None
