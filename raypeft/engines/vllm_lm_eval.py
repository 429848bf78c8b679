"""The vllm engine behind lm-eval's model methods.

Decides: how lm-eval's calls become a request set and its answers results again. Leaves to others:
the model's arguments (`vllm_plugin`), answering (`vllm`).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance

from raypeft.core.identity import digest
from raypeft.core.records import (
    Adapter,
    Answer,
    EngineSpec,
    EvaluationSettings,
    FailureKind,
    LoraRoom,
    Request,
    RequestSet,
    RequestType,
    Shard,
    Subject,
)
from raypeft.core.vllm_routing import lora_room, why_not_vllm
from raypeft.engines.adapters import read_adapter
from raypeft.engines.base_config import loading_dtype
from raypeft.engines.bases import find_base
from raypeft.engines.lora_facts import read_lora_facts
from raypeft.engines.recorded_base import TargetBase
from raypeft.engines.vllm import VLLMEngine
from raypeft.engines.vllm_plugin import NAME, Arguments
from raypeft.engines.vllm_settings import OPTIONS
from raypeft.errors import CellError


class LmEvalVLLM(VLLMEngine):
    """A base, alone or with one adapter that is proven to be applied, as lm-eval calls it.

    Args:
        arguments: What to load.

    Raises:
        CellError: If the base cannot be loaded or the adapter not be applied.
    """

    def __init__(self, arguments: Arguments) -> None:
        folder = find_base(
            arguments.pretrained,
            revision=arguments.revision,
            trust_remote_code=arguments.trust_remote_code,
        )
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        adapter = _adapter(arguments, folder)
        room = None if adapter is None else _room(adapter, folder, config)
        super().__init__(_spec(arguments, folder, config, room))
        self._subject = Subject(id="model", base="model", adapter=adapter)
        self._answers("loglikelihood", [("a", " b")])  # proves the adapter before anything is asked

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Answer as lm-eval's `vllm`, with the prefix cache read.

        Raises:
            CellError: If an answer is not finite, or the model cannot answer at all.
        """
        answers = self._answers("loglikelihood", [request.args for request in requests])
        results = []
        for request, answer in zip(requests, answers, strict=True):
            assert answer.logprob is not None
            results.append((answer.logprob, bool(answer.is_greedy)))
            self.cache_hook.add_partial("loglikelihood", request.args, results[-1])
        return results

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Answer as lm-eval's `vllm`.

        Raises:
            CellError: As `loglikelihood`.
        """
        answers = self._answers("loglikelihood_rolling", [request.args for request in requests])
        results = []
        for request, answer in zip(requests, answers, strict=True):
            assert answer.logprob is not None
            results.append(answer.logprob)
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, results[-1])
        return results

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answer as lm-eval's `vllm`, sampled requests with a seed of their own.

        Raises:
            CellError: As `loglikelihood`.
        """
        answers = self._answers("generate_until", [request.args for request in requests])
        results = []
        for request, answer in zip(requests, answers, strict=True):
            assert answer.text is not None
            results.append(answer.text)
            self.cache_hook.add_partial("generate_until", request.args, results[-1])
        return results

    def get_model_info(self) -> dict[str, Any]:
        """Return what lm-eval writes beside the results: which adapter it was."""
        adapter = self._subject.adapter
        info: dict[str, Any] = {"vllm_version": self.capabilities.version}
        if adapter is not None:
            info |= {"adapter": adapter.path, "adapter_digest": adapter.digest}
        return info

    def _answers(
        self, request_type: RequestType, calls: Sequence[tuple[Any, ...]]
    ) -> tuple[Answer, ...]:
        if not calls:
            return ()
        (answered,) = self.answer(Shard(_request_set(request_type, calls)), [self._subject])
        if answered.failure is not None:
            failure = answered.failure
            raise CellError(failure.kind, failure.message, failure.retryable)
        return answered.answers


def _adapter(arguments: Arguments, folder: Path) -> Adapter | None:
    if arguments.adapter is None:
        return None
    return read_adapter(
        arguments.adapter,
        name=Path(arguments.adapter).name,
        revision=arguments.adapter_revision,
        base_path=str(folder),
        # Its digest is computed where the adapter names another folder, and nowhere else.
        base=TargetBase(
            name=arguments.pretrained,
            folder=str(folder),
            tokenizer=arguments.tokenizer,
            trust_remote_code=arguments.trust_remote_code,
        ),
        any_base=arguments.any_base,
    )


def _room(adapter: Adapter, folder: Path, config: dict[str, Any]) -> LoraRoom | None:
    facts = read_lora_facts(adapter, None, str(folder))
    if why := why_not_vllm(adapter.config, facts, str(config.get("model_type", ""))):
        raise CellError(
            FailureKind.UNSUPPORTED,
            f"adapter {adapter.name!r}: {why}; {NAME} cannot evaluate it, raypeft-hf can",
        )
    return lora_room([facts])


def _spec(
    arguments: Arguments, folder: Path, config: dict[str, Any], room: LoraRoom | None
) -> EngineSpec:
    options = {
        name: getattr(arguments, name)
        for name in OPTIONS
        if getattr(arguments, name, None) is not None
    }
    return EngineSpec(
        kind="vllm",
        base=str(folder),
        base_digest="",  # identifies stored answers, and none are stored
        tokenizer=arguments.tokenizer,
        dtype=loading_dtype(config, arguments.dtype, f"base {arguments.pretrained!r}"),
        device=arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        max_length=arguments.max_length,
        add_bos_token=arguments.add_bos_token,
        trust_remote_code=arguments.trust_remote_code,
        seed=arguments.seed,
        lora=room,
        tensor_parallel=arguments.tensor_parallel_size,
        options=options,
    )


def _request_set(request_type: RequestType, calls: Sequence[tuple[Any, ...]]) -> RequestSet:
    return RequestSet(
        digest=digest("lm-eval-calls", 1, [request_type, [list(call) for call in calls]]),
        task="lm-eval",
        entry="lm-eval",
        output_type=request_type,
        version="",
        num_fewshot=0,
        num_docs=len(calls),
        settings=EvaluationSettings(),
        config={},
        # lm-eval's document numbers start anew for each task of a call: every call is one here,
        # and what shares a context still meets, since nothing is cut into shards.
        requests=tuple(
            Request(index, index, 0, 0, request_type, tuple(call))
            for index, call in enumerate(calls)
        ),
        documents=(),
    )
