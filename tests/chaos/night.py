"""A sweep that is broken while it runs, and what must be true of it afterwards."""

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from raypeft.core.spec import Sweep, dump_sweep
from raypeft.store.journal import Entry, read_journal
from tests.chaos.hosts import ROOT, Hosts
from tests.support.lab import assert_same_tables, stable_tables

LOOK_SECONDS = 0.1
END_SECONDS = 240.0


@dataclass
class Night:
    """One output, and the drivers that work on it one after the other.

    Attributes:
        sweep: What they run.
        hosts: Where.
        folder: For the sweep file and the drivers' logs.
        environment: What their environments have besides.
        drivers: Those that were started.
    """

    sweep: Sweep
    hosts: Hosts
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    drivers: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    def start(self, prefix: Sequence[str] = ()) -> "subprocess.Popen[bytes]":
        """Start a driver."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "sweep.yaml"
        file.write_text(dump_sweep(self.sweep), encoding="utf-8")
        command = [sys.executable, "-m", "tests.chaos.driver", str(file), self.hosts.address]
        with self._log(len(self.drivers)).open("wb") as log:
            driver = subprocess.Popen(
                [*prefix, *command],
                cwd=ROOT,
                env={**self.hosts.environment, **self.environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.drivers.append(driver)
        return driver

    def said(self, number: int = -1) -> str:
        """Return what a driver has printed."""
        return self._log(range(len(self.drivers))[number]).read_text(errors="replace")

    def entries(self) -> list[Entry]:
        """Return the journal."""
        return list(read_journal(self.sweep.output))

    def count(self, kind: str) -> int:
        return sum(1 for entry in self.entries() if entry.kind == kind)

    def wait_for(self, kind: str, count: int) -> bool:
        """Wait until this many lines of a kind are in the journal; False if the driver ended."""
        while self.count(kind) < count:
            if _ended(self.drivers[-1]):
                return self.count(kind) >= count
        return True

    def wait_to_hear(self, words: str) -> None:
        """Wait until the last driver has printed something."""
        while words not in self.said():
            assert not _ended(self.drivers[-1]), self.said()

    def end(self) -> int:
        """Wait for the last driver, and return how it ended."""
        return self.drivers[-1].wait(END_SECONDS)

    def kill(self, number: int = signal.SIGKILL) -> int:
        """Send the last driver a signal, and return how it ended."""
        self.drivers[-1].send_signal(number)
        return self.end()

    def close(self) -> None:
        for driver in self.drivers:
            if driver.poll() is None:
                driver.kill()
                driver.wait()

    def check(self, calm: Sweep) -> None:
        """Check that nothing of what happened shows in the tables, and nothing was done twice."""
        print_differences(calm, self.sweep)
        assert_same_tables(calm.output, self.sweep.output)
        check_nothing_twice(self.entries())

    def _log(self, number: int) -> Path:
        return self.folder / f"driver-{number}.log"


def _ended(driver: "subprocess.Popen[bytes]") -> bool:
    try:
        driver.wait(LOOK_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True


def print_differences(calm: Sweep, rough: Sweep) -> None:
    """Print which values differ, for whoever reads why a night failed."""
    ours, theirs = stable_tables(calm.output), stable_tables(rough.output)
    for name, table in ours.items():
        rows = zip(table.to_pylist(), theirs[name].to_pylist(), strict=False)
        for number, (left, right) in enumerate(rows):
            for column, value in left.items():
                if repr(value) != repr(right[column]):
                    print(f"{name}[{number}].{column}: {value!r} is now {right[column]!r}")


def check_nothing_twice(entries: Iterable[Entry]) -> None:
    """Check that no finished unit was begun again and no cell was scored twice."""
    finished: set[str] = set()
    scored: Counter[str] = Counter()
    for entry in entries:
        match entry.kind:
            case "run_unit":
                assert entry.fields["unit_id"] not in finished, f"finished, and begun: {entry}"
                assert not set(entry.fields["cells"]) & scored.keys(), f"scored, and begun: {entry}"
            case "unit_done" if "failed" not in entry.fields:
                assert entry.fields["unit_id"] not in finished, f"finished twice: {entry}"
                finished.add(str(entry.fields["unit_id"]))
            case "cell_scored":
                scored[str(entry.fields["cell"])] += 1
    assert finished
    assert scored
    assert set(scored.values()) == {1}, scored


def check_drained_nodes_got_nothing_more(entries: Iterable[Entry]) -> int:
    """Check that no unit was begun on a node after it was said to go; return how many were."""
    node_of: dict[str, str] = {}
    draining: set[str] = set()
    for entry in entries:
        match entry.kind:
            case "run_begins":
                node_of.clear()
            case "slot_ready":
                node_of[str(entry.fields["slot"])] = str(entry.fields["node"])
            case "node_draining":
                draining.add(str(entry.fields["node"]))
            case "run_unit":
                assert node_of[str(entry.fields["slot"])] not in draining, entry
    return len(draining)


def copy_frozen(calm: Sweep, store: str) -> None:
    """Give a store the request sets of another: what is built once need not be built again."""
    for name in ("requests", "frozen"):
        shutil.copytree(Path(calm.store) / name, Path(store) / name)


def open_log(path: Path) -> IO[bytes]:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("wb")


def remaining(folder: Path) -> list[str]:
    """Return the names of half-written files."""
    return sorted(name for _, _, names in os.walk(folder) for name in names if ".tmp" in name)
