"""`raypeft demo`: the whole way on inputs that it makes itself."""

from dataclasses import dataclass
from pathlib import Path

from raypeft.api.pools import PoolKind
from raypeft.api.running import Listener, RunReport, run_sweep
from raypeft.api.sweeps import load_sweep
from raypeft.train.demo import Progress, build_demo

STEPS_BETWEEN_LINES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoReport:
    """How the demo ended.

    Attributes:
        sweep: The sweep file it made.
        run: How the run ended.
    """

    sweep: Path
    run: RunReport


def run_demo(
    folder: Path, *, pool: PoolKind = "ray", listener: Listener | None = None
) -> DemoReport:
    """Train a tiny base and adapters, and evaluate all of them.

    Args:
        folder: Where everything goes; what an earlier call made there is used again.
        pool: On a local Ray, or in this process.
        listener: Who is told what goes on.
    """
    listener = listener or Listener()

    def tell(progress: Progress) -> None:
        if progress.step % STEPS_BETWEEN_LINES == 0 or progress.step == progress.steps:
            listener.say(
                f"training {progress.part}: step {progress.step} of {progress.steps}, "
                f"loss {progress.loss:.3f}"
            )

    inputs = build_demo(folder, on_progress=tell)
    sweep = load_sweep(inputs.sweep)
    run = run_sweep(sweep, pool=pool, listener=listener)
    return DemoReport(sweep=inputs.sweep, run=run)
