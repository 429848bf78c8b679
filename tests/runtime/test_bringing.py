"""What a slot does about adapters that its node lacks, and what a pool answers it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from raypeft.core.records import (
    Adapter,
    EngineSpec,
    Failure,
    FailureKind,
    RequestSet,
    Subject,
    UnitAnswers,
)
from raypeft.engines.adapters import read_adapter
from raypeft.engines.fake import FakeEngine
from raypeft.engines.travel import AdapterBytes, LocalAdapters, content_key, read_adapter_bytes
from raypeft.errors import CellError
from raypeft.runtime.bringing import brought
from raypeft.runtime.ports import Bring, UnitWork
from raypeft.runtime.slot import Slot, Wanted
from tests.engines.samples import hand_made_adapter
from tests.support.plans import make_request_set

READING = EngineSpec(
    kind="fake", base="base", base_digest="b0", options={"script": {"reads_adapters": True}}
)


@pytest.fixture
def slot(tmp_path: Path) -> Slot:
    return loaded(READING, tmp_path)


def loaded(spec: EngineSpec, folder: Path) -> Slot:
    slot = Slot(spec, FakeEngine, LocalAdapters(folder / "cache"))
    slot.ready()
    return slot


def subject(folder: Path, name: str, lora_alpha: int = 4) -> Subject:
    path = hand_made_adapter(folder / name, lora_alpha=lora_alpha)
    adapter = read_adapter(str(path), name=name)
    return Subject(id=f"base/{name}", base="base", adapter=adapter)


def adapter_of(subject: Subject) -> Adapter:
    assert subject.adapter is not None
    return subject.adapter


def key(subject: Subject) -> str:
    return content_key(adapter_of(subject))


def lost(subject: Subject) -> Subject:
    return replace(subject, adapter=replace(adapter_of(subject), path="/no/such/folder"))


def work(*subjects: Subject) -> UnitWork:
    return UnitWork(unit_id="u", request_set="r0", shard_index=0, shard_count=1, subjects=subjects)


def fetch() -> RequestSet:
    return make_request_set("r0")


def never() -> RequestSet:
    raise AssertionError("a request set was fetched for nothing")


def bytes_of(subject: Subject) -> Callable[[], AdapterBytes]:
    return lambda: read_adapter_bytes(adapter_of(subject))


def test_a_slot_asks_for_everything_it_lacks_at_once(slot: Slot, tmp_path: Path) -> None:
    one, two, three = (subject(tmp_path, f"a{n}", lora_alpha=n) for n in (1, 2, 3))
    again = replace(lost(one), id="base/again")
    asked = slot.run(work(lost(one), two, lost(three), again), never)
    assert asked == Wanted((key(one), key(three)))


def test_what_is_brought_is_used_and_not_asked_for_again(slot: Slot, tmp_path: Path) -> None:
    one = subject(tmp_path, "a1")
    bring: dict[str, Bring] = {key(one): bytes_of(one)}
    for given in (bring, {}):
        answers = slot.run(work(lost(one)), fetch, given)
        assert isinstance(answers, UnitAnswers)
        assert answers.subjects[0].failure is None


def test_wrong_bytes_fail_the_subject_they_are_for(slot: Slot, tmp_path: Path) -> None:
    one, two = subject(tmp_path, "a1"), subject(tmp_path, "a2", lora_alpha=2)
    bring: dict[str, Bring] = {key(one): bytes_of(two), key(two): bytes_of(two)}
    answers = slot.run(work(lost(one), lost(two)), fetch, bring)
    assert isinstance(answers, UnitAnswers)
    first, second = (one.failure for one in answers.subjects)
    assert first is not None
    assert first.kind is FailureKind.UNREADABLE
    assert second is None


def test_an_engine_that_opens_no_files_is_not_brought_any(tmp_path: Path) -> None:
    slot = loaded(replace(READING, options={}), tmp_path)
    answers = slot.run(work(lost(subject(tmp_path, "a1"))), fetch)
    assert isinstance(answers, UnitAnswers)


def test_whatever_goes_wrong_on_the_way_is_a_failure() -> None:
    def refuse() -> AdapterBytes:
        raise CellError("unreadable", "trained on")

    def crash() -> AdapterBytes:
        raise ZeroDivisionError

    refused, crashed, unknown = (brought(load, "key") for load in (refuse, crash, None))
    assert isinstance(refused, Failure)
    assert (refused.kind, refused.message) == (FailureKind.UNREADABLE, "trained on")
    assert isinstance(crashed, Failure)
    assert crashed.retryable
    assert isinstance(unknown, Failure)
    assert unknown.retryable
