"""raypeft against the two ways people evaluate adapters with lm-eval today, in one run.

    python benchmarks/vs_lm_eval.py [--work FOLDER] [--record FILE]

For eight LoRA adapters and their base on three tasks it times

(a) raypeft: one sweep, from an empty store, on a Ray that it starts itself;
(b) a loop of `lm_eval run`, one process for each adapter and one for the base;
(c) one process with one HFLM, whose adapter is switched in place between `simple_evaluate` calls;

and checks that all three give the same numbers. Whole-process wall times; run it on a quiet
machine. The record says where raypeft's time goes.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from raypeft.core.yaml_text import write_yaml
from raypeft.store.journal import read_journal
from raypeft.store.output import open_output
from raypeft.train.demo import BASE, DemoInputs, DemoSettings, build_demo
from raypeft.train.recipes import AdapterRecipe, TrainerSettings

TASKS = ("demo_trade", "demo_meal", "demo_story")
NUM_ADAPTERS = 8
BATCH_SIZE = 16
SLOTS = 2
PACKAGES = ("raypeft", "lm_eval", "ray", "torch", "transformers", "peft")


@dataclass(frozen=True)
class Timing:
    """One way's wall seconds and what it said.

    Attributes:
        seconds: Whole-process wall time.
        values: By (subject, task, metric).
        by_task: Seconds of evaluating each task for all subjects, start-up aside, where they can
            be told apart; work of slots side by side counts once.
    """

    seconds: float
    values: dict[tuple[str, str, str], float]
    by_task: dict[str, float] = field(default_factory=dict)


def make_inputs(
    work: Path, num_adapters: int = NUM_ADAPTERS, *, all_alike: bool = False
) -> tuple[DemoInputs, list[str]]:
    """Train a small base and adapters, briefly: what they learn does not matter here.

    Args:
        work: Folder for them.
        num_adapters: How many.
        all_alike: Whether all have rank 8 and PEFT's usual targets, else four ranks and two kinds.
    """
    brief = TrainerSettings(
        steps=20, batch_size=8, learning_rate=5e-3, weight_decay=0.0, warmup_steps=2
    )
    adapters = {}
    for index in range(num_adapters):
        rank = 8 if all_alike else 4 + 4 * (index % 4)
        is_attention = all_alike or index < num_adapters // 2
        targets = ["q_proj", "v_proj"] if is_attention else ["gate_proj", "up_proj"]
        peft = {"peft_type": "LORA", "r": rank, "lora_alpha": 16, "target_modules": targets}
        name = "lora-r4" if index == 0 else f"lora-{index}"
        adapters[name] = AdapterRecipe(peft=peft, trainer=replace(brief, steps=20 + index))
    defaults = DemoSettings()
    base = replace(defaults.base, trainer=replace(defaults.base.trainer, steps=60))
    inputs = build_demo(work / "inputs", settings=replace(defaults, base=base, adapters=adapters))
    return inputs, list(adapters)


def time_raypeft(inputs: DemoInputs, adapters: list[str], work: Path) -> Timing:
    """Run (a)."""
    output = work / "raypeft"
    for folder in (output, work / "store"):
        shutil.rmtree(folder, ignore_errors=True)
    sweep = {
        "name": "vs-lm-eval",
        "output": str(output),
        "store": str(work / "store"),
        "bases": [
            {
                "path": str(inputs.base),
                "name": BASE,
                "dtype": "float32",
                "adapters": [str(inputs.adapters[name]) for name in adapters],
            }
        ],
        "tasks": list(TASKS),
        "include_path": [str(inputs.tasks)],
        "engine": {"kind": "hf", "batch_size": BATCH_SIZE},
        "schedule": {"slots": SLOTS},
    }
    file = work / "sweep.yaml"
    file.write_text(write_yaml(sweep), encoding="utf-8")
    seconds = run_python(["-c", "from raypeft.cli import main; main()", "run", str(file)])
    tables = open_output(str(output))
    values = {
        (row["adapter"] or BASE, row["task"], f"{row['metric']},{row['filter']}"): row["value"]
        for row in tables.results.to_pylist()
    }
    by_task = dict.fromkeys(TASKS, 0.0)
    for row in tables.cells.to_pylist():
        by_task[row["task"]] += row["seconds"] / SLOTS
    return Timing(seconds, values, by_task)


def time_lm_eval(inputs: DemoInputs, adapters: list[str], work: Path) -> Timing:
    """Run (b)."""
    values: dict[tuple[str, str, str], float] = {}
    seconds = 0.0
    for name in (BASE, *adapters):
        out = work / "lm_eval" / name
        shutil.rmtree(out, ignore_errors=True)
        model_args = f"pretrained={inputs.base},dtype=float32"
        if name != BASE:
            model_args += f",peft={inputs.adapters[name]}"
        seconds += run_python(
            [
                *("-m", "lm_eval", "run", "--model", "hf", "--model_args", model_args),
                *("--tasks", ",".join(TASKS), "--include_path", str(inputs.tasks)),
                *("--batch_size", str(BATCH_SIZE), "--device", "cpu"),
                *("--output_path", str(out), "--log_samples"),
            ]
        )
        (file,) = out.rglob("results_*.json")
        values |= _values(name, json.loads(file.read_text(encoding="utf-8"))["results"])
    return Timing(seconds, values)


def time_hot_swap(inputs: DemoInputs, adapters: list[str], work: Path) -> Timing:
    """Run (c), in a process of its own, so that its imports are counted as in the other two."""
    out = work / "hot_swap.json"
    arguments = [str(inputs.base), str(inputs.tasks), str(out)]
    arguments += [f"{name}={inputs.adapters[name]}" for name in adapters]
    seconds = run_python([__file__, "--hot-swap", *arguments])
    values: dict[tuple[str, str, str], float] = {}
    told = json.loads(out.read_text(encoding="utf-8"))
    for name, results in told["results"].items():
        values |= _values(name, results)
    return Timing(seconds, values, told["seconds"])


def hot_swap(base: str, tasks: str, out: str, adapters: list[str]) -> None:
    """Evaluate the base and each adapter on one HFLM, as a careful user would write it."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from peft import PeftModel

    lm = HFLM(pretrained=base, dtype="float32", batch_size=BATCH_SIZE, device="cpu")
    manager = TaskManager(include_path=tasks)
    plain = lm.model
    results = {}
    seconds = dict.fromkeys(TASKS, 0.0)

    def evaluate() -> Any:
        found: dict[str, Any] = {}
        for task in TASKS:
            started = time.perf_counter()
            found |= simple_evaluate(lm, tasks=[task], task_manager=manager)["results"]
            seconds[task] += time.perf_counter() - started
        return found

    results[BASE] = evaluate()
    model = None
    for name, path in (item.split("=", 1) for item in adapters):
        if model is None:
            model = PeftModel.from_pretrained(plain, path, adapter_name=name)
            lm._model = model.eval()
        else:
            model.load_adapter(path, adapter_name=name)
        model.set_adapter(name)
        results[name] = evaluate()
    told = {"results": results, "seconds": seconds}
    Path(out).write_text(json.dumps(told, default=str), encoding="utf-8")


def _values(subject: str, results: Any) -> dict[tuple[str, str, str], float]:
    return {
        (subject, task, key): value
        for task, result in results.items()
        for key, value in result.items()
        if "," in key and "_stderr" not in key
    }


def run_python(arguments: list[str]) -> float:
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{arguments[:4]} failed:\n{done.stdout}\n{done.stderr}")
    return time.perf_counter() - started


def largest_difference(ours: Timing, theirs: Timing) -> float:
    """Return the largest relative difference of any metric that both have."""
    if ours.values.keys() != theirs.values.keys():
        raise SystemExit(f"not the same cells: {ours.values.keys() ^ theirs.values.keys()}")
    return max(
        abs(value - theirs.values[key]) / max(abs(theirs.values[key]), 1e-12)
        for key, value in ours.values.items()
    )


def where_time_goes(output: Path, seconds: float) -> list[tuple[str, float]]:
    """Return raypeft's wall seconds by stage, from its journal."""
    entries = list(read_journal(str(output)))
    begins = next(entry.at_seconds for entry in entries if entry.kind == "run_begins")
    ends = next(entry.at_seconds for entry in entries if entry.kind == "run_ends")
    ready = next(entry.at_seconds for entry in entries if entry.kind == "slot_ready")
    answered = [entry.at_seconds for entry in entries if entry.kind == "unit_done"]
    return [
        (
            "until the plan: start-up of Python and Ray, reading, freezing",
            seconds - (ends - begins),
        ),
        ("slots loading the base (imports of torch and lm-eval in each)", ready - begins),
        ("answering", max(answered) - ready),
        ("scoring what was still open", ends - max(answered)),
    ]


def report(timings: dict[str, Timing], stages: list[tuple[str, float]], command: str) -> str:
    """Return the record as Markdown."""
    ours = timings["raypeft"]
    lines = [
        "# raypeft against lm-eval: 8 LoRA adapters and their base, 3 tasks",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.processor() or platform.machine()}, "
        f"{os.cpu_count()} cores, no GPU, Python {platform.python_version()}; "
        + ", ".join(f"{name} {version(name)}" for name in PACKAGES),
        "",
        f"Command: `{command}`. Batch size {BATCH_SIZE}, {SLOTS} slots, float32, 160 documents a "
        "task; wall seconds of whole processes, one run each.",
        "",
        "| way | wall s | against raypeft | largest relative difference of a metric |",
        "|---|---|---|---|",
    ]
    for name, timing in timings.items():
        ratio = timing.seconds / ours.seconds
        difference = largest_difference(ours, timing)
        lines.append(f"| {name} | {timing.seconds:.1f} | {ratio:.2f}× | {difference:.1e} |")
    swap = timings["hot swap on one HFLM"]
    lines += [
        "",
        "By task, all subjects, start-up aside (hot swap: `simple_evaluate`, on all cores; "
        "raypeft: its slots' seconds side by side, scoring apart):",
        "",
        "| task | raypeft s | hot swap s | ratio |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {task} | {ours.by_task[task]:.1f} | {swap.by_task[task]:.1f} | "
        f"{swap.by_task[task] / ours.by_task[task]:.1f}× |"
        for task in TASKS
    ]
    lines += ["", "Where raypeft's time goes:", "", "| stage | wall s |", "|---|---|"]
    lines += [f"| {stage} | {seconds:.1f} |" for stage, seconds in stages]
    return "\n".join(lines) + "\n"


def main() -> None:
    if sys.argv[1:2] == ["--hot-swap"]:
        base, tasks, out, *adapters = sys.argv[2:]
        hot_swap(base, tasks, out, adapters)
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("benchmark-run"))
    parser.add_argument("--record", type=Path, help="also write the record there")
    arguments = parser.parse_args()
    work = arguments.work.absolute()
    inputs, adapters = make_inputs(work)
    timings = {
        "raypeft": time_raypeft(inputs, adapters, work),
        "hot swap on one HFLM": time_hot_swap(inputs, adapters, work),
        "loop of `lm_eval run`": time_lm_eval(inputs, adapters, work),
    }
    stages = where_time_goes(work / "raypeft", timings["raypeft"].seconds)
    text = report(
        timings, stages, f"python {' '.join(['benchmarks/vs_lm_eval.py', *sys.argv[1:]])}"
    )
    print(text)
    if arguments.record:
        arguments.record.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
