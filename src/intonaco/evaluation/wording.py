"""Figures of an evaluation in words. Pure."""

from __future__ import annotations

import math

from intonaco.evaluation.assessment import FRECHET, SCORE, SUCCESS
from intonaco.types import MetricResult

NONE = "–"
_NAMES = {
    "adherence": "adherence to prompts",
    "distance": "distance to the reference",
    "recall": "recall of the reference",
    "coverage": "coverage of the reference",
    "hits": "images of the right slice",
    "detail": "fine detail",
    "copies": "copies of training images",
    "unsafe": "safety failures",
    "latency": "time per image",
    "latency_p95": "time per image, 95th percentile",
    "throughput": "images per second",
    "memory": "memory of the weights",
    "peak_memory": "memory at most",
    "cost": "cost per image",
    "diversity": "diversity of a prompt's images",
}
LOG_RATIOS = frozenset({"latency", "latency_p95", "throughput", "diversity"})
RATIOS = frozenset({"memory", "peak_memory", "cost"})
SHARES = frozenset({"recall", "coverage", "hits", "copies", "unsafe"})


def metric_name(metric: str) -> str:
    if metric.endswith(SUCCESS):
        return f"{metric_name(metric.removesuffix(SUCCESS))} where it is to improve"
    if metric.startswith(FRECHET):
        return f"Fréchet distance ({metric})"
    if metric.startswith(SCORE):
        return f"score {metric.removeprefix(SCORE)}"
    return _NAMES.get(metric, metric.replace("_", " "))


def amount(value: float | None, metric: str = "", sign: str = "") -> str:
    """A difference or a margin: log ratios in per cent, shares in points."""
    if value is None or not math.isfinite(value):
        return NONE
    return _figure(value, metric, sign) + _unit(metric)


def _figure(value: float, metric: str, sign: str) -> str:
    metric = metric.removesuffix(SUCCESS)
    if not math.isfinite(value):
        return NONE
    if metric in LOG_RATIOS:
        return _minus(f"{math.expm1(value) * 100:{sign}.1f}")
    if metric in SHARES:
        return _minus(f"{value * 100:{sign}.1f}")
    return _minus(f"{value:.2f}" if metric in RATIOS else f"{value:{sign}.4f}")


def _unit(metric: str) -> str:
    metric = metric.removesuffix(SUCCESS)
    if metric in LOG_RATIOS:
        return " %"
    return " points" if metric in SHARES else " ×" if metric in RATIOS else ""


def _minus(text: str) -> str:
    return text.replace("-", "−")


def change(m: MetricResult) -> str:
    """Candidate minus champion with its interval."""
    sign = "" if m.metric in RATIOS else "+"
    if m.difference is None:
        value = amount(m.candidate, m.metric)
    else:
        value = amount(m.difference, m.metric, sign)
    if m.interval is None:
        return value
    low, high = (_figure(end, m.metric, sign) for end in m.interval)
    return f"{value.removesuffix(_unit(m.metric))} ({low} … {high}){_unit(m.metric)}"


def plain(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits."""
    if value is None or not math.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(places, 7)}f}" if abs(value) < 1e6 else f"{value:.3g}"


def size(value: float | None) -> str:
    """Bytes."""
    if value is None:
        return NONE
    for unit, of in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= of:
            return f"{value / of:.1f} {unit}"
    return f"{value:.0f} B"
