"""What Ray and the driver cost beside the work: on a real local Ray, with an engine that does none.

    python -m benchmarks.ray_overhead [--record FILE] [--samples 10000,100000,1000000]

- units/s: a plan of units that take no time, through 16 slots and through one; what a unit costs is
  the wall time of the run from its first unit to its last over the number of units, the schedule's
  step, the journal's lines (kept nowhere) and two trips through Ray included;
- start: from a process that has imported raypeft to the first answer that is stored, Ray's own
  start included;
- a finished sweep, run again as `raypeft run` in a process of its own: the whole command;
- memory: the largest resident size of a driver that answers, stores (Parquet) and scores this many
  made-up samples in cells of 5,000, each number in a process of its own.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from raypeft import __version__
from raypeft.core.plan import Cell, Plan, Unit, make_units
from raypeft.core.records import (
    Answer,
    EngineSpec,
    Failure,
    Json,
    RequestSet,
    Scored,
    Subject,
    UnitAnswers,
)
from raypeft.core.retry import Policy
from raypeft.runtime.driver import drive
from raypeft.runtime.options import HardwareProfile
from raypeft.runtime.pool import RayPool, connect
from raypeft.store.store import Store
from tests.support.plans import make_request_set

SLOTS = 16
UNITS_OF_16 = 6400
UNITS_OF_1 = 1600
REQUESTS_OF_CELL = 5000
SHARDS_OF_CELL = 5
MOST_RERUN_SECONDS = 5.0


class CountingSink:
    """Keeps when things came and nothing else, or stores answers as a run does."""

    def __init__(self, store: Store | None = None) -> None:
        self.store = store
        self.first_seconds = self.last_seconds = 0.0
        self.num_units = 0
        self.num_scored = 0

    def answers(self, unit: Unit, attempt: int, answers: UnitAnswers) -> None:
        self.last_seconds = time.perf_counter()
        self.first_seconds = self.first_seconds or self.last_seconds
        self.num_units += 1
        if self.store is None:
            return
        for cell, subject in zip(unit.cells, answers.subjects, strict=True):
            self.store.put_answers(
                cell,
                unit.shard_index,
                unit.shard_count,
                subject,
                answers.hardware,
                answers.seconds,
            )

    def load_answers(self, cell: Cell) -> Sequence[Answer]:
        if self.store is None:
            return ()
        answers, _ = self.store.get_answers(cell.key, cell.shards, num_requests=REQUESTS_OF_CELL)
        return answers

    def load_shard(self, cell: Cell, index: int) -> Sequence[Answer]:
        raise AssertionError("nothing is looked at early")

    def scored(self, cell: Cell, scored: Scored) -> None:
        self.num_scored += 1

    def gave_up(self, cell: str, failure: Failure, attempts: int) -> None:
        raise AssertionError(f"{cell}: {failure}")

    def note(self, line: dict[str, Json]) -> None:
        pass


def score(requests: RequestSet, answers: Sequence[Answer], include_path: Sequence[str]) -> Scored:
    return Scored(task=requests.task, metrics=(), samples=(), lm_eval={}, lm_eval_version="none")


def make_plan(cells: int, shards: int) -> Plan:
    """Return a plan of one base: so many cells, each in so many units."""
    subject = Subject(id="base", base="base")
    all_cells = [
        Cell(
            key=f"cell{number}",
            score_key=f"score{number}",
            subject="base",
            base="base",
            task=f"task{number}",
            entry=f"task{number}",
            request_set="requests",
            is_baseline=True,
            tokens=1000,
            shards=shards,
        )
        for number in range(cells)
    ]
    return Plan(
        engines={"base": EngineSpec(kind="fake", base="base", base_digest="base")},
        subjects={"base": subject},
        cells={cell.key: cell for cell in all_cells},
        units=make_units(all_cells, answered={}),
    )


@dataclass(frozen=True)
class Driven:
    units: int
    seconds: float
    """From the first answer to the last."""
    to_first_seconds: float
    """From the call to the first answer; the pool is there."""


def run(pool: RayPool, plan: Plan, slots: int, requests: int, sink: CountingSink) -> Driven:
    request_set = make_request_set("requests", requests)
    begun = time.perf_counter()
    outcome = drive(
        plan,
        pool=pool,
        sink=sink,
        policy=Policy(slots=slots),
        clock=time.monotonic,
        request_sets=lambda digest: replace(request_set, digest=digest),
        score=score,
    )
    assert len(outcome.done) == len(plan.cells)
    first = sink.first_seconds - begun
    return Driven(sink.num_units, sink.last_seconds - sink.first_seconds, first)


def measure_dispatch() -> tuple[float, Driven, Driven]:
    """Return the seconds of Ray's start, and what 16 slots and one did."""
    begun = time.perf_counter()
    with connect(num_cpus=SLOTS + 4, num_gpus=0, object_store_mib=200) as connection:
        started = time.perf_counter() - begun
        pool = RayPool(connection, profile=HardwareProfile(cpus=1), num_slots=SLOTS)
        shards = 160
        many = run(pool, make_plan(UNITS_OF_16 // shards, shards), SLOTS, shards, CountingSink())
        one = run(pool, make_plan(UNITS_OF_1 // shards, shards), 1, shards, CountingSink())
        pool.close()
    return started, many, one


def measure_start() -> float:
    """Return the seconds from nothing to the first answer."""
    begun = time.perf_counter()
    with connect(num_cpus=4, num_gpus=0, object_store_mib=100) as connection:
        pool = RayPool(connection, profile=HardwareProfile(cpus=1), num_slots=1)
        sink = CountingSink()
        run(pool, make_plan(1, 1), 1, 6, sink)
        pool.close()
    return sink.first_seconds - begun


def measure_memory(samples: int) -> dict[str, float]:
    """Answer, store and score; return MiB and seconds. Run in a process of its own."""
    folder = Path(tempfile.mkdtemp(prefix="raypeft-overhead-"))
    try:
        with connect(num_cpus=4, num_gpus=0, object_store_mib=200) as connection:
            pool = RayPool(connection, profile=HardwareProfile(cpus=1), num_slots=2)
            before = _peak_mib()
            begun = time.perf_counter()
            plan = make_plan(samples // REQUESTS_OF_CELL, SHARDS_OF_CELL)
            run(pool, plan, 2, REQUESTS_OF_CELL, CountingSink(Store(str(folder))))
            seconds = time.perf_counter() - begun
            pool.close()
        return {"before_mib": before, "peak_mib": _peak_mib(), "seconds": seconds}
    finally:
        shutil.rmtree(folder)


def _peak_mib() -> float:
    # Of this program: what `getrusage` tells begins with the process that started it.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def own_process(*arguments: str) -> dict[str, float]:
    """Measure in a process of its own."""
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.ray_overhead", *arguments],
        stdout=subprocess.PIPE,
        check=True,
    )
    told: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return told


def measure_rerun() -> tuple[float, float]:
    """Return the seconds of a small sweep and of the same command once more."""
    from raypeft.core.yaml_text import write_yaml
    from tests.support.tasks import write_tasks
    from tests.support.tiny import tiny_llama, tiny_lora

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = tiny_llama(folder / "base")
        adapters = [tiny_lora(base, folder / f"a{n}", seed=n, scale=0.3) for n in range(6)]
        tasks = write_tasks(folder / "tasks")
        sweep = {
            "output": str(folder / "run"),
            "bases": [{"path": str(base), "adapters": [str(one) for one in adapters]}],
            "tasks": ["tiny_letters", "tiny_gen", "tiny_rolling"],
            "include_path": [str(tasks.folder)],
            "engine": {"kind": "fake"},
            "schedule": {"slots": 2},
        }
        file = folder / "sweep.yaml"
        file.write_text(write_yaml(sweep), encoding="utf-8")
        seconds = []
        for _ in range(2):
            begun = time.perf_counter()
            command = [sys.executable, "-m", "raypeft", "run", str(file)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - begun)
    return seconds[0], seconds[1]


def report(
    dispatch: tuple[float, Driven, Driven],
    start: float,
    rerun: tuple[float, float],
    memory: dict[int, dict[str, float]],
) -> str:
    ray_start, many, one = dispatch
    holds = "holds" if rerun[1] <= MOST_RERUN_SECONDS else "DOES NOT HOLD"
    lines = [
        "# What Ray and the driver cost beside the work",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {os.cpu_count()} cores, no GPU, "
        f"Python {platform.python_version()}, ray {version('ray')}; raypeft {__version__}",
        "",
        "Command: `python -m benchmarks.ray_overhead`. One run of each, on a machine with other "
        "work (load average at the end: "
        f"{os.getloadavg()[1]:.1f}); the slots share the cores with the driver.",
        "",
        "| what | measured |",
        "|---|---|",
        f"| units that take no time, {SLOTS} slots | {many.units / many.seconds:,.0f} units/s "
        f"({many.units:,} units, {1000 * many.seconds / many.units:.2f} ms each) |",
        f"| the same, one slot | {one.units / one.seconds:,.0f} units/s "
        f"({one.units:,} units, {1000 * one.seconds / one.units:.2f} ms each) |",
        f"| start of a local Ray | {ray_start:.1f} s |",
        f"| start to the first answer stored, Ray included, one slot | {start:.1f} s |",
        f"| first answer of {SLOTS} slots started at once, Ray there | "
        f"{many.to_first_seconds:.1f} s |",
        f"| a sweep of 21 cells, `raypeft run` | {rerun[0]:.1f} s |",
        f"| the same command once more, everything done | {rerun[1]:.1f} s (asked for: at most "
        f"{MOST_RERUN_SECONDS:g} s: {holds}) |",
        "",
        "The driver's memory, two slots, answers stored and scored:",
        "",
        "| samples | largest resident size | before the first unit | seconds |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {samples:,} | {row['peak_mib']:.0f} MiB | {row['before_mib']:.0f} MiB "
        f"| {row['seconds']:.0f} |"
        for samples, row in memory.items()
    ]
    return "\n".join([*lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure what Ray and the driver cost.")
    parser.add_argument("--record", type=Path)
    parser.add_argument("--samples", default="10000,100000,1000000")
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--start", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        print(json.dumps(measure_memory(arguments.memory)))
        return 0
    if arguments.start:
        print(json.dumps({"seconds": measure_start()}))
        return 0
    counts = [int(text) for text in arguments.samples.split(",")]
    start = own_process("--start")["seconds"]
    dispatch = measure_dispatch()
    rerun = measure_rerun()
    memory = {count: own_process("--memory", str(count)) for count in counts}
    text = report(dispatch, start, rerun, memory)
    print(text)
    if arguments.record:
        arguments.record.write_text(text, encoding="utf-8")
    return 0 if rerun[1] <= MOST_RERUN_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
