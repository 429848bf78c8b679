"""Who watches a run: those that its caller names, and on Ray its metrics."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raypeft.runtime.meter import Progress
from raypeft.runtime.metrics import SweepMetrics
from raypeft.runtime.ports import Sink
from raypeft.runtime.watched import WatchedSink, Watcher


@dataclass(frozen=True, slots=True)
class Watching:
    """What a driver is given, so that others see what it does.

    Attributes:
        sink: Where it writes.
        on_progress: Whom it tells how far it is.
    """

    sink: Sink
    on_progress: Callable[[Progress], None]


def watching(
    sink: Sink,
    *,
    sweep: str,
    on_ray: bool,
    watchers: Sequence[Watcher] = (),
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Watching:
    """Return what a driver is given.

    Args:
        sink: Where everything goes.
        sweep: The sweep's name.
        on_ray: Whether this process is connected to a Ray, which takes metrics.
        watchers: Who sees what is written.
        on_progress: Who is told how far the run is.
    """
    if not on_ray:
        return Watching(WatchedSink(sink, watchers), on_progress)
    from raypeft.runtime.pool.metrics import RayMetrics  # Ray, which not every run needs

    metrics = SweepMetrics(RayMetrics(), sweep)

    def tell(progress: Progress) -> None:
        metrics.progressed(progress)
        on_progress(progress)

    return Watching(WatchedSink(sink, (*watchers, metrics)), tell)
