"""Log-likelihoods and texts from vLLM, with the prefix cache read.

Decides: what vLLM is asked for, whether an answer that used the cache may be believed, and what is
asked again without it. Leaves to others: grouping and order (`vllm_requests`), calls
(`vllm_calls`), tokens (`vllm_encoding`).

With the cache read, prompt log-probabilities are right for the part that was computed and anything
at all (or absent) for the part that was read: they are taken from the end, and only where the cache
ended before the continuation's first log-probability.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lm_eval.models.utils import postprocess_generated_text

from raypeft.core.records import FailureKind, Json
from raypeft.engines.hf_batches import Pair
from raypeft.engines.vllm_calls import Caller, Job, Voice
from raypeft.engines.vllm_capabilities import MOST_CHOICES, Capabilities
from raypeft.engines.vllm_encoding import Prompt
from raypeft.engines.vllm_requests import Ask, plan_asks
from raypeft.errors import CellError, EngineFatalError

MOST_TOKENS = 4_000_000
"""Prompt tokens of one call: the lists that vLLM takes cost 40 bytes a token."""

MOST_TAIL_TOKENS = 500_000
"""The same where prompt log-probabilities are asked for, for which one of vLLM's model runners
gives objects for every token of the prompt, 500 bytes a token."""


class Scored(NamedTuple):
    """A log-likelihood in nats, and whether greedy decoding gives the continuation."""

    logprob: float
    is_greedy: bool


class Asker:
    """Asks a loaded vLLM for log-likelihoods and texts, of several voices at once.

    Args:
        caller: Calls it.
        capabilities: What it can do.
        longest: Tokens of context and continuation that are kept.
    """

    def __init__(self, caller: Caller, capabilities: Capabilities, longest: int) -> None:
        self._caller = caller
        self._capabilities = capabilities
        self._longest = longest

    # --- log-likelihoods ----------------------------------------------------------------------

    def score(self, pairs: Sequence[Pair], voices: Sequence[Voice]) -> list[list[Scored]]:
        """Return for each voice the scores of all pairs, in order."""
        most_choices = MOST_CHOICES if self._capabilities.reads_choices else 0
        reading, tails = plan_asks(pairs, longest=self._longest, most_choices=most_choices)
        found: list[list[Scored]] = [[Scored(math.nan, False)] * len(pairs) for _ in voices]
        self._score_choices(reading, voices, found)
        self._score_tails(tails, voices, found)
        return found

    def _score_choices(
        self, asks: Sequence[Ask], voices: Sequence[Voice], found: list[list[Scored]]
    ) -> None:
        jobs = _jobs(asks, voices, [_reading(ask) for ask in asks])
        for called in self._caller.run(jobs, voices, most_tokens=MOST_TOKENS):
            for job, output in zip(called.jobs, called.outputs, strict=True):
                ask = asks[job.item]
                for owners, scored in zip(ask.owners, read_choices(output, ask), strict=True):
                    for position in owners:
                        found[job.voice][position] = scored

    def _score_tails(
        self, asks: Sequence[Ask], voices: Sequence[Voice], found: list[list[Scored]]
    ) -> None:
        with_cache = _scoring(read_cache=self._capabilities.reads_cache)
        jobs = _jobs(asks, voices, [with_cache] * len(asks))
        again: list[Job] = []
        for called in self._caller.run(jobs, voices, most_tokens=MOST_TAIL_TOKENS):
            for job, output in zip(called.jobs, called.outputs, strict=True):
                scored = None if called.was_preempted else read_tail(output, asks[job.item])
                if scored is None:
                    again.append(job)
                else:
                    _give(found[job.voice], asks[job.item], scored)
        self._score_again(again, asks, voices, found)

    def _score_again(
        self,
        jobs: Sequence[Job],
        asks: Sequence[Ask],
        voices: Sequence[Voice],
        found: list[list[Scored]],
    ) -> None:
        without = _scoring(read_cache=False)
        repeated = [Job(job.voice, job.item, job.prompt, job.num_tokens, without) for job in jobs]
        for called in self._caller.run(repeated, voices, most_tokens=MOST_TAIL_TOKENS):
            for job, output in zip(called.jobs, called.outputs, strict=True):
                voices[job.voice].effort.num_again += 1
                scored = read_tail(output, asks[job.item])
                if scored is None:
                    raise EngineFatalError(
                        f"vLLM {self._capabilities.version} was asked for the log-probabilities of "
                        f"a whole prompt of {job.num_tokens} tokens and gave others (from the "
                        f"cache: {output.num_cached_tokens} tokens); report this version"
                    )
                _give(found[job.voice], asks[job.item], scored)

    # --- texts --------------------------------------------------------------------------------

    def generate(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], voices: Sequence[Voice]
    ) -> list[list[str | None]]:
        """Return for each voice what follows each prompt; None where the logits became NaN.

        Args:
            prompts: What to continue.
            seeds: For each prompt the seed if it is sampled.
            voices: Who is asked.
        """
        owners: dict[object, list[int]] = {}
        for at, prompt in enumerate(prompts):
            # Only greedy ones give the same text each time.
            owners.setdefault((at if prompt.is_sampled else None, prompt.key), []).append(at)
        firsts = [own[0] for own in owners.values()]
        firsts.sort(key=lambda at: prompts[at].tokens.astype(">i4").tobytes())
        members = {own[0]: own for own in owners.values()}
        jobs = [
            Job(voice, at, prompts[at].tokens.tolist, len(prompts[at].tokens), sampling)
            for voice in range(len(voices))
            for at, sampling in [(at, _continuing(prompts[at], seeds[at])) for at in firsts]
        ]
        texts: list[list[str | None]] = [[None] * len(prompts) for _ in voices]
        for called in self._caller.run(jobs, voices, most_tokens=MOST_TOKENS):
            for job, output in zip(called.jobs, called.outputs, strict=True):
                text = _text(output.outputs[0], prompts[job.item])
                for at in members[job.item]:
                    texts[job.voice][at] = text
        return texts


def read_choices(output: Any, ask: Ask) -> list[Scored]:
    """Return the scores of the choices after a context.

    Greedy is what lm-eval calls so: nothing is above it, so that on a tie both are. The sampled
    token is the highest one; ranks are not used, since vLLM's are those of the list.
    """
    generated = output.outputs[0]
    (row,) = generated.logprobs
    highest = row[generated.token_ids[0]].logprob
    values = [row[token].logprob for token in ask.choices]
    return [Scored(value, value >= highest) for value in values]


def read_tail(output: Any, ask: Ask) -> Scored | None:
    """Return the score of a continuation; None if the cache reached into it.

    The first log-probability of the continuation stands at the last token of the context, which
    must have been computed.
    """
    rows, wanted = output.prompt_logprobs, ask.tail
    cached = output.num_cached_tokens
    if cached is None or cached > len(ask.context) - 1:
        return None
    if rows is None or len(rows) < len(wanted) + 1:
        return None
    own = rows[-len(wanted) :]
    if any(row is None or token not in row for token, row in zip(wanted, own, strict=True)):
        return None
    values = [row[token].logprob for token, row in zip(wanted, own, strict=True)]
    highest = [max(entry.logprob for entry in row.values()) for row in own]
    is_greedy = all(value >= top for value, top in zip(values, highest, strict=True))
    return Scored(float(sum(values)), is_greedy)


def _give(scores: list[Scored], ask: Ask, scored: Scored) -> None:
    (owners,) = ask.owners
    for position in owners:
        scores[position] = scored


def _jobs(asks: Sequence[Ask], voices: Sequence[Voice], samplings: Sequence[Any]) -> list[Job]:
    """Return the jobs by voice first: so the adapters of a step change one after another."""
    return [
        Job(voice, item, ask.prompt, ask.num_tokens, samplings[item])
        for voice in range(len(voices))
        for item, ask in enumerate(asks)
    ]


def _reading(ask: Ask) -> Any:
    from vllm import SamplingParams

    choices = list(ask.choices)
    return SamplingParams(temperature=0, max_tokens=1, detokenize=False, logprob_token_ids=choices)


def _scoring(*, read_cache: bool) -> Any:
    from vllm import SamplingParams

    # Not asked to read the cache, vLLM leaves it alone where prompt log-probabilities are wanted.
    cache = {"skip_reading_prefix_cache": False} if read_cache else {}
    # Detokenised, the uninitialised rows of a cached part would end in an exception.
    return SamplingParams(temperature=0, max_tokens=1, detokenize=False, prompt_logprobs=1, **cache)


def _continuing(prompt: Prompt, seed: int) -> Any:
    from vllm import SamplingParams

    # Log-probabilities of what was generated tell NaN logits, of which vLLM takes some token.
    settings: Mapping[str, Json] = {"logprobs": 0} | dict(prompt.settings)
    if prompt.is_sampled:
        settings = {"seed": seed} | dict(settings)
    try:
        return SamplingParams(stop=list(prompt.stop), **settings)
    except Exception as error:  # vLLM's own kind of error is no ValueError
        raise CellError(
            FailureKind.TASK_FAILED,
            f"vLLM cannot generate with the settings {dict(prompt.settings)}: {error}; correct the "
            "task's generation_kwargs",
        ) from error


def _text(generated: Any, prompt: Prompt) -> str | None:
    for token, row in zip(generated.token_ids, generated.logprobs or (), strict=False):
        if math.isnan(row[token].logprob):
            return None
    text: str = postprocess_generated_text(generated.text, list(prompt.stop), None)
    return text
