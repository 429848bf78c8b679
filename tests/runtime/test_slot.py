from dataclasses import replace

from raypeft.core.records import (
    EngineSpec,
    Failure,
    FailureKind,
    Hardware,
    RequestSet,
    Subject,
    UnitAnswers,
)
from raypeft.engines.base import Engine
from raypeft.engines.fake import FakeEngine
from raypeft.runtime.ports import UnitWork
from raypeft.runtime.slot import MAX_REQUEST_SETS, Broken, Slot, Wanted
from tests.support.plans import make_request_set

SPEC = EngineSpec(kind="fake", base="base", base_digest="b0")


def work(request_set: str = "r0") -> UnitWork:
    return UnitWork(
        unit_id="u",
        request_set=request_set,
        shard_index=0,
        shard_count=1,
        subjects=(Subject(id="base", base="base"),),
    )


class Library:
    """Hands out request sets and remembers which."""

    def __init__(self) -> None:
        self.fetched: list[str] = []

    def run(self, slot: Slot, digest: str) -> UnitAnswers | Broken | Wanted:
        def fetch() -> RequestSet:
            self.fetched.append(digest)
            return make_request_set(digest)

        return slot.run(work(digest), fetch)


def loaded() -> Slot:
    slot = Slot(SPEC, FakeEngine)
    assert isinstance(slot.ready(), Hardware)
    return slot


class Learner(FakeEngine):
    """An engine whose device takes so much at once."""

    row_limits: dict[int, int]

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(spec)
        self.row_limits = {}


def test_what_was_learnt_on_this_hardware_counts_from_the_start_and_goes_back() -> None:
    own = FakeEngine(SPEC).hardware().fingerprint
    spec = replace(SPEC, row_limits={own: {0: 512, 64: 256}, "another": {0: 8}})
    slot = Slot(spec, Learner)
    assert isinstance(slot.ready(), Hardware)

    answers = Library().run(slot, "r0")

    assert isinstance(answers, UnitAnswers)
    assert answers.row_limits == {0: 512, 64: 256}


def test_an_engine_that_learns_nothing_says_nothing() -> None:
    answers = Library().run(loaded(), "r0")
    assert isinstance(answers, UnitAnswers)
    assert answers.row_limits == {}


def test_a_request_set_is_fetched_once_however_many_units_want_it() -> None:
    slot, library = loaded(), Library()
    for _ in range(3):
        assert isinstance(library.run(slot, "r0"), UnitAnswers)
    assert library.fetched == ["r0"]


def test_the_request_set_used_longest_ago_makes_room() -> None:
    slot, library = loaded(), Library()
    names = [f"r{index}" for index in range(MAX_REQUEST_SETS)]
    for name in [*names, "r0", "another", "r0", "r1"]:
        library.run(slot, name)
    assert library.fetched == [*names, "another", "r1"]


def test_a_unit_for_a_slot_that_was_never_loaded_is_fatal() -> None:
    broken = Library().run(Slot(SPEC, FakeEngine), "r0")
    assert isinstance(broken, Broken)
    assert broken.is_fatal


def test_a_closed_slot_answers_nothing() -> None:
    slot = loaded()
    slot.close()
    slot.close()
    broken = Library().run(slot, "r0")
    assert isinstance(broken, Broken)
    assert broken.is_fatal


def test_a_request_set_that_cannot_be_fetched_fails_its_unit_only() -> None:
    def lost() -> RequestSet:
        raise ConnectionError("the object store is gone")

    slot = loaded()
    broken = slot.run(work(), lost)
    assert isinstance(broken, Broken)
    assert not broken.is_fatal
    assert isinstance(Library().run(slot, "r0"), UnitAnswers)


def test_what_goes_wrong_while_loading_is_a_failed_load() -> None:
    def build(spec: EngineSpec) -> Engine:
        raise RuntimeError("no CUDA device")

    failure = Slot(replace(SPEC), build).ready()
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.LOAD_FAILED
    assert failure.retryable
    assert failure.message == "RuntimeError: no CUDA device"
