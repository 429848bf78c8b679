import errno
import itertools
import json
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from raypeft.core.plan import Cell, Plan, Unit, make_units
from raypeft.core.records import (
    Answer,
    EngineSpec,
    Failure,
    FailureKind,
    Hardware,
    Json,
    RequestSet,
    Scored,
    Shard,
    Subject,
    SubjectAnswers,
    UnitAnswers,
)
from raypeft.core.retry import Policy
from raypeft.engines.fake import FakeEngine
from raypeft.engines.travel import AdapterBytes
from raypeft.errors import CellError, Interrupted, SetupError, StoreError
from raypeft.runtime.driver import drive
from raypeft.runtime.local import LocalPool
from raypeft.runtime.meter import Outcome, Progress
from raypeft.runtime.ports import PoolEvent
from tests.support.plans import make_plan, make_request_set
from tests.support.sinks import MemorySink, mean_logprob


def scripted(plan: Plan, base: str, *events: Json) -> Plan:
    """Return the plan with events for the engine of one base."""
    options = {"script": {"events": list(events)}}
    engines = {**plan.engines, base: replace(plan.engines[base], options=options)}
    return replace(plan, engines=engines)


def run(
    plan: Plan,
    sink: MemorySink,
    *,
    pool: LocalPool | None = None,
    policy: Policy | None = None,
    request_sets: Callable[[str], RequestSet] = make_request_set,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    score: Callable[[RequestSet, Sequence[Answer], Sequence[str]], Scored] = mean_logprob,
) -> Outcome:
    ticks = itertools.count()
    return drive(
        plan,
        pool=pool or LocalPool(num_slots=2),
        sink=sink,
        policy=policy or Policy(slots=2),
        clock=lambda: float(next(ticks)),
        request_sets=request_sets,
        on_progress=on_progress,
        score=score,
    )


def left_over(plan: Plan, sink: MemorySink) -> Plan:
    """Return what a second run has to do, as planning would after reading the store."""
    have: dict[str, set[int]] = {}
    for cell, index in sink.stored:
        have.setdefault(cell, set()).add(index)
    answered = [c.key for c in plan.cells.values() if len(have.get(c.key, ())) == c.shards]
    return replace(
        plan,
        units=make_units(list(plan.cells.values()), answered=have),
        to_score=tuple(key for key in answered if key not in sink.results),
        done=tuple(sink.results),
    )


def finish(plan: Plan, sink: MemorySink) -> None:
    """Run what is left; the sink refuses what it already has."""
    run(left_over(plan, sink), sink)
    assert set(sink.results) == set(plan.cells)


# --- the whole way ----------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("shards", [1, 3, 6])
def test_shards_slots_and_crashes_change_no_answer(shards: int, slots: int, tmp_path: Path) -> None:
    def results(plan: Plan, policy: Policy) -> dict[str, Scored]:
        sink = MemorySink()
        run(plan, sink, policy=policy)
        return sink.results

    plain = results(make_plan(bases=2, adapters=2, tasks=2), Policy())
    crashes = (
        {"do": "fatal", "adapter": "a0", "once": str(tmp_path / "fatal")},
        {"do": "raise", "adapter": "a1", "once": str(tmp_path / "raise")},
    )
    plan = make_plan(bases=2, adapters=2, tasks=2, shards=shards)
    assert results(scripted(plan, "base0", *crashes), Policy(slots=slots)) == plain
    assert {path.name for path in tmp_path.iterdir()} == {"fatal", "raise"}


@pytest.mark.parametrize(("kind", "num_told"), [("out_of_memory", 1), ("crashed", 0)])
def test_after_a_loss_of_memory_the_next_slots_are_started_with_what_it_taught(
    kind: str, num_told: int, tmp_path: Path
) -> None:
    event = {"do": "fatal", "kind": kind, "adapter": "a0", "once": str(tmp_path / "marker")}
    plan, sink = scripted(make_plan(bases=2, adapters=2), "base0", event), MemorySink()
    told: list[tuple[str, str]] = []
    started: list[EngineSpec] = []

    def learn(spec: EngineSpec, hardware: Hardware, failure: Failure) -> EngineSpec:
        told.append((hardware.fingerprint, failure.message))
        return replace(spec, lowered={"here": {"max_num_seqs": 8}})

    def build(spec: EngineSpec) -> FakeEngine:
        started.append(spec)
        return FakeEngine(spec)

    drive(
        plan,
        pool=LocalPool(build=build),
        sink=sink,
        policy=Policy(),
        clock=lambda: 0.0,
        request_sets=make_request_set,
        score=mean_logprob,
        after_loss=learn,
    )

    assert set(sink.results) == set(plan.cells)
    assert len(told) == num_told
    own = [spec.lowered for spec in started if spec.base == plan.engines["base0"].base]
    assert own == [{}, {"here": {"max_num_seqs": 8}} if num_told else {}]
    # Another base has learnt nothing.
    others = [spec.lowered for spec in started if spec.base == plan.engines["base1"].base]
    assert others == [{}]


def test_progress_reaches_the_end_and_the_journal_says_why_everything_was_done() -> None:
    seen: list[Progress] = []
    sink = MemorySink()
    outcome = run(make_plan(adapters=2), sink, on_progress=seen.append)
    assert (seen[-1].num_done, seen[-1].num_units_open, seen[-1].tokens_open) == (3, 0, 0)
    assert [p.num_done for p in seen] == sorted(p.num_done for p in seen)
    json.dumps(sink.lines)
    for event in ("start_slot", "run_unit", "score_cell", "stop_slot"):
        assert all(line["reason"] for line in sink.noted(event)), event
    assert len(sink.noted("run_unit")) == outcome.num_attempts == 3
    assert outcome.busy_seconds > 0
    assert outcome.loading_seconds > 0


def test_an_adapter_is_offered_until_its_last_cell_has_ended() -> None:
    offered: set[str] = set()
    ever: set[str] = set()

    class Watched(LocalPool):
        def offer(self, key: str, load: Callable[[], AdapterBytes]) -> None:
            offered.add(key)
            ever.add(key)
            super().offer(key, load)

        def release(self, key: str) -> None:
            offered.discard(key)
            super().release(key)

    plan = make_plan(adapters=4, tasks=2, shards=2)
    event = {"do": "fail", "adapter": "a3", "task": "requests1"}
    run(scripted(plan, "base0", event), MemorySink(), pool=Watched(num_slots=1))
    assert ever == {f"base0a{index}" for index in range(4)}
    assert offered == set()


def test_a_request_set_is_sent_once_and_forgotten_with_its_last_cell() -> None:
    shared: list[str] = []
    released: list[str] = []

    class Watched(LocalPool):
        def share(self, key: str, value: object) -> None:
            shared.append(key)
            super().share(key, value)

        def release(self, key: str) -> None:
            released.append(key)
            super().release(key)

    run(make_plan(adapters=2, tasks=2, shards=2), MemorySink(), pool=Watched())
    every = ["requests0", "requests1", "score/requests0", "score/requests1"]
    assert sorted(shared) == every
    assert sorted(released) == ["base0a0", "base0a1", *every]


# --- failures ---------------------------------------------------------------------------------


def test_one_bad_adapter_is_a_named_failure_and_the_others_are_scored() -> None:
    plan = make_plan(adapters=2, tasks=2)
    sink = MemorySink()
    event = {"do": "fail", "adapter": "a0", "kind": "does_not_fit", "message": "rank 8, not 16"}
    outcome = run(scripted(plan, "base0", event), sink)
    bad = {"base0/a0:task0", "base0/a0:task1"}
    assert outcome.failed.keys() == sink.failures.keys() == bad
    assert set(outcome.done) == sink.results.keys() == plan.cells.keys() - bad
    failure, attempts = sink.failures["base0/a0:task0"]
    assert (failure.kind, failure.message, attempts) == (
        FailureKind.DOES_NOT_FIT,
        "rank 8, not 16",
        1,
    )
    assert not any(cell in bad for cell, _ in sink.stored)


def test_neighbours_in_a_unit_are_stored_when_one_of_them_fails() -> None:
    plan = make_plan(adapters=3, subjects_per_unit=3)
    sink = MemorySink()
    run(scripted(plan, "base0", {"do": "fail", "adapter": "a1"}), sink)
    assert sink.failures.keys() == {"base0/a1:task0"}
    assert sink.results.keys() == plan.cells.keys() - sink.failures.keys()


def test_a_unit_that_always_crashes_is_tried_as_often_as_the_policy_says() -> None:
    plan = scripted(make_plan(adapters=2), "base0", {"do": "raise", "adapter": "a1"})
    sink = MemorySink()
    run(plan, sink, policy=Policy(attempts=3))
    failure, attempts = sink.failures["base0/a1:task0"]
    assert (failure.kind, attempts) == (FailureKind.CRASHED, 3)
    assert "Traceback" in failure.detail
    assert len(sink.results) == 2


def test_a_broken_engine_is_replaced_and_its_unit_answered_there(tmp_path: Path) -> None:
    event = {"do": "fatal", "adapter": "a0", "once": str(tmp_path / "marker")}
    sink = MemorySink()
    plan = scripted(make_plan(adapters=1), "base0", event)
    outcome = run(plan, sink, policy=Policy(slots=1))
    assert outcome.failed == {}
    assert len(sink.noted("slot_lost")) == 1
    assert outcome.num_slots_started == 2
    assert sorted(sink.attempts.values()) == [1, 2]


def test_a_base_that_cannot_be_loaded_fails_its_cells_and_no_others() -> None:
    plan = make_plan(bases=2, adapters=1)
    engines = {**plan.engines, "base1": replace(plan.engines["base1"], options={"x": 1})}
    sink = MemorySink()
    run(replace(plan, engines=engines), sink)
    assert {failure.kind for failure, _ in sink.failures.values()} == {FailureKind.SPEC}
    assert sink.failures.keys() == {"base1:task0", "base1/a0:task0"}
    assert sink.results.keys() == {"base0:task0", "base0/a0:task0"}


class SwappedEngine(FakeEngine):
    def answer(self, shard: Shard, subjects: Sequence[Subject]) -> list[SubjectAnswers]:
        answered = super().answer(shard, subjects)
        if subjects[0].is_baseline:
            return answered
        return [replace(one, subject="base0/other") for one in answered]


def test_answers_under_another_subjects_name_are_never_stored() -> None:
    plan = make_plan(adapters=2, subjects_per_unit=2)
    sink = MemorySink()
    run(plan, sink, pool=LocalPool(build=SwappedEngine))
    assert sink.results.keys() == {"base0:task0"}
    assert len(sink.noted("split_unit")) == 1
    assert "was asked about" in sink.failures["base0/a0:task0"][0].message


def test_a_late_or_repeated_answer_is_dropped_and_noted() -> None:
    said: list[PoolEvent] = []

    class Stuttering(LocalPool):
        def wait(self, timeout_seconds: float) -> list[PoolEvent]:
            events = super().wait(timeout_seconds)
            said.extend(events)
            return [*events, *said[-3:]]

    sink = MemorySink()
    outcome = run(make_plan(adapters=2, shards=2), sink, pool=Stuttering())
    assert len(outcome.done) == 3
    assert any(line.get("dropped") for line in sink.lines)


def test_a_request_set_that_cannot_be_read_fails_its_cells_only() -> None:
    def request_sets(digest: str) -> RequestSet:
        if digest == "requests1":
            raise StoreError("requests1.parquet", "version 9, not 1")
        return make_request_set(digest)

    plan = make_plan(adapters=1, tasks=2)
    sink = MemorySink()
    run(plan, sink, request_sets=request_sets)
    assert {failure.kind for failure, _ in sink.failures.values()} == {FailureKind.UNREADABLE}
    assert sink.failures.keys() == {"base0:task1", "base0/a0:task1"}
    assert sink.results.keys() == {"base0:task0", "base0/a0:task0"}


def test_stored_answers_that_cannot_be_read_fail_their_cell_only() -> None:
    class Damaged(MemorySink):
        def load_answers(self, cell: Cell) -> Sequence[Answer]:
            if cell.subject == "base0":
                raise StoreError("answers.parquet", "is truncated")
            return super().load_answers(cell)

    sink = Damaged()
    run(make_plan(adapters=1), sink)
    assert sink.failures["base0:task0"][0].kind is FailureKind.UNREADABLE
    assert sink.results.keys() == {"base0/a0:task0"}


def void(request_set: RequestSet, answers: Sequence[Answer], include_path: Sequence[str]) -> Scored:
    raise CellError("not_finite", "answer 3 is NaN")


def test_a_scoring_that_refuses_the_answers_voids_the_cell_with_its_reason() -> None:
    sink = MemorySink()
    run(make_plan(adapters=0), sink, score=void)
    failure, attempts = sink.failures["base0:task0"]
    assert (failure.kind, failure.message, attempts) == (
        FailureKind.NOT_FINITE,
        "answer 3 is NaN",
        1,
    )


# --- the sink ---------------------------------------------------------------------------------


def test_a_full_disk_stops_the_run_and_says_where_and_what_to_do() -> None:
    plan = make_plan(adapters=3, tasks=2)
    sink = MemorySink(room=3)
    with pytest.raises(SetupError) as caught:
        run(plan, sink)
    assert "/full/answers.parquet" in caught.value.message
    assert "No space left on device" in caught.value.message
    assert "base0/a" in caught.value.message
    assert "start the sweep again" in caught.value.remedy
    assert len(sink.stored) == 3
    sink.room = None
    finish(plan, sink)


def test_what_could_not_be_written_is_tried_once_more_before_the_run_ends() -> None:
    class Hiccup(MemorySink):
        failed = False

        def answers(self, unit: Unit, attempt: int, answers: UnitAnswers) -> None:
            if not self.failed:
                self.failed = True
                raise OSError(errno.EIO, "Input/output error", "/store")
            super().answers(unit, attempt, answers)

    sink = Hiccup()
    with pytest.raises(SetupError, match="Input/output error"):
        run(make_plan(adapters=0), sink)
    assert len(sink.stored) == 1


def test_a_journal_that_cannot_be_written_stops_the_run() -> None:
    class Mute(MemorySink):
        def note(self, line: dict[str, Json]) -> None:
            raise PermissionError(errno.EACCES, "Permission denied", "/out/journal.jsonl")

    with pytest.raises(SetupError, match="the journal could not be written"):
        run(make_plan(), Mute())


# --- the end ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", range(1, 12))
def test_a_signal_at_any_moment_loses_nothing_and_a_second_run_goes_on(rounds: int) -> None:
    calls = itertools.count(1)

    def interrupt(progress: Progress) -> None:
        if next(calls) == rounds:
            signal.raise_signal(signal.SIGTERM)

    plan = make_plan(bases=2, adapters=1, tasks=1, shards=2)
    sink, pool = MemorySink(), LocalPool(num_slots=2)
    with pytest.raises(Interrupted) as caught:
        run(plan, sink, pool=pool, on_progress=interrupt)
    assert caught.value.signal_name == "SIGTERM"
    assert sink.failures == {}
    assert pool.wait(1.0) == []
    finish(plan, sink)


class InterruptedEngine(FakeEngine):
    def answer(self, shard: Shard, subjects: Sequence[Subject]) -> list[SubjectAnswers]:
        if subjects[0].adapter is not None:
            signal.raise_signal(signal.SIGTERM)
        return super().answer(shard, subjects)


def test_what_is_answered_while_the_signal_comes_is_stored() -> None:
    plan, sink = make_plan(adapters=3), MemorySink()
    with pytest.raises(Interrupted):
        run(plan, sink, pool=LocalPool(build=InterruptedEngine))
    assert len(sink.stored) == 2
    finish(plan, sink)


def test_a_second_signal_ends_the_run_at_once() -> None:
    def twice(progress: Progress) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    plan, sink = make_plan(), MemorySink()
    with pytest.raises(Interrupted):
        run(plan, sink, on_progress=twice)
    finish(plan, sink)


def test_slots_that_take_turns_do_not_time_out_while_they_wait_for_one_another() -> None:
    # Slots of one process take turns: waiting for the other one is not running too long.
    sink = MemorySink()
    policy = Policy(slots=2, unit_timeout_seconds=0.5, start_timeout_seconds=0.5)
    outcome = run(make_plan(bases=2, adapters=3), sink, policy=policy)
    assert outcome.failed == {}
    assert outcome.num_attempts == outcome.num_units


class Deaf(MemorySink):
    """Takes long for one write, as storage that fails for a while does."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def answers(self, unit: Unit, attempt: int, answers: UnitAnswers) -> None:
        super().answers(unit, attempt, answers)
        self.now += 900.0


class Parallel(LocalPool):
    """Says that its slots work side by side, and hands out one event at a time."""

    is_parallel = True

    def __init__(self) -> None:
        super().__init__(num_slots=2)
        self.ready: list[PoolEvent] = []

    def wait(self, timeout_seconds: float) -> list[PoolEvent]:
        self.ready += super().wait(timeout_seconds)
        now, self.ready = self.ready[:1], self.ready[1:]
        return now


def test_slots_are_not_blamed_for_the_time_in_which_storage_failed() -> None:
    sink = Deaf()
    outcome = drive(
        make_plan(adapters=3),
        pool=Parallel(),
        sink=sink,
        policy=Policy(slots=2, unit_timeout_seconds=60.0),
        clock=lambda: sink.now,
        request_sets=make_request_set,
        score=mean_logprob,
    )
    assert outcome.failed == {}
    assert outcome.num_attempts == outcome.num_units


def test_no_more_slots_are_started_than_the_pool_has() -> None:
    sink = MemorySink()
    run(make_plan(bases=4), sink, pool=LocalPool(num_slots=1), policy=Policy(slots=8))
    under_way = 0
    for line in sink.lines:
        under_way += (line["event"] == "start_slot") - (line["event"] == "stop_slot")
        assert under_way <= 1
