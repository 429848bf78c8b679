"""What a run tells Prometheus, by name, and how it follows from what happens.

Decides the names, what they count and which labels they have; `cluster/` has rules and a board
that use them, and a test compares both. How a number reaches Prometheus is a registry's
business: on Ray its own metrics, elsewhere nothing. Ray puts `ray_` in front of every name, and
`_total` behind a counter's.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from raypeft.core.plan import Unit
from raypeft.core.records import Json, UnitAnswers
from raypeft.core.status import STOPPED_AT_WORK, Fold, SlotDoes
from raypeft.runtime.meter import Progress


class MetricKind(StrEnum):
    """How a number behaves."""

    COUNTER = "counter"
    """Only grows."""
    GAUGE = "gauge"


@dataclass(frozen=True, slots=True)
class Metric:
    """One number.

    Attributes:
        name: Its name, without what Ray adds.
        kind: How it behaves.
        help: What it says.
        labels: Its labels beside `sweep`, which all have.
    """

    name: str
    kind: MetricKind
    help: str
    labels: tuple[str, ...] = ()

    @property
    def exported_name(self) -> str:
        """Its name in Prometheus."""
        return f"ray_{self.name}" + ("_total" if self.kind is MetricKind.COUNTER else "")


def _counter(name: str, text: str, *labels: str) -> Metric:
    return Metric(f"raypeft_{name}", MetricKind.COUNTER, text, labels)


def _gauge(name: str, text: str, *labels: str) -> Metric:
    return Metric(f"raypeft_{name}", MetricKind.GAUGE, text, labels)


UNITS_DONE = _counter("units_done", "Units that were answered.", "base")
UNITS_FAILED = _counter("units_failed", "Attempts that failed, whole or in part.", "reason")
UNITS_RETRIED = _counter("units_retried", "Attempts after the first.", "reason")
TOKENS = _counter("tokens", "Tokens that were answered, all subjects together.", "base")
CELLS_SCORED = _counter("cells_scored", "Cells that got their results in this run.")
CELLS_FAILED = _counter("cells_failed", "Cells that were given up.", "reason")
SLOTS_LOST = _counter("slots_lost", "Slots that failed to start or were lost.", "reason")
SLOT_SECONDS = _counter("slot_seconds", "What slots did with their time.", "does")
SLOTS = _gauge("slots", "Slots by what they do.", "does")
UNITS_WAITING = _gauge("units_waiting", "Units that wait for a slot.")
UNITS_RUNNING = _gauge("units_running", "Units that are being answered.")
CELLS_OPEN = _gauge("cells_open", "Cells without results or failure.")
REMAINING_SECONDS = _gauge("remaining_seconds", "How long the rest takes at the pace so far.")
OLDEST_UNIT_SECONDS = _gauge("oldest_unit_seconds", "Age of the attempt that runs longest.")
LAST_ANSWER_TIME = _gauge("last_answer_time_seconds", "When an answer was stored last (epoch).")

METRICS = (
    *(UNITS_DONE, UNITS_FAILED, UNITS_RETRIED, TOKENS, CELLS_SCORED, CELLS_FAILED),
    *(SLOTS_LOST, SLOT_SECONDS, SLOTS, UNITS_WAITING, UNITS_RUNNING, CELLS_OPEN),
    *(REMAINING_SECONDS, OLDEST_UNIT_SECONDS, LAST_ANSWER_TIME),
)

LABELS = {does: does.name.lower() for does in SlotDoes}
"""The label `does`."""


class Registry(Protocol):
    """Where numbers go."""

    def add(self, metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        """Let a counter grow."""
        ...

    def put(self, metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        """Set a gauge."""
        ...


@dataclass(frozen=True, slots=True)
class _Line:
    at_seconds: float
    kind: str
    fields: Mapping[str, Json]


class SweepMetrics:
    """A watcher (`raypeft.runtime.watched`) that turns what happens into numbers.

    Args:
        registry: Where they go.
        sweep: The sweep's name.
        clock: Seconds since the epoch.
    """

    def __init__(
        self, registry: Registry, sweep: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._registry = registry
        self._sweep = {"sweep": sweep}
        self._clock = clock
        self._fold = Fold()
        self._counted_until = clock()
        self._reasons: dict[str, str] = {}
        """Why the last attempt at a unit failed."""

    def noted(self, line: Mapping[str, Json]) -> None:
        """Count a line of the journal."""
        now = self._clock()
        self._count_slots(now)
        kind = str(line["event"])
        self._count(kind, line)
        fields = {name: value for name, value in line.items() if name != "event"}
        self._fold.add(_Line(now, kind, fields))
        self._show_slots(now)

    def answered(self, unit: Unit, answers: UnitAnswers) -> None:
        """Count a unit whose answers are stored."""
        self._add(TOKENS, sum(one.tokens for one in answers.subjects), base=unit.base)
        self._add(UNITS_DONE, base=unit.base)
        self._put(LAST_ANSWER_TIME, self._clock())

    def progressed(self, progress: Progress) -> None:
        """Show how far the run is."""
        now = self._clock()
        self._count_slots(now)
        self._show_slots(now)
        self._put(UNITS_WAITING, progress.num_units_open - progress.num_running)
        self._put(UNITS_RUNNING, progress.num_running)
        self._put(CELLS_OPEN, progress.num_cells - progress.num_done - progress.num_failed)
        if progress.remaining_seconds is not None:
            self._put(REMAINING_SECONDS, progress.remaining_seconds)

    def _count(self, kind: str, line: Mapping[str, Json]) -> None:
        reason = str(line.get("kind", ""))
        match kind:
            case "run_unit":
                if int(line["attempt"]) > 1:
                    self._add(
                        UNITS_RETRIED, reason=self._reasons.get(str(line["unit_id"]), "interrupted")
                    )
            case "unit_failed":
                self._failed(str(line["unit_id"]), reason)
            case "unit_done":
                for text in line.get("failed", {}).values():
                    self._failed(str(line["unit_id"]), text.partition(":")[0])
            case "slot_lost" | "slot_failed" | "stop_slot":
                if kind != "stop_slot":
                    self._add(SLOTS_LOST, reason=reason)
                known = self._fold.status.slots.get(str(line["slot"]))
                if known is not None and known.unit:
                    self._failed(known.unit, reason or STOPPED_AT_WORK)
            case "cell_scored":
                self._add(CELLS_SCORED)
            case "give_up":
                self._add(CELLS_FAILED, reason=reason)

    def _failed(self, unit: str, reason: str) -> None:
        self._reasons[unit] = reason
        self._add(UNITS_FAILED, reason=reason)

    def _count_slots(self, now: float) -> None:
        """Charge the time since the last call to what each slot did in it."""
        seconds, self._counted_until = max(0.0, now - self._counted_until), now
        for does, count in self._slots().items():
            self._add(SLOT_SECONDS, seconds * count, does=LABELS[does])

    def _show_slots(self, now: float) -> None:
        counts = self._slots()
        for does in SlotDoes:
            self._put(SLOTS, counts[does], does=LABELS[does])
        since = [s.since_seconds for s in self._fold.status.slots.values() if s.unit]
        self._put(OLDEST_UNIT_SECONDS, now - min(since) if since else 0.0)

    def _slots(self) -> Counter[SlotDoes]:
        return Counter(slot.does for slot in self._fold.status.slots.values())

    def _add(self, metric: Metric, value: float = 1.0, **labels: str) -> None:
        if value > 0:
            self._registry.add(metric, value, {**self._sweep, **labels})

    def _put(self, metric: Metric, value: float, **labels: str) -> None:
        self._registry.put(metric, float(value), {**self._sweep, **labels})
