from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import pytest

from raypeft.core.records import SubjectAnswers, UnitAnswers
from raypeft.runtime.meter import Progress
from raypeft.runtime.metrics import METRICS, Metric, MetricKind, SweepMetrics
from tests.support.journals import Line, begins, line, runs, starts
from tests.support.plans import HARDWARE, make_plan

C0, C1, C2 = ("c0c0c0c0", "c1c1c1c1", "c2c2c2c2")


class Book:
    """A registry that keeps what it is told."""

    def __init__(self) -> None:
        self.values: dict[str, float] = defaultdict(float)

    def add(self, metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        assert metric.kind is MetricKind.COUNTER
        self.values[self._name(metric, labels)] += value

    def put(self, metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        assert metric.kind is MetricKind.GAUGE
        self.values[self._name(metric, labels)] = value

    @staticmethod
    def _name(metric: Metric, labels: Mapping[str, str]) -> str:
        assert set(labels) == {"sweep", *metric.labels}
        assert labels["sweep"] == "night"
        return "/".join([metric.name.removeprefix("raypeft_"), *(labels[n] for n in metric.labels)])


class Watch:
    """Metrics of made-up lines, on a clock that stands where the line is."""

    def __init__(self) -> None:
        self.book = Book()
        self.now = 0.0
        self.metrics = SweepMetrics(self.book, "night", clock=lambda: self.now)

    def see(self, *lines: Line) -> dict[str, float]:
        for one in lines:
            self.now = one.at_seconds
            self.metrics.noted({"event": one.kind, **one.fields})
        return self.book.values


def test_every_metric_has_a_name_of_its_own_that_prometheus_takes() -> None:
    names = [metric.exported_name for metric in METRICS]
    assert len(set(names)) == len(names)
    assert all(name.replace("_", "").isalnum() and name.islower() for name in names)
    assert "ray_raypeft_units_done_total" in names
    assert "ray_raypeft_units_waiting" in names


def test_the_time_of_slots_is_charged_to_what_they_do() -> None:
    watch = Watch()
    watch.see(begins(0.0), line(0.0, "start_slot", slot="slot-1", base="base", reason="r"))
    watch.see(line(5.0, "slot_placed", slot="slot-1"))
    watch.see(line(25.0, "slot_ready", slot="slot-1", node="n", device="d"))
    watch.see(runs(26.0, "u0", C0))
    values = watch.see(line(126.0, "unit_done", slot="slot-1", unit_id="u0", attempt=1))
    assert values["slot_seconds/placing"] == 5.0
    assert values["slot_seconds/loading"] == 20.0
    assert values["slot_seconds/idle"] == 1.0
    assert values["slot_seconds/answering"] == 100.0
    assert values["slots/idle"] == 1.0
    assert values["slots/answering"] == 0.0


def test_time_passes_for_slots_while_nothing_happens() -> None:
    watch = Watch()
    watch.see(begins(0.0), *starts(0.0), runs(0.0, "u0", C0))
    watch.now = 30.0
    watch.metrics.progressed(progress())
    assert watch.book.values["slot_seconds/answering"] == 30.0
    assert watch.book.values["oldest_unit_seconds"] == 30.0


def progress(**changes: Any) -> Progress:
    values: dict[str, Any] = {
        "num_cells": 10,
        "num_done": 4,
        "num_failed": 1,
        "num_units": 20,
        "num_units_open": 8,
        "tokens": 1000,
        "tokens_open": 500,
        "num_running": 3,
        "num_loading": 0,
        "num_scoring": 0,
        "seconds": 60.0,
    }
    return Progress(**{**values, **changes})


def test_the_queue_and_the_rest_are_shown() -> None:
    watch = Watch()
    watch.metrics.progressed(progress())
    values = watch.book.values
    assert (values["units_waiting"], values["units_running"], values["cells_open"]) == (5, 3, 5)
    assert values["remaining_seconds"] == pytest.approx(60.0)
    fresh = Watch()
    fresh.metrics.progressed(progress(tokens_open=1000))
    assert "remaining_seconds" not in fresh.book.values  # unknown is not zero


def test_failures_and_retries_are_counted_by_reason() -> None:
    failed = {"slot": "slot-1", "unit_id": "u0", "attempt": 1}
    watch = Watch()
    watch.see(begins(0.0), *starts(0.0), runs(1.0, "u0", C0))
    watch.see(line(2.0, "unit_failed", **failed, kind="out_of_memory", message="m"))
    watch.see(runs(3.0, "u0", C0, attempt=2))
    watch.see(line(4.0, "slot_lost", slot="slot-1", kind="slot_lost", message="m"))
    watch.see(*starts(5.0, "slot-2"), runs(5.0, "u0", C0, slot="slot-2", attempt=3))
    values = watch.see(line(6.0, "give_up", cell=C0, kind="crashed", message="m", attempts=3))
    assert values["units_failed/out_of_memory"] == 1
    assert values["units_retried/out_of_memory"] == 1
    assert values["units_failed/slot_lost"] == 1
    assert values["units_retried/slot_lost"] == 1
    assert values["slots_lost/slot_lost"] == 1
    assert values["cells_failed/crashed"] == 1


def test_a_slot_that_is_stopped_at_work_is_a_failed_attempt() -> None:
    watch = Watch()
    watch.see(begins(0.0), *starts(0.0), runs(1.0, "u0", C0))
    watch.see(line(9.0, "stop_slot", slot="slot-1", reason="ran longer than 8 seconds"))
    values = watch.see(*starts(10.0, "slot-2"), runs(10.0, "u0", C0, slot="slot-2", attempt=2))
    assert values["units_failed/stopped_at_work"] == 1
    assert values["units_retried/stopped_at_work"] == 1
    assert "slots_lost/" not in values


def test_a_subject_that_fails_alone_is_a_failed_attempt_too() -> None:
    watch = Watch()
    watch.see(begins(0.0), *starts(0.0), runs(1.0, "u1", C1, C2))
    done = {"slot": "slot-1", "unit_id": "u1", "attempt": 1}
    values = watch.see(line(2.0, "unit_done", **done, failed={C1: "not_finite: NaN"}))
    assert values["units_failed/not_finite"] == 1


def test_answers_count_units_and_tokens_of_their_base() -> None:
    unit = make_plan(adapters=1).units[0]
    watch = Watch()
    watch.now = 77.0
    subjects = tuple(SubjectAnswers(subject=name, tokens=120) for name in unit.subjects)
    watch.metrics.answered(unit, UnitAnswers(subjects=subjects, hardware=HARDWARE, seconds=1.0))
    values = watch.book.values
    assert values[f"tokens/{unit.base}"] == 120 * len(unit.subjects)
    assert values[f"units_done/{unit.base}"] == 1
    assert values["last_answer_time_seconds"] == 77.0
