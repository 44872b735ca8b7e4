"""Rollouts on the console: who may ask for what, what is refused in the machine's words, and what
is written down, once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from intonaco import config as configuration
from intonaco import steering
from intonaco.clock import FakeClock
from intonaco.console import create_app, svg_rollout
from intonaco.console.calls import COOKIE
from intonaco.ledger import Ledger
from intonaco.readmodel.rollouts import course, deadlines, rollout_card
from intonaco.rollout.words import stands
from intonaco.types import (
    Assessment,
    Phase,
    Rollout,
    RolloutStatus,
    RolloutStep,
    StepKind,
    StepResult,
    Update,
)
from intonaco.workspace import Workspace

ROLES = ("operator", "viewer", "trigger", "curate", "reviewer", "lead")
FIRST, SECOND = "a1" * 10, "b2" * 10
ORIGIN = {"origin": "http://127.0.0.1"}
ASKED = (
    *(f"/api/rollouts/u2-1/{c}" for c in steering.ROLLOUT_COMMANDS),
    *(f"/api/updates/u2/{c}" for c in steering.UPDATE_COMMANDS),
    *("/api/rollback", "/api/freeze", "/api/unfreeze"),
)


@pytest.fixture
def client(ledger: Ledger, workspace: Workspace, now: float) -> Iterator[TestClient]:
    people = [
        {"name": f"the-{r}", "role": r, "sha256": hashlib.sha256(r.encode()).hexdigest()}
        for r in ROLES
    ]
    config = configuration.parse(f"service: digits\nconsole: {{people: {people!r}}}\n")
    app = create_app(ledger, workspace, config, clock=FakeClock(now))
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as opened:
        yield opened


def bearer(role: str = "operator", **more: str) -> dict[str, str]:
    return {"authorization": f"Bearer {role}"} | {k.replace("_", "-"): v for k, v in more.items()}


def message(answer: Any) -> str:
    return str(answer.json()["error"]["message"])


def change(ledger: Ledger, **changes: Any) -> Rollout:
    rollout = replace(ledger.get(Rollout, "u2-1"), **changes)
    with ledger.begin() as tx:
        tx.rollout(rollout)
    return rollout


def proven(ledger: Ledger) -> Rollout:
    """Every guardrail is."""
    found = ledger.get(Rollout, "u2-1").assessments
    return change(
        ledger,
        assessments=tuple(replace(a, assessment=Assessment.NON_INFERIOR) for a in found),
    )


# ------------------------------------------------------------------------------------ who may


@pytest.mark.parametrize("path", ASKED)
def test_nobody_but_an_operator_may(client: TestClient, ledger: Ledger, path: str) -> None:
    assert client.post(path, json={"reason": "r"}).status_code == 401
    wrong = client.post(path, json={"reason": "r"}, headers=bearer("nobody"))
    assert wrong.status_code == 401
    for role in ROLES[1:]:
        answer = client.post(path, json={"reason": "r"}, headers=bearer(role))
        assert answer.status_code == 403
        assert f"role {role}, not operator" in message(answer)
    assert ledger.new_commands() == []


def test_what_is_asked_is_written_down_with_who_and_why(client: TestClient, ledger: Ledger) -> None:
    answer = client.post(
        "/api/rollouts/u2-1/abort", json={"reason": "six fingers"}, headers=bearer()
    )
    assert answer.status_code == 202
    (command,) = ledger.new_commands()
    assert answer.json() == {"command": command.command_id}
    assert (command.kind, command.actor) == ("rollout.abort", "the-operator")
    assert command.arguments == {"rollout": "u2-1", "reason": "six fingers"}
    waits = client.get(f"/api/commands/{command.command_id}").json()
    assert waits["outcome"] is None
    with ledger.begin() as tx:
        tx.take_command(command.command_id, 1.0, {"ok": True, "text": "abort of rollout u2-1"})
    told = client.get(f"/api/commands/{command.command_id}").json()
    assert told["outcome"] == {"ok": True, "text": "abort of rollout u2-1"}
    for unknown in ("999", "-1", "x", "9" * 40):
        assert client.get(f"/api/commands/{unknown}").status_code == 404


@pytest.mark.parametrize(
    ("path", "kind", "arguments"),
    [
        ("/api/rollouts/u2-1/pause", "rollout.pause", {"rollout": "u2-1"}),
        ("/api/rollouts/u2-1/skip", "rollout.skip", {"rollout": "u2-1"}),
        ("/api/rollback", "rollback", {"to": None}),
        ("/api/freeze", "freeze", {}),
    ],
)
def test_each_has_its_command(
    client: TestClient, ledger: Ledger, path: str, kind: str, arguments: dict[str, Any]
) -> None:
    answer = client.post(path, json={"reason": "why"}, headers=bearer())
    assert answer.status_code == 202, answer.text
    (command,) = ledger.new_commands()
    assert (command.kind, command.arguments) == (kind, {**arguments, "reason": "why"})


@pytest.mark.parametrize("path", [p for p in ASKED if p.rpartition("/")[2] in steering.REASONED])
def test_what_is_grave_needs_a_reason(client: TestClient, ledger: Ledger, path: str) -> None:
    for body in ({}, {"reason": ""}, {"reason": "  "}):
        answer = client.post(path, json=body, headers=bearer())
        assert answer.status_code == 400
        assert "say why" in message(answer)
    assert ledger.new_commands() == []


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"[]", {"content-type": "application/json"}, 400),
        (b"{", {"content-type": "application/json"}, 400),
        (b'{"other": 1}', {"content-type": "application/json"}, 400),
        (b'{"reason": 1}', {"content-type": "application/json"}, 400),
        (b'{"reason": "\\ud800"}', {"content-type": "application/json"}, 400),
        (b'{"reason": "' + b"x" * 301 + b'"}', {"content-type": "application/json"}, 400),
        (b'{"reason": "r"}', {"content-type": "text/plain"}, 415),
        (b'{"reason": "r"}', {}, 415),
        (b" " * 5000, {"content-type": "application/json"}, 413),
        (b"{}", {"idempotency-key": "short"}, 400),
        (b"{}", {"idempotency-key": "with a space in it"}, 400),
    ],
)
def test_wrong_calls_are_refused(
    client: TestClient, ledger: Ledger, body: bytes, headers: dict[str, str], status: int
) -> None:
    answer = client.post("/api/rollouts/u2-1/pause", content=body, headers={**bearer(), **headers})
    assert answer.status_code == status, answer.text
    assert ledger.new_commands() == []


@pytest.mark.parametrize(
    "path",
    [
        *("/api/rollouts/u2-1/explode", "/api/rollouts/u2/abort", "/api/rollouts/none/abort"),
        *("/api/updates/u/approve", "/api/updates/u2/cancel"),
    ],
)
def test_what_is_not_there(client: TestClient, path: str) -> None:
    answer = client.post(path, json={"reason": "r"}, headers=bearer())
    assert answer.status_code == 404


# ------------------------------------------------------------------------------------ once


def test_a_key_asks_once(client: TestClient, ledger: Ledger) -> None:
    headers = bearer(idempotency_key="0123456789")
    body = {"reason": "six fingers"}
    first = client.post("/api/rollouts/u2-1/abort", json=body, headers=headers)
    again = client.post("/api/rollouts/u2-1/abort", json=body, headers=headers)
    assert again.json() == first.json()
    with ledger.begin() as tx:  # it was carried out, and would be refused now
        tx.take_command(first.json()["command"], 1.0, {"ok": True, "text": "done"})
    change(ledger, status=RolloutStatus.ROLLED_BACK, ended_at=1.0)
    late = client.post("/api/rollouts/u2-1/abort", json=body, headers=headers)
    assert (late.status_code, late.json()) == (202, first.json())
    other = client.post("/api/rollouts/u2-1/abort", json={"reason": "else"}, headers=headers)
    assert other.status_code == 409
    assert "key was for" in message(other)
    new = client.post(
        "/api/rollouts/u2-1/abort", json=body, headers=bearer(idempotency_key="another-one")
    )
    assert new.status_code == 409
    assert "has ended: rolled_back" in message(new)


def test_the_same_while_it_waits_is_asked_once(client: TestClient, ledger: Ledger) -> None:
    def ask() -> Any:
        return client.post("/api/rollouts/u2-1/pause", headers=bearer())

    assert ask().json() == ask().json()
    (command,) = ledger.new_commands()
    with ledger.begin() as tx:
        tx.take_command(command.command_id, 1.0, {"ok": True, "text": "paused"})
    assert ask().json() != {"command": command.command_id}


# ------------------------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    ("path", "changes", "words"),
    [
        ("rollouts/u2-1/promote", {}, "promote refused: lacking slow (undecided)"),
        ("rollouts/u2-1/approve", {}, "approve refused: it does not wait for an approval"),
        ("rollouts/u2-1/resume", {}, "not paused"),
        ("rollouts/u2-1/pause", {"status": RolloutStatus.PAUSED}, "paused already"),
        ("rollouts/u2-1/skip", {"status": RolloutStatus.PAUSED}, "paused: resume first"),
        ("rollouts/u2-1/skip", {"stuck_since": 1.0}, "the gateway does not follow"),
        ("rollouts/u2-1/retry", {}, "is still running"),
        ("rollouts/u2-1/abort", {"status": RolloutStatus.PROMOTED}, "has ended: promoted"),
        ("updates/u2/approve", {}, "not waiting for approval but in rollout"),
        ("updates/u1/reject", {}, "has ended: promoted"),
        ("unfreeze", {}, "not frozen"),
    ],
)
def test_refusals_are_in_the_machines_words(
    client: TestClient, ledger: Ledger, path: str, changes: dict[str, Any], words: str
) -> None:
    change(ledger, **changes)
    answer = client.post(f"/api/{path}", json={"reason": "r"}, headers=bearer())
    assert answer.status_code == 409
    assert words in message(answer)
    assert ledger.new_commands() == []


def test_an_abort_is_not_undone_by_what_comes_after(client: TestClient, ledger: Ledger) -> None:
    with ledger.begin() as tx:
        tx.set("rollout:u2-1", {"command": "abort", "actor": "bob", "reason": "", "at": 1.0})
    answer = client.post("/api/rollouts/u2-1/pause", headers=bearer())
    assert answer.status_code == 409
    assert "being aborted by bob" in message(answer)


def test_what_is_proven_may_be_promoted_and_not_while_frozen(
    client: TestClient, ledger: Ledger
) -> None:
    proven(ledger)
    with ledger.begin() as tx:
        tx.set("frozen", True)
    frozen = client.post("/api/rollouts/u2-1/promote", json={"reason": "r"}, headers=bearer())
    assert frozen.status_code == 409
    assert "frozen" in message(frozen)
    with ledger.begin() as tx:
        tx.set("frozen", False)
    promote = client.post("/api/rollouts/u2-1/promote", json={"reason": "r"}, headers=bearer())
    # The fixture has one metric more than the guardrails; it does not count.
    assert promote.status_code == 202, promote.text


def test_an_update_that_waits_is_approved_once(client: TestClient, ledger: Ledger) -> None:
    update = ledger.get(Update, "u2")
    with ledger.begin() as tx:
        tx.update(replace(update, phase=Phase.APPROVE, rollout_id=None))
    sign_in(client)
    assert "users meet it step by step" in client.get("/rollouts").text
    answer = client.post("/api/updates/u2/approve", json={"reason": "fine"}, headers=bearer())
    assert answer.status_code == 202
    (command,) = ledger.new_commands()
    assert command.arguments == {"update": "u2", "reason": "fine"}
    with ledger.begin() as tx:
        tx.set("approval:u2", {"approved": True, "actor": "bob", "reason": ""})
    second = client.post("/api/updates/u2/reject", json={}, headers=bearer())
    assert second.status_code == 409
    assert "bob has given a word" in message(second)


def test_without_a_controller_nobody_carries_it_out(
    client: TestClient, ledger: Ledger, workspace: Workspace
) -> None:
    (workspace.run / "controller.json").unlink()
    answer = client.post("/api/rollouts/u2-1/abort", json={"reason": "r"}, headers=bearer())
    assert answer.status_code == 503
    assert "intonaco rollback" in message(answer)
    assert ledger.new_commands() == []


def test_rollback_to_a_release(client: TestClient, ledger: Ledger) -> None:
    change(ledger, status=RolloutStatus.ROLLED_BACK, ended_at=1.0)
    with ledger.begin() as tx:
        tx.update(replace(ledger.get(Update, "u2"), phase=Phase.ROLLED_BACK))
    never = client.post("/api/rollback", json={"reason": "r", "to": "b2" * 32}, headers=bearer())
    assert never.status_code == 409
    assert "was never champion" in message(never)
    unknown = client.post("/api/rollback", json={"reason": "r", "to": "ffff"}, headers=bearer())
    assert unknown.status_code == 404
    wrong = client.post("/api/rollback", json={"reason": "r", "to": 1}, headers=bearer())
    assert wrong.status_code == 400
    none = client.post("/api/rollback", json={"reason": "r"}, headers=bearer())
    assert none.status_code == 409
    assert "no earlier champion" in message(none)
    with ledger.begin() as tx:
        tx.crown("b2" * 32, 2.0, "promoted")
    back = client.post("/api/rollback", json={"reason": "r", "to": "a1" * 32}, headers=bearer())
    assert back.status_code == 202


# ------------------------------------------------------------------------------------ pages


def sign_in(client: TestClient, role: str = "operator") -> None:
    answer = client.post("/api/session", json={"token": role})
    assert answer.status_code == 200
    assert answer.json() == {"name": f"the-{role}", "role": role}
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie


def test_signing_in_and_out(client: TestClient) -> None:
    assert client.get("/api/session").status_code == 401
    assert client.post("/api/session", json={"token": "nobody"}).status_code == 401
    assert client.post("/api/session", json={"token": 1}).status_code == 400
    form = client.post("/api/session", content=b'{"token": "operator"}')
    assert form.status_code == 415
    sign_in(client)
    assert client.get("/api/session").json()["role"] == "operator"
    assert client.delete("/api/session").status_code == 204
    assert COOKIE not in client.cookies
    assert client.get("/api/session").status_code == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1.evil.example"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "same-origin"}, 202),
        (ORIGIN, 202),
    ],
)
def test_a_cookie_counts_for_our_own_pages_alone(
    client: TestClient, ledger: Ledger, headers: dict[str, str], status: int
) -> None:
    sign_in(client)
    answer = client.post("/api/rollouts/u2-1/abort", json={"reason": "r"}, headers=headers)
    assert answer.status_code == status
    assert len(ledger.new_commands()) == (status == 202)


def test_buttons_are_for_operators_and_say_what_will_happen(client: TestClient) -> None:
    for path in ("/rollouts", "/rollouts/u2-1", "/partials/rollouts/u2-1"):
        assert "data-ask" not in client.get(path).text
    sign_in(client, "viewer")
    page = client.get("/rollouts").text
    assert "data-ask" not in page
    assert "steering needs the role operator" in page
    sign_in(client)
    page = client.get("/rollouts/u2-1").text
    assert 'data-ask="/api/rollouts/u2-1/abort"' in page
    assert "All users go back to a1a1a1a1a1, which stays champion." in page
    assert "(not now)" in page  # promote, as slow is undecided
    assert 'data-ask="/api/freeze"' not in page
    assert 'data-ask="/api/freeze"' in client.get("/rollouts").text
    assert client.get("/static/steer.js").status_code == 200
    assert client.get("/rollouts/u2").status_code == 404  # no beginnings of ids


def test_the_page_says_what_is_waited_for_and_until_when(
    client: TestClient, ledger: Ledger
) -> None:
    change(ledger, max_seconds=3600.0)
    page = client.get("/rollouts/u2-1").text
    for words in (
        "25 % of users get b2b2b2b2b2, the others a1a1a1a1a1",
        "200 users of the challenger to be judged (61 so far)",
        "it ends inconclusive and all users go back, unless every guardrail is proven",
        "Not shown yet: it may be worse by 6.1%, and the margin is 5.0%",
        "Shown to be better, by 0.030 at least",
        "no data is no proof",
        'class="course"',
        'class="proof-line"',
    ):
        assert words in page, words


def test_the_same_as_json(client: TestClient) -> None:
    card = client.get("/api/rollouts/u2-1").json()
    assert [a["command"] for a in card["acts"]] == ["pause", "skip", "promote", "abort"]
    promote = card["acts"][2]
    lacks = "slow (undecided), nothing_yet (no data)"
    assert promote["refused"] == f"promote refused: lacking {lacks}"
    assert promote["wants_reason"]
    assert card["course"] == [
        {"at": card["started_at"], "shares": {"champion": 1.0}, "shadow": 0.2},
        {
            "at": card["step_since"],
            "shares": {"champion": 0.5, "challenger": 0.25, "baseline": 0.25},
            "shadow": 0.0,
        },
    ]
    assert [r["id"] for r in client.get("/api/rollouts").json()] == ["u2-1"]


# ------------------------------------------------------------------------------------ words


def a_rollout(ledger: Ledger, step: RolloutStep, **more: Any) -> Rollout:
    now = 1_700_000_500.0
    result = StepResult(kind=step.kind, weight=step.weight, entered_at=now)
    given = {"steps": (step, RolloutStep(kind=StepKind.PROMOTE)), "history": (result,), "step": 0}
    return replace(ledger.get(Rollout, "u2-1"), **{**given, "step_since": now, **more})


def test_deadlines_are_told_next_first(ledger: Ledger) -> None:
    approve = RolloutStep(kind=StepKind.APPROVE, deadline_s=60.0)
    rollout = a_rollout(ledger, approve, max_seconds=3600.0, stuck_since=1e9, stuck_seconds=600.0)
    told = deadlines(rollout)
    assert [d["at"] for d in told] == sorted(d["at"] for d in told)
    assert [str(d["text"]).split(",")[0] for d in told] == [
        "it is rolled back",
        "it ends inconclusive",
        "it ends inconclusive and all users go back",
    ]
    assert len(deadlines(replace(rollout, status=RolloutStatus.PAUSED))) == 1  # stuck still counts
    assert deadlines(replace(rollout, status=RolloutStatus.PROMOTED)) == []


@pytest.mark.parametrize(
    ("step", "changes", "shown"),
    [
        (RolloutStep(kind=StepKind.APPROVE), {}, ["approve", "pause", "promote", "abort"]),
        (
            RolloutStep(kind=StepKind.PAUSE, min_seconds=None),
            {},
            ["resume", "pause", "skip", "promote", "abort"],
        ),
        (
            RolloutStep(kind=StepKind.CANARY, weight=0.1),
            {"status": RolloutStatus.PAUSED},
            ["resume", "skip", "promote", "abort"],
        ),
        (
            RolloutStep(kind=StepKind.BAKE, min_seconds=10.0),
            {"promoted_at": 1.0},
            ["pause", "skip", "abort"],
        ),
        (RolloutStep(kind=StepKind.PROMOTE), {"status": RolloutStatus.PROMOTED}, []),
    ],
)
def test_only_what_makes_sense_is_offered(
    ledger: Ledger, step: RolloutStep, changes: dict[str, Any], shown: list[str]
) -> None:
    rollout = a_rollout(ledger, step, **changes)
    acts = steering.of_rollout(ledger, rollout, 1_700_000_600.0)
    assert [a.command for a in acts] == shown
    assert all(a.consequence for a in acts)


def test_a_champion_that_bakes_goes_back_in_words(ledger: Ledger) -> None:
    rollout = a_rollout(ledger, RolloutStep(kind=StepKind.BAKE), promoted_at=1.0)
    act = steering.rollout_act(ledger, rollout, "abort", 1_700_000_600.0)
    assert "a1a1a1a1a1, which becomes champion again" in act.consequence
    alone = replace(rollout, champion=None)
    refused = steering.rollout_act(ledger, alone, "abort", 1_700_000_600.0)
    assert "nothing to go back to" in refused.refused


def test_the_course_ends_with_the_rollout(ledger: Ledger) -> None:
    rollout = ledger.get(Rollout, "u2-1")
    tables = ledger.routing_history()
    ended = replace(rollout, ended_at=rollout.started_at + 30)
    assert len(course(ended, tables, 2e9)) == 1
    assert course(rollout, [], 2e9) == []
    assert [e["kind"] for e in rollout_card(ledger, rollout, 2e9)["events"]] == ["rollout.step"]


@pytest.mark.parametrize(
    ("metric", "interval", "assessment", "words"),
    [
        ("errors", (-0.02, -0.001), "non_inferior", "no worse; the margin would be 1.0%"),
        ("errors", (-0.02, 0.004), "non_inferior", "no worse than by 0.4%; the margin is 1.0%"),
        ("errors", (-0.02, -0.012), "superior", "shown to be better, by 1.2% at least"),
        ("errors", (0.012, 0.02), "harmful", "shown to be worse, by 1.2% at least"),
        ("errors", (-0.01, 0.02), "undecided", "not shown yet: it may be worse by 2.0%"),
        ("clip_score", (-0.004, 0.02), "non_inferior", "no worse than by 0.004"),
        ("clip_score", (-0.05, -0.03), "harmful", "shown to be worse, by 0.030 at least"),
        ("clip_score", (-0.05, 0.03), "undecided", "it may be worse by 0.050"),
        ("errors", (-0.01, -0.001), "undecided", "not shown yet, though it looks no worse"),
        ("errors", (-0.01, 0.02), "no_data", "for want of data: it may be worse by 2.0%"),
        ("errors", None, "undecided", "not shown yet: the difference is +0.0% as yet"),
    ],
)
def test_how_far_a_proof_is(
    ledger: Ledger,
    metric: str,
    interval: tuple[float, float] | None,
    assessment: str,
    words: str,
) -> None:
    some = ledger.get(Rollout, "u2-1").assessments[0]
    a = replace(
        some, metric=metric, interval=interval, assessment=Assessment(assessment), margin=0.01
    )
    assert words in stands(a)
    assert "no data is no proof" in stands(replace(a, interval=None, difference=None))


def test_pictures_turn_scores_round_and_hold_at_odd_values(tmp_path: Path) -> None:
    fact = {"metric": "clip_score", "assessment": "superior", "margin": 0.02}
    better = svg_rollout.proof_line({**fact, "interval": [0.03, 0.11], "difference": 0.07})
    circle = float(better.split('cx="')[1].split('"')[0])
    assert circle < 300  # better is on the left
    assert svg_rollout.proof_line({**fact, "interval": None, "difference": None}) == ""
    assert svg_rollout.proof_line({**fact, "interval": [None, 0.1], "difference": None}) == ""
    assert "nan" not in svg_rollout.proof_line(
        {**fact, "interval": [-1e9, 1e9], "difference": 0.0, "metric": "<x>"}
    )
    assert "No routing table" in svg_rollout.weights_course([], 1.0)
    one = [{"at": 5.0, "shares": {"champion": 1.0}, "shadow": 0.0}]
    assert "<svg" in svg_rollout.weights_course(one, 5.0)
