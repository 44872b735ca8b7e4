"""A split, as people are shown it: on the console, as JSON, on the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.unit.console.conftest import FIRST, SECOND, START, an_assessment
from typer.testing import CliRunner

from intonaco import readmodel
from intonaco.cli.main import app
from intonaco.config import Config
from intonaco.console import create_app
from intonaco.ledger import Ledger
from intonaco.types import (
    Assessment,
    PairComparison,
    Rollout,
    RolloutStep,
    Split,
    SplitArm,
    StepKind,
    StepResult,
)
from intonaco.workspace import Workspace

THIRD = "c" * 64
SEEN = (
    an_assessment("errors", Assessment.NON_INFERIOR, 0.0, (-0.006, 0.007), 0.01),
    an_assessment("slow", Assessment.UNDECIDED, 0.012, (-0.04, 0.061), 0.05),
    an_assessment("clip_score", Assessment.SUPERIOR, 0.071, (0.03, 0.11), 0.02),
)
SPLIT = Split(
    metric="clip_score",
    arms=(
        SplitArm(name="full", release=SECOND, share=0.3, start=0.0, assessments=SEEN, units=61),
        SplitArm(
            name="lora",
            release=THIRD,
            share=0.3,
            start=0.3,
            units=12,
            removed_at=START + 500,
            reason="the breaker tripped after 3 failures",
        ),
        SplitArm(name="old", release="d" * 64, share=0.15, start=0.6, assessments=SEEN, units=40),
    ),
    pairs=(PairComparison(first="full", second="old", difference=0.02, interval=(-0.01, 0.05)),),
)
TEXT = "waiting for an arm to win on clip_score: full lacks slow (undecided)"


@pytest.fixture
def split(ledger: Ledger) -> Rollout:
    rollout = replace(
        ledger.get(Rollout, "u2-1"),
        steps=(
            RolloutStep(kind=StepKind.SPLIT, weight=0.75, min_seconds=60, min_units=20),
            RolloutStep(kind=StepKind.CANARY, weight=1.0),
            RolloutStep(kind=StepKind.PROMOTE),
        ),
        step=0,
        history=(
            StepResult(kind=StepKind.SPLIT, weight=0.75, entered_at=START + 420, decision=TEXT),
        ),
        assessments=(),
        split=SPLIT,
    )
    with ledger.begin() as tx:
        tx.rollout(rollout)
    return rollout


@pytest.fixture
def client(
    split: Rollout, ledger: Ledger, workspace: Workspace, config: Config
) -> Iterator[TestClient]:
    with TestClient(create_app(ledger, workspace, config), base_url="http://127.0.0.1") as opened:
        yield opened


def test_the_facts_of_every_arm(split: Rollout, now: float) -> None:
    facts = readmodel.rollout_facts(split, now)
    shown: Any = facts["split"]
    assert [(a["name"], round(a["share"], 6), a["state"]) for a in shown["arms"]] == [
        ("champion", 0.25, "champion"),
        ("full", 0.3, "compared"),
        ("lora", 0.3, "taken_out"),
        ("old", 0.15, "compared"),
    ]
    assert shown["arms"][1]["lacks"] == ["slow (undecided)"]
    assert facts["waiting_for"] == TEXT.removeprefix("waiting for ")
    won = replace(split, split=replace(SPLIT, winner="old", text="old is better"))
    states = [a["state"] for a in readmodel.rollout_facts(won, now)["split"]["arms"]]
    assert states == ["champion", "lost", "taken_out", "won"]
    assert readmodel.rollout_facts(replace(split, split=None), now)["split"] is None


def test_the_console_draws_them(client: TestClient) -> None:
    page = client.get("/").text
    for fact in (
        "full <b>30%</b>",
        "the breaker tripped after 3 failures",
        "Lacks slow (undecided).",
        "full against old on clip score: +0.02",
        "+0.071",
    ):
        assert fact in page.replace("30 %", "30%"), fact
    shown = client.get("/api/snapshot").json()["rollout"]["split"]
    assert [a["release"] for a in shown["arms"]][:2] == [FIRST, SECOND]
    roles = {r["id"]: r["roles"] for r in client.get("/api/releases").json()}
    assert roles[SECOND] == ["challenger"]


def test_the_command_line_draws_them(split: Rollout, workspace: Workspace) -> None:
    (workspace.root / "intonaco.yaml").write_text("service: digits\n")
    found = run(workspace.root, "rollout", "show")
    for fact in (
        "waiting for an arm to win on clip_score: full lacks slow (undecided)",
        "split, decided by clip_score",
        "taken out: the breaker tripped",
        "full against the champion",
        "full against old: +0.020 [-0.010, +0.050]",
    ):
        assert " ".join(fact.split()) in " ".join(found.split()), fact
    told = json.loads(run(workspace.root, "rollout", "show", "--json"))
    assert told["split"]["arms"][1]["reason"] == "the breaker tripped after 3 failures"


def run(root: Path, *arguments: str) -> str:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*arguments, "--workspace", str(root)])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_page_of_the_rollout_shows_every_arm(client: TestClient, split: Rollout) -> None:
    page = client.get(f"/rollouts/{split.rollout_id}").text
    for fact in ("decided by", "full <b>", "lora <b>", "old <b>", "the breaker tripped after 3"):
        assert fact in page, fact
    assert "Nothing was measured yet" not in page
