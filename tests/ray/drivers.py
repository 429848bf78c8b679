"""A driver in a process of its own, for tests that send it signals: `python -m tests.ray.drivers`.

Writes a line for each unit whose answers it has stored; ends with the exit code of the command
line for an interruption.
"""

import pickle
import sys
import time
from pathlib import Path

from raypeft.core.plan import Unit
from raypeft.core.records import UnitAnswers
from raypeft.core.retry import Policy
from raypeft.errors import Interrupted
from raypeft.runtime.driver import drive
from raypeft.runtime.options import HardwareProfile
from raypeft.runtime.pool import RayPool, connect
from tests.support.plans import make_plan, make_request_set
from tests.support.sinks import MemorySink, mean_logprob

EXIT_INTERRUPTED = 130
PLAN = make_plan(adapters=6, shards=2)
HANGING = {"do": "hang", "adapter": "a3"}


class FileSink(MemorySink):
    """Writes answers to files too, each whole before it is told."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def answers(self, unit: Unit, attempt: int, answers: UnitAnswers) -> None:
        super().answers(unit, attempt, answers)
        (cell,) = unit.cells
        partial = self.folder / "partial"
        partial.write_bytes(pickle.dumps((cell, unit.shard_index, answers.subjects[0].answers)))
        partial.rename(self.folder / f"{unit.id}.pickle")
        say(f"stored {unit.id}")


def say(line: str) -> None:
    print(line, flush=True)


def main(folder: Path) -> int:
    engine = PLAN.engines["base0"]
    engine = type(engine)(
        kind="fake",
        base=engine.base,
        base_digest=engine.base_digest,
        options={"script": {"events": [HANGING]}},
    )
    plan = type(PLAN)(
        engines={"base0": engine}, subjects=PLAN.subjects, cells=PLAN.cells, units=PLAN.units
    )
    with connect(num_cpus=4, num_gpus=0, object_store_mib=100) as connection:
        say(f"connected {connection.address}")
        pool = RayPool(connection, profile=HardwareProfile(cpus=1), num_slots=2)
        try:
            drive(
                plan,
                pool=pool,
                sink=FileSink(folder),
                policy=Policy(slots=2),
                clock=time.monotonic,
                request_sets=make_request_set,
                score=mean_logprob,
            )
        except Interrupted as error:
            say(f"interrupted {error.signal_name}")
            return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
