"""The public table of scalar drift: how soon is a change noticed, how often is there a false alarm?

For each stream a reference of its own without a change, then 2,000 requests before the change. The
budget is one false alarm in 10,000 requests; after one the detector goes on from where it was
armed. Delay counts the requests from the first after the change to the one that fires, both
included; a stream that ends before is a miss and counts as its length. One configuration: each
kind of signal's built-in detector as it is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from intonaco.monitoring.detectors import DetectorSettings, resolve
from intonaco.protocols import Detector
from intonaco.testing.streams import scalar

BUDGET = 10_000  # requests to a false alarm
REFERENCE = 10_000
CHANGE_AT, AFTER = 2_000, 4_000
DETECTORS = {"clip": "e-mean", "thumb": "e-rate", "latency": "e-quantile"}
CHANGES = ("clip_01", "thumb_70", "latency_15", "latency_tail")
NULLS = ("clip_null", "thumb_null", "latency_null")

Make = Callable[[str, int], Detector]  # of a kind of stream and a length of reference


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Of one kind of stream, over its seeds."""

    delays: tuple[int, ...] = ()
    misses: int = 0
    false_alarms: int = 0
    null_events: int = 0
    us_per_event: float = math.nan

    @property
    def alarms_per_10k(self) -> float:
        return 1e4 * self.false_alarms / self.null_events

    @property
    def kept(self) -> bool:
        return keeps(self.false_alarms, self.null_events / BUDGET)


def keeps(alarms: int, allowed: float) -> bool:
    """Whether the one-sided 95 % Poisson lower bound of the rate is within what is allowed: seeing
    so many alarms or more has a chance of 5 % at least when ``allowed`` is the mean."""
    fewer = sum(
        math.exp(-allowed + k * math.log(allowed) - math.lgamma(k + 1)) for k in range(alarms)
    )
    return 1.0 - fewer >= 0.05


def built_in(kind: str, reference: int) -> Detector:
    _, factory = resolve(DETECTORS[kind.split("_")[0]])
    return factory(DetectorSettings(requests_between_false_alarms=BUDGET, reference=reference))


def measure(
    kind: str, *, seeds: int, reference: int = REFERENCE, events: int, make: Make = built_in
) -> Found:
    """``events``: the length of each stream."""
    delays: list[int] = []
    misses = alarms = quiet = seen = 0
    seconds = 0.0
    for seed in range(seeds):
        before, _ = scalar(f"{kind.split('_')[0]}_null", reference, seed=900_000 + seed)
        values, change_at = scalar(kind, events, seed=seed, change_at=CHANGE_AT)
        change = len(values) if change_at is None else change_at
        detector = make(kind, reference)
        detector.update_many(before.tolist())
        armed = detector.state()
        fired_at = None
        started = time.process_time()
        for number, value in enumerate(values.tolist(), 1):
            if not detector.update(value):
                continue
            if number > change:
                fired_at = number
                break
            alarms += 1
            detector.restore(armed)
        seconds += time.process_time() - started
        seen += fired_at or len(values)
        quiet += min(change, len(values))
        if change < len(values):
            misses += fired_at is None
            delays.append((fired_at or len(values)) - change)
    return Found(
        delays=tuple(delays),
        misses=misses,
        false_alarms=alarms,
        null_events=quiet,
        us_per_event=1e6 * seconds / seen,
    )


def table(
    *,
    seeds: int = 40,
    null_events: int = 400_000,
    reference: int = REFERENCE,
    make: Make = built_in,
) -> dict[str, Found]:
    """All kinds. ``null_events`` of each null, 10,000 a stream."""
    found = {
        kind: measure(kind, seeds=seeds, reference=reference, events=CHANGE_AT + AFTER, make=make)
        for kind in CHANGES
    }
    for kind in NULLS:
        streams = math.ceil(null_events / 10_000)
        found[kind] = measure(kind, seeds=streams, reference=reference, events=10_000, make=make)
    return found


def figures(found: Mapping[str, Found] | None = None) -> dict[str, float]:
    """``scalar.KIND.median_delay`` (requests) and ``scalar.NULL.alarms_per_10k``."""
    found = table() if found is None else found
    values = {f"scalar.{k}.median_delay": float(np.median(found[k].delays)) for k in CHANGES}
    values |= {f"scalar.{k}.alarms_per_10k": found[k].alarms_per_10k for k in NULLS}
    return values


def markdown(found: Mapping[str, Found]) -> str:
    lines = [
        "| stream | median delay | p90 | misses | false alarms | in events | per 10,000 | kept | "
        "µs/event |",
        "|---|---:|---:|---:|---:|---:|---:|---|---:|",
    ]
    for kind, f in found.items():
        delay = (
            f"{np.median(f.delays):.0f} | {np.quantile(f.delays, 0.9):.0f} | {f.misses}"
            if f.delays
            else "| |"
        )
        lines.append(
            f"| {kind} | {delay} | {f.false_alarms} | {f.null_events:,} | {f.alarms_per_10k:.2f} | "
            f"{'yes' if f.kept else 'no'} | {f.us_per_event:.1f} |"
        )
    return "\n".join(lines)
