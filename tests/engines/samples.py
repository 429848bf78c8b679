"""Adapters, bases and request sets that the engine tests are about."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from raypeft.core.identity import request_set_digest
from raypeft.core.records import EvaluationSettings, Json, Request, RequestSet, RequestType

HIDDEN = 8
LAYERS = 2
VOCAB = 32

Arrays = dict[str, npt.NDArray[Any]]


def lora_key(layer: int, module: str, part: str) -> str:
    """Return the name of a LoRA tensor as PEFT saves it."""
    return f"base_model.model.model.layers.{layer}.self_attn.{module}.{part}.weight"


def lora_tensors(
    rank: int = 2, modules: Sequence[str] = ("q_proj", "v_proj"), hidden: int = HIDDEN
) -> Arrays:
    """Return the tensors of a LoRA adapter for `hand_made_base`."""
    random = np.random.default_rng(0)
    tensors: Arrays = {}
    for layer in range(LAYERS):
        for module in modules:
            for part, shape in (("lora_A", (rank, hidden)), ("lora_B", (hidden, rank))):
                values = random.standard_normal(shape).astype(np.float32)
                tensors[lora_key(layer, module, part)] = values
    return tensors


def hand_made_adapter(folder: Path, tensors: Arrays | None = None, **config: Any) -> Path:
    """Write a LoRA adapter without PEFT and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj", "v_proj"],
    } | config
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(lora_tensors() if tensors is None else tensors, folder / "adapter_model.safetensors")
    return folder


def hand_made_base(folder: Path, **config: Any) -> Path:
    """Write the files of a Llama-like base without torch and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(1)
    tensors: Arrays = {
        name: random.standard_normal((VOCAB, HIDDEN)).astype(np.float32)
        for name in ("model.embed_tokens.weight", "lm_head.weight")
    }
    for layer in range(LAYERS):
        for module in ("q_proj", "k_proj", "v_proj", "o_proj"):
            name = f"model.layers.{layer}.self_attn.{module}.weight"
            tensors[name] = random.standard_normal((HIDDEN, HIDDEN)).astype(np.float32)
    save_file(tensors, folder / "model.safetensors")
    settings = {"model_type": "llama", "max_position_embeddings": 64, "dtype": "bfloat16"} | config
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 48}')
    return folder


def request_set(
    calls: Sequence[tuple[RequestType, tuple[Json, ...]]], task: str = "sample"
) -> RequestSet:
    """Return a request set of these calls, each of its own document."""
    requests = tuple(
        Request(index, index, 0, 0, request_type, arguments)
        for index, (request_type, arguments) in enumerate(calls)
    )
    digest = request_set_digest(
        task=task,
        version="1",
        output_type="mixed",
        requests=requests,
        documents=(),
        tokenizer_digest="",
    )
    return RequestSet(
        digest=digest,
        task=task,
        entry=task,
        output_type="mixed",
        version="1",
        num_fewshot=0,
        num_docs=len(requests),
        settings=EvaluationSettings(),
        config={},
        requests=requests,
        documents=(),
    )


def mixed_calls(sampled: bool = False) -> list[tuple[RequestType, tuple[Json, ...]]]:
    """Return calls of every request type, with the cases that are easily got wrong."""
    calls: list[tuple[RequestType, tuple[Json, ...]]] = []
    for number in range(9):
        context = "The quick brown fox. " * (number * 5 % 4) + f"Question {number}: what is it?\nA:"
        calls += [("loglikelihood", (context, f" {choice}")) for choice in ("red", "big dog", "A")]
    calls += [("loglikelihood", ("Pick one:", letter)) for letter in [" A", " B", " C"]]
    calls += [
        ("loglikelihood", ("", "no context at all")),
        ("loglikelihood", ("trailing spaces  ", "go on")),
        ("loglikelihood", ("Größe, 日本語 🙂", " naïve")),
        ("loglikelihood", ("longer than the model " * 40, " end")),
    ]
    calls += [("loglikelihood_rolling", (text,)) for text in ("", "A house.", "The cat. " * 90, "")]
    calls += [("loglikelihood_rolling", (f"Short text {n}.",)) for n in range(5)]
    for number in range(7):
        settings: dict[str, Json] = {"until": ["\n"], "max_gen_toks": 4 + number % 2}
        calls.append(("generate_until", (f"Say {'so ' * (number % 3)}{number}", settings)))
    if sampled:
        settings = {"until": ["\n"], "max_gen_toks": 5, "do_sample": True, "temperature": 1.0}
        calls += [("generate_until", (f"Roll {n % 3}", settings)) for n in range(6)]
    return calls


def as_dict(answers: Sequence[Any]) -> Mapping[int, Any]:
    """Return answers by index, refusing an index that comes twice."""
    result = {answer.index: answer for answer in answers}
    assert len(result) == len(answers)
    return result
