"""Numbers that are asked for by the clock: use of the device, queries, callables."""

from __future__ import annotations

from collections.abc import Iterable

from intonaco.monitoring.sources.base import Reading, Source
from intonaco.types import Finding, Sample

MISSED = 6  # answers in a row that fail to come before the silence is a finding


class Sampled(Source):
    """One reading for each answer. A signal like this is expected to have data, so its silence is a
    finding unless the configuration says after how long."""

    per_request = False

    @property
    def silent_after(self) -> float | None:
        return self.signal.silent_after_s or max(60.0, MISSED * self.signal.every_s)

    @property
    def bounds(self) -> tuple[float, float]:
        return self.signal.range or (0.0, 1.0)

    @property
    def tolerance(self) -> float:
        low, high = self.bounds
        return self.signal.tolerance / (high - low)

    def of_sample(self, sample: Sample) -> Iterable[Reading]:
        if sample.value is None:
            return ()
        low, high = self.bounds
        value = (min(max(sample.value, low), high) - low) / (high - low)
        return (Reading(value=value, at=sample.at),)

    def raw(self, value: float) -> float:
        low, high = self.bounds
        return low + value * (high - low)


class GpuUtilisation(Sampled):
    """Share of the last moments in which a kernel ran on the champion's devices, their mean, as
    NVML says it to the workers. Without a GPU there is no data, and that is said."""

    def text(self, finding: Finding) -> str:
        return (
            f"The GPU is now in use {finding.value_now:.0%} of the time (before: "
            f"{finding.value_before:.0%})"
        )


class GpuMemory(Sampled):
    """Share of the device's memory that is in use, of the champion's fullest device."""

    def text(self, finding: Finding) -> str:
        return (
            f"{finding.value_now:.0%} of the GPU's memory is now in use (before: "
            f"{finding.value_before:.0%})"
        )


class External(Sampled):
    """A PromQL query's one number, or what a Python callable returns, cut off at ``range``."""

    unit = ""
