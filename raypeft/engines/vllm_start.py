"""Starts vLLM, and again with less where its memory ran out.

Decides: nothing; it walks down the ladder of `core.vllm_ladder`. Leaves to others: what one start
is (`vllm_model`).
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from raypeft.core.records import EngineSpec, FailureKind, Hardware
from raypeft.core.vllm_ladder import (
    Bottom,
    MemorySettings,
    described,
    memory_key,
    next_rung,
)
from raypeft.engines.vllm_settings import num_loras
from raypeft.errors import CellError


@dataclass(frozen=True, slots=True)
class Started:
    """How a start ended well.

    Attributes:
        spec: What vLLM was started with in the end.
        steps: What was lowered before, for a person; empty if nothing was.
    """

    spec: EngineSpec
    steps: tuple[str, ...] = ()


def start_on_ladder(
    spec: EngineSpec,
    start: Callable[[EngineSpec], None],
    *,
    last_words: Callable[[], str],
    hardware: Callable[[], Hardware],
) -> Started:
    """Start vLLM, as often as a lower rung may help.

    Args:
        spec: What the sweep asks for, and what earlier losses taught.
        start: Starts vLLM once; what it raises leaves nothing behind.
        last_words: Returns what the processes of the last start wrote when they died.
        hardware: Returns what this process runs on; asked only where something was learnt.

    Raises:
        CellError: `out_of_memory`, if memory ran out on every rung; `load_failed`, if its processes
            died of something else.
        Exception: What `start` raised, if memory was not the trouble.
    """
    asked = memory_settings(spec)
    learnt = spec.lowered.get(memory_key(hardware()), {}) if spec.lowered else {}
    settings = asked.lowered_to(learnt)
    steps = [described(learnt)] if settings != asked else []
    while True:
        current = with_memory(spec, settings)
        try:
            start(current)
        except Exception as error:
            died_of = last_words()
            words = f"{type(error).__name__}: {error}\n{died_of}"
            following = next_rung(settings, words, asked=asked)
            if following is None and died_of and not isinstance(error, CellError):
                raise _not_for_memory(spec, error, died_of) from error
            if following is None:
                raise
            if isinstance(following, Bottom):
                raise _at_the_bottom(spec, following, steps, words) from error
            settings = following.settings
            steps.append(following.step)
        else:
            return Started(current, tuple(steps))


def memory_settings(spec: EngineSpec) -> MemorySettings:
    """Return the settings of a spec that decide how much memory vLLM takes."""
    options = spec.options
    return MemorySettings(
        max_num_seqs=options.get("max_num_seqs"),
        gpu_memory_utilization=options.get("gpu_memory_utilization"),
        kv_cache_memory_bytes=options.get("kv_cache_memory_bytes"),
        max_loras=num_loras(spec) or None,
    )


def with_memory(spec: EngineSpec, settings: MemorySettings) -> EngineSpec:
    """Return a spec under other such settings."""
    return dataclasses.replace(spec, options={**spec.options, **settings.values()})


def _not_for_memory(spec: EngineSpec, error: Exception, died_of: str) -> CellError:
    """Return a start's failure with its cause, which vLLM only writes down."""
    return CellError(
        FailureKind.LOAD_FAILED,
        f"base {spec.base!r} cannot be loaded by vLLM: {error} (its processes: {died_of})",
    )


def _at_the_bottom(spec: EngineSpec, end: Bottom, steps: list[str], words: str) -> CellError:
    tried = f"; tried before: {'; '.join(steps)}" if steps else ""
    said = " ".join(words.split())[:600]
    return CellError(
        FailureKind.OUT_OF_MEMORY,
        f"base {spec.base!r}: vLLM does not start for lack of memory: {end.reason}{tried} "
        f"(it said: {said})",
        retryable=end.may_pass,
    )
