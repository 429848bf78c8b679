"""What the benchmarks evaluate: random models of real shapes, adapters and requests of real length.

Nothing is downloaded and nothing is trained but a word-level tokenizer, whose every word is one
token, so that lengths in tokens are exact.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from raypeft.core.identity import request_set_digest
from raypeft.core.records import Answer, EvaluationSettings, Request, RequestSet, RequestType

Call = tuple[RequestType, tuple[Any, ...]]
Result = TypeVar("Result")


@dataclass(frozen=True)
class ModelShape:
    """The size of a random Llama.

    Attributes:
        vocabulary: Tokens.
        hidden: Width.
        inner: Width of the MLP.
        layers: Layers.
        heads: Attention heads.
        groups: Heads of keys and values.
        max_length: Positions.
    """

    vocabulary: int = 8000
    hidden: int = 512
    inner: int = 1408
    layers: int = 8
    heads: int = 8
    groups: int = 4
    max_length: int = 2048


LLAMA_3_8B = ModelShape(128_256, 4096, 14_336, 32, 32, 8, 8192)


@dataclass(frozen=True)
class Shape:
    """A kind of task.

    Attributes:
        name: What it is like.
        shots: Tokens of few-shot text.
        common: Whether all documents have the same shots.
        question: Tokens of a document's own context.
        choices: Tokens of each choice; empty for other request types.
        kind: Request type.
        generated: Tokens to generate.
    """

    name: str
    shots: int
    common: bool
    question: int
    choices: tuple[int, ...] = ()
    kind: RequestType = "loglikelihood"
    generated: int = 16

    @property
    def unique_tokens(self) -> int:
        """Tokens of one document that must be computed, shots that others share left out."""
        own = self.question + (0 if self.common else self.shots)
        added = self.generated if self.kind == "generate_until" else 0
        return own + added + sum(size - 1 for size in self.choices)


def make_base(
    folder: Path, shape: ModelShape, *, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Path:
    """Save a random base whose tokens are whole words."""
    words = {f"w{n}": n + 2 for n in range(shape.vocabulary - 2)}
    vocabulary = {"<end>": 0, "<pad>": 1, **words}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<end>",
        pad_token="<pad>",
        model_max_length=shape.max_length,
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.groups,
        max_position_embeddings=shape.max_length,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    with torch.device(device):
        model = LlamaForCausalLM._from_config(config, dtype=dtype)
    model.save_pretrained(folder)
    return folder


def make_adapters(base: Path, folders: Sequence[Path], ranks: Sequence[int]) -> list[Path]:
    """Save random LoRA adapters on all linear layers, one for each folder and rank."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    for number, (folder, rank) in enumerate(zip(folders, ranks, strict=True)):
        torch.manual_seed(1 + number)
        settings = LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
            base_model_name_or_path=str(base),
        )
        adapted = get_peft_model(model, settings)
        with torch.no_grad():
            for name, tensor in adapted.named_parameters():
                if "lora_B" in name:
                    tensor.normal_(std=0.02)
        adapted.save_pretrained(folder)
        model = adapted.unload()
    return list(folders)


def make_requests(shape: Shape, num_documents: int, *, vocabulary: int) -> RequestSet:
    """Return a request set of a shape."""
    rng = np.random.default_rng(3)

    def words(count: int) -> str:
        return " ".join(f"w{n}" for n in rng.integers(0, vocabulary - 2, count))

    common = words(shape.shots)
    calls: list[Call] = []
    for _ in range(num_documents):
        shots = common if shape.common else words(shape.shots)
        context = f"{shots} {words(shape.question)}".strip()
        if shape.kind == "loglikelihood_rolling":
            calls.append((shape.kind, (context,)))
        elif shape.kind == "generate_until":
            settings = {"until": ["\n"], "max_gen_toks": shape.generated}
            calls.append((shape.kind, (context, settings)))
        else:
            calls += [(shape.kind, (context, f" {words(size)}")) for size in shape.choices]
    per_document = len(calls) // num_documents
    requests = tuple(
        Request(i, i // per_document, i % per_document, 0, kind, arguments)
        for i, (kind, arguments) in enumerate(calls)
    )
    digest = request_set_digest(
        task=shape.name,
        version="1",
        output_type=shape.kind,
        requests=requests,
        documents=(),
        tokenizer_digest="",
    )
    return RequestSet(
        digest=digest,
        task=shape.name,
        entry=shape.name,
        output_type=shape.kind,
        version="1",
        num_fewshot=0,
        num_docs=num_documents,
        settings=EvaluationSettings(),
        config={},
        requests=requests,
        documents=(),
    )


def ask_hflm(lm: HFLM, requests: RequestSet) -> list[Answer]:
    """Return what lm-eval's own model says."""
    (kind,) = {request.request_type for request in requests.requests}
    instances = [
        Instance(request_type=kind, doc={}, arguments=request.arguments, idx=0)
        for request in requests.requests
    ]
    results = getattr(lm, kind)(instances, disable_tqdm=True)
    if kind == "loglikelihood":
        return [Answer(i, logprob=r[0], is_greedy=r[1]) for i, r in enumerate(results)]
    if kind == "loglikelihood_rolling":
        return [Answer(i, logprob=float(r)) for i, r in enumerate(results)]
    return [Answer(i, text=r) for i, r in enumerate(results)]


def seconds_of(work: Callable[..., object], *arguments: object) -> float:
    """Return how long a call takes, the GPU's work included."""
    return timed(work, *arguments)[0]


def timed(work: Callable[..., Result], *arguments: object) -> tuple[float, Result]:
    """Return how long a call takes, the GPU's work included, and what it returns."""
    _wait_for_gpu()
    started = time.perf_counter()
    result = work(*arguments)
    _wait_for_gpu()
    return time.perf_counter() - started, result


def _wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
