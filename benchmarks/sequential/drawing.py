"""The figures of ``bench.py`` for people: tables in Markdown, one picture as SVG. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

Values = Mapping[str, float]

PEERS = {"argo": "Argo Rollouts", "flagger": "Flagger", "kayenta": "Kayenta"}
LIMITS = {"errors": 1.6, "p90_20": 5.0, "score": 2.0}
COLOURS = {
    "bound": "#999999",
    "ours": "#111111",
    "argo": "#1f77b4",
    "flagger": "#2ca02c",
    "kayenta": "#d62728",
}
WIDTH, LEFT, RIGHT, TOP, ROW = 860, 190, 40, 64, 34


def scenarios(values: Values) -> list[str]:
    """Names of the bad releases there are figures of, errors first, small shares first."""
    end = ".median_over_bound"
    found = [key.removesuffix(end) for key in values if key.endswith(end)]
    names = [name.removeprefix("sequential.") for name in found]
    return sorted(names, key=lambda n: (n.split("_")[0], n.rpartition("_w")[2].zfill(3), n))


def described(name: str) -> str:
    """A scenario in words."""
    what, _, weight = name.partition("_w")
    parts = what.split("_")
    if parts[0] == "errors":
        shown = f"errors {parts[1]} to {parts[2]} %"
    else:
        shown = f"times +{parts[1]} %" if parts[0] == "p90" else "score lower by 0.05, pairs"
    return f"{shown}, {weight} % of traffic" if weight else shown


def limit(name: str) -> float | None:
    """The most that a scenario may need over its bound; None where none is set."""
    return next((most for start, most in LIMITS.items() if name.startswith(start)), None)


def page(values: Values) -> str:
    """All figures as tables."""
    lines = [
        "Challenger requests (or pairs) until half of the bad releases are caught; — where fewer "
        "than half ever are within a lifetime of 5,040.",
        "",
        "| bad release | ours | over the bound | limit | Argo Rollouts | Flagger | Kayenta | ours "
        "over the best | its false alarms under drift | ours over the best tuned under drift |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in scenarios(values):
        at = f"sequential.{name}"
        most = limit(name)
        peers = [values.get(f"{at}.{peer}.requests") for peer in PEERS]
        cells = [
            f"{values[f'{at}.requests']:,.0f}",
            f"{values[f'{at}.median_over_bound']:.2f}",
            "" if most is None else f"{most:g}",
            *("—" if v is None else f"{v:,.0f}" for v in peers),
            f"{values[f'{at}.requests_over_best_peer']:.2f}",
            f"{100 * values[f'{at}.peer_false_alarms_drift']:.0f} %",
            f"{values[f'{at}.drift.requests_over_best_peer']:.2f}",
        ]
        lines.append(f"| {described(name)} | {' | '.join(cells)} |")
    lines += ["", "![requests until caught](sequential/requests.svg)", ""]
    lines += ["| claim that is not so | share of streams, worst scenario |", "|---|---:|"]
    for key, value in values.items():
        if key.endswith(".type1"):
            metric = key.removeprefix("sequential.").removesuffix(".type1")
            lines.append(f"| {metric} | {value:.4f} |")
    return "\n".join(lines)


def pictures(values: Values) -> dict[str, str]:
    """File name and SVG; none without figures."""
    return {"requests.svg": requests(values)} if scenarios(values) else {}


def requests(values: Values) -> str:
    """Requests until caught, a row a bad release, on a log scale."""
    names = scenarios(values)
    bottom = TOP + ROW * len(names)
    low, high = math.log(2.0), math.log(10_000.0)

    def x(count: float) -> float:
        share = (math.log(min(max(count, 2.0), 1e4)) - low) / (high - low)
        return LEFT + (WIDTH - LEFT - RIGHT) * share

    title = "Challenger requests until half of the bad releases are caught"
    marks = [_text(20, 24, title, size=15)]
    for number, (name, label) in enumerate({"bound": "bound", "ours": "ours", **PEERS}.items()):
        at = LEFT + 120 * number
        marks += [_dot(at, 44, name), _text(at + 10, 48, label)]
    for tick in (2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000):
        marks.append(
            f'<line x1="{x(tick):.1f}" y1="{TOP}" x2="{x(tick):.1f}" y2="{bottom}" '
            'stroke="#dddddd"/>'
        )
        marks.append(_text(x(tick), bottom + 18, f"{tick:,}", anchor="middle"))
    for row, scenario in enumerate(names):
        y = TOP + ROW * row + ROW / 2
        key = f"sequential.{scenario}"
        ours = values[f"{key}.requests"]
        marks.append(_text(LEFT - 12, y + 4, described(scenario), anchor="end", size=11))
        found = {"bound": ours / values[f"{key}.median_over_bound"], "ours": ours}
        found |= {
            peer: values[f"{key}.{peer}.requests"]
            for peer in PEERS
            if f"{key}.{peer}.requests" in values
        }
        ends = sorted(found.values())
        marks.append(
            f'<line x1="{x(ends[0]):.1f}" y1="{y:.1f}" x2="{x(ends[-1]):.1f}" y2="{y:.1f}" '
            'stroke="#bbbbbb"/>'
        )
        marks += [_dot(x(count), y, which) for which, count in found.items()]
    body = "\n".join(marks)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 34}" '
        f'font-family="sans-serif" fill="#222222">\n'
        f'<rect width="{WIDTH}" height="{bottom + 34}" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


def _dot(x: float, y: float, name: str) -> str:
    radius = 6 if name == "ours" else 5
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{COLOURS[name]}"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">'
        f"{escape(text)}</text>"
    )
