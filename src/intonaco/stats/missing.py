"""What missing values may hide.

A pair without the challenger's score (it timed out, the scorer failed) says nothing by itself, and
those that are missing may be the worst. Three ways, from the surest:

- feed the worst value for a missing one to the test: then nothing needs to be assumed;
- widen an interval by what the missing share allows (``widened``);
- leave the metric undecided while the share may be above a limit (``may_exceed``).

The share's bound is ``boundaries.proportion_interval`` (Howard et al., arXiv 1810.08240,
Proposition 7), valid at every look for a chance of missing that is, given the past, constant.
"""

from __future__ import annotations

from intonaco.stats.boundaries import proportion_interval


def may_exceed(missing: int, total: int, limit: float, alpha: float) -> bool:
    """False once the share of missing values is proven to be below ``limit``; True without
    data."""
    return total == 0 or proportion_interval(missing, total, alpha)[1] > limit


def widened(
    interval: tuple[float, float],
    missing: int,
    total: int,
    alpha: float,
    *,
    low: float = -1.0,
    high: float = 1.0,
) -> tuple[float, float]:
    """Interval of the mean of all values, from that of the mean of those that are there: a share
    ``m`` that is missing may lie anywhere in [low, high]. Its error is that of ``interval`` and
    ``alpha`` together. ``total`` counts the missing too. Raises ValueError if more are missing than
    there are."""
    if not 0 <= missing <= total:
        raise ValueError(f"{missing} missing of {total}")
    share = proportion_interval(missing, total, alpha)[1]
    return (
        (1 - share) * interval[0] + share * low,
        (1 - share) * interval[1] + share * high,
    )
