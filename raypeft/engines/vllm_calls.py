"""Calls vLLM, and counts what went through the model.

Decides: how much is asked in one call, that the base never shares a call with an adapter, and that
an engine is not used again after an exception. Leaves to others: what is asked (`vllm_requests`)
and what the answers mean (`vllm_answers`).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any

from raypeft.engines.vllm_capabilities import StepCounts
from raypeft.engines.vllm_log import ProcessLog, fatal
from raypeft.engines.vllm_requests import split_calls
from raypeft.engines.vllm_watch import call_watched
from raypeft.errors import EngineFatalError


@dataclass(slots=True)
class Effort:
    """What one subject has cost.

    Attributes:
        tokens: Tokens that went through the model: those read from the cache are not.
        cached_tokens: Prompt tokens that were read from the cache.
        num_again: Requests that were asked again without the cache.
        seconds: Its part of the time, by tokens.
    """

    tokens: int = 0
    cached_tokens: int = 0
    num_again: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Voice:
    """Who is asked: the base alone, or with an adapter.

    Attributes:
        adapter: vLLM's `LoRARequest`; None is the base alone.
        effort: What it has cost, counted up.
    """

    adapter: Any
    effort: Effort


@dataclass(frozen=True, slots=True)
class Job:
    """One request of vLLM.

    Attributes:
        voice: The number of who is asked.
        item: The number of what is asked, for whoever reads the answer.
        prompt: Makes the tokens given, once they are needed.
        num_tokens: How many.
        sampling: vLLM's `SamplingParams`.
    """

    voice: int
    item: int
    prompt: Callable[[], list[int]]
    num_tokens: int
    sampling: Any


@dataclass(frozen=True, slots=True)
class Called:
    """What one call of vLLM gave.

    Attributes:
        jobs: What was asked.
        outputs: vLLM's `RequestOutput` of each.
        was_preempted: Whether a request was thrown out of a batch and computed again.
    """

    jobs: Sequence[Job]
    outputs: Sequence[Any]
    was_preempted: bool


class Caller:
    """The only place where vLLM's `generate` is called.

    Args:
        llm: vLLM's `LLM`.
        what: The base, for messages.
        cores: Its processes.
        counts: What it says of its steps.
        log: What its processes write.
    """

    def __init__(
        self,
        llm: Any,
        what: str,
        cores: Sequence[BaseProcess],
        *,
        counts: StepCounts,
        log: ProcessLog,
    ) -> None:
        self._llm = llm
        self._what = what
        self._cores = cores
        self._counts = counts
        self._log = log

    def run(
        self, jobs: Sequence[Job], voices: Sequence[Voice], *, most_tokens: int
    ) -> Iterator[Called]:
        """Ask everything, in the order given, in calls of at most so many prompt tokens.

        All jobs are the base's or none is: on the CPU a row without adapter in a mixed batch gets
        the weights of the last slot (vLLM's issue 48421).

        Raises:
            EngineFatalError: `out_of_memory` or `crashed`, whatever vLLM raises: requests stay
                unfinished in its scheduler, and the next call could wait for them forever.
        """
        assert len({voices[job.voice].adapter is None for job in jobs}) <= 1, "base in a mixed call"
        for part in split_calls([job.num_tokens for job in jobs], most_tokens):
            own = [jobs[at] for at in part]
            before = self._counts.read().preemptions
            started = time.perf_counter()
            try:
                outputs = call_watched(
                    partial(
                        self._llm.generate,
                        [{"prompt_token_ids": job.prompt()} for job in own],
                        sampling_params=[job.sampling for job in own],
                        use_tqdm=False,
                        lora_request=[voices[job.voice].adapter for job in own],
                    ),
                    self._cores,
                )
            except EngineFatalError as error:
                raise fatal(self._what, error, self._log) from error
            except Exception as error:
                what = f"{self._what}: vLLM raised {type(error).__name__}"
                raise fatal(what, error, self._log) from error
            self._count(own, outputs, voices, time.perf_counter() - started)
            after = self._counts.read().preemptions
            yield Called(own, outputs, was_preempted=after != before)

    def _count(
        self, jobs: Sequence[Job], outputs: Sequence[Any], voices: Sequence[Voice], seconds: float
    ) -> None:
        if len(outputs) != len(jobs):
            raise EngineFatalError(
                f"{self._what}: vLLM gave {len(outputs)} answers to {len(jobs)} requests"
            )
        tokens: list[int] = []
        for job, output in zip(jobs, outputs, strict=True):
            cached = output.num_cached_tokens or 0
            tokens.append(job.num_tokens - cached + len(output.outputs[0].token_ids))
            effort = voices[job.voice].effort
            effort.tokens += tokens[-1]
            effort.cached_tokens += cached
        share = seconds / max(1, sum(tokens))
        for job, own in zip(jobs, tokens, strict=True):
            voices[job.voice].effort.seconds += share * own
