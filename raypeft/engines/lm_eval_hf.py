"""The hf engine behind lm-eval's model methods.

Decides: how lm-eval's calls become a request set and its answers results again. Leaves to others:
the model's arguments (`lm_eval_model`), answering (`hf`); rolling log-likelihoods and generation
are `HFLM`'s own.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance

from raypeft.core.identity import digest
from raypeft.core.records import (
    Adapter,
    EngineSpec,
    EvaluationSettings,
    FailureKind,
    Request,
    RequestSet,
    Shard,
    Subject,
)
from raypeft.engines.adapters import open_adapter, read_adapter
from raypeft.engines.base_config import loading_dtype
from raypeft.engines.bases import find_base, read_base_tensors
from raypeft.engines.hf import HFEngine
from raypeft.engines.lm_eval_model import NAME, Arguments
from raypeft.engines.pickled import pickled_tensors
from raypeft.engines.recorded_base import TargetBase
from raypeft.engines.vocabulary import base_vocabulary, saved_vocabulary
from raypeft.errors import CellError, Problem, SpecError


class LmEvalModel(HFEngine):
    """A base, alone or with one adapter that is proven to be applied, as lm-eval calls it.

    Args:
        arguments: What to load.

    Raises:
        SpecError: If lm-eval runs in several processes.
        CellError: If the base cannot be loaded or the adapter not be applied.
    """

    def __init__(self, arguments: Arguments) -> None:
        _refuse_several_processes()
        folder = find_base(
            arguments.pretrained,
            revision=arguments.revision,
            trust_remote_code=arguments.trust_remote_code,
        )
        adapter = _adapter(arguments, folder)
        super().__init__(_spec(arguments, folder))
        self._subject = Subject(id="model", base="model", adapter=adapter)
        self.switch_to(self._subject)

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Answer as lm-eval's `hf`, with contexts that requests share computed once.

        Raises:
            CellError: If an answer is not finite, or the model cannot answer at all.
        """
        if not requests:
            return []
        (answered,) = self.answer(Shard(_request_set(requests)), [self._subject])
        if answered.failure is not None:
            failure = answered.failure
            raise CellError(failure.kind, failure.message, failure.retryable)
        results = []
        for request, answer in zip(requests, answered.answers, strict=True):
            assert answer.logprob is not None
            results.append((answer.logprob, bool(answer.is_greedy)))
            self.cache_hook.add_partial("loglikelihood", request.args, results[-1])
        return results

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Answer as lm-eval's `hf`, and refuse what is not finite: lm-eval would score it.

        Raises:
            CellError: `not_finite`.
        """
        results: list[float] = super().loglikelihood_rolling(requests, disable_tqdm)
        broken = [at for at, value in enumerate(results) if not abs(value) < float("inf")]
        if broken:
            raise CellError(
                FailureKind.NOT_FINITE,
                f"{len(broken)} of {len(results)} rolling log-likelihoods are NaN or infinite, "
                f"first that of request {broken[0]}",
            )
        return results

    def get_model_info(self) -> dict[str, Any]:
        """Return what lm-eval writes beside the results, and which adapter it was."""
        info: dict[str, Any] = super().get_model_info()
        adapter = self._subject.adapter
        if adapter is not None:
            info |= {"adapter": adapter.path, "adapter_digest": adapter.digest}
        return info


def _refuse_several_processes() -> None:
    count = os.environ.get("WORLD_SIZE", "1")
    if count != "1":
        raise SpecError(
            (
                Problem(
                    "WORLD_SIZE",
                    f"is {count}; {NAME} answers in one process",
                    "start lm-eval without accelerate or torchrun, or use `raypeft run`",
                ),
            ),
            "the environment",
        )


def _adapter(arguments: Arguments, folder: Path) -> Adapter | None:
    if arguments.adapter is None:
        return None
    adapter = read_adapter(
        arguments.adapter,
        name=Path(arguments.adapter).name,
        revision=arguments.adapter_revision,
        allow_pickle=arguments.allow_pickle,
        base_path=str(folder),
        # Its digest is computed where the adapter names another folder, and nowhere else: hashing
        # a large base takes minutes, and nothing is stored under it here.
        base=TargetBase(
            name=arguments.pretrained,
            folder=str(folder),
            tokenizer=arguments.tokenizer,
            trust_remote_code=arguments.trust_remote_code,
        ),
        any_base=arguments.any_base,
    )
    _refuse_larger_vocabulary(adapter, folder)
    return adapter


def _refuse_larger_vocabulary(adapter: Adapter, folder: Path) -> None:
    what = f"adapter {adapter.name!r}"
    files = open_adapter(adapter)
    tensors = pickled_tensors(files, what=what) if files.tensors is None else files.tensors
    rows = base_vocabulary(folder)
    saved = saved_vocabulary(tensors, read_base_tensors(folder), rows, what=what)
    if saved is not None:
        raise CellError(
            FailureKind.UNSUPPORTED,
            f"{what}: it brings embeddings of {saved} tokens, and the base has {rows}; {NAME} "
            "keeps the base's vocabulary, so that numbers can be compared with the base's alone. "
            "`raypeft run` evaluates it, and beside it a baseline that is enlarged alike",
        )


def _spec(arguments: Arguments, folder: Path) -> EngineSpec:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return EngineSpec(
        kind="hf",
        base=str(folder),
        base_digest="",  # identifies stored answers, and none are stored
        tokenizer=arguments.tokenizer,
        dtype=loading_dtype(config, arguments.dtype, f"base {arguments.pretrained!r}"),
        device=arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        batch_size=arguments.batch_size,
        sharing=arguments.sharing,
        batch_tokens=arguments.batch_tokens,
        softmax_dtype=arguments.softmax_dtype,
        attn_implementation=arguments.attn_implementation,
        max_length=arguments.max_length,
        add_bos_token=arguments.add_bos_token,
        trust_remote_code=arguments.trust_remote_code,
    )


def _request_set(requests: Sequence[Instance]) -> RequestSet:
    calls = [[str(part) for part in request.args] for request in requests]
    return RequestSet(
        digest=digest("lm-eval-calls", 1, calls),
        task="lm-eval",
        entry="lm-eval",
        output_type="loglikelihood",
        version="",
        num_fewshot=0,
        num_docs=len(requests),
        settings=EvaluationSettings(),
        config={},
        requests=tuple(
            Request(index, request.doc_id or 0, request.idx, 0, "loglikelihood", tuple(call))
            for index, (request, call) in enumerate(zip(requests, calls, strict=True))
        ),
        documents=(),
    )
