"""What every pool promises. Subclass it and give a `pool` fixture with room for two slots."""

import os
import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from raypeft.core.events import SlotFailed, SlotLost, SlotPlaced, SlotReady, UnitFailed
from raypeft.core.records import (
    Adapter,
    EngineSpec,
    FailureKind,
    Json,
    RequestSet,
    Shard,
    Subject,
)
from raypeft.core.retry import Policy
from raypeft.engines.adapters import read_adapter
from raypeft.engines.fake import FakeEngine
from raypeft.engines.travel import AdapterBytes, content_key, read_adapter_bytes
from raypeft.errors import CellError
from raypeft.runtime.calls import call_all
from raypeft.runtime.driver import drive
from raypeft.runtime.ports import (
    CallDone,
    CallFailed,
    Pool,
    PoolEvent,
    Shared,
    UnitAnswered,
    UnitWork,
)
from tests.engines.samples import hand_made_adapter
from tests.support.plans import make_plan, make_request_set
from tests.support.sinks import MemorySink, mean_logprob

REQUESTS = make_request_set("requests0")
BASE = Subject(id="base", base="base")


def spec(*events: Json) -> EngineSpec:
    options = {"script": {"events": list(events)}} if events else {}
    return EngineSpec(kind="fake", base="base", base_digest="b0", options=options)


def work(unit_id: str = "u", subjects: tuple[Subject, ...] = (BASE,)) -> UnitWork:
    return UnitWork(
        unit_id=unit_id,
        request_set=REQUESTS.digest,
        shard_index=0,
        shard_count=1,
        subjects=subjects,
    )


FAILURES = (CallFailed, SlotFailed, SlotLost, UnitFailed)


def collect(pool: Pool, *kinds: type[PoolEvent]) -> list[PoolEvent]:
    """Wait until one event of each kind is there; a failure that is none of them ends the test."""
    events: list[PoolEvent] = []
    while not {type(event) for event in events}.issuperset(kinds):
        events += pool.wait(5.0)
        failures = [event for event in events if isinstance(event, FAILURES)]
        assert {type(event) for event in failures}.issubset(kinds), failures
    return events


def only(events: list[PoolEvent], kind: "type[PoolEvent]") -> PoolEvent:
    (event,) = [event for event in events if isinstance(event, kind)]
    return event


def start(pool: Pool, slot: str, *events: Json) -> None:
    pool.share(REQUESTS.digest, REQUESTS)
    pool.start_slot(slot, spec(*events))
    collect(pool, SlotReady)


class Offer:
    """An adapter that the driver has, and how often it was asked for it."""

    def __init__(self, pool: Pool, folder: Path) -> None:
        # Content of its own: what an earlier run of the tests brought must not be found.
        hand_made_adapter(folder, lora_alpha=secrets.randbits(40))
        self.adapter = read_adapter(str(folder), name=folder.name)
        self.num_loads = 0
        pool.offer(content_key(self.adapter), self._load)

    def seen_by_the_slot(self, path: str) -> Subject:
        """Return a subject whose adapter lies elsewhere, or does not, where the slot is."""
        return adapted(replace(self.adapter, path=path))

    def _load(self) -> AdapterBytes:
        self.num_loads += 1
        return read_adapter_bytes(self.adapter)


def adapted(adapter: Adapter) -> Subject:
    return Subject(id=f"base/{adapter.name}", base="base", adapter=adapter)


def start_reading(pool: Pool, slot: str) -> None:
    """Start a slot whose engine opens the files of its adapters."""
    pool.share(REQUESTS.digest, REQUESTS)
    pool.start_slot(slot, replace(spec(), options={"script": {"reads_adapters": True}}))
    collect(pool, SlotReady)


def answers_of(pool: Pool, slot: str, *subjects: Subject) -> UnitAnswered:
    pool.submit(slot, work(subjects=subjects), 1)
    answered = only(collect(pool, UnitAnswered), UnitAnswered)
    assert isinstance(answered, UnitAnswered)
    return answered


def total(*numbers: int) -> int:
    return sum(numbers)


def count_documents(request_set: RequestSet, more: int) -> int:
    return len(request_set.documents) + more


def refuse(kind: str) -> None:
    raise CellError(kind, "scripted", retryable=kind == "timed_out")


def crash() -> None:
    raise ZeroDivisionError("scripted")


def process() -> int:
    return os.getpid()


class PoolContract:
    """The promises of `raypeft.runtime.ports.Pool`."""

    def test_a_slot_is_placed_and_then_ready_with_what_it_runs_on(self, pool: Pool) -> None:
        pool.start_slot("s1", spec())
        events = collect(pool, SlotReady)
        assert [type(event) for event in events] == [SlotPlaced, SlotReady]
        ready = only(events, SlotReady)
        assert isinstance(ready, SlotReady)
        assert ready.hardware.device == "fake"

    def test_prepared_slots_answer_as_others_do(self, pool: Pool) -> None:
        pool.prepare_slots(2, "fake")
        for slot in ("s1", "s2"):
            start(pool, slot)
        pool.drop_spares()
        for slot in ("s1", "s2"):
            pool.submit(slot, work(), 1)
            answered = only(collect(pool, UnitAnswered), UnitAnswered)
            assert isinstance(answered, UnitAnswered)
            assert answered.slot == slot

    def test_a_base_that_does_not_load_is_an_event_and_ends_its_slot(self, pool: Pool) -> None:
        pool.start_slot("s1", replace(spec(), options={"nonsense": 1}))
        failed = only(collect(pool, SlotFailed), SlotFailed)
        assert isinstance(failed, SlotFailed)
        assert failed.failure.kind is FailureKind.SPEC
        assert "nonsense" in failed.failure.message
        assert "CellError" in failed.failure.detail
        pool.stop_slot("s1")
        assert pool.wait(0.0) == []

    def test_a_unit_is_answered_as_the_engine_answers_it(self, pool: Pool) -> None:
        start(pool, "s1")
        pool.submit("s1", work(), 3)
        answered = only(collect(pool, UnitAnswered), UnitAnswered)
        assert isinstance(answered, UnitAnswered)
        assert (answered.slot, answered.unit_id, answered.attempt) == ("s1", "u", 3)
        expected = FakeEngine(spec()).answer(Shard(REQUESTS), [BASE])
        assert answered.answers.subjects == tuple(expected)
        assert answered.answers.hardware.device == "fake"
        assert answered.answers.seconds > 0

    def test_what_a_unit_raises_is_an_event_and_its_slot_goes_on(self, pool: Pool) -> None:
        start(pool, "s1", {"do": "raise", "call": 0, "message": "no such thing"})
        pool.submit("s1", work(), 1)
        failed = only(collect(pool, UnitFailed), UnitFailed)
        assert isinstance(failed, UnitFailed)
        assert failed.failure.kind is FailureKind.CRASHED
        assert failed.failure.message == "RuntimeError: no such thing"
        assert failed.failure.retryable
        assert "fake.py" in failed.failure.detail
        pool.submit("s1", work(), 2)
        answered = only(collect(pool, UnitAnswered), UnitAnswered)
        assert isinstance(answered, UnitAnswered)
        assert answered.attempt == 2

    def test_an_error_about_a_unit_keeps_its_kind(self, pool: Pool) -> None:
        start(pool, "s1", {"do": "out_of_memory"})
        pool.submit("s1", work(), 1)
        failed = only(collect(pool, UnitFailed), UnitFailed)
        assert isinstance(failed, UnitFailed)
        assert failed.failure.kind is FailureKind.OUT_OF_MEMORY
        assert failed.failure.retryable

    def test_what_is_wrong_with_one_subject_is_in_its_answers(self, pool: Pool) -> None:
        start(pool, "s1", {"do": "fail", "adapter": "", "kind": "not_finite"})
        pool.submit("s1", work(), 1)
        answered = only(collect(pool, UnitAnswered), UnitAnswered)
        assert isinstance(answered, UnitAnswered)
        failure = answered.answers.subjects[0].failure
        assert failure is not None
        assert failure.kind is FailureKind.NOT_FINITE

    def test_a_broken_engine_is_a_lost_slot_that_nothing_is_heard_of_again(
        self, pool: Pool
    ) -> None:
        start(pool, "s1", {"do": "fatal", "message": "CUDA is gone"})
        pool.submit("s1", work(), 1)
        lost = only(collect(pool, SlotLost), SlotLost)
        assert isinstance(lost, SlotLost)
        assert lost.failure.message == "CUDA is gone"
        assert lost.failure.retryable
        pool.stop_slot("s1")
        assert pool.wait(0.0) == []

    def test_a_stopped_slot_says_nothing_more_and_the_others_go_on(self, pool: Pool) -> None:
        start(pool, "s1")
        start(pool, "s2")
        pool.submit("s1", work("first"), 1)
        pool.submit("s2", work("second"), 1)
        pool.stop_slot("s1")
        events = collect(pool, UnitAnswered)
        assert {event.slot for event in events if isinstance(event, UnitAnswered)} == {"s2"}

    def test_a_slot_that_is_stopped_while_it_starts_never_comes_up(self, pool: Pool) -> None:
        pool.start_slot("s1", spec())
        pool.stop_slot("s1")
        pool.start_slot("s2", spec())
        events = collect(pool, SlotReady)
        assert {event.slot for event in events if isinstance(event, SlotReady)} == {"s2"}

    def test_a_released_value_still_reaches_what_was_submitted_before(self, pool: Pool) -> None:
        start(pool, "s1")
        pool.submit("s1", work(), 1)
        pool.submit_call("c1", count_documents, Shared(REQUESTS.digest), 10)
        pool.release(REQUESTS.digest)
        pool.release("never shared")
        events = collect(pool, UnitAnswered, CallDone)
        done = only(events, CallDone)
        assert isinstance(done, CallDone)
        assert done.result == len(REQUESTS.documents) + 10

    def test_an_adapter_that_a_slot_lacks_is_brought_to_it_once(
        self, pool: Pool, tmp_path: Path
    ) -> None:
        offer = Offer(pool, tmp_path / "lora")
        subject = offer.seen_by_the_slot(str(tmp_path / "nowhere"))
        start_reading(pool, "s1")
        start_reading(pool, "s2")
        for slot in ("s1", "s1", "s2"):
            answered = answers_of(pool, slot, BASE, subject)
            expected = FakeEngine(spec()).answer(Shard(REQUESTS), [BASE, subject])
            assert answered.answers.subjects == tuple(expected)
        assert offer.num_loads == 1

    def test_an_adapter_that_a_slot_has_is_not_brought(self, pool: Pool, tmp_path: Path) -> None:
        offer = Offer(pool, tmp_path / "lora")
        start_reading(pool, "s1")
        answered = answers_of(pool, "s1", adapted(offer.adapter))
        assert answered.answers.subjects[0].failure is None
        assert offer.num_loads == 0

    def test_other_content_under_an_adapters_path_is_not_used(
        self, pool: Pool, tmp_path: Path
    ) -> None:
        offer = Offer(pool, tmp_path / "lora")
        tampered = hand_made_adapter(tmp_path / "node" / "lora", lora_alpha=77)
        start_reading(pool, "s1")
        answered = answers_of(pool, "s1", offer.seen_by_the_slot(str(tampered)))
        assert answered.answers.subjects[0].failure is None
        assert offer.num_loads == 1

    def test_an_adapter_that_cannot_be_brought_fails_alone(
        self, pool: Pool, tmp_path: Path
    ) -> None:
        gone, good = Offer(pool, tmp_path / "gone"), Offer(pool, tmp_path / "good")
        hand_made_adapter(tmp_path / "gone", lora_alpha=77)
        nowhere = str(tmp_path / "nowhere")
        start_reading(pool, "s1")
        subjects = [gone.seen_by_the_slot(nowhere), BASE, good.seen_by_the_slot(nowhere)]
        answered = answers_of(pool, "s1", *subjects).answers.subjects
        assert [one.subject for one in answered] == [subject.id for subject in subjects]
        failure = answered[0].failure
        assert failure is not None
        assert failure.kind is FailureKind.UNREADABLE
        assert "other content than when the sweep was planned" in failure.message
        assert [one.failure for one in answered[1:]] == [None, None]

    def test_an_adapter_that_is_not_offered_any_more_is_a_failure_worth_another_try(
        self, pool: Pool, tmp_path: Path
    ) -> None:
        offer = Offer(pool, tmp_path / "lora")
        pool.release(content_key(offer.adapter))
        start_reading(pool, "s1")
        subject = offer.seen_by_the_slot(str(tmp_path / "nowhere"))
        failure = answers_of(pool, "s1", subject).answers.subjects[0].failure
        assert failure is not None
        assert failure.retryable
        assert offer.num_loads == 0

    def test_calls_return_their_results(self, pool: Pool) -> None:
        assert call_all(pool, {"a": (total, (1, 2)), "b": (total, ()), "c": (total, (5,))}) == {
            "a": 3,
            "b": 0,
            "c": 5,
        }

    @pytest.mark.parametrize(("kind", "retryable"), [("task_failed", False), ("timed_out", True)])
    def test_a_call_that_raises_a_cell_error_keeps_its_kind(
        self, pool: Pool, kind: str, retryable: bool
    ) -> None:
        pool.submit_call("c1", refuse, kind)
        failed = only(collect(pool, CallFailed), CallFailed)
        assert isinstance(failed, CallFailed)
        assert (failed.failure.kind, failed.failure.retryable) == (kind, retryable)
        assert failed.failure.message == "scripted"

    def test_a_call_that_crashes_says_where(self, pool: Pool) -> None:
        pool.submit_call("c1", crash)
        failed = only(collect(pool, CallFailed), CallFailed)
        assert isinstance(failed, CallFailed)
        assert failed.failure.message == "ZeroDivisionError: scripted"
        assert "pool_contract.py" in failed.failure.detail

    def test_nothing_under_way_is_nothing_to_wait_for(self, pool: Pool) -> None:
        assert pool.wait(5.0) == []

    def test_closing_stops_everything_and_twice_is_harmless(self, pool: Pool) -> None:
        start(pool, "s1")
        pool.submit("s1", work(), 1)
        pool.submit_call("c1", total, 1)
        pool.close()
        pool.close()
        assert pool.wait(0.0) == []

    @pytest.mark.parametrize("shards", [1, 3])
    def test_a_plan_is_driven_to_its_end(
        self, pool: Pool, shards: int, monotonic: Callable[[], float]
    ) -> None:
        plan = make_plan(bases=2, adapters=2, tasks=2, shards=shards)
        sink = MemorySink()
        outcome = drive(
            plan,
            pool=pool,
            sink=sink,
            policy=Policy(slots=2),
            clock=monotonic,
            request_sets=make_request_set,
            score=mean_logprob,
        )
        assert set(outcome.done) == set(plan.cells) == set(sink.results)
        assert outcome.failed == {}
        assert outcome.num_attempts == outcome.num_units == len(plan.units)
        for cell in plan.cells.values():
            engine = FakeEngine(plan.engines[cell.base])
            shard = Shard(make_request_set(cell.request_set))
            (expected,) = engine.answer(shard, [plan.subjects[cell.subject]])
            assert tuple(sink.load_answers(cell)) == expected.answers
