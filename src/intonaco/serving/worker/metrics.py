"""A worker's ``/metrics``. No user, no prompt in a label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from intonaco.serving.worker.batcher import MicroBatcher
from intonaco.serving.worker.gpu import Gpu

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class WorkerMetrics(Collector):
    """Reads what others count when it is asked. ``releases`` and ``gpu`` are asked for each time:
    they are known only once a release is loaded."""

    def __init__(
        self,
        batcher: MicroBatcher[Any],
        *,
        releases: Callable[[], Sequence[str]],
        gpu: Callable[[], Gpu | None],
    ) -> None:
        self._batcher = batcher
        self._releases = releases
        self._gpu = gpu
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        self.refused: Counter[str] = Counter()  # by code
        self.hung_up = 0

    def text(self) -> bytes:
        """Prometheus' text format, version 0.0.4."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        batcher, counts = self._batcher, self._batcher.counts
        if releases := {release[:10]: 1 for release in self._releases()}:
            yield _by("release", "Release loaded.", "release", releases, gauge=True)
        yield _gauge("queue_length", "Requests that wait.", batcher.waiting)
        yield _gauge("running", "Requests in the batch that runs.", batcher.running)
        yield _gauge("draining", "1: no new work is taken.", batcher.draining)
        yield _by("batches", "Batches run.", "padded_size", counts.batches)
        yield _count("images", "Images made.", counts.images)
        yield _by("refused", "Requests not taken, or dropped.", "reason", self.refused)
        yield _count("failed", "Requests on which the pipeline failed.", counts.failed)
        yield _count("hung_up", "Requests whose client hung up.", self.hung_up)
        yield _count("batches_aborted", "Batches that all clients left.", counts.aborted)
        yield _by("out_of_memory", "Batches too large.", "padded_size", counts.out_of_memory)
        yield _count("busy_seconds", "Time spent in batches.", batcher.busy_seconds)
        gpu = self._gpu()
        if gpu is None:
            return
        use = gpu.read()
        if use.utilization is not None:
            yield _gauge("gpu_utilization", "Share of time with a kernel.", use.utilization)
        if use.memory_used_bytes is not None:
            yield _gauge("gpu_memory_used_bytes", "Of the whole device.", use.memory_used_bytes)
        if use.memory_total_bytes is not None:
            yield _gauge("gpu_memory_total_bytes", "Of the device.", use.memory_total_bytes)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"intonaco_worker_{name}", text, value=float(value))


def _count(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"intonaco_worker_{name}", text, value=value)


def _by(
    name: str,
    text: str,
    label: str,
    values: Mapping[str, int] | Mapping[int, int],
    *,
    gauge: bool = False,
) -> Metric:
    kind = GaugeMetricFamily if gauge else CounterMetricFamily
    family = kind(f"intonaco_worker_{name}", text, labels=[label])
    for value, count in sorted(values.items()):
        family.add_metric([str(value)], count)
    return family
