"""An engine without a model: scripted answers, effects, failures and durations.

Decides: answers, as a pure function of base digest, adapter digest and request arguments. Needs
no torch. For tests and simulations of everything around an engine: store, schedule, retries,
death of a process, gains.

`EngineSpec.options` of a fake engine, all optional:

- `answer_key`: `{question: right}`. A request is about the question that stands last in its
  context. A subject that knows the question prefers the continuation `right` (leading and
  trailing spaces aside), or generates it; one that does not prefers and generates others.
- `skill`: share of questions the base knows, 0.5 if not given. Which ones is drawn from the
  question alone, so a subject of higher skill knows all that one of lower skill knows.
- `effects`: `{adapter name or digest: {"skill": …, "skills": …, "luck": …, "nats_per_byte": …}}`.
  An adapter's own skill; its skill on questions that begin so, by their beginning; the share of
  questions on which it does not know what others of its skill know, but its own; and by how much
  its rolling log-likelihood is better for each byte. An adapter that is not named has the base's
  skill and no effect, and answers of its own otherwise. One of zero effect (it is named
  `base@zero`) answers as the base, except for what is named here.
- `script`: what does not change any answer and is no part of an identity:
    - `hardware`: name of the pretended device; different names are different hardware. `$NAME` in
      it is a variable of the slot's environment, so that nodes can differ.
    - `seconds`: scripted duration of one subject's answers to one unit, plus
      `seconds_per_request` for each request. It is reported, and passed to the injected `sleep`.
    - `waits`: whether these seconds pass in real time, for what is done to a slot at work.
    - `reads_adapters`: whether it opens the files of its adapters, as a real engine does.
    - `events`: a list of failures, each `{"do": …}` with conditions that must all hold:
      `call` (number of the `answer` call of this engine, from 0), `adapter` (name; `""` is the
      baseline), `task`, `shard` (its index), `once` (path of a marker file, made when the event
      happens, so that it happens once over all processes). What `do` may be:
        - `raise`: the unit fails with a RuntimeError;
        - `out_of_memory`: it fails with that `CellError`, retryable;
        - `fatal`: it fails with an `EngineFatalError`, of `kind` (`crashed`);
        - `die`: the process ends at once, with exit code `code` (137);
        - `hang`: the call never returns;
        - `fail`: the subject fails, with `kind` (`does_not_fit`) and `message`;
        - `nan`: the subject's log-likelihoods are NaN. A real engine must fail such a subject;
          this is for testing what stands behind it.
"""

import hashlib
import math
import os
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from raypeft.core.identity import canonical, digest
from raypeft.core.records import (
    Answer,
    EngineSpec,
    Failure,
    FailureKind,
    Hardware,
    Json,
    Request,
    Shard,
    Subject,
    SubjectAnswers,
)
from raypeft.engines.adapters import open_adapter
from raypeft.engines.progress import got_on
from raypeft.errors import CellError, EngineFatalError

_NATS_PER_BYTE = 2.0
_PREFERENCE_NATS = 5.0
_STEP_SECONDS = 0.1

OPTIONS = frozenset({"answer_key", "skill", "effects", "script"})
ACTIONS = frozenset({"raise", "out_of_memory", "fatal", "die", "hang", "fail", "nan"})
_SCRIPT_KEYS = frozenset(
    {"hardware", "seconds", "seconds_per_request", "waits", "reads_adapters", "events"}
)
_EVENT_KEYS = frozenset(
    {"do", "call", "adapter", "task", "shard", "once", "code", "kind", "message"}
)


class FakeEngine:
    """Answers without a model; see the module's docstring for its options.

    Args:
        spec: The base, of which only the digest matters, and the options.
        sleep: Called with a subject's scripted seconds; None passes no time.
    """

    def __init__(self, spec: EngineSpec, sleep: Callable[[float], None] | None = None) -> None:
        _check_options(spec.options)
        self._spec = spec
        self._script: Mapping[str, Json] = spec.options.get("script", {})
        self._sleep = _wait if sleep is None and self._script.get("waits") else sleep
        self._num_calls = 0
        self._is_closed = False
        self._questions: dict[str, str | None] = {}

    def answer(self, shard: Shard, subjects: Sequence[Subject]) -> list[SubjectAnswers]:
        """Answer the requests of a shard for each subject; see `raypeft.engines.base.Engine`."""
        if self._is_closed:
            raise EngineFatalError(f"the fake engine of {self._spec.base!r} is closed")
        call, self._num_calls = self._num_calls, self._num_calls + 1
        requests = shard.request_set.requests
        first = shard.index * len(requests) // shard.count
        last = (shard.index + 1) * len(requests) // shard.count
        return [
            self._answer_for(subject, shard, requests[first:last], call) for subject in subjects
        ]

    def hardware(self) -> Hardware:
        """Return the pretended hardware."""
        device = os.path.expandvars(str(self._script.get("hardware", "fake")))
        return Hardware(
            fingerprint=digest("hardware", 1, ["fake", device]),
            device=device,
            node=platform.node(),
            software={"python": platform.python_version()},
        )

    def close(self) -> None:
        """Refuse further answers; calling it twice is harmless."""
        self._is_closed = True

    def _answer_for(
        self, subject: Subject, shard: Shard, requests: Sequence[Request], call: int
    ) -> SubjectAnswers:
        seconds = float(self._script.get("seconds", 0.0))
        seconds += len(requests) * float(self._script.get("seconds_per_request", 0.0))
        if self._sleep is not None:
            self._sleep(seconds)
        got_on()
        failure, is_nan = self._misread(subject), False
        for event in self._script.get("events", ()):
            if self._happens(event, subject, shard, call):
                failure = _carry_out(event, subject) or failure
                is_nan = is_nan or event["do"] == "nan"
        if failure is not None:
            return SubjectAnswers(subject=subject.id, failure=failure, seconds=seconds, path="fake")
        answers = tuple(self._one_answer(subject, request, is_nan) for request in requests)
        return SubjectAnswers(
            subject=subject.id,
            answers=tuple(sorted(answers, key=lambda answer: answer.index)),
            tokens=sum(_num_words(request) for request in requests),
            seconds=seconds,
            path="fake",
        )

    def _misread(self, subject: Subject) -> Failure | None:
        """Return why the files of an adapter cannot be used, where they are looked at."""
        if subject.attached is None or not self._script.get("reads_adapters"):
            return None
        try:
            open_adapter(subject.attached)
        except CellError as error:
            return Failure(FailureKind(error.kind), error.message, error.retryable)
        return None

    def _happens(
        self, event: Mapping[str, Json], subject: Subject, shard: Shard, call: int
    ) -> bool:
        name = "" if subject.attached is None else subject.attached.name
        now = {
            "call": call,
            "adapter": name,
            "task": shard.request_set.task,
            "shard": shard.index,
        }
        if any(event[key] != value for key, value in now.items() if key in event):
            return False
        return "once" not in event or _make_marker(Path(event["once"]))

    def _one_answer(self, subject: Subject, request: Request, is_nan: bool) -> Answer:
        is_greedy: bool | None
        match request.request_type:
            case "loglikelihood":
                logprob, is_greedy = self._loglikelihood(subject, request)
            case "loglikelihood_rolling":
                logprob, is_greedy = self._rolling(subject, request), None
            case "generate_until":
                return Answer(request.index, text=self._text(subject, request))
        return Answer(request.index, logprob=math.nan if is_nan else logprob, is_greedy=is_greedy)

    def _loglikelihood(self, subject: Subject, request: Request) -> tuple[float, bool]:
        context, continuation = request.arguments
        noise = self._noise(subject, request)
        question = self._question(context)
        if question is None:
            return -1.0 - noise * _PREFERENCE_NATS, noise < 0.1
        is_right = continuation.strip() == str(self._key[question]).strip()
        is_preferred = is_right == self._knows(subject, question)
        return -1.0 - noise - (0.0 if is_preferred else _PREFERENCE_NATS), is_preferred

    def _rolling(self, subject: Subject, request: Request) -> float:
        num_bytes = len(request.arguments[0].encode())
        better = float(self._effect(subject).get("nats_per_byte", 0.0))
        return -num_bytes * (_NATS_PER_BYTE + 0.2 * self._noise(subject, request) - better)

    def _text(self, subject: Subject, request: Request) -> str:
        question = self._question(request.arguments[0])
        if question is not None and self._knows(subject, question):
            return str(self._key[question])
        return f"text {int(self._noise(subject, request) * 1e6)}"

    @property
    def _key(self) -> Mapping[str, Json]:
        key: Mapping[str, Json] = self._spec.options.get("answer_key", {})
        return key

    def _question(self, context: str) -> str | None:
        """Return the question of the answer key that stands last in a context."""
        # Kept: every subject is asked the same, and looking goes through the whole key.
        if context not in self._questions:
            places = {question: context.rfind(question) for question in self._key}
            found = [question for question, place in places.items() if place >= 0]
            self._questions[context] = max(
                found, key=lambda question: (places[question], len(question)), default=None
            )
        return self._questions[context]

    def _knows(self, subject: Subject, question: str) -> bool:
        effect = self._effect(subject)
        skill = effect.get("skill", self._spec.options.get("skill", 0.5))
        for beginning, own in effect.get("skills", {}).items():
            if question.startswith(beginning):
                skill = own
        rank = _uniform(["question", question])
        luck = float(effect.get("luck", 0.0))
        if luck and subject.attached is not None:
            mine: list[Json] = [subject.attached.digest, question]
            if _uniform(["luck", *mine]) < luck:
                rank = _uniform(["own question", *mine])
        return rank < float(skill)

    def _effect(self, subject: Subject) -> Mapping[str, Json]:
        effects: Mapping[str, Mapping[str, Json]] = self._spec.options.get("effects", {})
        adapter = subject.attached
        if adapter is None:
            return {}
        return effects.get(adapter.digest) or effects.get(adapter.name) or {}

    def _noise(self, subject: Subject, request: Request) -> float:
        """Return a number in [0, 1) that belongs to this subject and these arguments."""
        adapter = None if subject.adapter is None else subject.adapter.digest
        return _uniform([self._spec.base_digest, adapter, list(request.arguments), request.repeat])


def _carry_out(event: Mapping[str, Json], subject: Subject) -> Failure | None:
    match event["do"]:
        case "raise":
            raise RuntimeError(event.get("message", "scripted: the unit fails"))
        case "out_of_memory":
            raise CellError(FailureKind.OUT_OF_MEMORY, "scripted: out of memory", retryable=True)
        case "fatal":
            message = event.get("message", "scripted: the engine is broken")
            raise EngineFatalError(message, event.get("kind", "crashed"))
        case "die":
            os._exit(int(event.get("code", 137)))
        case "hang":
            threading.Event().wait()
        case "fail":
            kind = FailureKind(event.get("kind", "does_not_fit"))
            message = event.get("message", f"scripted: subject {subject.id!r} fails")
            return Failure(kind, str(message))
    return None


def _check_options(options: Mapping[str, Json]) -> None:
    script = options.get("script", {})
    events = script.get("events", ())
    unknown = [
        *(options.keys() - OPTIONS),
        *(f"script.{key}" for key in script.keys() - _SCRIPT_KEYS),
        *(f"script.events.{key}" for event in events for key in event.keys() - _EVENT_KEYS),
        *(f"do: {event.get('do')}" for event in events if event.get("do") not in ACTIONS),
    ]
    if unknown:
        raise CellError(
            FailureKind.SPEC,
            f"the fake engine does not know {', '.join(sorted(unknown))}; its options are "
            f"{', '.join(sorted(OPTIONS))}, and an event may do {', '.join(sorted(ACTIONS))}",
        )


def _make_marker(path: Path) -> bool:
    """Make a marker file and return whether it was not there before."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _wait(seconds: float) -> None:
    """Let time pass as work does: a step at a time, each of which is getting on."""
    steps = max(1, round(seconds / _STEP_SECONDS))
    for _ in range(steps):
        time.sleep(seconds / steps)
        got_on()


def _uniform(value: Json) -> float:
    hashed = hashlib.sha256(canonical(value).encode("ascii")).digest()
    return int.from_bytes(hashed[:6], "big") / (1 << 48)


def _num_words(request: Request) -> int:
    return sum(len(part.split()) for part in request.arguments if isinstance(part, str))
