"""Pictures of a rollout: how far each metric's proof is, and who got what when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from intonaco.console.svg import label, ticks

_UNITS = ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


def proof_line(a: Mapping[str, Any]) -> str:
    """One metric's interval on a line from better to worse, with no difference and the margins;
    a score, which is better the higher it is, is turned round."""
    margin: float = a["margin"] or 0.0
    ends = [end for end in a["interval"] or () if end is not None]
    if len(ends) < 2 or margin <= 0:
        return ""
    turned = -1.0 if a["metric"] == "clip_score" else 1.0
    low, high = sorted(turned * end for end in ends)
    at = turned * a["difference"] if a["difference"] is not None else None
    reach: float = max(2.0 * margin, min(max(abs(low), abs(high)) * 1.08, 6.0 * margin))

    def x(value: float) -> float:
        return 300 + 290 * max(-1.0, min(1.0, value / reach))

    kind = escape(str(a["assessment"]))
    parts = [
        '<svg class="proof-line" viewBox="0 0 600 52" role="img">',
        f"<title>{escape(str(a['metric']))} against its margin</title>",
        f'<rect class="worse" x="{x(margin):.1f}" y="6" width="{600 - x(margin):.1f}" '
        'height="24"/>',
        '<line class="zero" x1="300" x2="300" y1="2" y2="34"/>',
        *(
            f'<line class="margin" x1="{x(m):.1f}" x2="{x(m):.1f}" y1="2" y2="34"/>'
            for m in (-margin, margin)
        ),
        f'<line class="span a-{kind}" x1="{x(low):.1f}" x2="{x(high):.1f}" y1="18" y2="18"/>',
    ]
    if at is not None:
        parts.append(f'<circle class="dot a-{kind}" cx="{x(at):.1f}" cy="18" r="6"/>')
    for where, anchor, text in (
        (4.0, "start", "better"),
        *(((300.0, "middle", "same"),) if x(margin) - 300 > 110 else ()),
        (x(margin), "middle", "margin"),
        (596.0, "end", "worse"),
    ):
        parts.append(f'<text x="{where:.1f}" y="48" text-anchor="{anchor}">{text}</text>')
    return "".join([*parts, "</svg>"])


def weights_course(points: Sequence[Mapping[str, Any]], end: float) -> str:
    """Shares of users over time, each held until the next point; above them, thin, what is copied.
    ``points``: as of the read model."""
    if not points:
        return '<p class="nothing">No routing table of it yet.</p>'
    width, height, left, right, top, bottom = 960, 210, 46, 26, 18, 30
    x0: float = points[0]["at"]
    x1: float = max(end, points[-1]["at"] + 1.0, x0 + 1.0)
    tall = height - top - bottom

    def px(at: float) -> float:
        return left + (width - left - right) * (at - x0) / (x1 - x0)

    parts = [
        f'<svg class="course" viewBox="0 0 {width} {height}" role="img">',
        "<title>shares of users over time</title>",
    ]
    for index, point in enumerate(points):
        begin = px(point["at"])
        until = px(points[index + 1]["at"] if index + 1 < len(points) else x1)
        base = 0.0
        for role in ("challenger", "champion", "baseline"):
            share = point["shares"].get(role, 0.0)
            y = top + tall * (1 - base - share)
            parts.append(
                f'<rect class="arm-{role}" x="{begin:.1f}" y="{y:.1f}" '
                f'width="{until - begin:.1f}" height="{tall * share:.1f}">'
                f"<title>{role} {100 * share:.3g} %</title></rect>"
            )
            base += share
        if point["shadow"]:
            parts.append(
                f'<rect class="arm-shadow" x="{begin:.1f}" y="{top - 9}" '
                f'width="{until - begin:.1f}" height="6">'
                f"<title>{100 * point['shadow']:.3g} % copied</title></rect>"
            )
        share = point["shares"].get("challenger", 0.0)
        if share > 0 and until - begin > 46:
            y = top + tall * (1 - share) + (-5 if share < 0.85 else 13)
            parts.append(
                f'<text class="on" x="{begin + 5:.1f}" y="{y:.1f}">{100 * share:.3g} %</text>'
            )
    for tick in (0.0, 0.5, 1.0):
        parts.append(
            f'<text class="y" x="{left - 6}" y="{top + tall * (1 - tick) + 4:.1f}" '
            f'text-anchor="end">{100 * tick:.0f} %</text>'
        )
    size, unit = next((s, u) for s, u in _UNITS if x1 - x0 >= 2 * s or s == 1.0)
    for tick in ticks(0.0, (x1 - x0) / size, 6):
        parts.append(
            f'<text x="{px(x0 + tick * size):.1f}" y="{height - 8}" text-anchor="middle">'
            f"{label(tick)} {unit}</text>"
        )
    return "".join([*parts, "</svg>"])
