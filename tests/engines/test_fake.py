"""The fake engine does what its options say."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from raypeft.core.records import (
    Adapter,
    EngineSpec,
    FailureKind,
    Json,
    RequestSet,
    Shard,
    Subject,
    SubjectAnswers,
)
from raypeft.engines.fake import FakeEngine
from raypeft.errors import CellError, EngineFatalError
from tests.engines.samples import mixed_calls, request_set

BASELINE = Subject(id="base", base="base")
GOOD = Subject(
    id="base/good", base="base", adapter=Adapter(name="good", path="good", digest="g" * 32)
)
QUESTIONS = {f"Question {number}?": f"right{number}" for number in range(40)}


def engine(digest: str = "b" * 32, **options: Json) -> FakeEngine:
    return FakeEngine(EngineSpec(kind="fake", base="b", base_digest=digest, options=options))


def scripted(*events: Mapping[str, Json]) -> FakeEngine:
    return engine(script={"events": list(events)})


def one(requests: RequestSet, subject: Subject, engine: FakeEngine) -> SubjectAnswers:
    (answered,) = engine.answer(Shard(requests), [subject])
    return answered


def choices() -> RequestSet:
    shots = "Question 3?\nAnswer: right3\n\n"
    return request_set(
        [
            ("loglikelihood", (f"{shots}{question}\nAnswer:", f" {choice}"))
            for question, right in QUESTIONS.items()
            for choice in (right, "wrong")
        ]
    )


def accuracy(answered: SubjectAnswers) -> float:
    logprobs = [answer.logprob or 0.0 for answer in answered.answers]
    rights = [right > wrong for right, wrong in zip(logprobs[::2], logprobs[1::2], strict=True)]
    return sum(rights) / len(rights)


def test_answers_come_from_digests_and_arguments_alone() -> None:
    requests = request_set(mixed_calls())
    answers = one(requests, GOOD, engine()).answers
    renamed = Subject(
        id="x", base="y", adapter=Adapter(name="other", path="elsewhere", digest="g" * 32)
    )

    assert one(requests, renamed, engine()).answers == answers
    assert one(requests, GOOD, engine(digest="c" * 32)).answers != answers
    assert one(requests, BASELINE, engine()).answers != answers


@pytest.mark.parametrize("name", ["good", "g" * 32])
def test_skill_plants_a_gain(name: str) -> None:
    fake = engine(answer_key=QUESTIONS, skill=0.3, effects={name: {"skill": 0.8}})

    baseline, adapted = (
        accuracy(one(choices(), BASELINE, fake)),
        accuracy(one(choices(), GOOD, fake)),
    )

    assert baseline == pytest.approx(0.3, abs=0.2)
    assert adapted == pytest.approx(0.8, abs=0.2)


def test_higher_skill_knows_all_that_lower_skill_knows() -> None:
    fake = engine(answer_key=QUESTIONS, skill=0.3, effects={"good": {"skill": 0.8}})
    greedy = [
        [answer.is_greedy for answer in one(choices(), subject, fake).answers[::2]]
        for subject in (BASELINE, GOOD)
    ]

    assert all(adapted or not base for base, adapted in zip(*greedy, strict=True))


def known(subject: Subject, fake: FakeEngine) -> list[bool]:
    return [bool(a.is_greedy) for a in one(choices(), subject, fake).answers[::2]]


def test_an_adapter_may_have_another_skill_on_questions_that_begin_so() -> None:
    skills = {"Question 1": 1.0, "Question 2": 0.0}
    fake = engine(answer_key=QUESTIONS, skill=0.5, effects={"good": {"skills": skills}})
    base, adapted = known(BASELINE, fake), known(GOOD, fake)
    for question, before, after in zip(QUESTIONS, base, adapted, strict=True):
        beginning = question[: len("Question 1")]
        assert after == {"Question 1": True, "Question 2": False}.get(beginning, before)


def test_with_luck_an_adapter_of_equal_skill_differs_both_ways() -> None:
    fake = engine(answer_key=QUESTIONS, skill=0.5, effects={"good": {"luck": 0.5}})
    base, adapted = known(BASELINE, fake), known(GOOD, fake)
    differences = {after - before for before, after in zip(base, adapted, strict=True)}
    assert differences == {-1, 0, 1}
    assert known(GOOD, engine(answer_key=QUESTIONS, skill=0.5)) == base


def test_skill_shows_in_generated_texts() -> None:
    requests = request_set(
        [("generate_until", (f"{question}\nAnswer:", {"until": ["\n"]})) for question in QUESTIONS]
    )
    fake = engine(answer_key=QUESTIONS, skill=0.0, effects={"good": {"skill": 1.0}})

    knowing = [answer.text for answer in one(requests, GOOD, fake).answers]
    ignorant = [answer.text for answer in one(requests, BASELINE, fake).answers]

    assert knowing == list(QUESTIONS.values())
    assert not set(ignorant) & set(QUESTIONS.values())


def test_nats_per_byte_plant_a_better_perplexity() -> None:
    requests = request_set([("loglikelihood_rolling", ("some text " * 9,))])
    plain = one(requests, GOOD, engine()).answers[0].logprob
    better = one(requests, GOOD, engine(effects={"good": {"nats_per_byte": 0.5}})).answers[0]

    assert plain is not None
    assert better.logprob == pytest.approx(plain + 0.5 * 90)


@pytest.mark.parametrize(
    ("event", "error"),
    [
        ({"do": "raise"}, RuntimeError),
        ({"do": "fatal"}, EngineFatalError),
        ({"do": "out_of_memory"}, CellError),
    ],
)
def test_a_unit_fails_on_the_call_that_the_script_names(
    event: Mapping[str, Json], error: type[Exception]
) -> None:
    fake = scripted({**event, "call": 1})
    requests = request_set(mixed_calls())

    assert one(requests, BASELINE, fake).failure is None
    with pytest.raises(error):
        one(requests, BASELINE, fake)
    assert one(requests, BASELINE, fake).failure is None


@pytest.mark.parametrize(
    ("condition", "happens"),
    [
        ({"adapter": "good"}, True),
        ({"adapter": ""}, False),
        ({"adapter": "good", "task": "sample", "shard": 0, "call": 0}, True),
        ({"adapter": "good", "task": "other"}, False),
        ({"shard": 1}, False),
    ],
)
def test_all_conditions_of_an_event_must_hold(condition: dict[str, Json], happens: bool) -> None:
    answered = one(request_set(mixed_calls()), GOOD, scripted({"do": "fail"} | condition))

    assert (answered.failure is not None) == happens


def test_a_subject_fails_as_the_script_says() -> None:
    event = {"do": "fail", "kind": "not_finite", "message": "planted"}

    failure = one(request_set(mixed_calls()), GOOD, scripted(event)).failure

    assert failure is not None
    assert failure.kind is FailureKind.NOT_FINITE
    assert failure.message == "planted"


def test_nan_is_given_back_raw() -> None:
    answered = one(request_set(mixed_calls()), GOOD, scripted({"do": "nan", "adapter": "good"}))

    logprobs = [one.logprob for one in answered.answers if one.logprob is not None]
    assert all(logprob != logprob for logprob in logprobs)
    assert answered.failure is None


def test_an_event_with_a_marker_happens_once_over_all_engines(tmp_path: Path) -> None:
    event = {"do": "raise", "once": str(tmp_path / "happened")}
    requests = request_set(mixed_calls())

    with pytest.raises(RuntimeError):
        one(requests, BASELINE, scripted(event))
    assert one(requests, BASELINE, scripted(event)).failure is None


def test_death_ends_the_process() -> None:
    code = (
        "from raypeft.core.records import EngineSpec, Shard, Subject\n"
        "from raypeft.engines.fake import FakeEngine\n"
        "from tests.engines.samples import mixed_calls, request_set\n"
        "options = {'script': {'events': [{'do': 'die', 'code': 41}]}}\n"
        "spec = EngineSpec(kind='fake', base='b', base_digest='0', options=options)\n"
        "subject = Subject(id='b', base='b')\n"
        "FakeEngine(spec).answer(Shard(request_set(mixed_calls())), [subject])\n"
    )

    done = subprocess.run([sys.executable, "-c", code], check=False)

    assert done.returncode == 41


def test_durations_are_reported_and_passed_to_the_injected_sleep() -> None:
    slept: list[float] = []
    options = {"script": {"seconds": 2.0, "seconds_per_request": 0.5}}
    spec = EngineSpec(kind="fake", base="b", base_digest="0", options=options)
    requests = request_set([("loglikelihood", ("a", " b"))] * 4)

    (answered,) = FakeEngine(spec, slept.append).answer(Shard(requests), [BASELINE])

    assert answered.seconds == 4.0
    assert slept == [4.0]


def test_the_script_is_no_part_of_the_identity_and_effects_are() -> None:
    def numerics(**options: Any) -> dict[str, Json]:
        return EngineSpec(kind="fake", base="b", base_digest="0", options=options).numerics()

    assert numerics(script={"seconds": 1}) == numerics()
    assert numerics(effects={"good": {"skill": 1}}) != numerics()


def test_hardware_can_be_pretended() -> None:
    devices = [engine(script={"hardware": name}).hardware() for name in ("x", "x", "y")]

    assert devices[0] == devices[1]
    assert devices[0].fingerprint != devices[2].fingerprint
    assert devices[2].device == "y"


def test_pretended_hardware_may_be_that_of_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRETENDED", "h100")
    assert engine(script={"hardware": "$PRETENDED"}).hardware().device == "h100"


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"skil": 1}, "skil"),
        ({"script": {"second": 1}}, "script.second"),
        ({"script": {"events": [{"do": "explode"}]}}, "do: explode"),
        ({"script": {"events": [{"do": "fail", "when": 3}]}}, "script.events.when"),
    ],
)
def test_an_option_that_it_does_not_know_is_refused(options: dict[str, Json], name: str) -> None:
    with pytest.raises(CellError, match=name) as raised:
        engine(**options)
    assert raised.value.kind == FailureKind.SPEC
