"""The adapters that a vLLM engine holds.

Decides: vLLM's names and numbers for them, which are held at once, and whether one is applied at
all. Leaves to others: what vLLM would leave out (`vllm_preflight`), answering.

An adapter is named by its content. vLLM keeps one by its number and keys, with its name, the
prefix cache; so neither ever stands for another content within one engine. One that is not held
would be read from disk in the middle of a step, where a failure ends the engine: so all that
answer together are loaded, and seen to be held, before.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any

from raypeft.core.records import Adapter, Failure, FailureKind
from raypeft.engines.adapters import open_adapter
from raypeft.engines.hf_failures import is_out_of_memory
from raypeft.engines.vllm_capabilities import is_dead
from raypeft.engines.vllm_log import ProcessLog, fatal
from raypeft.engines.vllm_preflight import Preflight
from raypeft.engines.vllm_watch import call_watched
from raypeft.engines.zero_adapter import why_effect
from raypeft.errors import CellError, EngineFatalError

ROUNDING_NATS = 5e-5
"""Up to here float32 log-probabilities differ by rounding alone; a trained adapter moves them by
tenths."""

Probe = Callable[[Sequence[Any]], list[list[float]]]
"""Returns the log-likelihoods of fixed texts for each of these `LoRARequest`s; None is the base."""


class HeldAdapters:
    """Loads adapters into a vLLM engine, and proves that each is applied.

    Args:
        llm: vLLM's `LLM`.
        cores: Its processes.
        log: What they write.
        preflight: What the engine has made room for; None if it has no room for adapters.
        capacity: How many it holds at once.
        probe: Asks the engine.
        dtype: What the base computes in.
    """

    def __init__(
        self,
        llm: Any,
        cores: Sequence[BaseProcess],
        *,
        log: ProcessLog,
        preflight: Preflight | None,
        capacity: int,
        probe: Probe,
        dtype: str,
    ) -> None:
        self._llm = llm
        self._cores = cores
        self._log = log
        self._preflight = preflight
        self._probe = probe
        self._dtype = dtype
        self._is_exact = dtype != "float32"
        self.capacity = capacity
        self.not_finite: list[str] = []
        self._numbers = itertools.count(1)
        self._requests: dict[str, Any] = {}
        self._proven: dict[tuple[str, bool], Failure | None] = {}
        (self._base_probe,) = probe([None])
        if not all(map(math.isfinite, self._base_probe)):
            raise ValueError(f"its log-probabilities are NaN in {dtype}; another dtype may do")

    def hold(self, adapters: Sequence[Adapter]) -> dict[str, Any | Failure]:
        """Load these adapters, as many at most as there is room for.

        Returns:
            By digest vLLM's `LoRARequest`, or why that adapter cannot answer.

        Raises:
            EngineFatalError: If loading broke the engine, or one is not held after all.
        """
        unique = {adapter.digest: adapter for adapter in adapters}
        assert len(unique) <= max(self.capacity, 1)
        found: dict[str, Any | Failure] = {}
        for digest, adapter in unique.items():
            failed = self._proven.get(_claim(adapter))
            try:
                found[digest] = failed or self._load(adapter)
            except CellError as error:
                kind = FailureKind(error.kind)
                found[digest] = Failure(kind, error.message, error.retryable)
        self._prove([unique[key] for key, one in found.items() if not isinstance(one, Failure)])
        for digest in found:
            found[digest] = self._proven.get(_claim(unique[digest])) or found[digest]
        self._check_held([one for one in found.values() if not isinstance(one, Failure)])
        return found

    def _load(self, adapter: Adapter) -> Any:
        """Load an adapter, or tell vLLM that it is used: it forgets the least recently used."""
        what = f"adapter {adapter.name!r}"
        if self._preflight is None:
            raise CellError(
                FailureKind.UNSUPPORTED,
                f"{what}: this engine was loaded without room for adapters (its spec has no "
                "`lora`); plan the base with its adapters",
            )
        request = self._requests.get(adapter.digest)
        if request is None or request.lora_int_id not in self._held():
            files = open_adapter(adapter)
            self._preflight.check(files, what=what, expects_effect=adapter.expects_effect)
            # A new number, also after a rejection: vLLM never loads under one that it knows.
            number = next(self._numbers) if request is None else request.lora_int_id
            request = _request(adapter.digest, number, str(files.folder))
        self._add(request, what)
        self._requests[adapter.digest] = request
        return request

    def _add(self, request: Any, what: str) -> None:
        try:
            call_watched(partial(self._llm.llm_engine.add_lora, request), self._cores)
        except EngineFatalError as error:
            raise fatal(what, error, self._log) from error
        except Exception as error:
            if is_dead(error) or is_out_of_memory(error):
                ended = f"{what}: loading it ended the engine: {type(error).__name__}"
                raise fatal(ended, error, self._log) from error
            raise CellError(
                FailureKind.UNSUPPORTED,
                f"{what}: vLLM refuses it: {' '.join(str(error).split())[:600]}; use "
                "`engine: {kind: hf}`",
            ) from error

    def _prove(self, adapters: Sequence[Adapter]) -> None:
        """Compare what the new ones say with what the base says, once for each."""
        new = [adapter for adapter in adapters if _claim(adapter) not in self._proven]
        if not new:
            return
        probes = self._probe([self._requests[adapter.digest] for adapter in new])
        for adapter, values in zip(new, probes, strict=True):
            self._proven[_claim(adapter)] = self._verdict(adapter, values)

    def _verdict(self, adapter: Adapter, values: Sequence[float]) -> Failure | None:
        what = f"adapter {adapter.name!r}"
        if not all(map(math.isfinite, values)):
            self.not_finite.append(adapter.name)
            message = f"{what}: with it the model's log-probabilities are NaN or infinite"
            return Failure(FailureKind.NOT_FINITE, message)
        differences = [
            abs(left - right) for left, right in zip(values, self._base_probe, strict=True)
        ]
        if not adapter.expects_effect:
            mean = math.fsum(differences) / len(differences)
            why = why_effect(max(differences), mean, self._dtype, what)
            return Failure(FailureKind.UNSUPPORTED, why) if why else None
        if max(differences) <= (0.0 if self._is_exact else ROUNDING_NATS):
            return Failure(
                FailureKind.NO_EFFECT,
                f"{what}: vLLM has loaded it and it changes nothing: {len(differences)} "
                "log-probabilities are those of the base within rounding; was it trained, and "
                "saved afterwards?",
            )
        return None

    def _held(self) -> set[int]:
        held: set[int] = call_watched(self._llm.llm_engine.list_loras, self._cores)
        return held

    def _check_held(self, requests: Sequence[Any]) -> None:
        if not requests:
            return
        held = self._held()
        gone = [one.lora_name for one in requests if one.lora_int_id not in held]
        if gone:
            raise EngineFatalError(
                f"vLLM does not hold {len(gone)} of {len(requests)} adapters that were just loaded "
                f"({', '.join(gone[:3])}); it would read them from disk in the middle of a step"
            )


def _claim(adapter: Adapter) -> tuple[str, bool]:
    """Return what is proven of an adapter: its content, and that it has an effect or has none."""
    return adapter.digest, adapter.expects_effect


def _request(name: str, number: int, folder: str) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest(name, number, folder)
