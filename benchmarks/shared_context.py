"""The hf engine with shared contexts against lm-eval's own HFLM, on a model that computes.

    python benchmarks/shared_context.py [--record FILE] [--documents 12]

A random Llama of some thirty million parameters in float32 answers request sets of the shapes
that people evaluate with, for a base and one LoRA adapter:

- `hf`: raypeft's engine;
- `HFLM`: lm-eval's own model on the same requests, the adapter attached (what a hot-swap loop
  costs for each adapter, tokenising included);
- the limit: tokens a second that the same model does on plain full batches, against what `hf`
  does when each token that must be computed is counted once.

All answers are compared: log-likelihoods within 1e-4 nats, the same texts.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from raypeft.core.identity import request_set_digest
from raypeft.core.records import (
    Answer,
    EngineSpec,
    EvaluationSettings,
    Request,
    RequestSet,
    RequestType,
    Shard,
    Subject,
)
from raypeft.engines.adapters import read_adapter
from raypeft.engines.bases import read_base
from raypeft.engines.hf import HFEngine

NUM_WORDS = 8000
BATCH_SIZE = 8
ROUNDS = 3
NATS = 1e-4

Call = tuple[RequestType, tuple[Any, ...]]


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
    """

    name: str
    shots: int
    common: bool
    question: int
    choices: tuple[int, ...] = ()
    kind: RequestType = "loglikelihood"


SHAPES = (
    Shape("5-shot, 4 choices of 10 tokens", 400, False, 40, (10,) * 4),
    Shape("25-shot, 4 choices of 6 tokens", 950, False, 32, (6,) * 4),
    Shape("letters, 5-shot", 300, False, 60, (1,) * 4),
    Shape("MMLU-like: common 600-token shots, letters", 600, True, 110, (1,) * 4),
    Shape("common 600-token shots, 4 choices of 6", 600, True, 110, (6,) * 4),
    Shape("rolling, 300 tokens", 0, False, 300, kind="loglikelihood_rolling"),
    Shape("generation, 200 given, 16 generated", 150, False, 50, kind="generate_until"),
)


def make_base(folder: Path) -> Path:
    """Save a random base whose tokens are whole words."""
    vocabulary = {"<end>": 0, "<pad>": 1, **{f"w{n}": n + 2 for n in range(NUM_WORDS - 2)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>", model_max_length=2048
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=NUM_WORDS,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def make_adapter(base: Path, folder: Path) -> Path:
    """Save a random LoRA adapter of rank 16 on all linear layers."""
    torch.manual_seed(1)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_B" in name:
                tensor.normal_(std=0.02)
    model.save_pretrained(folder)
    return folder


def make_requests(shape: Shape, num_documents: int) -> RequestSet:
    """Return a request set of a shape."""
    rng = np.random.default_rng(3)

    def words(count: int) -> str:
        return " ".join(f"w{n}" for n in rng.integers(0, NUM_WORDS - 2, count))

    common = words(shape.shots)
    calls: list[Call] = []
    for _ in range(num_documents):
        shots = common if shape.common else words(shape.shots)
        context = f"{shots} {words(shape.question)}".strip()
        if shape.kind == "loglikelihood_rolling":
            calls.append((shape.kind, (context,)))
        elif shape.kind == "generate_until":
            calls.append((shape.kind, (context, {"until": ["\n"], "max_gen_toks": 16})))
        else:
            calls += [(shape.kind, (context, f" {words(size)}")) for size in shape.choices]
    requests = tuple(
        Request(i, i, 0, 0, kind, arguments) for i, (kind, arguments) in enumerate(calls)
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


def compare(ours: Sequence[Answer], theirs: Sequence[Answer]) -> float:
    """Return the largest difference in nats; texts and greedy flags must be equal."""
    worst = 0.0
    for left, right in zip(ours, theirs, strict=True):
        if (left.text, left.is_greedy) != (right.text, right.is_greedy):
            raise SystemExit(f"request {left.index}: {left} against {right}")
        if left.logprob is not None and right.logprob is not None:
            worst = max(worst, abs(left.logprob - right.logprob))
    if worst > NATS:
        raise SystemExit(f"differences of {worst} nats")
    return worst


def seconds_of(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def plain_tokens_per_second(model: Any) -> float:
    """Return what the model does on plain full batches of rows as long as the tasks' rows."""
    ids = torch.randint(2, NUM_WORDS, (4, 512))
    with torch.no_grad():
        # Logits at the end only, as the engine reads them.
        runs = [
            seconds_of(lambda: model(input_ids=ids, use_cache=False, logits_to_keep=1))
            for _ in range(ROUNDS + 1)
        ]
    return ids.numel() / statistics.median(runs[1:])


@dataclass(frozen=True)
class Row:
    """One line of the record; seconds are medians."""

    shape: str
    subject: str
    hf_seconds: float
    hflm_seconds: float
    ratio: float
    tokens: int
    of_limit: float
    worst_nats: float


def measure(
    shape: Shape,
    name: str,
    engine: HFEngine,
    subject: Subject,
    lm: HFLM,
    requests: RequestSet,
    limit: float,
) -> Row:
    """Time both sides in turn and compare what they say."""
    shard = Shard(requests)
    first = engine.answer(shard, [subject])[0]
    if first.failure is not None:
        raise SystemExit(str(first.failure))
    theirs = ask_hflm(lm, requests)
    worst = compare(first.answers, theirs)
    pairs = [
        (
            seconds_of(lambda: engine.answer(shard, [subject])),
            seconds_of(lambda: ask_hflm(lm, requests)),
        )
        for _ in range(ROUNDS)
    ]
    ours, others = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(theirs / mine for mine, theirs in pairs)
    return Row(
        shape.name, name, ours, others, ratio, first.tokens, first.tokens / ours / limit, worst
    )


def report(rows: Sequence[Row], limits: dict[str, float], documents: int, command: str) -> str:
    packages = ("lm_eval", "torch", "transformers", "peft")
    lines = [
        "# Shared contexts: hf against lm-eval's HFLM",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, no GPU, Python {platform.python_version()}; "
        + ", ".join(f"{name} {version(name)}" for name in packages),
        "",
        f"Command: `{command}`. A random Llama of 33 million parameters, float32; {documents} "
        f"documents a shape, HFLM at batch size {BATCH_SIZE}; medians of {ROUNDS} alternating "
        "rounds, ratios pair by pair.",
        "",
        "The limit is the same model on plain full batches: "
        + ", ".join(f"{limit:.0f} tokens/s ({name})" for name, limit in limits.items())
        + ".",
        "",
        "| shape | subject | hf s | HFLM s | HFLM / hf | tokens through hf | of the limit | nats |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.shape} | {r.subject} | {r.hf_seconds:.2f} | {r.hflm_seconds:.2f} | "
        f"{r.ratio:.1f}× | {r.tokens} | {r.of_limit:.2f} | {r.worst_nats:.0e} |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--documents", type=int, default=12)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as work:
        base = make_base(Path(work) / "base")
        folder = make_adapter(base, Path(work) / "lora")
        facts = read_base(str(base))
        spec = EngineSpec(
            kind="hf",
            base=facts.path,
            base_digest=facts.digest,
            batch_size=BATCH_SIZE,
            sharing=True,
        )
        engine = HFEngine(spec)
        adapter = read_adapter(str(folder), name="lora", base_path=str(base))
        subjects = {
            "base": Subject(id="base", base="base"),
            "lora": Subject(id="base/lora", base="base", adapter=adapter),
        }
        rows: list[Row] = []
        limits: dict[str, float] = {}
        for name, subject in subjects.items():
            lm = HFLM(pretrained=str(base), dtype="float32", device="cpu", batch_size=BATCH_SIZE)
            if name == "lora":
                lm._model = PeftModel.from_pretrained(lm.model, str(folder)).eval()
            limits[name] = plain_tokens_per_second(lm.model)
            for shape in SHAPES:
                requests = make_requests(shape, arguments.documents)
                row = measure(shape, name, engine, subject, lm, requests, limits[name])
                print(row, flush=True)
                rows.append(row)
    command = f"python benchmarks/shared_context.py --documents {arguments.documents}"
    text = report(rows, limits, arguments.documents, command)
    print(text)
    if arguments.record:
        arguments.record.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
