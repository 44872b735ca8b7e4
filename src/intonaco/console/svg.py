"""Small pictures of numbers as SVG text. Colours come from the page's style sheet by class."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

Points = Sequence[tuple[float, float | None]]
Scale = Callable[[float], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a chart. ``kind`` is its CSS class. A None breaks the line."""

    name: str
    points: Points
    kind: str
    step: bool = False


def forest(
    difference: float | None,
    interval: Sequence[float | None] | None,
    margin: float | None,
    assessment: str,
) -> str:
    """A difference with its interval against zero and the margin on either side."""
    low, high = interval if interval else (None, None)
    ends = [abs(v) for v in (low, high) if v is not None and math.isfinite(v)]
    if difference is None and not ends:
        return '<svg class="forest" viewBox="0 0 160 18" aria-hidden="true"></svg>'
    # An interval much wider than the margin runs off the picture: the middle is what matters.
    widest = max(ends, default=0.0)
    limit = 4 * margin if margin else widest
    reach = 1.1 * max(abs(difference or 0.0), 1.5 * (margin or 0.0), min(widest, limit)) or 1.0

    def x(value: float) -> float:
        return 80 + 76 * max(-1.0, min(1.0, value / reach))

    parts = [
        '<svg class="forest" viewBox="0 0 160 18" aria-hidden="true">',
        '<line class="zero" x1="80" x2="80" y1="1" y2="17"/>',
    ]
    if margin:
        for edge in (-margin, margin):
            parts.append(
                f'<line class="margin" x1="{x(edge):.1f}" x2="{x(edge):.1f}" y1="1" y2="17"/>'
            )
    if low is not None and high is not None:
        parts.append(
            f'<line class="span a-{escape(assessment)}" x1="{x(low):.1f}" x2="{x(high):.1f}" '
            'y1="9" y2="9"/>'
        )
    if difference is not None:
        parts.append(
            f'<circle class="dot a-{escape(assessment)}" cx="{x(difference):.1f}" cy="9" r="3.5"/>'
        )
    return "".join([*parts, "</svg>"])


def weights_bar(arms: Sequence[tuple[str, str, float]]) -> str:
    """(label, role, share) side by side, shares of one."""
    parts = ['<svg class="weights" viewBox="0 0 1000 26" preserveAspectRatio="none">']
    left = 0.0
    for label, role, share in arms:
        width = 1000 * max(0.0, min(1.0, share))
        parts.append(
            f'<rect class="arm-{escape(role)}" x="{left:.1f}" y="0" width="{width:.1f}" '
            f'height="26"><title>{escape(label)} {100 * share:.1f} %</title></rect>'
        )
        left += width
    return "".join([*parts, "</svg>"])


def share_bars(
    before: float, before_interval: Sequence[float] | None, now: float, interval: Sequence[float]
) -> str:
    """Two shares of one, one under the other, each with its interval."""
    top = max(now, interval[1], before, *(before_interval or (0.0,)), 0.05)
    reach = next(edge for edge in (0.1, 0.25, 0.5, 1.0) if top <= edge or edge == 1.0)

    def x(share: float) -> float:
        return 300 * min(1.0, max(0.0, share / reach))

    parts = ['<svg class="shares" viewBox="-2 0 304 34" aria-hidden="true">']
    for row, (kind, share, ends) in enumerate(
        (("before", before, before_interval), ("now", now, interval))
    ):
        y = 2 + 17 * row
        parts.append(
            f'<rect class="track" x="0" y="{y}" width="300" height="12"/>'
            f'<rect class="{kind}" x="0" y="{y}" width="{max(1.5, x(share)):.1f}" height="12"/>'
        )
        if ends:
            low, high = x(ends[0]), x(ends[1])
            parts.append(
                f'<path class="whisker" d="M{low:.1f},{y + 3}v6M{high:.1f},{y + 3}v6'
                f'M{low:.1f},{y + 6}H{high:.1f}"/>'
            )
    return "".join([*parts, "</svg>"])


def evidence_line(
    at: Sequence[float],
    evidence: Sequence[float | None],
    threshold: float,
    since: float,
    found: float,
) -> str:
    """Evidence against its threshold over time, with the change and the finding marked."""
    points = [
        (t, e) for t, e in zip(at, evidence, strict=True) if e is not None and math.isfinite(e)
    ]
    if len(points) < 2:
        return '<p class="nothing">The course of the evidence is not kept any more.</p>'
    width, height, top, bottom = 640, 150, 16, 20
    x0, x1 = min(points[0][0], since), max(points[-1][0], found)
    y0 = min(0.0, min(e for _, e in points))
    y1 = 1.12 * max(threshold, max(e for _, e in points), 1e-9)

    def px(t: float) -> float:
        return width * (t - x0) / max(x1 - x0, 1e-9)

    def py(e: float) -> float:
        return top + (height - top - bottom) * (1 - (e - y0) / (y1 - y0))

    def mark(t: float, name: str, text: str) -> str:
        anchor = "end" if px(t) > 0.72 * width else "start"
        shift = -5 if anchor == "end" else 5
        y = height - 6 if name == "since" else 11
        return (
            f'<line class="{name}" x1="{px(t):.1f}" x2="{px(t):.1f}" y1="{top}" '
            f'y2="{height - bottom}"/><text class="tick" x="{px(t) + shift:.1f}" y="{y}" '
            f'text-anchor="{anchor}">{escape(text)}</text>'
        )

    path = "".join(f"{'L' if i else 'M'}{px(t):.1f},{py(e):.1f}" for i, (t, e) in enumerate(points))
    limit = f"{threshold:.3g}"
    return (
        f'<svg class="evidence" viewBox="0 0 {width} {height}" role="img">'
        f"<title>evidence against its threshold of {limit}</title>"
        f'<rect class="between" x="{px(since):.1f}" y="{top}" '
        f'width="{max(0.0, px(found) - px(since)):.1f}" height="{height - top - bottom}"/>'
        f'<line class="threshold" x1="0" x2="{width}" y1="{py(threshold):.1f}" '
        f'y2="{py(threshold):.1f}"/><text class="tick" x="4" y="{py(threshold) - 4:.1f}">'
        f"threshold {limit}</text>"
        f"{mark(since, 'since', 'began')}{mark(found, 'found', 'found')}"
        f'<path class="course" d="{path}"/></svg>'
    )


def line_chart(
    lines: Sequence[Line],
    *,
    x_label: str = "",
    y_label: str = "",
    width: int = 460,
    height: int = 190,
    marks: Sequence[tuple[float, str]] = (),
    zero: bool = False,
) -> str:
    """Lines over a common axis with ticks, a legend and vertical marks (x, text). Points that are
    not finite are left out."""
    kept = [(ln, _segments(ln.points)) for ln in lines]
    flat = [p for _, segments in kept for segment in segments for p in segment]
    if not flat:
        return '<p class="nothing">No measurements.</p>'
    left, right, top, bottom = 46, 10, 24, 30
    x0, x1 = _range([x for x, _ in flat], pad=0.0)
    y0, y1 = _range([y for _, y in flat] + ([0.0] if zero else []), pad=0.06)
    if zero and y0 < 0 <= min(y for _, y in flat):
        y0 = 0.0

    def px(x: float) -> float:
        return left + (width - left - right) * (x - x0) / (x1 - x0)

    def py(y: float) -> float:
        return top + (height - top - bottom) * (1 - (y - y0) / (y1 - y0))

    names = ", ".join(ln.name for ln in lines)
    parts = [
        f'<svg class="plot" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{escape(names)}</title>",
    ]
    for tick in ticks(y0, y1, 4):
        parts.append(
            f'<line class="grid" x1="{left}" x2="{width - right}" y1="{py(tick):.1f}" '
            f'y2="{py(tick):.1f}"/><text class="tick" x="{left - 6}" y="{py(tick) + 3.5:.1f}" '
            f'text-anchor="end">{label(tick)}</text>'
        )
    for tick in ticks(x0, x1, 6):
        parts.append(
            f'<text class="tick" x="{px(tick):.1f}" y="{height - 15}" text-anchor="middle">'
            f"{label(tick)}</text>"
        )
    for ln, segments in kept:
        for segment in segments:
            parts.append(
                f'<path class="line {escape(ln.kind)}" d="{_path(segment, px, py, ln.step)}"/>'
            )
    for row, (at, text) in enumerate(marks):
        if x0 <= at <= x1:
            anchor = "end" if px(at) > width / 2 else "start"
            shift = -4 if anchor == "end" else 4
            parts.append(
                f'<line class="mark" x1="{px(at):.1f}" x2="{px(at):.1f}" y1="{top}" '
                f'y2="{height - bottom}"/><text class="mark-text" x="{px(at) + shift:.1f}" '
                f'y="{top + 9 + 12 * row}" text-anchor="{anchor}">{escape(text)}</text>'
            )
    parts.append(_legend(lines, left))
    parts.append(
        f'<text class="tick" x="{width - right}" y="{height - 2}" text-anchor="end">'
        f'{escape(x_label)}</text><text class="tick" x="{width - right}" y="11" '
        f'text-anchor="end">{escape(y_label)}</text></svg>'
    )
    return "".join(parts)


def stacked_steps(
    times: Sequence[float],
    shares: Sequence[Sequence[tuple[str, float]]],
    end: float,
    *,
    x_label: str,
    width: int = 960,
    height: int = 200,
) -> str:
    """Shares of one over time, each held until the next time. ``shares``: per time the (class,
    share) pairs from the bottom up."""
    if not times:
        return '<p class="nothing">No routing tables.</p>'
    left, right, top, bottom = 46, 10, 8, 30
    x0, x1 = times[0], max(end, times[-1] + 1e-6, times[0] + 1e-6)

    def px(x: float) -> float:
        return left + (width - left - right) * (x - x0) / (x1 - x0)

    tall = height - top - bottom
    parts = [f'<svg class="plot" viewBox="0 0 {width} {height}" role="img"><title>traffic</title>']
    for index, at in enumerate(times):
        until = times[index + 1] if index + 1 < len(times) else x1
        base = 0.0
        for kind, share in shares[index]:
            parts.append(
                f'<rect class="{escape(kind)}" x="{px(at):.2f}" width="{px(until) - px(at):.2f}" '
                f'y="{top + tall * (1 - base - share):.2f}" height="{tall * share:.2f}"/>'
            )
            base += share
    for tick in (0.0, 0.5, 1.0):
        parts.append(
            f'<text class="tick" x="{left - 6}" y="{top + tall * (1 - tick) + 3.5:.1f}" '
            f'text-anchor="end">{100 * tick:.0f} %</text>'
        )
    for tick in ticks(x0, x1, 8):
        parts.append(
            f'<text class="tick" x="{px(tick):.1f}" y="{height - 15}" text-anchor="middle">'
            f"{label(tick)}</text>"
        )
    parts.append(
        f'<text class="tick" x="{width - right}" y="{height - 2}" text-anchor="end">'
        f"{escape(x_label)}</text></svg>"
    )
    return "".join(parts)


def _legend(lines: Sequence[Line], left: float) -> str:
    parts = []
    x = left
    for ln in lines:
        parts.append(
            f'<line class="line {escape(ln.kind)}" x1="{x:.0f}" x2="{x + 16:.0f}" y1="8" y2="8"/>'
            f'<text class="tick" x="{x + 21:.0f}" y="11.5">{escape(ln.name)}</text>'
        )
        x += 34 + 6.2 * len(ln.name)
    return "".join(parts)


def _segments(points: Points) -> list[list[tuple[float, float]]]:
    segments: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is None or not math.isfinite(y):
            segments.append([])
        else:
            segments[-1].append((x, y))
    return [s for s in segments if s]


def _path(segment: list[tuple[float, float]], px: Scale, py: Scale, step: bool) -> str:
    parts = [f"M{px(segment[0][0]):.1f},{py(segment[0][1]):.1f}"]
    for x, y in segment[1:]:
        if step:
            parts.append(f"H{px(x):.1f}")
        parts.append(f"V{py(y):.1f}" if step else f"L{px(x):.1f},{py(y):.1f}")
    if len(segment) == 1:
        parts.append("h0.1")
    return "".join(parts)


def _range(values: Sequence[float], *, pad: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high - low < 1e-12:
        return (low, low + 1.0) if low == 0 else (low - abs(low) * 0.1, high + abs(low) * 0.1)
    return low - pad * (high - low), high + pad * (high - low)


def ticks(low: float, high: float, count: int) -> list[float]:
    rough = (high - low) / max(1, count)
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * m for m in (1, 2, 5, 10) if size * m >= rough)
    first = math.ceil(low / step)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def label(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ") if abs(value) >= 1000 else f"{value:.4g}"


def vote_split(first: int, ties: int, second: int) -> str:
    """Votes for the one, ties and votes for the other, side by side."""
    total = first + ties + second
    parts = ['<svg viewBox="0 0 1000 26" preserveAspectRatio="none" aria-hidden="true">']
    left = 0.0
    for kind, count in (("first", first), ("tie", ties), ("second", second)):
        width = 1000 * count / total if total else 0.0
        parts.append(f'<rect class="{kind}" x="{left:.1f}" y="0" width="{width:.1f}" height="26"/>')
        left += width
    return "".join([*parts, "</svg>"])


def share_line(share: float, interval: Sequence[float], threshold: float | None) -> str:
    """A share of one with its interval, one half, and what it is held against."""

    def x(value: float) -> float:
        return 10 + 580 * value

    parts = [
        '<svg class="share" viewBox="0 0 600 44" aria-hidden="true">',
        f'<line class="axis" x1="{x(0)}" x2="{x(1)}" y1="16" y2="16"/>',
        f'<line class="axis half" x1="{x(0.5)}" x2="{x(0.5)}" y1="6" y2="26"/>',
    ]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        anchor = {0.0: "start", 1.0: "end"}.get(tick, "middle")
        parts.append(f'<text x="{x(tick)}" y="40" text-anchor="{anchor}">{100 * tick:.0f} %</text>')
    if threshold is not None:
        parts.append(
            f'<line class="wanted" x1="{x(threshold)}" x2="{x(threshold)}" y1="2" y2="30"/>'
        )
    parts.append(
        f'<line class="range" x1="{x(interval[0]):.1f}" x2="{x(interval[1]):.1f}" y1="16" '
        f'y2="16"/><circle class="dot" cx="{x(share):.1f}" cy="16" r="5"/></svg>'
    )
    return "".join(parts)
