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
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from peft import PeftModel
from synthetic import (
    ModelShape,
    Shape,
    ask_hflm,
    make_adapters,
    make_base,
    make_requests,
    seconds_of,
)

from raypeft.core.records import Answer, EngineSpec, RequestSet, Shard, Subject
from raypeft.engines.adapters import read_adapter
from raypeft.engines.bases import read_base
from raypeft.engines.hf import HFEngine

MODEL = ModelShape()
BATCH_SIZE = 8
ROUNDS = 3
NATS = 1e-4

SHAPES = (
    Shape("5-shot, 4 choices of 10 tokens", 400, False, 40, (10,) * 4),
    Shape("25-shot, 4 choices of 6 tokens", 950, False, 32, (6,) * 4),
    Shape("letters, 5-shot", 300, False, 60, (1,) * 4),
    Shape("MMLU-like: common 600-token shots, letters", 600, True, 110, (1,) * 4),
    Shape("common 600-token shots, 4 choices of 6", 600, True, 110, (6,) * 4),
    Shape("rolling, 300 tokens", 0, False, 300, kind="loglikelihood_rolling"),
    Shape("generation, 200 given, 16 generated", 150, False, 50, kind="generate_until"),
)


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


def plain_tokens_per_second(model: Any) -> float:
    """Return what the model does on plain full batches of rows as long as the tasks' rows."""
    ids = torch.randint(2, MODEL.vocabulary, (4, 512))
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
        base = make_base(Path(work) / "base", MODEL)
        (folder,) = make_adapters(base, [Path(work) / "lora"], [16])
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
                requests = make_requests(shape, arguments.documents, vocabulary=MODEL.vocabulary)
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
