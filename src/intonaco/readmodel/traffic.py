"""What the traffic looks like: times, failures, refusals, use of the batches, cost."""

from __future__ import annotations

from collections.abc import Sequence

from intonaco.config import Config
from intonaco.ledger import Ledger
from intonaco.monitoring.windows import LEVELS, TIMES, Cell, Window, level_for, merged
from intonaco.readmodel.plain import Facts, plain
from intonaco.types import TrafficWindow

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
HOUR = 3600.0


def traffic(ledger: Ledger, config: Config, now: float, hours: float = 1.0) -> Facts:
    """The last ``hours``: {"from", "to", "level", "requests" that ended at the door, "failed",
    "refused" by code, "demand" in requests a second, "throughput" and "capacity" in images a
    second, "cells", "course"}.

    A cell is a release in an arm with one class of requests; with "class" null all its classes.
    "capacity": what the champion's workers could make at the batch sizes of that time, null where
    nobody told how long a batch took. Costs are null unless ``serving.hourly_price`` is given.
    """
    level = level_for(hours * HOUR)
    seconds = LEVELS[level][0]
    since = now - hours * HOUR
    rows = ledger.since(TrafficWindow, since - seconds, status=level)
    rows = [row for row in rows if row.start + seconds > since]
    windows = [Window.of_state(row.state) for row in rows]
    whole = merged(windows)
    start = max(since, float(rows[0].start)) if rows else since
    length = max(1.0, now - start)
    price = config.serving.hourly_price
    requests = max(whole.requests, whole.total().requests)
    facts: Facts = plain(
        {
            "from": start,
            "to": now,
            "level": level,
            "requests": requests,
            "failed": whole.failed,
            "refused": dict(whole.refused.most_common()),
            "demand": requests / length,
            "throughput": whole.total().images / length,
            "capacity": _capacity(ledger, whole),
            "currency": config.decision.budget.currency,
            "cells": cells(whole, price),
            "course": _course(rows, windows),
        }
    )
    return facts


def cells(window: Window, price: float | None) -> list[Facts]:
    """Facts of each release and arm, all its classes together and each by itself."""
    found: list[Facts] = []
    for release, arm in sorted({(r, a) for r, a, _ in window.cells}):
        classes = sorted(k for r, a, k in window.cells if (r, a) == (release, arm))
        whole = window.total(release=release, arm=arm)
        found.append(_cell(release, arm, None, whole, price))
        for kind in classes:
            found.append(_cell(release, arm, kind, window.cells[release, arm, kind], price))
    return found


def _cell(release: str, arm: str, kind: str | None, cell: Cell, price: float | None) -> Facts:
    device = cell.time("device")
    slots = cell.slots
    return {
        "release": release,
        "arm": arm,
        "class": kind,
        "requests": cell.requests,
        "images": cell.images,
        "statuses": dict(sorted(cell.statuses.items())),
        "outcomes": dict(sorted(cell.outcomes.items())),
        "errors": dict(cell.errors.most_common()),
        "times": {n: times(cell, n) for n in TIMES if n in cell.times},
        "batch_fill": sum(cell.batches.values()) / slots if slots else None,
        "gpu_seconds": cell.time("gpu").total,
        "cost_per_image": None
        if price is None or device.mean is None
        else device.mean * price / 3600.0,
        "peak_memory_bytes": cell.peak or None,
    }


def times(cell: Cell, name: str) -> Facts:
    sketch = cell.time(name)
    return {
        "count": sketch.count,
        "mean": sketch.mean,
        **{label: sketch.quantile(q) for label, q in QUANTILES.items()},
    }


def _capacity(ledger: Ledger, window: Window) -> float | None:
    table = ledger.latest_routing()
    if table is None:
        return None
    champion = window.total(release=table.champion().release)
    work = champion.time("work").mean
    return len(table.champion().urls) / work if work else None


def _course(rows: Sequence[TrafficWindow], windows: Sequence[Window]) -> list[Facts]:
    course = []
    for row, window in zip(rows, windows, strict=True):
        whole = window.total()
        course.append(
            {
                "at": row.start,
                "seconds": LEVELS[row.level][0],
                "requests": max(window.requests, whole.requests),
                "images": whole.images,
                "failed": window.failed,
                "refused": sum(window.refused.values()),
                **times(whole, "seconds"),
            }
        )
    return course
