"""lm-eval's own vLLM class on what raypeft's engine was timed with; part of `gpu.py`."""

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from synthetic import ask_hflm, timed

from raypeft.core.certificate import compare
from raypeft.core.records import Answer, RequestSet
from raypeft.engines.vllm_capabilities import lm_eval_class, shut_down

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Asked:
    """A task that raypeft's engine has answered.

    Attributes:
        name: The task.
        warm_up: A little of the same kind.
        requests: What was asked.
        seconds: For all adapters in one batch.
        answers: Those of the first adapter.
    """

    name: str
    warm_up: RequestSet
    requests: RequestSet
    seconds: float
    answers: Sequence[Answer]


def ask_lm_evals_class(
    base: Path,
    adapter: Path,
    tasks: Sequence[Asked],
    *,
    dtype: str,
    count: int,
    options: Mapping[str, Any],
) -> list[str]:
    """Return lines of the record. The class holds one adapter: it is timed, and counted for all."""
    load, lm = timed(_load, base, adapter, dtype, options)
    rows = [
        f"lm-eval's class (loads in {load:.1f} s, once for each adapter; not counted here):",
        "",
        f"| task | one adapter s | all {count} s | fused is faster | beside the fused answers |",
        "|---|---|---|---|---|",
    ]
    for task in tasks:
        ask_hflm(lm, _greedily(task.warm_up))
        seconds, theirs = timed(ask_hflm, lm, _greedily(task.requests))
        apart = compare(task.requests.requests, theirs, task.answers)
        beside = f"{apart.worst_nats:.2g} nats at most"
        if apart.num_texts:
            beside = f"{apart.num_diverged} of {apart.num_texts} texts differ"
        rows.append(
            f"| {task.name} | {seconds:.1f} | {seconds * count:.1f} | "
            f"{seconds * count / task.seconds:.1f}× | {beside} |"
        )
    shut_down(lm.model)
    del lm
    gc.collect()
    return rows


def _greedily(requests: RequestSet) -> RequestSet:
    """Return requests that say the temperature: left out, it is vLLM's own 1 in this class."""
    return replace(
        requests,
        requests=tuple(
            replace(one, arguments=(one.arguments[0], {**one.arguments[1], "temperature": 0.0}))
            if one.request_type == "generate_until"
            else one
            for one in requests.requests
        ),
    )


def _load(base: Path, adapter: Path, dtype: str, options: Mapping[str, Any]) -> Any:
    return lm_eval_class()(
        pretrained=str(base),
        dtype=dtype,
        batch_size="auto",
        enable_lora=True,
        max_lora_rank=64,
        lora_local_path=str(adapter),
        # Without it vLLM wraps the output head too, which log-likelihoods then read wrongly.
        lora_target_modules=list(ALL_LINEAR),
        **options,
    )
