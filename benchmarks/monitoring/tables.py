"""The figures of ``bench.py`` for people: tables in Markdown, two pictures as SVG. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from intonaco.testing.drift import NULLS
from intonaco.testing.scalars import CHANGES as SCALAR_CHANGES
from intonaco.testing.scalars import NULLS as SCALAR_NULLS
from intonaco.testing.streams import CHANGES

Values = Mapping[str, float]

VECTOR_LIMITS = {"new10": 290, "new20": 100, "new50": 20, "mix": 220, "rot": 3_050}
SCALAR_LIMITS = {"clip_01": 270, "thumb_70": 250, "latency_15": 60, "latency_tail": 260}
# alibi-detect's licence (BUSL) keeps it out. Measured before on the same generator: reference of
# 1,000, ert=1000, window 100. (alarms in 10,000 requests, iid and burst; delays; microseconds)
ALIBI = {
    "alibi-detect MMDDriftOnline": ((1e4 / 1090, 1e4 / 17), (107, 37, 20, 103, 1059), 669.0),
    "alibi-detect LSDDDriftOnline": ((1e4 / 1143, 1e4 / 26), (157, 72, 30, 123, 1060), 101.0),
}
NAMES = {"intonaco": "**ours**"}
FEWEST = 0.02  # alarms in 10,000 at the left edge of the picture: none were seen
COLOURS = (
    "#111111",
    "#1f77b4",
    "#17becf",
    "#2ca02c",
    "#bcbd22",
    "#d62728",
    "#e377c2",
    "#9467bd",
    "#8c564b",
    "#ff7f0e",
    "#7f7f7f",
)


def page(values: Values) -> str:
    """All figures: tables where there are some of a kind, a list of the others."""
    shown = [text for text in (_ours(values), _beside(values), _scalar_peers(values)) if text]
    rest = [f"| {name} | {value:.4g} |" for name, value in values.items() if not _in_a_table(name)]
    return "\n\n".join([*shown, "\n".join(["| figure | value |", "|---|---:|", *rest])])


def pictures(values: Values) -> dict[str, str]:
    """File names and SVG, of vector detectors side by side; none without them."""
    names = _peers(values, "drift")
    return (
        {"delay.svg": delays(values, names), "alarms.svg": alarms(values, names)} if names else {}
    )


# ------------------------------------------------------------------------------------------- tables


def _ours(values: Values) -> str:
    rows = []
    for area, limits in (("drift", VECTOR_LIMITS), ("scalar", SCALAR_LIMITS)):
        for kind, limit in limits.items():
            delay = values.get(f"{area}.{kind}.median_delay")
            if delay is not None:
                rows.append(f"| {kind} | {delay:.0f} | {limit:,} |")
    nulls = [
        f"| {kind} | {values[at]:.3f} | 1 |"
        for area, kinds in (("drift", NULLS), ("scalar", SCALAR_NULLS))
        for kind in kinds
        if (at := f"{area}.{kind}.alarms_per_10k") in values
    ]
    head = "| ours | median delay, requests | limit |\n|---|---:|---:|\n"
    quiet = "| ours | false alarms in 10,000 | budget |\n|---|---:|---:|\n"
    return "\n\n".join(
        start + "\n".join(body) for start, body in ((head, rows), (quiet, nulls)) if body
    )


def _beside(values: Values) -> str:
    names = _peers(values, "drift")
    if not names:
        return ""
    nulls = [kind.removeprefix("null_") for kind in NULLS]
    lines = [
        "Embedding drift, side by side. False alarms in 10,000 requests of each kind of traffic "
        "without a change (budget 1, which only ours can be told), then the median delay of "
        "changes; — where more than half were missed. Streams of each in brackets; µs of "
        "processor time a request, without that of novelty for those that see it. Evidently's "
        "changes fall on the border of a window. alibi-detect: measured before on the same "
        "generator, not rerun, since its licence (BUSL) keeps it out.",
        "",
        f"| detector | {' | '.join([*nulls, *CHANGES])} | µs |",
        "|---|" + "---:|" * (len(nulls) + len(CHANGES) + 1),
    ]
    for name in names:
        at = f"drift.peers.{name}"
        cells = [_alarms(values.get(f"{at}.null_{kind}.alarms_per_10k")) for kind in nulls]
        cells += [_delay(values.get(f"{at}.{kind}.median_delay")) for kind in CHANGES]
        streams = values.get(f"{at}.streams", 0)
        cells.append(f"{values.get(f'{at}.us_per_event', math.nan):.1f}")
        lines.append(f"| {_label(name)} ({streams:.0f}) | {' | '.join(cells)} |")
    for name, (quiet, delay, us) in ALIBI.items():
        cells = [_alarms(rate) for rate in quiet] + [""] * (len(nulls) - len(quiet))
        cells += [_delay(d) for d in delay]
        lines.append(f"| {name}, not rerun | {' | '.join(cells)} | {us:.0f} |")
    lines += ["", "![delay by share](monitoring/delay.svg)"]
    return "\n".join([*lines, "", "![false alarms](monitoring/alarms.svg)"])


def _scalar_peers(values: Values) -> str:
    names = _peers(values, "scalar")
    if not names:
        return ""
    lines = [
        "Scalars, side by side, each with 2,000 values of reference (KSWIN, whose window is 100, "
        "with 200): false alarms in 10,000, then the median delay (a miss counts as 4,000).",
        "",
        f"| detector | {' | '.join([*SCALAR_NULLS, *SCALAR_CHANGES])} |",
        "|---|" + "---:|" * (len(SCALAR_NULLS) + len(SCALAR_CHANGES)),
    ]
    for name in names:
        at = f"scalar.peers.{name}"
        cells = [_alarms(values.get(f"{at}.{kind}.alarms_per_10k")) for kind in SCALAR_NULLS]
        cells += [_delay(values.get(f"{at}.{kind}.median_delay")) for kind in SCALAR_CHANGES]
        lines.append(f"| {_label(name)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _in_a_table(name: str) -> bool:
    return ".peers." in name


def _peers(values: Values, area: str) -> list[str]:
    """Ours first, the others by name."""
    start = f"{area}.peers."
    found = {name.removeprefix(start).split(".")[0] for name in values if name.startswith(start)}
    return sorted(found, key=lambda name: (name != "intonaco", name))


def _label(name: str) -> str:
    return NAMES.get(name, name.replace("_", " "))


def _alarms(rate: float | None) -> str:
    return "" if rate is None else f"{rate:.2g}" if rate < 10 else f"{rate:,.0f}"


def _delay(requests: float | None) -> str:
    return "—" if requests is None else f"{requests:,.0f}"


# ----------------------------------------------------------------------------------------- pictures

WIDTH, LEFT, RIGHT, TOP = 860, 70, 250, 44


def delays(values: Values, names: Sequence[str]) -> str:
    """Median delay over the share of a new topic, both on log scales; a point is left out where
    most changes were missed."""
    height, bottom = 420, 46
    shares = (10, 20, 50)

    def x(share: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(share / 9) / math.log(55 / 9)

    def y(delay: float) -> float:
        low, high = math.log10(5), math.log10(2_000)
        return TOP + (height - TOP - bottom) * (high - math.log10(max(delay, 5.0))) / (high - low)

    marks = [_text(LEFT, 24, "Median delay in requests, by the share of a new topic", size=15)]
    for tick in (5, 10, 20, 50, 100, 200, 500, 1_000, 2_000):
        marks += [_rule(LEFT, y(tick), WIDTH - RIGHT, y(tick))]
        marks += [_text(LEFT - 8, y(tick) + 4, f"{tick:,}", anchor="end")]
    marks += [_text(x(s), height - 20, f"{s} %", anchor="middle") for s in shares]
    for row, name in enumerate(names):
        colour, width = COLOURS[row % len(COLOURS)], 3.5 if name == "intonaco" else 1.6
        seen = [
            (x(s), y(delay))
            for s in shares
            if (delay := values.get(f"drift.peers.{name}.new{s}.median_delay")) is not None
        ]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in seen)
        marks.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>'
        )
        marks += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" fill="{colour}"/>' for a, b in seen]
        marks += _key(row, name, colour)
    return _svg(height, marks)


def alarms(values: Values, names: Sequence[str]) -> str:
    """False alarms in 10,000 requests, a row a detector and a dot a kind of traffic, log scale."""
    height, left = TOP + 30 * len(names) + 60, 230
    top = 1_000.0

    def x(rate: float) -> float:
        share = math.log(min(max(rate, FEWEST), top) / FEWEST) / math.log(top / FEWEST)
        return left + (WIDTH - left - 150) * share

    end = height - 46
    marks = [_text(20, 24, "False alarms in 10,000 requests without a change", size=15)]
    for tick, label in (
        (FEWEST, "none"),
        (0.1, "0.1"),
        (1, "budget 1"),
        (10, "10"),
        (100, "100"),
        (1e3, "1,000"),
    ):
        colour = "#c00000" if tick == 1 else "#dddddd"
        marks += [_rule(x(tick), TOP, x(tick), end, colour=colour)]
        marks += [_text(x(tick), height - 26, label, anchor="middle")]
    for row, name in enumerate(names):
        y = TOP + 18 + 30 * row
        marks.append(_text(left - 14, y + 4, _plain(name), anchor="end"))
        for number, kind in enumerate(NULLS):
            rate = values.get(f"drift.peers.{name}.{kind}.alarms_per_10k")
            if rate is not None:
                marks.append(
                    f'<circle cx="{x(rate):.1f}" cy="{y - 6 + 2 * number:.1f}" r="4" '
                    f'fill="{COLOURS[number + 1]}" fill-opacity="0.8"/>'
                )
    for number, kind in enumerate(NULLS):
        y = TOP + 18 + 22 * number
        marks += [f'<circle cx="{WIDTH - 125}" cy="{y}" r="4" fill="{COLOURS[number + 1]}"/>']
        marks += [_text(WIDTH - 114, y + 4, kind.removeprefix("null_"))]
    return _svg(height, marks)


def _key(row: int, name: str, colour: str) -> list[str]:
    y, x = TOP + 10 + 24 * row, WIDTH - RIGHT + 24
    return [
        f'<line x1="{x}" x2="{x + 22}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="3"/>',
        _text(x + 30, y + 4, _plain(name)),
    ]


def _plain(name: str) -> str:
    return _label(name).replace("*", "")


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">'
        f"{escape(text)}</text>"
    )


def _rule(x1: float, y1: float, x2: float, y2: float, *, colour: str = "#dddddd") -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        'stroke-width="1"/>'
    )


def _svg(height: int, marks: Iterable[str]) -> str:
    body = "\n".join(marks)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="sans-serif" fill="#222222">\n'
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>\n{body}\n</svg>\n'
    )
