"""The demo's telling: plain and unrepeated without a terminal, alive on one, never steered."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from intonaco.clock import FakeClock
from intonaco.demo.view import DemoView, clean, evidence_bar, final_table, since, weights_bar


def plain() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=80), out


def test_plain_lines_without_a_terminal() -> None:
    console, out = plain()
    clock = FakeClock()
    with DemoView(console, clock) as view:
        view.phase(1, "A real model")
        clock.advance(2.5)
        view.event(clock.now(), "finding", "demand moved " + "x" * 100)
        clock.advance(123.0)
        view.event(clock.now(), "plan", "fine_tune")
    lines = out.getvalue().splitlines()
    assert lines[0:2] == ["", "1/8  A real model"]
    assert lines[2].split() == ["+2.5", "s", "finding", "demand", "moved", "x" * 100]
    assert lines[3].split() == ["+2:05", "min", "plan", "fine_tune"]
    assert len(lines) == 4  # nothing wrapped, nothing redrawn
    assert "\x1b" not in out.getvalue()


def test_progress_is_told_by_quarters() -> None:
    console, out = plain()
    with DemoView(console, FakeClock()) as view:
        for step in range(0, 401):
            view.progress("k", "train full: denoiser", step, 400, "loss 0.1")
            view.figures(requests=step, rate=20.0)
        for _ in range(50):
            view.done("k")  # a finished effect is seen at every look
        view.done("never seen")
    lines = [line.split(" s ", 1)[1].strip() for line in out.getvalue().splitlines()]
    assert [line.removesuffix(" (loss 0.1)") for line in lines] == [
        "train full: denoiser: 0/400",
        "train full: denoiser: 100/400",
        "train full: denoiser: 200/400",
        "train full: denoiser: 300/400",
        "train full: denoiser: 400/400",
        "train full: done",
    ]


def test_another_phase_of_the_same_job_is_told_again() -> None:
    console, out = plain()
    with DemoView(console, FakeClock()) as view:
        view.progress("k", "train full: vae", 90, 100)
        view.progress("k", "train full: denoiser", 30, 100)
    assert "vae: 90/100" in out.getvalue()
    assert "denoiser: 30/100" in out.getvalue()


def test_figures_are_a_heartbeat_in_plain_output() -> None:
    console, out = plain()
    clock = FakeClock()
    with DemoView(console, clock) as view:
        for second in range(100):
            clock.advance(1)
            view.figures(
                requests=second, failed=0, rate=20.0, champion="a1a1a1",
                weights={"champion": 0.75, "challenger": 0.25}, evidence=(3.0, 12.0),
            )  # fmt: skip
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    for fact in ("20 requests/s", "29 seen", "0 failed", "a1a1a1", "challenger 25 %", "3.0/12.0"):
        assert fact in lines[0]


def test_a_prompt_cannot_steer_the_terminal() -> None:
    hostile = "a [bold red]seven[/] \x1b]0;title\x07\x1b[2J\nsecond\u202eline"
    console, out = plain()
    with DemoView(console, FakeClock()) as view:
        view.event(0.0, "finding", hostile)
    text = out.getvalue()
    assert "[bold red]seven[/]" in text  # no markup
    assert text.count("\n") == 1
    for control in ("\x1b", "\x07", "\u202e"):
        assert control not in text
    assert clean("a\tb\n c") == "a b c"


def test_a_terminal_gets_a_live_panel_and_is_left_whole() -> None:
    out = io.StringIO()
    console = Console(file=out, width=120, height=40, force_terminal=True, color_system=None)
    with DemoView(console, FakeClock()) as view:
        view.phase(3, "Users change")
        view.figures(rate=20.0, evidence=(12.0, 11.0), weights={"champion": 1.0})
        view.progress("k", "train", 5, 10, "loss")
        view.event(0.0, "plan", "fine_tune")
        assert view._live is not None
        view._live.refresh()
    text = out.getvalue()
    for fact in ("✓ model", "✓ serve", "● change", "○ plan", "5/10", "12.0/11.0", "fine_tune"):
        assert fact in text, fact
    assert text.rstrip().endswith("\x1b[?25h")  # the cursor is back


def test_an_error_leaves_the_terminal_whole_too() -> None:
    out = io.StringIO()
    console = Console(file=out, width=120, force_terminal=True, color_system=None)
    try:
        with DemoView(console, FakeClock()):
            raise RuntimeError("stop")
    except RuntimeError:
        pass
    assert "\x1b[?25h" in out.getvalue()


def test_bars_are_to_scale() -> None:
    weights = {"champion": 0.5, "baseline": 0.25, "challenger:x": 0.25, "shadow:y": 0.1}
    bar = weights_bar(weights, width=20)
    assert bar.plain.count("█") == 20
    assert "shadow:y 10 %" in bar.plain
    assert weights_bar({"champion": 0.95, "challenger": 0.05}, width=20).plain.count("█") == 20
    assert evidence_bar(6.0, 12.0, width=10).plain.startswith("━" * 5 + "─" * 5)
    assert evidence_bar(float("inf"), 12.0, width=10).plain.startswith("━" * 10)
    assert evidence_bar(-3.0, 12.0, width=4).plain.startswith("────")
    assert since(59.94) == "59.9 s"


SUMMARY: dict[str, Any] = {
    "drift": {"requests_to_detect": 71, "quiet_requests_armed": 340, "false_alarms_before": 0},
    "diagnosis": {"cause": "concept_drift"},
    "plan": {"action": "fine_tune", "currency": "EUR"},
    "candidates": [
        {"name": "with-replay", "verdict": "pass", "cost": 0.04, "train_seconds": 71.0},
        {"name": "without-replay", "verdict": "fail", "cost": 0.02, "reasons": ["two [b]worse"]},
    ],
    "accuracy": {"before": {"0": 0.98, "7": 0.0}, "after": {"0": 0.97, "7": 0.93}},
    "rollout": {"status": "promoted", "steps": [{"kind": "canary", "weight": 0.25, "units": 201}]},
    "rollback": {"seconds": 0.31, "requests": 7, "reason": "breaker"},
    "requests": {"total": 8123, "failed": 0},
    "seconds": {"total": 512.0},
}


def test_the_final_tables_have_the_figures() -> None:
    console, out = plain()
    console.width = 140
    console.print(*final_table(SUMMARY))
    text = out.getvalue()
    for fact in (
        "71 requests", "concept drift", "fine tune", "0.06", "8123", "8 min 32 s", "98", "93",
        "with-replay", "fail", "two [b]worse", "promoted", "201 users", "0.3 s", "breaker",
    ):  # fmt: skip
        assert fact in text, fact


def test_the_final_tables_of_a_story_that_stopped_early() -> None:
    console, out = plain()
    nothing: dict[str, Any] = {
        "drift": None,
        "diagnosis": None,
        "plan": None,
        "candidates": [],
        "rollback": None,
        "accuracy": {"before": {}, "after": {}},
        "rollout": {"steps": []},
        "requests": {"total": 0},
        "seconds": {},
    }
    console.print(*final_table(nothing))
    assert "–" in out.getvalue()
    console.print(*final_table({}))


def test_a_finding_has_its_headline_first_and_the_rest_under_it() -> None:
    console = Console(file=io.StringIO(), width=60, force_terminal=False)
    with DemoView(console, FakeClock()) as view:
        view.event(0.0, "finding", "37% are new", ["evidence 11 of 10", "asked for: \x1b[2Jseven"])
    assert isinstance(console.file, io.StringIO)
    first, second, third = console.file.getvalue().splitlines()
    assert first.endswith("37% are new")
    at = first.index("37%")
    assert second[at:] == "evidence 11 of 10"
    assert third[at:] == "asked for: �[2Jseven"
