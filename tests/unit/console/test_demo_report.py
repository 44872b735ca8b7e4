"""The report needs nothing but itself and says what was measured, and what was not."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from intonaco import readmodel
from intonaco.config import Config
from intonaco.demo.report import digit_rows, write_report
from intonaco.ledger import Ledger
from intonaco.types import Finding, Update
from intonaco.workspace import Workspace

SECOND = "b2" * 32
FETCHING = {"src", "href", "srcset", "data", "action", "poster", "background", "xlink:href"}


@pytest.fixture
def summary(ledger: Ledger) -> dict[str, Any]:
    update = ledger.get(Update, "u2")
    return {
        "quick": True,
        "releases": [
            {"release_id": SECOND, "recipe": "fine_tune", "role": "champion", "verdict": "pass",
             "parent": "a1" * 32},
        ],
        "drift": {
            "signal": "prompts", "armed_at": 600, "changed_at": 900, "requests_to_detect": 71,
            "quiet_requests_armed": 300, "false_alarms_before": 0,
        },
        "findings": readmodel.plain([readmodel.finding_facts(f) for f in ledger.all(Finding)]),
        "diagnosis": {"cause": "concept_drift", "reason": "quality is lower where demand moved"},
        "plan": {"action": "fine_tune", "reason": "it pays", "estimated_cost": 0.04,
                 "budget_left": 99.9, "currency": "EUR"},
        "candidates": [readmodel.plain(c) for c in update.candidates],
        "technique": [{"update_id": "u3", "phase": "rolled_back", "name": "fewer-steps",
                       "release_id": "d5" * 32, "verdict": "pass"}],
        "training_cost": 0.0607,
        "training_seconds": 109.2,
        "accuracy": {
            "before": {str(d): 0.97 if d < 5 else 0.02 for d in range(10)},
            "after": {str(d): 0.9625 for d in range(10)},
        },
        "rollout": {
            "status": "promoted", "seconds": 118.0, "reason": "all steps done",
            "steps": [{"kind": "shadow", "weight": 0.2, "units": 44, "seconds": 60.0,
                       "decision": "advance"},
                      {"kind": "canary", "weight": 0.25, "units": 201, "seconds": 58.0,
                       "decision": "promote"}],
        },
        "rollback": {"seconds": 0.31, "requests": 7, "reason": "the breaker tripped"},
        "rollbacks": [
            {"rollout_id": "u3-1", "seconds": 0.31, "requests": 7, "user_visible_errors": 0,
             "reason": "the breaker tripped: <b>3 failures</b>"},
            {"rollout_id": "u3-2", "seconds": 12.5, "requests": 41, "user_visible_errors": 0,
             "reason": "slow is harmful"},
        ],
        "requests": {"total": 8123, "failed": 0, "shielded": 7},
        "seconds": {"base": 80.2, "total": 512.0},
        "money": {"spent": 0.31, "currency": "EUR"},
        "missing": [],
    }  # fmt: skip


@pytest.fixture
def pictures() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    names = np.array(["zero", "one", "seven", "seven", "nine"])
    return {
        when: {"images": rng.integers(0, 255, (5, 32, 32, 3), dtype=np.uint8), "slices": names}
        for when in ("before", "after")
    }


@pytest.fixture
def page(
    ledger: Ledger, workspace: Workspace, config: Config, now: float, summary: dict[str, Any],
    pictures: dict[str, Any], tmp_path: Path,
) -> str:  # fmt: skip
    history = {
        "signals": ledger.signal_points(limit=100_000),
        "routing": ledger.routing_history(),
        "events": ledger.events(limit=100_000),
        "pictures": pictures,
    }
    target = tmp_path / "report.html"
    snapshot = readmodel.snapshot(ledger, workspace, config, now)
    write_report(summary, snapshot, history, target)
    return target.read_text()


class Fetches(HTMLParser):
    """Everything that a browser would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "iframe", "object", "embed", "base"):
            self.found.append(tag)
        self.found += [
            v or ""
            for k, v in attrs
            if k in FETCHING and not (v or "").startswith("data:image/png")
        ]
        self.found += [k for k, _ in attrs if k.startswith("on")]


def test_it_needs_nothing_else(page: str) -> None:
    parser = Fetches()
    parser.feed(page)
    assert parser.found == []
    assert "http://" not in page
    assert "https://" not in page
    assert not re.search(r"url\(|@import", page)


def test_it_has_the_figures(page: str) -> None:
    for figure in (
        "<b>71</b>",  # requests to detect
        "0 false alarms",
        "0.0607 EUR",
        "1 min 49 s of training",
        "1 of 2",
        "low_rank refused",
        "0.3 s",
        "7 requests reached it",
        "<b>0</b><span>user-visible errors</span>",
        "of 8123 requests",
        "96.2 %",
        "<b>2 %</b>",
        "slice_adherence of two: 0.08 worse, margin 0.05",
        "−0.12 … −0.05",
        "slow is harmful",
        "fewer-steps",
        "8 min 32 s in all",
        "concept drift",
    ):
        assert figure in page, figure


def test_it_draws_signals_weights_and_comparisons(page: str) -> None:
    assert page.count('<svg class="plot"') == 4 * 2 + 1
    assert page.count(">users change</text>") == 8  # marked on every chart
    assert page.count(">found</text>") == 2  # on those of the signal that it was found in
    for kind in ("arm-champion", "arm-challenger", "arm-baseline"):
        assert f'<rect class="{kind}"' in page
    assert page.count('<svg class="forest"') == 5


def test_hostile_words_stay_words(page: str) -> None:
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in page
    assert "<b>3 failures</b>" not in page


def test_the_timeline_tells_what_happened_since_the_beginning(page: str) -> None:
    assert "<time>+2 min 00 s</time>" in page  # the finding, 120 s after the first event
    assert "effect.retried" not in page


def test_pictures_are_those_of_the_digit(pictures: dict[str, Any]) -> None:
    rows = digit_rows({"before": {"7": 0.5}}, pictures)
    assert [r["digit"] for r in rows if r["after_strip"]] == ["0", "1", "7", "9"]
    assert (rows[7]["before"], rows[7]["after"]) == (0.5, None)
    encoded = rows[7]["after_strip"].removeprefix("data:image/png;base64,")
    strip = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))
    assert strip.shape == (32, 2 * 32 + 2, 3)
    assert np.array_equal(strip[:, :32], pictures["after"]["images"][2])
    assert np.array_equal(strip[:, 34:], pictures["after"]["images"][3])


def test_what_was_not_measured_is_said(
    empty_ledger: Ledger, workspace: Workspace, config: Config, now: float, tmp_path: Path
) -> None:
    target = tmp_path / "report.html"
    snapshot = readmodel.snapshot(empty_ledger, workspace, config, now)
    write_report({"missing": ["no drift was found"]}, snapshot, {}, target)
    page = target.read_text()
    for words in (
        "no drift was found",
        "No signal was measured",
        "No candidate was judged",
        "No routing tables",
        "no rollback",
        "What happened, as the ledger has it",
    ):
        assert words in page
    assert "promoted" not in page.split("<main>")[1]
