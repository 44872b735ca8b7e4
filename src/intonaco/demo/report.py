"""The demo's report: one HTML file that needs nothing else. No script, no request."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from intonaco import readmodel
from intonaco.console import svg
from intonaco.console.templating import HERE as CONSOLE
from intonaco.console.templating import environment
from intonaco.demo.data import NAMES
from intonaco.types import ArmRole, RoutingTable, SignalStatus
from intonaco.workspace import write_atomic

PER_ROW = 10  # pictures of a digit
POINTS = 600  # of a chart
DIGITS = tuple(str(i) for i in range(10))
TIERS = (ArmRole.CHAMPION, ArmRole.RETURNED, ArmRole.BASELINE, ArmRole.HOLDBACK, ArmRole.CHALLENGER)


def write_report(
    summary: Mapping[str, Any],
    snapshot: Mapping[str, Any],
    history: Mapping[str, Any],
    target: Path,
) -> None:
    """Write ``target``.

    ``summary``: the story's facts. ``snapshot``: ``readmodel.snapshot`` at its end. ``history``:
    "signals" (as ``Ledger.signal_points`` gives them), "routing" (``Ledger.routing_history``),
    "events", and "pictures": "before" and "after", each {"images": uint8 [n, H, W, 3], "slices":
    n names}. What is not there is told as not measured."""
    events = readmodel.plain(readmodel.worth_telling(history.get("events", ())))
    begin = events[0]["at"] if events else float(snapshot["now"])
    changed = (summary.get("drift") or {}).get("changed_at")
    page = environment(Path(__file__).parent / "templates").get_template("report.html")
    text = page.render(
        s=_with_defaults(summary),
        snapshot=snapshot,
        service=snapshot["service"],
        now=snapshot["now"],
        currency=snapshot["budget"]["currency"],
        begin=begin,
        css=Markup((CONSOLE / "static" / "console.css").read_text()),
        digits=digit_rows(summary.get("accuracy") or {}, history.get("pictures") or {}),
        signals=signal_charts(history.get("signals", ()), summary),
        traffic=Markup(traffic_chart(history.get("routing", ()), begin, float(snapshot["now"]))),
        events=events,
        changed=changed,
    )
    write_atomic(target, text)


def _with_defaults(summary: Mapping[str, Any]) -> dict[str, Any]:
    empty: dict[str, Any] = {
        "quick": False, "releases": [], "drift": None, "diagnosis": None, "plan": None,
        "candidates": [], "technique": [], "rollout": {}, "rollback": None, "rollbacks": [],
        "requests": {}, "seconds": {}, "missing": [], "money": None, "findings": [],
        "training_cost": None, "training_seconds": None,
    }  # fmt: skip
    known = empty | dict(summary)
    candidates = known["candidates"]
    if known["training_cost"] is None and candidates:
        known["training_cost"] = sum(c.get("cost", 0.0) for c in candidates)
        known["training_seconds"] = sum(c.get("train_seconds", 0.0) for c in candidates)
    if not known["rollbacks"] and known["rollback"]:
        known["rollbacks"] = [known["rollback"]]
    blank: dict[str, Any] = {
        "dataset_version": None, "release_id": None, "verdict": None, "reasons": [], "metrics": [],
        "train_seconds": 0.0, "cost": 0.0, "registry_version": None,
    }  # fmt: skip
    for name in ("candidates", "technique"):
        known[name] = [{**blank, "name": f"candidate {i + 1}", **c} for i, c in
                       enumerate(known[name])]  # fmt: skip
    facts: dict[str, Any] = readmodel.plain(known)
    return facts


# ------------------------------------------------------------------------------------ pictures


def digit_rows(
    accuracy: Mapping[str, Mapping[str, float]], pictures: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Per digit: accuracy and a strip of pictures (a data URI), before and after; None where there
    is none."""
    rows = []
    for digit in DIGITS:
        row: dict[str, Any] = {"digit": digit}
        for when in ("before", "after"):
            row[when] = accuracy.get(when, {}).get(digit)
            row[f"{when}_strip"] = _strip(pictures.get(when), digit)
        rows.append(row)
    return rows


def _strip(pictures: Mapping[str, Any] | None, digit: str) -> str | None:
    if pictures is None:
        return None
    slices = np.asarray(pictures["slices"]).astype(str)
    mine = np.isin(slices, [digit, NAMES[int(digit)]])
    images: NDArray[np.uint8] = np.asarray(pictures["images"])[mine][:PER_ROW]
    if not len(images):
        return None
    gap = np.zeros((images.shape[1], 2, 3), dtype=np.uint8)
    tiles = [part for image in images for part in (image, gap)][:-1]
    return data_uri(np.concatenate(tiles, axis=1))


def data_uri(image: NDArray[np.uint8]) -> str:
    """A picture [H, W, 3] as a PNG data URI."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


# ------------------------------------------------------------------------------------ charts


def signal_charts(
    points: Sequence[tuple[float, Sequence[SignalStatus]]], summary: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Per signal its value and its evidence, against the requests it had seen."""
    drift = summary.get("drift") or {}
    marks = [(float(drift["changed_at"]), "users change")] if drift.get("changed_at") else []
    found: dict[str, list[float]] = {}
    for finding in summary.get("findings") or ():
        found.setdefault(finding["signal"], []).append(float(finding["request"]))
    charts = []
    for name, course in readmodel.signal_history(points, POINTS).items():
        requests = course["requests"]

        def line(
            label: str, column: str, kind: str, x: Any = requests, c: Any = course
        ) -> svg.Line:
            return svg.Line(name=label, kind=kind, points=list(zip(x, c[column], strict=True)))

        own = [*marks, *((request, "found") for request in found.get(name, ()))]
        charts.append(
            {
                "signal": name,
                "value": Markup(
                    svg.line_chart(
                        [line("now", "value", "c-now"), line("normal", "reference", "c-normal")],
                        x_label="requests",
                        marks=own,
                    )
                ),
                "evidence": Markup(
                    svg.line_chart(
                        [
                            line("evidence", "evidence", "c-evidence"),
                            line("threshold", "threshold", "c-threshold"),
                        ],
                        x_label="requests",
                        y_label="log e-value",
                        marks=own,
                        zero=True,
                    )
                ),
            }
        )
    return charts


def traffic_chart(tables: Sequence[tuple[float, RoutingTable]], begin: float, end: float) -> str:
    """Who was sent what share of the users, since the beginning."""
    shares = [
        [
            (f"arm-{role}", arm.weight)
            for role in TIERS
            for arm in table.arms
            if arm.role is role and arm.weight > 0
        ]
        for _, table in tables
    ]
    times = [at - begin for at, _ in tables]
    return svg.stacked_steps(times, shares, end - begin, x_label="seconds")
