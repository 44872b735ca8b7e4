"""The report of an evaluation: one HTML file that needs nothing else. No script, no request.

Prompts of the golden set are shown, hidden ones never: of those nothing reaches this module but
what was computed over all of them.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from intonaco.errors import ConfigError
from intonaco.evaluation.assessment import FRECHET
from intonaco.evaluation.charts import interval_plot
from intonaco.evaluation.gate import GateDecision
from intonaco.evaluation.order import CHAMPION
from intonaco.evaluation.wording import amount, change, metric_name, plain, size
from intonaco.types import Assessment, Json, MetricResult, Verdict
from intonaco.workspace import write_atomic

Images = NDArray[np.uint8]
Row = Mapping[str, Any]

PER_SLICE = 4  # prompts of a slice whose pictures are shown
MOST_SLICES = 24
REASONS = 5  # that are shown at once
EXTREMES = 6  # best and worst prompts
LARGEST = 256  # pixels of a side; larger pictures are scaled down
LOSSLESS_TO = 96  # pixels of a side


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One prompt as it is shown. ``pictures``: data URIs by arm, of one seed."""

    prompt: str
    slice: str
    kind: str
    seed: int
    pictures: Mapping[str, str]
    scores: Mapping[str, float]
    moved: float | None


def write_report(
    report: Mapping[str, Json],
    decisions: Mapping[str, GateDecision],
    rows: Sequence[Row],
    images: Mapping[str, Images],
    target: Path,
) -> None:
    """Write ``target``. ``report``: ``out/report.json``; ``rows``: ``parts.prompt_rows``;
    ``images``: uint8 [n, h, w, 3] by arm."""
    env = Environment(
        loader=PackageLoader("intonaco.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {"amount": amount, "plain": plain, "size": size, "metric_name": metric_name}
    champion = CHAMPION if report.get("champion") else None
    text = env.get_template("report.html").render(
        r=report,
        champion=champion,
        candidates=[
            _candidate(name, report, decisions.get(name), rows, images, champion)
            for name in map(str, report["candidates"])
        ],
        reproduce=json.dumps(report["reproduce"], indent=2, ensure_ascii=False, sort_keys=True),
        facts=_facts(report),
    )
    write_atomic(target, text)


def load(folder: Path) -> tuple[Mapping[str, Json], list[Row], dict[str, Images]]:
    """What a job wrote under ``out/``: report, rows, images. Raises ConfigError."""
    try:
        report = json.loads((folder / "report.json").read_text())
        lines = (folder / "prompts.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        images = {}
        for name in report["arms"]:
            with np.load(folder / "images" / f"{name}.npz", allow_pickle=False) as kept:
                images[str(name)] = kept["images"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder} holds no evaluation: {error!r}", hint="name a folder with report.json"
        ) from error
    return report, rows, images


# ------------------------------------------------------------------------------------ one candidate


def _candidate(
    name: str,
    report: Mapping[str, Json],
    decision: GateDecision | None,
    rows: Sequence[Row],
    images: Mapping[str, Images],
    champion: str | None,
) -> dict[str, Any]:
    metrics = decision.metrics if decision else ()
    reasons = list(decision.reasons) if decision else ["the report holds no decision on it"]
    arms = [arm for arm in (champion, name) if arm is not None and arm in images]
    drawn = name in images
    moved = {row["prompt_id"]: _moved(row, champion, name) for row in rows} if drawn else {}
    ordered = sorted((r for r in rows if r["prompt_id"] in moved), key=lambda r: _key(r, moved))
    half = min(EXTREMES, len(ordered) // 2)
    return {
        "name": name,
        "release": (report["arms"].get(name) or {}).get("release_id"),
        "verdict": str(decision.verdict) if decision else "error",
        "reasons": reasons,
        "decisive": _decisive(decision, reasons),
        "overall": [_metric_row(m) for m in metrics if m.slice is None],
        "slices": _slice_rows(metrics, report, name, champion),
        "grid": [
            (slice_, [_pair(r, arms, images, moved) for r in some])
            for slice_, some in _by_slice(rows if drawn else ())
        ],
        "worst": [_pair(r, arms, images, moved) for r in ordered[:half]],
        "best": [_pair(r, arms, images, moved) for r in reversed(ordered[len(ordered) - half :])],
        "benchmark": (report.get("benchmark") or {}).get(name),
        "splits": (report.get("splits") or {}).get(name) or {},
        "alpha": (report.get("alphas") or {}).get(name, report.get("alpha")),
    }


def _decisive(decision: GateDecision | None, reasons: Sequence[str]) -> int:
    """How many reasons are shown at once. They come worst first: what speaks against a candidate
    is shown whole as far as it can be told from what holds."""
    if decision is None or decision.verdict is Verdict.PASS:
        return min(REASONS, len(reasons))
    bad = sum(
        m.guardrail and m.assessment not in (Assessment.NON_INFERIOR, Assessment.SUPERIOR)
        for m in decision.metrics
    )
    return max(min(REASONS, len(reasons)), min(len(reasons), bad + 1))


def _metric_row(m: MetricResult) -> dict[str, Any]:
    return {
        "name": metric_name(m.metric),
        "metric": m.metric,
        "champion": m.champion,
        "candidate": m.candidate,
        "change": change(m),
        "plot": Markup(interval_plot(m)),
        "assessment": str(m.assessment),
        "guardrail": m.guardrail,
        "margin": None if m.margin is None else amount(m.margin, m.metric),
        "method": getattr(m, "method", "") or m.unit,
        "good": m.assessment in (Assessment.NON_INFERIOR, Assessment.SUPERIOR),
        "information": not m.guardrail,
        "lower": m.metric.startswith(FRECHET),
    }


def _slice_rows(
    metrics: Iterable[MetricResult],
    report: Mapping[str, Json],
    name: str,
    champion: str | None,
) -> list[dict[str, Any]]:
    hits = {
        arm: (report["arms"].get(arm) or {}).get("hit_rate", {}).get("by_slice", {})
        for arm in (champion, name)
        if arm
    }
    counted: dict[str, list[MetricResult]] = {}
    for m in metrics:
        if m.slice is not None:
            counted.setdefault(m.slice, []).append(m)
    return [
        {
            "slice": slice_,
            "improve": slice_ in report.get("improve", ()),
            "rows": [_metric_row(m) for m in of_slice],
            "hits": {arm: of_arm.get(slice_) for arm, of_arm in hits.items()},
        }
        for slice_, of_slice in counted.items()
    ]


# ------------------------------------------------------------------------------------ pictures


def _by_slice(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """The first prompts of each slice, the representative ones before the edge cases."""
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda r: str(r["kind"]) == "edge"):
        found.setdefault(str(row["slice"]), []).append(row)
    return [(name, some[:PER_SLICE]) for name, some in list(found.items())[:MOST_SLICES]]


def _moved(row: Row, champion: str | None, name: str) -> float:
    """Of a prompt: its gain over the champion, or its adherence where there is none."""
    of_arm = {arm: float(np.mean(values)) for arm, values in row["adherence"].items()}
    return of_arm[name] - (of_arm[champion] if champion else 0.0)


def _key(row: Row, moved: Mapping[str, float]) -> tuple[float, str]:
    value = moved[row["prompt_id"]]
    return (value if math.isfinite(value) else -math.inf, row["prompt_id"])


def _pair(
    row: Row, arms: Sequence[str], images: Mapping[str, Images], moved: Mapping[str, float]
) -> Pair:
    """The prompt's pictures of its first seed."""
    index = int(row["rows"][0])
    return Pair(
        prompt=str(row["prompt"]),
        slice=str(row["slice"]),
        kind=str(row["kind"]),
        seed=int(row["seeds"][0]),
        pictures={arm: data_uri(images[arm][index]) for arm in arms},
        scores={arm: float(np.mean(row["adherence"][arm])) for arm in arms},
        moved=moved.get(row["prompt_id"]),
    )


def data_uri(image: Images) -> str:
    """A picture for a page: webp, without loss if it is small, scaled down if it is large."""
    picture = Image.fromarray(image)
    if max(picture.size) > LARGEST:
        picture.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    lossless = max(picture.size) <= LOSSLESS_TO
    picture.save(out, format="WEBP", lossless=lossless, quality=82, method=4)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()


def _facts(report: Mapping[str, Json]) -> list[tuple[str, str]]:
    """What was done, in a line each."""
    shots, extractor = report["shots"], report["extractor"]
    made = report["reproduce"]
    hardware, packages = made.get("hardware", {}), made.get("packages", {})
    facts = [
        (
            "Prompts",
            f"{shots.get('prompts', '?')} × {made.get('seeds_per_prompt', '?')} seeds = "
            f"{shots['images_per_arm']} images an arm"
            + (
                f"; {report['hidden']['prompts']} prompts hidden in period "
                f"{report['hidden']['period']}"
                if report.get("hidden", {}).get("prompts")
                else ""
            ),
        ),
        ("Reference", f"{report['reference_images']} held-out images"),
        ("Extractor", f"{extractor['name']} ({str(extractor['digest'])[:12]})"),
        ("Kept", ", ".join(report["keep"]) or "–"),
    ]
    if report["improve"]:
        facts.append(("To improve", ", ".join(report["improve"])))
    facts.append(
        ("Machine", ", ".join(str(hardware[k]) for k in ("device", "processor") if k in hardware))
    )
    facts.append(("Versions", ", ".join(f"{k} {v}" for k, v in packages.items())))
    return [(name, value) for name, value in facts if value]
