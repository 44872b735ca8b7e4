"""Figures of many controllers' ticks, and of what grew meanwhile. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

MB = 1e6
Tick = tuple[float, float, bool]  # began, took (s), failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The controllers' process and ledgers at a moment. ``at``: monotonic seconds; ``cpu``: seconds
    of processor time since the process began."""

    at: float
    rss: int  # bytes
    cpu: float
    ledger: int  # bytes, of all ledgers with their write-ahead logs


def lags(ticks: Sequence[Tick], every: float, since: float) -> list[float]:
    """How much later than ``every`` seconds after the one before it each tick began (s)."""
    began = [at for at, _, _ in ticks if at >= since]
    return [max(0.0, later - before - every) for before, later in pairwise(began)]


def slope(samples: Sequence[Sample], name: str) -> float:
    """Of that field, in its unit a second: the straight line of least squares."""
    at = np.array([s.at for s in samples])
    values = np.array([getattr(s, name) for s in samples], dtype=float)
    return float(np.polyfit(at - at[0], values, 1)[0])


def figures(
    ticks: Mapping[str, Sequence[Tick]], samples: Sequence[Sample], every: float
) -> dict[str, float]:
    """Of what came after the first sample. Raises ValueError if a service stood still."""
    since, until = samples[0].at, samples[-1].at
    late = [lag for each in ticks.values() for lag in lags(each, every, since)]
    mine = [[t for t in each if t[0] >= since] for each in ticks.values()]
    if not all(mine):
        raise ValueError("a service's controller did not tick at all")
    took = [seconds for each in mine for _, seconds, _ in each]
    last = samples[len(samples) // 2 :]
    return {
        "services": float(len(ticks)),
        "seconds": until - since,
        "ticks": float(len(took)),
        "ticks_failed": float(sum(failed for each in mine for *_, failed in each)),
        "ticks_over_wanted": len(took) / (len(ticks) * (until - since) / every),
        "tick_p50_s": float(np.quantile(took, 0.5)),
        "tick_p99_s": float(np.quantile(took, 0.99)),
        "tick_lag_p50_s": float(np.quantile(late, 0.5)),
        "tick_lag_p99_s": float(np.quantile(late, 0.99)),
        "tick_lag_max_s": max(late),
        "cpu_share": (samples[-1].cpu - samples[0].cpu) / (until - since),
        "rss_start_mb": samples[0].rss / MB,
        "rss_end_mb": samples[-1].rss / MB,
        "rss_growth_mb": (samples[-1].rss - samples[0].rss) / MB,
        "rss_last_half_mb_per_hour": slope(last, "rss") * 3600 / MB,
        "ledger_start_mb": samples[0].ledger / MB,
        "ledger_end_mb": samples[-1].ledger / MB,
        "ledger_mb_per_hour": slope(last, "ledger") * 3600 / MB,
    }
