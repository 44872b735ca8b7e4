"""``intonaco review``: what it prints, what it refuses, its exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.reviewed import a_review, draw
from typer.testing import CliRunner

from intonaco.cli.main import app
from intonaco.clock import SystemClock
from intonaco.errors import Conflict, IntonacoError
from intonaco.evaluation.prompts import Prompt
from intonaco.ledger import Ledger
from intonaco.ledger import votes as rows
from intonaco.review import desk, session
from intonaco.review.session import BROKEN
from intonaco.types import TIE, Review, TaskKind
from intonaco.workspace import Workspace

CONFIG = """
service: svc
evaluation: {prompts: prompts.jsonl, review: {prompts: 10, min_prompts: 5}}
"""
PROMPTS = [Prompt(prompt_id=f"p{n}", prompt=f"prompt {n}", slice="all") for n in range(12)]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace(tmp_path)
    made.config_file.write_text(CONFIG)
    lines = [
        json.dumps({"prompt_id": p.prompt_id, "prompt": p.prompt, "slice": p.slice})
        for p in PROMPTS
    ]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    for name in ("champion", "sharpened-lora", "third"):
        draw(tmp_path / f"{name}.npz", name, PROMPTS, 24)
    return made


def run(workspace: Workspace, *words: str, code: int = 0) -> Any:
    """What a command prints as JSON."""
    done = CliRunner().invoke(app, [*words, "-w", str(workspace.root), "--json"])
    if isinstance(done.exception, IntonacoError):
        raise done.exception
    assert done.exit_code == code, (done.output, done.exception)
    return json.loads(done.stdout)


def images(workspace: Workspace, *names: str) -> list[str]:
    return [w for n in names for w in ("--images", f"{n}={workspace.root / n}.npz")]


def decide(workspace: Workspace, review_id: str, *wanted: str) -> None:
    """Two attentive people, to the end; ``wanted``: orders of preference, in turn by prompt."""
    ledger = Ledger.open(workspace.ledger, "svc")
    review = ledger.get(Review, review_id)
    now = SystemClock().now()
    for name in ("ann", "bob"):
        for number in range(100):
            told, _ = session.upcoming(review, name, rows.votes(ledger, review_id))
            if not told:
                break
            task = told[0]
            if task.kind is TaskKind.SAME:
                choice = TIE
            elif BROKEN in (task.left, task.right):
                choice = "right" if task.left == BROKEN else "left"
            else:
                prompt = next(i.prompt_id for i in review.items if i.item == task.item)
                order = wanted[int(prompt[1:]) % len(wanted)].split(" > ")
                ahead = [order.index(a) if a in order else 9 for a in (task.left, task.right)]
                choice = "left" if ahead[0] < ahead[1] else "right"
            desk.vote(
                ledger, review, name, key=f"{name}-{number:08d}", task=task.task,
                choices={"overall": choice}, seconds=1.0, now=now,
            )  # fmt: skip
    ledger.close()


def test_a_review_by_hand_from_start_to_end(workspace: Workspace) -> None:
    assert run(workspace, "review", "list") == []
    begun = run(workspace, "review", "start", *images(workspace, "champion", "sharpened-lora"))
    assert (begun["prompts"], begun["wanted"], begun["open"]) == (10, 20, True)
    review_id = begun["id"]
    invited = run(workspace, "review", "invite", review_id[:5], "ann")
    assert invited["link"].startswith(f"http://127.0.0.1:8322/review/{review_id}#")
    lead = run(workspace, "review", "invite", review_id, "lea", "--lead")
    assert f"/review/{review_id}/result#" in lead["link"]
    shown = run(workspace, "review", "show", review_id)
    assert [(i["name"], i["role"]) for i in shown["invited"]] == [
        ("ann", "reviewer"),
        ("lea", "lead"),
    ]
    assert shown["votes_to_see"] == {"0.55": 618, "0.60": 155, "0.70": 39}
    assert lead["link"].rpartition("#")[2] not in json.dumps(shown)
    assert run(workspace, "review", "revoke", review_id, "ann")["ok"]
    blind = run(workspace, "review", "result", review_id)
    assert blind["unblinded"] is False
    assert run(workspace, "review", "result", review_id, "--unblind")["unblinded"] is True
    decide(workspace, review_id, "sharpened-lora")
    result = run(workspace, "review", "result", review_id)
    assert result["verdicts"] == {"sharpened-lora": "pass"}
    assert run(workspace, "review", "list")[0]["verdicts"] == {"sharpened-lora": "pass"}
    kinds = [e.kind for e in Ledger.open(workspace.ledger, "svc").events(kind="review")]
    assert kinds == [
        "review.opened",
        "review.invited",
        "review.invited",
        "review.revoked",
        "review.unblinded",
        "review.closed",
    ]
    with pytest.raises(Conflict, match="is over"):
        run(workspace, "review", "invite", review_id, "bob")


def test_exit_codes_say_the_verdict(workspace: Workspace) -> None:
    begun = run(workspace, "review", "start", *images(workspace, "champion", "sharpened-lora"))
    decide(workspace, begun["id"], "champion")
    assert run(workspace, "review", "result", begun["id"], code=1)["verdicts"] == {
        "sharpened-lora": "fail"
    }
    ledger = Ledger.open(workspace.ledger, "svc")
    old = a_review(workspace, ledger, now=1.0, review_id="0dd" * 4)
    ledger.close()
    timed_out = run(workspace, "review", "result", old.review_id, code=3)
    assert timed_out["closed_because"] == "its time is up"


def test_more_time_and_an_end_by_hand(workspace: Workspace) -> None:
    begun = run(workspace, "review", "start", *images(workspace, "champion", "sharpened-lora"))
    longer = run(workspace, "review", "extend", begun["id"], "--hours", "24")
    assert longer["deadline"] == pytest.approx(begun["deadline"] + 86_400)
    ended = run(workspace, "review", "close", begun["id"], "--reason", "no one has time", code=3)
    assert ended["verdicts"] == {"sharpened-lora": "inconclusive"}
    assert ended["closed_because"].endswith(": no one has time")
    with pytest.raises(Conflict, match="is over"):
        run(workspace, "review", "extend", begun["id"], "--hours", "1")


def test_three_releases_are_ranked(workspace: Workspace) -> None:
    begun = run(
        workspace, "review", "start", *images(workspace, "champion", "sharpened-lora", "third")
    )
    assert begun["wanted"] == 10 * 3 * 2
    decide(
        workspace,
        begun["id"],
        "third > sharpened-lora > champion",
        "sharpened-lora > champion > third",
        "third > champion > sharpened-lora",
    )
    result = run(workspace, "review", "result", begun["id"], code=3)
    assert result["closed_because"] == "all votes are in"
    strengths = {s["name"]: s["log_odds"] for s in result["ranking"]}
    assert strengths["sharpened-lora"] > strengths["champion"] == 0
    assert strengths["third"] > 0
    assert all(s["interval"] for s in result["ranking"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["review", "start"], "either --update, or --images"),
        (["review", "start", "--images", "one=a.npz"], "at least two"),
        (["review", "start", "--images", "a", "--images", "b"], "NAME=FILE"),
        (["review", "start", "--images", "a=x.npz", "--images", "a=y.npz"], "each name once"),
        (["review", "start", "--images", "a=x.npz", "--images", "b=y.npz"], "no file of drawn"),
        (["review", "start", "--update", "none"], "no update none"),
        (["review", "show", "none"], "no review none"),
        (["review", "result", "none"], "no review none"),
        (["review", "invite", "none", "ann"], "no review none"),
    ],
)
def test_what_cannot_be_is_said(workspace: Workspace, words: list[str], message: str) -> None:
    with pytest.raises(IntonacoError, match=message):
        run(workspace, *words)


def test_names_that_would_break_a_page_are_refused(workspace: Workspace) -> None:
    begun = run(workspace, "review", "start", *images(workspace, "champion", "third"))
    for name in ("", "a b", "<b>", "x" * 64):
        with pytest.raises(IntonacoError, match="letters"):
            run(workspace, "review", "invite", begun["id"], name)


def test_tables_for_people(workspace: Workspace) -> None:
    begun = run(workspace, "review", "start", *images(workspace, "champion", "sharpened-lora"))
    decide(workspace, begun["id"], "sharpened-lora")
    for words in (["list"], ["show", begun["id"]], ["result", begun["id"]]):
        done = CliRunner().invoke(app, ["review", *words, "-w", str(workspace.root)])
        assert done.exit_code == 0, done.output
        assert begun["id"] in done.output


def test_hidden_prompts_are_not_shown(workspace: Workspace) -> None:
    hidden = {p.prompt_id for p in PROMPTS[:9]}
    for name in ("champion", "third"):
        draw(workspace.root / f"{name}.npz", name, PROMPTS, 24, hidden)
    run(workspace, "review", "start", *images(workspace, "champion", "third"))
    ledger = Ledger.open(workspace.ledger, "svc")
    (review,) = ledger.all(Review)
    ledger.close()
    assert {item.prompt_id for item in review.items} == {"p9", "p10", "p11"}
