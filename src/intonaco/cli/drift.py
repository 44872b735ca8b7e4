"""drift: what is watched, what was found and why, the probes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.text import Text

from intonaco import readmodel
from intonaco.cli import drift_evaluate
from intonaco.cli.card import card, line
from intonaco.cli.common import HERE, AsJson, Folder, ago, opened, out, print_json, print_table
from intonaco.cli.steer import ask
from intonaco.console.present import NONE, number, words
from intonaco.errors import NotFound

BAR = 20  # characters of evidence


def add_to(app: typer.Typer) -> None:
    drift = typer.Typer(
        help="What is watched: show, explain, probes, evaluate.", no_args_is_help=True
    )
    drift.command("show")(show)
    drift.command("explain")(explain)
    drift.command("probes")(probes)
    drift.command("evaluate")(drift_evaluate.evaluate)
    app.add_typer(drift, name="drift")


def show(workspace: Folder = HERE, as_json: AsJson = False) -> None:
    """All signals now, the last round of probes, and the findings."""
    app = opened(workspace)
    signals = readmodel.signals(app.ledger, points=0)
    findings = readmodel.findings(app.ledger)
    rounds = readmodel.probe_rounds(app.ledger, app.config, limit=1)
    if as_json:
        facts = [{k: v for k, v in s.items() if k != "history"} for s in signals]
        print_json({"signals": facts, "probes": rounds, "findings": findings})
        return
    print_table(
        "signals",
        ("signal", "now", "normal", "evidence", "", "state"),
        (
            (
                s["signal"],
                number(s["value"]),
                number(s["reference"]),
                bar(s["evidence"], s["threshold"], s["firing"]),
                f"{number(s['evidence'])} of {number(s['threshold'])}",
                state(s),
            )
            for s in signals
        ),
    )
    if not signals:
        out.print("No signal has been measured yet: the controller reads scored records.")
    if rounds["probes"]:
        last = rounds["rounds"][0] if rounds["rounds"] else None
        said = f"{last['text']} ({ago(app.clock.now() - last['at'])} ago)" if last else "none yet"
        out.print(f"\nprobes     {said}", markup=False)
    if findings:
        out.print("\nfindings, the newest first: `intonaco drift explain ID` shows one")
    for found in findings[:10]:
        out.print(line(found, app.clock.now()))


def bar(evidence: float | None, threshold: float | None, firing: bool, width: int = BAR) -> str:
    """How near a detector is to speaking."""
    share = max(0.0, min(1.0, (evidence or 0.0) / threshold)) if threshold else 0.0
    full = width if firing else int(width * share)
    return "█" * full + "░" * (width - full)


def state(signal: Mapping[str, Any]) -> str:
    if signal["firing"]:
        return "FIRING"
    return "quiet" if signal["armed"] else "learning"


def result(found: Mapping[str, Any]) -> str:
    """Of a round of probes."""
    if found["ok"] is None and not found["missing"]:
        return "kept"
    return {True: "as stored", False: "CHANGED", None: "not measured"}[found["ok"]]


def explain(
    finding: Annotated[
        str | None, typer.Argument(help="Finding id, or the beginning of it; else the newest.")
    ] = None,
    workspace: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """A finding on one card: what moved, since when, why, and what is done about it."""
    app = opened(workspace)
    if finding is None:
        known = readmodel.findings(app.ledger)
        if not known:
            raise NotFound("there is no finding: nothing moved")
        finding = str(known[0]["finding_id"])
    facts = readmodel.finding_card(app.ledger, app.config, finding)
    if as_json:
        print_json(facts)
        return
    out.print(card(facts, app.clock.now()))


def probes(
    workspace: Folder = HERE,
    as_json: AsJson = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many rounds.")] = 20,
    draw: Annotated[bool, typer.Option("--draw", help="Draw them now; see `--release`.")] = False,
    release: Annotated[
        str | None,
        typer.Option(
            help="With --draw: whose, if not the champion's: any release that the gateway has an "
            "arm for, as a challenger or during the bake the previous one."
        ),
    ] = None,
) -> None:
    """The last rounds of the probes, the newest first."""
    app = opened(workspace)
    if draw:
        ask(app, "probe", {"release": release} if release else {}, as_json)
        return
    facts = readmodel.probe_rounds(app.ledger, app.config, limit)
    if as_json:
        print_json(facts)
        return
    if not facts["probes"]:
        out.print("There are no probes: name some prompts in monitoring.probes.")
        return
    print_table(
        f"{len(facts['probes'])} probes",
        ("at", "release", "why", "result", "in words"),
        (
            (
                time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(r["at"])),
                r["release"][:10],
                words(r["why"]),
                result(r),
                Text(r["text"]),
            )
            for r in facts["rounds"]
        ),
    )
    due = facts["next_check_at"]
    when = NONE if due is None else f"in {ago(max(0.0, due - app.clock.now()))}"
    out.print(f"next round {when}" if facts["every_s"] else "no schedule: only at findings")
