"""A base in vLLM, as an lm-eval model: loaded, and ended with all its processes.

Decides: how a spec becomes a loaded base and what going wrong there means. Leaves to others: the
settings (`vllm_settings`), answering (`vllm`).
"""

import contextlib
import gc
import multiprocessing
import multiprocessing.resource_tracker
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import psutil

from raypeft.core.records import EngineSpec, FailureKind
from raypeft.engines.bases import TOKENIZER_FILES, check_quick_digest, find_base
from raypeft.engines.folders import resolve_folder
from raypeft.engines.hardware import read_hardware
from raypeft.engines.hf_failures import as_failure
from raypeft.engines.vllm_capabilities import (
    Capabilities,
    StepCounts,
    count_steps,
    lm_eval_class,
    prepare_environment,
    read_capabilities,
    shut_down,
)
from raypeft.engines.vllm_log import ProcessLog
from raypeft.engines.vllm_settings import (
    check_settings,
    model_arguments,
    wrapped_modules,
)
from raypeft.engines.vllm_start import start_on_ladder
from raypeft.errors import CellError

_RECENT_TEXTS = 16
_PATIENCE_S = 10.0
"""Seconds that vLLM's processes have to end by themselves."""

VLLM: Any = lm_eval_class()


class VLLMModel(VLLM):  # type: ignore[misc]  # lm-eval is untyped
    """A base that vLLM has loaded, with room for adapters.

    Args:
        spec: What to load.

    Raises:
        CellError: `spec`, `unsupported`, `unsafe`, `load_failed` or `out_of_memory`.
    """

    model: Any
    counts: StepCounts
    log: ProcessLog

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._recent: OrderedDict[str, list[int]] = OrderedDict()
        self._processes: list[psutil.Process] = []
        self.cores: list[multiprocessing.process.BaseProcess] = []
        self.steps: tuple[str, ...] = ()
        """What was lowered until vLLM started; it moves no answer but by rounding."""
        check_settings(spec)
        prepare_environment(batch_invariant=bool(spec.options.get("batch_invariant")))
        with loading(spec):
            self.capabilities = read_capabilities()
            _check_installation(spec, self.capabilities)
            self.folder = find_base(
                spec.base, revision=spec.revision, trust_remote_code=spec.trust_remote_code
            )
            check_quick_digest(spec, self.folder)
            try:
                started = start_on_ladder(
                    spec,
                    self._start,
                    last_words=lambda: self.log.last_words(),
                    hardware=lambda: read_hardware(spec.device),
                )
            except BaseException:
                self._forget_log()
                raise
            # Its options are those that vLLM has: how many adapters a step may hold, for one.
            self._spec, self.steps = started.spec, started.steps

    def _start(self, spec: EngineSpec) -> None:
        tokenizer = spec.tokenizer and resolve_folder(
            spec.tokenizer, what="tokenizer", files=TOKENIZER_FILES
        )
        before, others = set(_children()), set(multiprocessing.active_children())
        self._forget_log()
        self.log = ProcessLog()
        try:
            with self.log.of_started():
                super().__init__(
                    # A folder and not a hub id: nothing is looked up while loading.
                    pretrained=str(self.folder),
                    tokenizer=tokenizer and str(tokenizer),
                    **model_arguments(spec),
                )
            self.counts = count_steps(self.model)
        except BaseException:
            self._processes = [one for one in _children() if one not in before]
            self._end()
            raise
        self._processes = [one for one in _children() if one not in before]
        self.cores = [one for one in multiprocessing.active_children() if one not in others]

    def tok_encode(
        self, string: str | list[str], add_special_tokens: bool | None = None, **kwargs: Any
    ) -> Any:
        """Encode as lm-eval does, remembering the last few texts.

        lm-eval encodes a document's context once for each choice.
        """
        if not isinstance(string, str) or add_special_tokens is not None or kwargs:
            return super().tok_encode(string, add_special_tokens, **kwargs)
        if string not in self._recent:
            self._recent[string] = super().tok_encode(string)
        self._recent.move_to_end(string)
        if len(self._recent) > _RECENT_TEXTS:
            self._recent.popitem(last=False)
        return list(self._recent[string])

    def _forget_log(self) -> None:
        log = self.__dict__.pop("log", None)
        if log is not None:
            log.close()

    def _end(self) -> None:
        """End vLLM, its processes with it, and give the memory back; twice is harmless.

        What the processes wrote stays readable until another start, or the end of this object.
        """
        llm = self.__dict__.pop("model", None)
        if llm is not None:
            # What cannot be asked to end any more is ended below.
            with contextlib.suppress(Exception):
                shut_down(llm)
        del llm
        gc.collect()
        processes, self._processes = self._processes, []
        _, alive = psutil.wait_procs(processes, timeout=_PATIENCE_S if processes else 0)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=_PATIENCE_S if alive else 0)


def _children() -> list[psutil.Process]:
    """Return the processes below this one, but for the one that Python keeps for itself."""
    tracker = getattr(multiprocessing.resource_tracker._resource_tracker, "_pid", None)
    found = psutil.Process().children(recursive=True)
    return [process for process in found if process.pid != tracker]


def _check_installation(spec: EngineSpec, installed: Capabilities) -> None:
    what = f"base {spec.base!r}"
    if spec.device.startswith("cpu") != installed.is_cpu:
        built = "the CPU" if installed.is_cpu else "a GPU"
        raise CellError(
            FailureKind.UNSUPPORTED,
            f"{what}: device is {spec.device!r}, and the installed vLLM {installed.version} is "
            f"built for {built}",
        )
    if spec.lora is None:
        return
    if not installed.picks_modules:
        raise CellError(
            FailureKind.UNSUPPORTED,
            f"{what}: vLLM {installed.version} cannot be told which modules adapters are for, and "
            "would put them on the output head, where log-likelihoods come out wrong; install a "
            "newer one",
        )
    if not wrapped_modules(spec.lora):
        # An empty list is none at all for vLLM, which then wraps everything.
        raise CellError(
            FailureKind.UNSUPPORTED,
            f"{what}: its adapters are for {', '.join(spec.lora.target_modules) or 'nothing'}, "
            "which vLLM must not wrap; use `engine: {kind: hf}`",
        )


@contextlib.contextmanager
def loading(spec: EngineSpec) -> Iterator[None]:
    """Turn whatever goes wrong while a base is loaded into a `CellError` that names it."""
    what = f"base {spec.base!r}"
    try:
        yield
    except CellError as error:
        kept = (FailureKind.UNSAFE, FailureKind.UNSUPPORTED, FailureKind.OUT_OF_MEMORY)
        kind = error.kind if error.kind in kept else FailureKind.LOAD_FAILED
        raise CellError(kind, error.message, error.retryable) from error
    except Exception as error:
        failure = as_failure(error, what, "")
        if failure.kind is FailureKind.CRASHED:
            said = getattr(error, "message", str(error))
            raise CellError(
                FailureKind.LOAD_FAILED, f"{what} cannot be loaded by vLLM: {said}"
            ) from error
        raise CellError(
            failure.kind,
            f"{what}: memory ran out while vLLM was started ({_first_line(error)}); lower "
            "gpu_memory_utilization, max_num_seqs or max_loras, or max_length",
            retryable=True,
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
