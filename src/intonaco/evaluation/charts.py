"""Intervals as SVG text: one row a metric, the margin always at the same place. Colours come from
the page's style sheet by class."""

from __future__ import annotations

import math
from html import escape

from intonaco.evaluation.assessment import FRECHET, LIMITS, LOWER_IS_BETTER, SUCCESS
from intonaco.evaluation.wording import amount
from intonaco.types import MetricResult

WIDTH, HEIGHT = 300, 34
LEFT, RIGHT = 8, 8
MARGIN_AT = 0.3  # of the width, from the left; zero at 0.5
_LOWER = LOWER_IS_BETTER | LIMITS
_EITHER_WAY = frozenset({"detail"})  # a change to either side is harm


def interval_plot(m: MetricResult) -> str:
    """Better is right, whatever the metric. What lies left of the margin is harm. A row without
    a margin is scaled to its interval; an end beyond the picture is an arrow."""
    ratio, lower = m.metric in LIMITS, _lower_is_better(m.metric)
    floor = m.difference is None and m.margin is not None  # held to a value, not to a champion
    centre = m.candidate if floor else m.difference
    if centre is None:
        return _nothing("not measured")
    values = [centre, *(m.interval or (centre, centre))]
    if not all(math.isfinite(v) for v in values):
        return _nothing("not measured")
    margin = m.margin
    if floor:
        values, margin = [v - (m.margin or 0.0) for v in values], None
    if ratio:  # one is no change
        values = [v - 1.0 for v in values]
        margin = None if margin is None else margin - 1.0
    if lower:
        values = [-v for v in values]
    centre, (low, high) = values[0], sorted(values[1:])
    unit = margin if margin else max(abs(low), abs(high), abs(centre)) / 2 or 1.0
    span = WIDTH - LEFT - RIGHT
    step = (0.5 - MARGIN_AT) * span / unit

    def x(value: float) -> float:
        return LEFT + span / 2 + value * step

    left, right = LEFT, WIDTH - RIGHT
    kind = escape(str(m.assessment))
    parts = [
        f'<svg class="interval" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(_title(m))}</title>",
    ]
    if margin:
        edge = x(-margin)
        parts.append(
            f'<rect class="harm" x="{left}" y="3" width="{edge - left:.1f}" height="18"/>'
            f'<line class="edge" x1="{edge:.1f}" x2="{edge:.1f}" y1="3" y2="21"/>'
            f'<text class="tick" x="{edge:.1f}" y="31" text-anchor="middle">margin</text>'
        )
    if margin and m.metric in _EITHER_WAY:
        edge = x(margin)
        parts.append(
            f'<rect class="harm" x="{edge:.1f}" y="3" width="{right - edge:.1f}" height="18"/>'
            f'<line class="edge" x1="{edge:.1f}" x2="{edge:.1f}" y1="3" y2="21"/>'
        )
    zero, origin = x(0.0), "limit" if floor and lower else "floor" if floor else "same"
    direction = "more →" if m.metric in _EITHER_WAY else "better →"
    parts.append(
        f'<line class="zero" x1="{zero:.1f}" x2="{zero:.1f}" y1="3" y2="21"/>'
        f'<text class="tick" x="{zero:.1f}" y="31" text-anchor="middle">{origin}</text>'
        f'<text class="tick" x="{right}" y="31" text-anchor="end">{direction}</text>'
    )
    a, b = (min(max(x(v), left), right) for v in (low, high))
    parts.append(
        f'<line class="span a-{kind}" x1="{a:.1f}" x2="{max(b, a + 0.5):.1f}" y1="12" y2="12"/>'
    )
    if x(low) < left:
        parts.append(f'<path class="arrow a-{kind}" d="M{left + 6},7L{left},12L{left + 6},17"/>')
    if x(high) > right:
        parts.append(f'<path class="arrow a-{kind}" d="M{right - 6},7L{right},12L{right - 6},17"/>')
    at = min(max(x(centre), left), right)
    parts.append(f'<circle class="dot a-{kind}" cx="{at:.1f}" cy="12" r="4"/></svg>')
    return "".join(parts)


def _lower_is_better(metric: str) -> bool:
    name = metric.removesuffix(SUCCESS)
    return name in _LOWER or name.startswith(FRECHET)


def _title(m: MetricResult) -> str:
    said = [amount(m.difference, m.metric, "+")]
    if m.interval is not None:
        said.append(" to ".join(amount(v, m.metric, "+") for v in m.interval))
    if m.margin is not None:
        said.append(f"margin {amount(m.margin, m.metric)}")
    return ", ".join(said)


def _nothing(text: str) -> str:
    return (
        f'<svg class="interval" viewBox="0 0 {WIDTH} {HEIGHT}" aria-hidden="true">'
        f'<text class="tick" x="{WIDTH / 2}" y="16" text-anchor="middle">{escape(text)}</text>'
        "</svg>"
    )
