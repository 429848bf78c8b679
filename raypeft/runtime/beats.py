"""How far slots say they are: what they say, and who of them is listened to.

A slot that computes for an hour and one that hangs look alike from outside. So a slot that takes
long says, now and then, how much its engine has got done since the attempt began. Decides what is
said; how it travels is the pool's business, and what follows from it the schedule's.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from raypeft.engines.progress import so_far


@dataclass(frozen=True, slots=True)
class Beat:
    """What a slot says about the attempt it is at.

    Attributes:
        slot: Who.
        unit_id: The unit.
        attempt: Which try at it.
        progress: How much the engine has got done since the attempt began.
    """

    slot: str
    unit_id: str
    attempt: int
    progress: int


class Heart:
    """Says from a thread of its own how far a slot is, while it is at an attempt.

    The thread only reads a number, so it goes on while the engine hangs: what it then says is
    that nothing has got done.

    Args:
        say: Is told each beat; what it raises is not heard, for a slot must not fail by it.
        every_seconds: How often.
    """

    def __init__(self, say: Callable[[Beat], None], every_seconds: float) -> None:
        self._say = say
        self._every_seconds = every_seconds
        self._lock = threading.Lock()
        self._attempt: tuple[str, str, int] | None = None
        self._begun = 0
        self._changed = threading.Event()
        threading.Thread(target=self._beat, name="heart", daemon=True).start()

    def begin(self, slot: str, unit_id: str, attempt: int) -> None:
        """Say from now on how far this attempt is."""
        with self._lock:
            self._attempt, self._begun = (slot, unit_id, attempt), so_far()

    def end(self) -> None:
        """Say nothing more until the next attempt."""
        with self._lock:
            self._attempt = None

    def stop(self) -> None:
        """End the thread."""
        self._changed.set()

    def _beat(self) -> None:
        while not self._changed.wait(self._every_seconds):
            with self._lock:
                attempt, progress = self._attempt, so_far() - self._begun
            if attempt is not None:
                try:
                    self._say(Beat(*attempt, progress))
                except Exception:  # noqa: BLE001 - the next beat may be heard
                    continue
