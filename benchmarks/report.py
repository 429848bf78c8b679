"""How long it takes to report a night of 32 adapters × 12 tasks, and whether the report is right.

    python -m benchmarks.report [--record FILE] [--documents 200]

The night is planted (`tests/support/planted.py`): the `fake` engine answers, and which adapter
gains or loses on which task is known. Timed are the run, and then everything that reading it takes:
the tables made anew from the store, the terminal report, the HTML file. The exit code is 1 if
reporting takes a minute or more, if a planted effect of clearly detectable size is not found, or if
more is found than was planted and one false verdict could explain.
"""

import argparse
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console

from raypeft import api
from raypeft.report.terminal import print_report
from tests.support.planted import CLEARLY, LUCK, Night, Verdicts, judge, write_night

PROMISED_SECONDS = 60.0
NUM_FALSE_ALLOWED = 1
"""The chance of any is at most 5 %; one may still be bad luck, two may not."""


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
        seconds: By what was done.
        verdicts: What the gains say of the effects.
        num_gains: Rows of the gains table.
        page_bytes: Size of the HTML file.
        screen_lines: Lines of the terminal report.
    """

    seconds: dict[str, float]
    verdicts: Verdicts
    num_gains: int
    page_bytes: int
    screen_lines: int

    @property
    def report_seconds(self) -> float:
        """Everything that reading a finished night takes."""
        return sum(value for name, value in self.seconds.items() if name != RUN)

    @property
    def holds(self) -> bool:
        """Whether it is what was promised."""
        is_right = not self.verdicts.missed and len(self.verdicts.false) <= NUM_FALSE_ALLOWED
        return is_right and self.report_seconds < PROMISED_SECONDS


RUN = "run: freeze, answer, score, tables"
TABLES = "tables made anew from the store"
TERMINAL = "terminal report"
HTML = "HTML file"


def measure(folder: Path, night: Night) -> Measured:
    """Run a night and report it."""
    sweep = write_night(folder, night)
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        found = work()
        seconds[name] = time.perf_counter() - start
        return found

    def screen() -> str:
        text = StringIO()
        console = Console(file=text, width=160)
        print_report(api.report(sweep.output), console, title="planted")
        return text.getvalue()

    run = timed(RUN, lambda: api.run(sweep, pool="local"))
    if run.failed or run.num_done != night.tasks * (night.adapters + 1):
        raise SystemExit(f"the night itself went wrong: {run}")
    shutil.rmtree(Path(sweep.output) / "tables")
    timed(TABLES, lambda: api.report(sweep.output))
    lines = timed(TERMINAL, screen).count("\n")
    page = Path(timed(HTML, lambda: api.html_report(sweep.output)))
    gains = api.open(sweep.output).gains.to_pylist()
    verdicts = judge(gains, night.effects())
    return Measured(seconds, verdicts, len(gains), page.stat().st_size, lines)


def record(night: Night, found: Measured, command: str) -> str:
    """Return the record of a measurement."""
    effects = night.effects()
    sizes = sorted({f"{size:+.2f}" for size in effects.values()})
    table = "\n".join(f"| {name} | {value:.1f} |" for name, value in found.seconds.items())
    names = ("raypeft", "lm-eval", "pyarrow", "numpy", "scipy", "matplotlib")
    verdicts = found.verdicts
    return f"""# A night of {night.adapters} adapters × {night.tasks} tasks, reported

{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {os.cpu_count()} cores, Python \
{platform.python_version()}, {", ".join(f"{name} {version(name)}" for name in names)}.

`{command}`

One base, the `fake` engine, {night.documents} documents in each task, pool `local`. Planted are
{len(effects)} effects ({", ".join(sizes)} of the documents); on {LUCK:.0%} of the documents every
adapter is right or wrong by its own chance, so that those without an effect differ too.

| what | seconds |
|---|---|
{table}
| **reporting, without the run** (promised: under {PROMISED_SECONDS:.0f}) | \
{found.report_seconds:.1f} |

| of {found.num_gains} gains | |
|---|---|
| planted effects found, with the right sign | {len(verdicts.found)} |
| missed, although {CLEARLY} × the smallest detectable gain or more (promised: 0) | \
{len(verdicts.missed)} |
| planted, not found, too small to be found | {len(verdicts.too_small)} |
| gains or losses where nothing is planted (promised: none in 95 of 100 nights) | \
{len(verdicts.false)} |

The HTML file has {found.page_bytes / 2**20:.1f} MiB, the terminal report {found.screen_lines} \
lines.
{"Everything is as promised." if found.holds else "**Not as promised.**"}
"""


def main() -> int:
    """Measure, print the record, and write it where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--record", type=Path)
    parser.add_argument("--documents", type=int, default=200)
    chosen = parser.parse_args()
    night = Night(documents=chosen.documents)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), night)
    command = f"python -m benchmarks.report --documents {chosen.documents}"
    text = record(night, found, command)
    print(text)
    if chosen.record is not None:
        chosen.record.write_text(text, encoding="utf-8")
    return 0 if found.holds else 1


if __name__ == "__main__":
    sys.exit(main())
