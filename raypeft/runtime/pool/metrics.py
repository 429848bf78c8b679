"""Numbers as Ray's own metrics, which each node offers to Prometheus."""

from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge

from raypeft.runtime.metrics import METRICS, Metric, MetricKind


class RayMetrics:
    """A `raypeft.runtime.metrics.Registry` on a Ray that this process is connected to."""

    def __init__(self) -> None:
        self._made: dict[Metric, Any] = {metric: _make(metric) for metric in METRICS}

    def add(self, metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        """Let a counter grow."""
        self._made[metric].inc(value, tags=dict(labels))

    def put(self, metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        """Set a gauge."""
        self._made[metric].set(value, tags=dict(labels))


def _make(metric: Metric) -> Any:
    kind = Counter if metric.kind is MetricKind.COUNTER else Gauge
    return kind(metric.name, description=metric.help, tag_keys=("sweep", *metric.labels))
