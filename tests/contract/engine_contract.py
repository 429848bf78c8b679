"""What every `Engine` promises. Subclass it and give the fixtures it names."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from raypeft.core.records import (
    Adapter,
    Answer,
    FailureKind,
    RequestSet,
    Shard,
    Subject,
    SubjectAnswers,
)
from raypeft.engines.base import Engine
from raypeft.errors import EngineFatalError
from tests.engines.samples import mixed_calls, request_set

BASELINE = Subject(id="base", base="base")


class EngineContract:
    """Fixtures to give: `engine` (may be shared), `fresh_engine`, `adapters`, `bad_adapter`.

    - `engine`: an engine that only `answer` and `hardware` are called on.
    - `fresh_engine`: one that the test may close.
    - `adapters`: two good adapters that change answers.
    - `bad_adapter`: one that fails for a reason of its own.
    """

    @pytest.fixture(scope="class")
    @classmethod
    def requests(cls) -> RequestSet:
        return request_set(mixed_calls(sampled=True))

    @pytest.fixture
    def subjects(self, adapters: Sequence[Adapter]) -> list[Subject]:
        return [BASELINE, *(_subject(adapter) for adapter in adapters)]

    def test_each_subject_is_answered_in_the_order_given(
        self, engine: Engine, requests: RequestSet, subjects: list[Subject]
    ) -> None:
        order = [subjects[2], subjects[0], subjects[1]]

        answered = engine.answer(Shard(requests), order)

        assert [one.subject for one in answered] == [subject.id for subject in order]
        assert [one.failure for one in answered] == [None, None, None]

    def test_no_subjects_give_no_answers(self, engine: Engine, requests: RequestSet) -> None:
        assert engine.answer(Shard(requests), []) == []

    def test_each_request_is_answered_once_sorted_and_by_its_type(
        self, engine: Engine, requests: RequestSet
    ) -> None:
        (answered,) = engine.answer(Shard(requests), [BASELINE])

        assert [answer.index for answer in answered.answers] == list(range(len(requests.requests)))
        for request, answer in zip(requests.requests, answered.answers, strict=True):
            given = (
                answer.logprob is not None,
                answer.is_greedy is not None,
                answer.text is not None,
            )
            expected = {
                "loglikelihood": (True, True, False),
                "loglikelihood_rolling": (True, False, False),
                "generate_until": (False, False, True),
            }
            assert given == expected[request.request_type]

    @pytest.mark.parametrize("count", [3, 7, 60])
    def test_shards_partition_the_requests_and_change_no_bit(
        self, engine: Engine, requests: RequestSet, subjects: list[Subject], count: int
    ) -> None:
        whole = engine.answer(Shard(requests), subjects)

        parts = [engine.answer(Shard(requests, at, count), subjects) for at in range(count)]

        for number, one in enumerate(whole):
            own = [answer for part in parts for answer in part[number].answers]
            assert sorted(own, key=lambda answer: answer.index) == list(one.answers)

    def test_shards_can_be_answered_in_any_order(
        self, engine: Engine, requests: RequestSet
    ) -> None:
        forward = [engine.answer(Shard(requests, at, 4), [BASELINE])[0] for at in range(4)]
        backward = [engine.answer(Shard(requests, at, 4), [BASELINE])[0] for at in (3, 2, 1, 0)]

        assert [one.answers for one in forward] == [one.answers for one in reversed(backward)]

    def test_answers_do_not_depend_on_the_subjects_before_or_beside(
        self, engine: Engine, requests: RequestSet, subjects: list[Subject]
    ) -> None:
        together = _by_subject(engine.answer(Shard(requests), subjects))
        reversed_order = _by_subject(engine.answer(Shard(requests), subjects[::-1]))
        alone = {
            subject.id: engine.answer(Shard(requests), [subject])[0].answers for subject in subjects
        }

        assert together == reversed_order == alone

    def test_adapters_answer_otherwise_than_the_baseline_and_each_other(
        self, engine: Engine, requests: RequestSet, subjects: list[Subject]
    ) -> None:
        answers = _by_subject(engine.answer(Shard(requests), subjects))

        assert len({_logprobs(own) for own in answers.values()}) == len(subjects)

    def test_a_bad_adapter_fails_alone(
        self,
        engine: Engine,
        requests: RequestSet,
        subjects: list[Subject],
        bad_adapter: Adapter,
    ) -> None:
        expected = _by_subject(engine.answer(Shard(requests), subjects))
        bad = _subject(bad_adapter)

        answered = engine.answer(Shard(requests), [subjects[1], bad, subjects[0], subjects[2]])

        failed = answered.pop(1)
        assert failed.answers == ()
        assert failed.failure is not None
        assert failed.failure.kind in set(FailureKind)
        assert failed.failure.message
        assert not failed.failure.retryable
        assert _by_subject(answered) == expected

    def test_requests_of_a_slot_copy_are_enough(self, engine: Engine, requests: RequestSet) -> None:
        (whole,) = engine.answer(Shard(requests), [BASELINE])
        (copy,) = engine.answer(Shard(requests.for_slot()), [BASELINE])

        assert copy.answers == whole.answers

    def test_another_request_set_in_between_changes_nothing(
        self, engine: Engine, requests: RequestSet
    ) -> None:
        other = request_set([("loglikelihood", ("Something else:", " yes"))], task="other")
        (before,) = engine.answer(Shard(requests), [BASELINE])
        engine.answer(Shard(other), [BASELINE])
        (after,) = engine.answer(Shard(requests), [BASELINE])

        assert after.answers == before.answers

    def test_the_request_set_decides_and_not_its_name(
        self, engine: Engine, requests: RequestSet
    ) -> None:
        (named,) = engine.answer(Shard(replace(requests, entry="another entry")), [BASELINE])
        (plain,) = engine.answer(Shard(requests), [BASELINE])

        assert named.answers == plain.answers

    def test_effort_is_reported(self, engine: Engine, requests: RequestSet) -> None:
        (answered,) = engine.answer(Shard(requests), [BASELINE])

        assert answered.tokens > 0
        assert answered.seconds >= 0.0
        assert answered.path

    def test_hardware_is_read_back_and_stable(self, engine: Engine) -> None:
        hardware = engine.hardware()

        assert hardware == engine.hardware()
        assert hardware.fingerprint
        assert hardware.device
        assert "python" in hardware.software

    def test_closing_twice_is_harmless_and_a_closed_engine_is_fatal(
        self, fresh_engine: Engine, requests: RequestSet
    ) -> None:
        fresh_engine.close()
        fresh_engine.close()

        with pytest.raises(EngineFatalError, match="closed"):
            fresh_engine.answer(Shard(requests), [BASELINE])


def closing(engine: Engine) -> Iterator[Engine]:
    """Yield an engine and close it afterwards: the body of a fixture."""
    yield engine
    engine.close()


def _subject(adapter: Adapter) -> Subject:
    return Subject(id=f"base/{adapter.name}", base="base", adapter=adapter)


def _by_subject(answered: Sequence[SubjectAnswers]) -> dict[str, tuple[Answer, ...]]:
    return {one.subject: one.answers for one in answered}


def _logprobs(answers: Sequence[Answer]) -> tuple[float, ...]:
    return tuple(answer.logprob for answer in answers if answer.logprob is not None)
