"""The scheduler: how good its decisions are, and what they cost the driver.

    python benchmarks/scheduler.py [--record FILE] [--slots 1000] [--units 100000]

Simulated, on a virtual clock, with the same state machine that drives real slots. Three shapes:

- many small bases: twice as many bases as slots, each with work for some hours;
- one large base: one base whose units take minutes;
- heavy tail: a hundred bases, units of a Pareto distribution (shape 1.5) cut off at four hours,
  which is half of the night: one that is begun too late lengthens it.

What a unit takes is what the schedule expects of it times a log-normal factor (sigma 0.2), and so
are loads known but not durations. The lower bound knows all durations: the larger of all work
spread evenly over all slots, every base loaded at least once and every slot at least once, and the
longest unit behind one load (Graham, Bounds on multiprocessing timing anomalies, SIAM J. Appl.
Math. 17, 1969; `raypeft.core.simulate.lower_bound`). No schedule reaches it in general.

A second table has the same shapes with a hundredth of all attempts losing their slot and two
hundredths failing; its bound is that of a night without failures.
"""

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random

from raypeft import __version__
from raypeft.core.plan import Cell, EngineCost, Plan, make_units
from raypeft.core.records import EngineSpec, Subject
from raypeft.core.retry import Policy
from raypeft.core.simulate import Chances, Simulated, simulate

LOAD_SECONDS = 120.0
LONGEST_SECONDS = 4 * 3600.0
SHARDS = 5
MAX_RATIO = 1.05
MAX_MILLISECONDS = 1.0
CALM = Chances(noise=0.2)
ROUGH = Chances(noise=0.2, slot_loss=0.01, unit_failure=0.02)


@dataclass(frozen=True)
class Row:
    shape: str
    night: Simulated
    milliseconds: float
    """Wall time of the whole simulation for each unit, the making of the plan aside."""

    @property
    def holds(self) -> bool:
        ratio = self.night.ratio
        return ratio is not None and ratio <= MAX_RATIO and self.milliseconds < MAX_MILLISECONDS


def make_plan(bases: int, units: int, seconds: Callable[[Random], float], random: Random) -> Plan:
    """Return a plan of bases of different sizes: from half to twice as many cells as the mean."""
    sizes = [random.uniform(0.5, 2.0) for _ in range(bases)]
    num_cells = units // SHARDS
    cells: list[Cell] = []
    subjects: dict[str, Subject] = {}
    given = 0.0
    for number, size in enumerate(sizes):
        base = f"base{number}"
        begin, given = round(given), given + num_cells * size / sum(sizes)
        for index in range(round(given) - begin):
            subject = base if index == 0 else f"{base}/a{index // 10}"
            subjects[subject] = Subject(id=subject, base=base)
            cells.append(_cell(base, subject, index, seconds(random)))
    engines = {
        f"base{number}": EngineSpec(kind="fake", base=f"base{number}", base_digest=f"{number}")
        for number in range(bases)
    }
    return Plan(
        engines=engines,
        subjects=subjects,
        cells={cell.key: cell for cell in cells},
        units=make_units(cells, answered={}),
        costs={name: EngineCost(load_seconds=LOAD_SECONDS, upper=1.5) for name in engines},
    )


def _cell(base: str, subject: str, index: int, unit_seconds: float) -> Cell:
    return Cell(
        key=f"{base}:{index}",
        score_key=f"{base}:{index}",
        subject=subject,
        base=base,
        task=f"task{index}",
        entry=f"task{index}",
        request_set=f"requests{index}",
        is_baseline=index == 0,
        tokens=int(unit_seconds * SHARDS * 1000),
        shards=SHARDS,
        seconds=unit_seconds * SHARDS,
    )


def shapes(slots: int, units: int) -> dict[str, Plan]:
    """Return the three plans."""
    even: Callable[[Random], float] = lambda random: random.uniform(100.0, 500.0)  # noqa: E731
    tail: Callable[[Random], float] = lambda random: min(  # noqa: E731
        100.0 * random.paretovariate(1.5), LONGEST_SECONDS
    )
    return {
        f"{2 * slots:,} small bases": make_plan(2 * slots, units, even, Random(1)),
        "one large base": make_plan(1, units, even, Random(2)),
        "heavy tail, 100 bases": make_plan(100, units, tail, Random(3)),
    }


def measure(shape: str, plan: Plan, slots: int, chances: Chances) -> Row:
    policy = Policy(slots=slots, scoring=slots, attempts=6, slot_losses=6)
    begin = time.perf_counter()
    night = simulate(plan, policy, chances, Random(4))
    seconds = time.perf_counter() - begin
    # Nothing of it is needed in the table, and the next shape wants the memory.
    return Row(shape, replace(night, spans=()), 1000 * seconds / night.num_units)


def table(rows: list[Row]) -> str:
    lines = [
        "| shape | units | loads | attempts | makespan h | lower bound h | ratio | "
        "slots answering | ms a unit |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        night = row.night
        ratio = "–" if night.ratio is None else f"{night.ratio:.3f}"
        lines.append(
            f"| {row.shape} | {night.num_units:,} | {night.num_loads:,} | {night.num_attempts:,} | "
            f"{night.makespan_seconds / 3600:.2f} | {night.lower_bound_seconds / 3600:.2f} | "
            f"{ratio} | {night.utilisation:.1%} | {row.milliseconds:.3f} |"
        )
    return "\n".join(lines)


def report(slots: int, units: int, calm: list[Row], rough: list[Row]) -> str:
    holds = "holds" if all(row.holds for row in calm) else "DOES NOT HOLD"
    return "\n".join(
        [
            f"# The scheduler: {slots:,} slots, {units:,} units, simulated",
            "",
            f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {os.cpu_count()} cores, no GPU, "
            f"Python {platform.python_version()}; raypeft {__version__}",
            "",
            "Command: `python benchmarks/scheduler.py`. One run of each shape, seeds fixed; "
            "milliseconds are the wall time of the whole simulation (state machine, virtual clock "
            "and books) on a machine with other work: an upper bound of what decisions cost.",
            "",
            table(calm),
            "",
            f"Asked for: at most {MAX_RATIO} times the lower bound and under "
            f"{MAX_MILLISECONDS:g} ms a unit: {holds}.",
            "",
            "With failures (1 % of attempts lose their slot, 2 % fail); the bound is that of a "
            "night without any:",
            "",
            table(rough),
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Simulate the scheduler.")
    parser.add_argument("--record", type=Path)
    parser.add_argument("--slots", type=int, default=1000)
    parser.add_argument("--units", type=int, default=100_000)
    arguments = parser.parse_args()
    slots, units = arguments.slots, arguments.units
    plans = shapes(slots, units)
    calm = [measure(shape, plan, slots, CALM) for shape, plan in plans.items()]
    rough = [measure(shape, plan, slots, ROUGH) for shape, plan in plans.items()]
    text = report(slots, units, calm, rough)
    print(text)
    if arguments.record:
        arguments.record.write_text(text, encoding="utf-8")
    return 0 if all(row.holds for row in calm) else 1


if __name__ == "__main__":
    sys.exit(main())
