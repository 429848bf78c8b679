"""The throughput engine: vLLM, through lm-eval's own class, with many LoRA adapters in a batch.

Decides: who is asked together, and what a failure means for whom. Leaves to lm-eval: how texts
become tokens, where they are cut, where a generation stops. Leaves to others: what vLLM is asked
and when its answer counts (`vllm_answers`), adapters (`vllm_adapters`), loading (`vllm_model`).

Answers do not depend on the batch they were computed in on a CPU, bit for bit; on a GPU they do by
rounding, unless the option `batch_invariant` is set.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from raypeft.core.records import (
    Adapter,
    Answer,
    EngineSpec,
    Failure,
    FailureKind,
    Hardware,
    Request,
    Shard,
    Subject,
    SubjectAnswers,
)
from raypeft.engines.hardware import read_hardware
from raypeft.engines.hf_batches import Pair, to_array
from raypeft.engines.vllm_adapters import HeldAdapters
from raypeft.engines.vllm_answers import Asker, Scored
from raypeft.engines.vllm_calls import Caller, Effort, Voice
from raypeft.engines.vllm_capabilities import Counters
from raypeft.engines.vllm_encoding import Encoded, EncodedSets, longest_pair
from raypeft.engines.vllm_model import VLLMModel, loading
from raypeft.engines.vllm_preflight import Preflight
from raypeft.engines.vllm_requests import request_seed, shard_requests
from raypeft.engines.vllm_settings import wrapped_modules
from raypeft.errors import EngineFatalError

_PROBE_ROWS = 2
_PROBE_TOKENS = 16

Said = Answer | None
"""An answer; None where the logits became NaN while a text was generated."""


class VLLMEngine(VLLMModel):
    """A base in vLLM that answers for itself and, many at once, for its adapters.

    It is an lm-eval model as well: `simple_evaluate(model=engine)` evaluates the base alone.

    Args:
        spec: What to load.

    Raises:
        CellError: `spec`, `unsupported`, `unsafe`, `load_failed` or `out_of_memory`.
    """

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(spec)
        self._is_closed = False
        self._poisoned_by: list[str] = []
        try:
            with loading(spec):
                caller = Caller(
                    self.model,
                    f"base {spec.base!r}",
                    self.cores,
                    counts=self.counts,
                    log=self.log,
                )
                self._asker = Asker(caller, self.capabilities, longest_pair(self.max_length))
                self._adapters = self._make_adapters()
        except BaseException:
            self.close()
            raise
        self._sets = EncodedSets(self)

    def answer(self, shard: Shard, subjects: Sequence[Subject]) -> list[SubjectAnswers]:
        """Answer the requests of a shard for each subject; see `raypeft.engines.base.Engine`."""
        if self._is_closed:
            raise EngineFatalError(f"the engine of {self._spec.base!r} is closed")
        if not subjects:
            return []
        self._refuse_poisoned()
        encoded = self._sets.get(shard.request_set)
        requests = shard_requests(encoded.requests, shard.index, shard.count)
        work = _Work(encoded, requests, self._seeds(shard, requests))
        found: dict[str, SubjectAnswers] = {}
        adapted: list[Subject] = []
        for subject in subjects:
            if why := _why_not(subject):
                failure = Failure(FailureKind.UNSUPPORTED, f"subject {subject.id!r}: {why}")
                found[subject.id] = SubjectAnswers(subject=subject.id, failure=failure)
            elif subject.attached is not None:
                adapted.append(subject)
            elif subject.id not in found:
                # The base is alone in its calls: see `Caller.run`.
                found |= self._ask(work, [subject], {})
        for group in _groups(adapted, self._adapters.capacity):
            found |= self._answer_group(work, group)
        if len(subjects) > 1:
            self._refuse_poisoned()  # alone, the culprit is named; in company all are in doubt
        return [found[subject.id] for subject in subjects]

    def hardware(self) -> Hardware:
        """Return what this engine runs on."""
        read = read_hardware(self._spec.device)
        software = {**read.software, "vllm": self.capabilities.version}
        return dataclasses.replace(read, software=software)

    def counters(self) -> Counters:
        """Return vLLM's own counts of this engine: what its prefix cache was asked for and had."""
        return self.counts.read()

    def close(self) -> None:
        """Give memory and processes back; calling it twice is harmless."""
        self._is_closed = True
        for name in ("_asker", "_adapters"):
            self.__dict__.pop(name, None)  # they hold vLLM too
        self._end()
        self._forget_log()

    # --- subjects -----------------------------------------------------------------------------

    def _answer_group(
        self, work: "_Work", subjects: Sequence[Subject]
    ) -> dict[str, SubjectAnswers]:
        started = time.perf_counter()
        held = self._adapters.hold([_adapter(subject) for subject in subjects])
        loading_s = (time.perf_counter() - started) / len(subjects)
        found: dict[str, SubjectAnswers] = {}
        able = []
        for subject in subjects:
            request = held[_adapter(subject).digest]
            if isinstance(request, Failure):
                found[subject.id] = SubjectAnswers(
                    subject=subject.id, failure=request, seconds=loading_s
                )
            else:
                able.append(subject)
        for subject_id, answered in self._ask(work, able, held).items():
            seconds = answered.seconds + loading_s
            found[subject_id] = dataclasses.replace(answered, seconds=seconds)
        return found

    def _ask(
        self, work: "_Work", subjects: Sequence[Subject], held: Mapping[str, Any]
    ) -> dict[str, SubjectAnswers]:
        """Ask all these subjects at once: the base alone, or adapters that are held."""
        voices = [
            Voice(None if one.attached is None else held[one.attached.digest], Effort())
            for one in subjects
        ]
        if not voices:
            return {}
        said = [*self._score(work, voices)]
        for own, texts in zip(said, self._generate(work, voices), strict=True):
            own.update(texts)
        answered = {
            subject.id: _subject_answers(subject, own, voice.effort, self.steps)
            for subject, own, voice in zip(subjects, said, voices, strict=True)
        }
        self._poisoned_by += [name for name, one in answered.items() if one.failure]
        return answered

    def _refuse_poisoned(self) -> None:
        """Give the engine up once it has computed NaN.

        They stay in blocks of the cache, and vLLM's attention on a CPU multiplies what lies behind
        a text in its last block by zero, which leaves NaN: any later text may become NaN as well.
        """
        culprits = self._poisoned_by + self._adapters.not_finite
        if culprits:
            raise EngineFatalError(
                f"base {self._spec.base!r}: NaN or infinity was computed for "
                f"{', '.join(culprits[:3])} and may have stayed in vLLM's cache; the engine must "
                "be replaced"
            )

    def _score(self, work: "_Work", voices: Sequence[Voice]) -> list[dict[int, Said]]:
        scores = self._asker.score(work.pairs, voices)
        return [work.score_answers(own) for own in scores]

    def _generate(self, work: "_Work", voices: Sequence[Voice]) -> list[dict[int, Said]]:
        prompts = [work.encoded.prompts[at] for at in work.generated]
        seeds = [work.seeds[at] for at in work.generated]
        texts = self._asker.generate(prompts, seeds, voices)
        return [
            {
                at: None if text is None else Answer(at, text=text)
                for at, text in zip(work.generated, own, strict=True)
            }
            for own in texts
        ]

    def _seeds(self, shard: Shard, requests: Sequence[Request]) -> dict[int, int]:
        seed, digest = self._spec.seed, shard.request_set.digest
        return {request.index: request_seed(seed, digest, request) for request in requests}

    # --- adapters -----------------------------------------------------------------------------

    def _make_adapters(self) -> HeldAdapters:
        room = self._spec.lora
        preflight = None
        if room is not None:
            preflight = Preflight(
                self.folder,
                modules=wrapped_modules(room),
                max_rank=room.max_rank,
                adapter_settings=self.capabilities.adapter_settings,
            )
        return HeldAdapters(
            self.model,
            self.cores,
            log=self.log,
            preflight=preflight,
            capacity=0 if room is None else self.model_args["max_cpu_loras"],
            probe=self._probe,
            dtype=self._spec.dtype,
        )

    def _probe(self, adapters: Sequence[Any]) -> list[list[float]]:
        """Return the log-likelihoods of fixed tokens, for the base or for adapters."""
        vocab_size = self.model.llm_engine.model_config.get_vocab_size()
        numbers = [(at * 7919 + 13) % vocab_size for at in range(_PROBE_ROWS * _PROBE_TOKENS)]
        rows = [numbers[at : at + _PROBE_TOKENS] for at in range(0, len(numbers), _PROBE_TOKENS)]
        # One token after each beginning: a sum would hide what a single one shows.
        pairs = [
            Pair(to_array(row[:at]), to_array(row[at : at + 1]))
            for row in rows
            for at in range(1, _PROBE_TOKENS)
        ]
        voices = [Voice(adapter, Effort()) for adapter in adapters]
        return [[one.logprob for one in own] for own in self._asker.score(pairs, voices)]


class _Work:
    """The requests of a shard, as they are asked and answered."""

    def __init__(
        self, encoded: Encoded, requests: Sequence[Request], seeds: Mapping[int, int]
    ) -> None:
        self.encoded = encoded
        self.seeds = seeds
        indices = [request.index for request in requests]
        self.scored = [at for at in indices if at in encoded.pairs]
        self.rolled = [at for at in indices if at in encoded.windows]
        self.generated = [at for at in indices if at in encoded.prompts]
        self.pairs = [encoded.pairs[at] for at in self.scored]
        for at in self.rolled:
            self.pairs.extend(encoded.windows[at])

    def score_answers(self, scores: Sequence[Scored]) -> dict[int, Said]:
        """Return the answers to the log-likelihood and rolling requests."""
        found: dict[int, Said] = {}
        for at, scored in zip(self.scored, scores, strict=False):
            found[at] = Answer(at, logprob=scored.logprob, is_greedy=scored.is_greedy)
        start = len(self.scored)
        for at in self.rolled:
            stop = start + len(self.encoded.windows[at])
            total = sum(scored.logprob for scored in scores[start:stop])
            found[at] = Answer(at, logprob=float(total))
            start = stop
        return found


def _subject_answers(
    subject: Subject, said: Mapping[int, Said], effort: Effort, steps: Sequence[str]
) -> SubjectAnswers:
    failure = _not_finite(subject, said)
    answers = [] if failure else [one for one in said.values() if one is not None]
    lane = "" if subject.attached is None else ", lane shared"
    # How many is left out, which differs from shard to shard.
    again = ["some continuations asked again without the cache"] if effort.num_again else []
    notes = "; ".join((*again, *steps))
    return SubjectAnswers(
        subject=subject.id,
        answers=tuple(sorted(answers, key=lambda answer: answer.index)),
        failure=failure,
        tokens=effort.tokens,
        seconds=effort.seconds,
        path=f"shared context{lane}{': ' if notes else ''}{notes}",
    )


def _not_finite(subject: Subject, said: Mapping[int, Said]) -> Failure | None:
    broken = [
        at
        for at, answer in said.items()
        if answer is None or (answer.logprob is not None and not abs(answer.logprob) < float("inf"))
    ]
    if not broken:
        return None
    return Failure(
        FailureKind.NOT_FINITE,
        f"subject {subject.id!r}: {len(broken)} of {len(said)} answers are NaN or infinite, or a "
        f"text whose logits became NaN; first that of request {min(broken)}",
    )


def _why_not(subject: Subject) -> str:
    """Return why vLLM cannot answer for a subject, its adapter's files aside; empty if it can."""
    adapter = subject.adapter
    if subject.vocab_size is not None:
        return f"it needs a base enlarged to {subject.vocab_size} tokens, which hf makes"
    if subject.tokenizer_digest:
        return "it has its own tokenizer, and a vLLM engine has the base's"
    if adapter is not None and adapter.merge:
        return "its adapter is to be merged into a copy of the base, which hf does"
    return ""


def _adapter(subject: Subject) -> Adapter:
    assert subject.attached is not None
    return subject.attached


def _groups(subjects: Sequence[Subject], capacity: int) -> list[list[Subject]]:
    """Cut the subjects into groups whose adapters are held at once."""
    size = max(capacity, 1)
    return [list(subjects[at : at + size]) for at in range(0, len(subjects), size)]
