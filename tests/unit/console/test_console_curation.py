"""What is proposed as training data, in the console: what it shows, who may say what."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from intonaco import config as configuration
from intonaco.clock import FakeClock
from intonaco.codec import as_json
from intonaco.config import Config
from intonaco.console import create_app
from intonaco.datasets import proposals
from intonaco.ledger import Ledger
from intonaco.types import Phase, Update
from intonaco.workspace import Workspace

HOSTILE = "<script>alert(1)</script>"
WORD = "/api/curation/u2/word"
MAY, LOOKS, CALLS = ({"authorization": f"Bearer {token}"} for token in ("may", "looks", "calls"))


def settings(show_prompts: bool = True) -> Config:
    people = "".join(
        f"    - {{name: {name}, role: {role}, sha256: {hashlib.sha256(token).hexdigest()}}}\n"
        for name, role, token in (
            ("ann", "curate", b"may"),
            ("bo", "viewer", b"looks"),
            ("ci", "trigger", b"calls"),
        )
    )
    return configuration.parse(
        f"service: digits\nconsole:\n  people:\n{people}"
        f"monitoring: {{show_prompts: {str(show_prompts).lower()}}}\n"
        "data: {curation: {enabled: true, consents: consents.jsonl}}\n"
    )


@pytest.fixture
def client(ledger: Ledger, workspace: Workspace, now: float) -> Callable[..., TestClient]:
    def build(**how: Any) -> TestClient:
        app = create_app(ledger, workspace, settings(**how), clock=FakeClock(now))
        return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)

    return build


@pytest.fixture
def waiting(ledger: Ledger) -> None:
    """The update of the proposal is in its first phase."""
    update = replace(ledger.get(Update, "u2"), phase=Phase.DATASET, rollout_id=None)
    with ledger.begin() as tx:
        tx.update(update)


def test_the_page_shows_each_item_with_its_origin(
    client: Callable[..., TestClient], waiting: None
) -> None:
    page = client().get("/curation/u2").text
    for told in (
        *("3 images of live traffic", "waits for you", "Of 40 that were served", "5 left out"),
        *("no consent", "a handwritten seven", "reviewers", "voted up", "moved topic"),
        *("req-1", 'href="/findings/f1"', "a1a1a1a1a1", "consent given", "score 0.80"),
        *("at most 20 % of the dataset", "Approve this set", 'src="/static/curate.js"'),
    ):
        assert told in page, told
    assert HOSTILE not in page
    assert "&lt;script&gt;" in page
    assert "built-in" not in page
    listed = client().get("/curation").text
    assert 'href="/curation/u2"' in listed
    assert "waits for you" in listed
    assert "built-in" not in listed


def test_prompts_that_are_not_shown_are_nowhere(
    client: Callable[..., TestClient], waiting: None
) -> None:
    hidden = client(show_prompts=False)
    for path in ("/curation/u2", "/curation", "/api/curation/u2", "/api/curation"):
        text = hidden.get(path).text
        assert "handwritten" not in text
        assert "alert" not in text
    assert "prompts are not shown" in hidden.get("/curation/u2").text
    assert {i["prompt"] for i in hidden.get("/api/curation/u2").json()["items"]} == {None}


def test_pictures_are_those_of_proposals_and_no_others(
    client: Callable[..., TestClient], workspace: Workspace
) -> None:
    opened = client()
    (first, *_) = opened.get("/api/curation/u2").json()["items"]
    answer = opened.get(first["picture"])
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert answer.content.startswith(b"\x89PNG")
    (workspace.root / "secret.png").write_bytes(answer.content)
    for path in (
        *("u2/proposal.json", "../../secret.png", "..%2f..%2fsecret.png", "u2/thumbs", "%00"),
        *("u2/thumbs/gone.png", "a" * 9000),
    ):
        assert opened.get(f"/proposed/{path}").status_code == 404


def test_a_word_is_written_down_with_who_said_it(
    client: Callable[..., TestClient], waiting: None, ledger: Ledger
) -> None:
    opened = client()
    ids = [i["id"] for i in opened.get("/api/curation/u2").json()["items"]]
    body = {"approve": True, "drop": ids[1:], "reason": "two are blurred"}
    answer = opened.post(WORD, json=body, headers=MAY)
    assert answer.status_code == 202
    (command,) = ledger.new_commands()
    assert answer.json() == {"command": command.command_id}
    assert (command.kind, command.actor) == ("curation.approve", "ann")
    assert command.arguments == {"update": "u2", "drop": ids[1:], "reason": "two are blurred"}
    assert opened.post(WORD, json={"approve": False}, headers=MAY).status_code == 202
    assert ledger.new_commands()[-1].kind == "curation.reject"


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({}, b'{"approve": true}', 401),
        ({"authorization": "Bearer wrong"}, b'{"approve": true}', 401),
        (LOOKS, b'{"approve": true}', 403),
        (CALLS, b'{"approve": true}', 403),
        (MAY, b"", 400),
        (MAY, b"[]", 400),
        (MAY, b"{", 400),
        (MAY, b'{"approve": 1}', 400),
        (MAY, b'{"approve": true, "drop": "all"}', 400),
        (MAY, b'{"approve": true, "drop": [1]}', 400),
        (MAY, b'{"approve": true, "drop": ["strange"]}', 400),
        (MAY, b'{"approve": true, "more": 1}', 400),
        (MAY, b'{"approve": true, "reason": 3}', 400),
        (MAY, b'{"approve": true, "reason": "' + b"x" * 400 + b'"}', 400),
        (MAY, b'{"approve": true, "reason": "\\ud800"}', 400),
        (MAY, b" " * 200_000, 413),
    ],
)
def test_what_is_refused_is_not_written(
    client: Callable[..., TestClient],
    waiting: None,
    ledger: Ledger,
    headers: dict[str, str],
    body: bytes,
    status: int,
) -> None:
    answer = client().post(WORD, content=body, headers=headers)
    assert answer.status_code == status
    assert "error" in answer.json()
    assert ledger.new_commands() == []


def test_only_what_waits_takes_a_word(
    client: Callable[..., TestClient], ledger: Ledger, workspace: Workspace, now: float
) -> None:
    opened = client()
    assert opened.post(WORD, json={"approve": True}, headers=MAY).status_code == 409  # in rollout
    answer = opened.post("/api/curation/gone/word", json={"approve": True}, headers=MAY)
    assert answer.status_code == 404
    update = replace(ledger.get(Update, "u2"), phase=Phase.DATASET)
    word = proposals.Word(approved=True, actor="bo", at=now, dropped=("0" * 12,))
    with ledger.begin() as tx:
        tx.update(update)
        tx.set(proposals.setting("u2"), as_json(word))
    assert opened.post(WORD, json={"approve": True}, headers=MAY).status_code == 409
    card = opened.get("/api/curation/u2").json()
    assert (card["waits"], card["word"]["actor"]) == (False, "bo")
    assert [i["kept"] for i in card["items"]] == [False, True, True]
    page = opened.get("/curation/u2").text
    assert "Approved by <b>bo</b>" in page
    assert "Approve this set" not in page


def test_a_service_that_does_not_curate_says_so(
    ledger: Ledger, workspace: Workspace, config: Config
) -> None:
    proposals.forget(workspace, set())
    with TestClient(create_app(ledger, workspace, config), base_url="http://127.0.0.1") as opened:
        assert "data.curation is off" in opened.get("/curation").text
        assert opened.get("/curation/u2").status_code == 404
        assert opened.get("/api/curation/u2").json()["error"]["code"] == "not_found"
