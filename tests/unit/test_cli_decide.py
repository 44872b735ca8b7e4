"""``update plan``, ``budget`` and ``update backtest`` on the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.test_decision_policy import CONCEPT, CONTEXT, NOW, SETTINGS
from typer.testing import CliRunner

from intonaco.cli.main import app
from intonaco.decision.policy import decide
from intonaco.ledger import Ledger
from intonaco.workspace import Workspace


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "intonaco.yaml").write_text(
        "service: digits\ndecision: {budget: {amount: 10, gpu_hours: 5}}\n"
    )
    ledger = Ledger.open(Workspace(tmp_path).ledger, "digits")
    watching = SETTINGS.model_copy(update={"mode": "watch"})
    with ledger.begin() as tx:
        for finding in CONCEPT.findings:
            tx.put(finding, id=finding.finding_id, at=NOW)
        tx.put(CONCEPT, id=CONCEPT.diagnosis_id, at=NOW)
        for number, settings in enumerate((SETTINGS, watching)):
            plan = replace(decide(CONCEPT, CONTEXT, settings, NOW), at=NOW + number)
            tx.put(plan, id=plan.plan_id, at=plan.at)
        tx.reserve(1.0, "u1", 4.0, limit=10.0, period=1.0)
        tx.reserve(1.0, "u1", 2.0, limit=5.0, period=1.0, hours=True)
    ledger.close()
    return tmp_path


def run(root: Path, *arguments: str) -> str:
    result = CliRunner().invoke(app, [*arguments, "--workspace", str(root)])
    assert result.exit_code == 0, result.output
    return result.output


def test_plans_are_listed_with_what_would_have_been_done(root: Path) -> None:
    plans = json.loads(run(root, "update", "plan", "--json"))
    assert [(p["action"], p["would"]) for p in plans] == [
        ("fine_tune", None),
        ("watch", "fine_tune"),
    ]
    said = run(root, "update", "plan")
    assert "would have" in said
    assert "pays" in said


def test_a_plan_is_explained_by_its_id_by_its_finding_and_the_last_by_none(root: Path) -> None:
    plans = json.loads(run(root, "update", "plan", "--json"))
    said = run(root, "update", "plan", "--explain", plans[0]["plan_id"][:8])
    assert "x deficit 0.225 [0.150, 0.330]" in said
    assert "mode is watch" in run(root, "update", "plan", "--explain")
    assert "decided" in run(root, "update", "plan", "--explain", "f-prompts")
    sums = json.loads(run(root, "update", "plan", "--explain", "--json"))["reckoning"]
    assert sums["rule"] == "pays"


def test_the_budget_shows_spent_reserved_left_and_what_is_ahead(root: Path) -> None:
    facts = json.loads(run(root, "budget", "--json"))
    assert (facts["money"]["reserved"], facts["money"]["left"]) == (4.0, 6.0)
    assert (facts["hours"]["reserved"], facts["hours"]["left"]) == (2.0, 3.0)
    assert facts["entries"][0]["subject"] == "u1"
    assert "forecast" in facts["money"]
    said = run(root, "budget")
    assert "6.00 of 10.00 EUR left" in said
    assert "3.00 of 5.00 h left" in said


def test_the_backtest_prints_ours_beside_the_rules() -> None:
    result = CliRunner().invoke(
        app, ["update", "backtest", "--years", "1", "--seed", "3", "--json"]
    )
    assert result.exit_code == 0, result.output
    facts = json.loads(result.output)
    assert facts["years"] == 1
    assert facts["overspent"] == 0
    assert {"ours", "never", "always", "weekly"} <= set(facts["costs"])
    assert facts["costs"]["ours"] >= facts["oracle"] - 1e-6


def test_a_seed_below_zero_is_refused() -> None:
    result = CliRunner().invoke(app, ["update", "backtest", "--years", "1", "--seed", "-1"])
    assert result.exit_code == 2
    assert "--seed" in result.output
