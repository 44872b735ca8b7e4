"""A check's report as one HTML file that needs no other: counts, names, pairs that look alike."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

from PIL import Image

from intonaco.datasets.looking import FORMATS
from intonaco.datasets.validation import Problem, Report
from intonaco.types import Json

PAIRS = 24
SIDE = 128  # pixels of a thumbnail
OF_TWO = ("near_duplicate", "near_leak", "leak")  # a duplicate's picture says nothing more
STYLE = """
:root { color-scheme: light dark; --ink: #2d2721; --quiet: #7b7063; --line: #e0d7c6;
  --ground: #fdfbf6; --fail: #b03a2e; --wait: #a97a1f; --pass: #3f7a45; }
@media (prefers-color-scheme: dark) { :root { --ink: #ece4d6; --quiet: #a2968a; --line: #3b352e;
  --ground: #25211d; --fail: #ea7c6d; --wait: #dcab55; --pass: #7dbd83; } }
body { font: 14px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--ground);
  max-width: 1000px; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; padding: .3rem .6rem .3rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; } th { color: var(--quiet); font-weight: 500; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
.fail { color: var(--fail); } .drop, .warn { color: var(--wait); } .pass { color: var(--pass); }
.quiet { color: var(--quiet); } .names { overflow-wrap: anywhere; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(290px, 1fr)); gap: 1rem; }
figure { margin: 0; } figure img { width: 128px; height: 128px; object-fit: contain;
  image-rendering: pixelated; background: var(--line); border-radius: 4px; }
figcaption { font-size: .85rem; overflow-wrap: anywhere; }
"""


def page(report: Report, told: Mapping[str, Json]) -> str:
    """The page. All names are escaped; pictures are small copies inside it."""
    rows = "".join(
        f'<tr><td>{escape(kind)}</td><td class="{of["policy"]}">{of["policy"]}</td>'
        f'<td class="n">{of["count"]}</td><td class="names quiet">{_names(of)}</td></tr>'
        for kind, of in told["kinds"].items()
    )
    table = (
        "<table><thead><tr><th>found</th><th>then</th><th>how many</th><th>of</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>"
        if rows
        else '<p class="quiet">Nothing was found.</p>'
    )
    pairs = [p for p in (*report.problems, *report.warnings) if p.kind in OF_TWO]
    alike = "".join(_pair(report, pair) for pair in pairs[:PAIRS])
    more = len(pairs) - PAIRS
    rest = f'<p class="quiet">and {more} more in problems.jsonl</p>' if more > 0 else ""
    section = f'<h2>What looks alike</h2><div class="pairs">{alike}</div>{rest}' if alike else ""
    verdict = told["verdict"]
    held = told["held_out"]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Data check: {verdict}</title><style>{STYLE}</style></head><body>"
        f'<h1>Data check: <span class="{verdict}">{verdict}</span></h1>'
        f"<p>{told['kept']} of {told['items']} items stay, {told['left_out_count']} files are left "
        f"out. Compared with {held['images']} held-out images and {held['prompts']} prompts.</p>"
        f"{table}{section}</body></html>"
    )


def _names(of: Mapping[str, Json]) -> str:
    names = ", ".join(escape(str(n)) for n in of["names"])
    more = of["count"] - len(of["names"])
    return names + (f" and {more} more" if more > 0 else "")


def _pair(report: Report, pair: Problem) -> str:
    others = report.folder
    if pair.kind != "near_duplicate" and report.held_out is not None:
        others = report.held_out
    pictures = "".join(_thumbnail(f) for f in (report.folder / pair.file, others / pair.other))
    return (
        f'<figure>{pictures}<figcaption><b>{escape(pair.file)}</b> <span class="{pair.policy}">'
        f"{escape(pair.kind.replace('_', ' '))}</span><br>"
        f'<span class="quiet">{escape(pair.other)}</span></figcaption></figure>'
    )


def _thumbnail(file: Path) -> str:
    return "".join(f'<img alt="" src="data:image/png;base64,{one}"> ' for one in _small(file))


def _small(file: Path) -> Iterator[str]:
    try:
        with Image.open(file, formats=FORMATS) as image:
            small = image.convert("RGB")
        small.thumbnail((SIDE, SIDE))
    except (OSError, ValueError):  # it was read a moment ago; a page without it is a page
        return
    out = io.BytesIO()
    small.save(out, "PNG")
    yield base64.b64encode(out.getvalue()).decode()
