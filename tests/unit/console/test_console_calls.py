"""``POST /api/trigger``: who may call, what is written down, what is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from intonaco import config
from intonaco.config import Person
from intonaco.console import create_app
from intonaco.console.calls import People
from intonaco.errors import ConfigError
from intonaco.ledger import Ledger
from intonaco.workspace import Workspace

SHA = hashlib.sha256(b"secret").hexdigest()
LOOKS = hashlib.sha256(b"looks").hexdigest()


def client(tmp_path: Path, ledger: Ledger, *, webhook: bool = True) -> TestClient:
    parsed = config.parse(
        f"""
service: svc
console:
  people:
    - {{name: ci, role: trigger, sha256: {SHA}}}
    - {{name: ann, sha256: {LOOKS}}}
decision: {{triggers: {{webhook: {str(webhook).lower()}}}}}
"""
    )
    app = create_app(ledger, Workspace(tmp_path), parsed)
    return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.open(tmp_path / "ledger.db", "svc")


def test_a_call_is_written_down_with_who_and_why(tmp_path: Path, ledger: Ledger) -> None:
    answer = client(tmp_path, ledger).post(
        "/api/trigger", json={"reason": "nightly"}, headers={"authorization": "Bearer secret"}
    )
    assert answer.status_code == 202
    (command,) = ledger.new_commands()
    assert answer.json() == {"command": command.command_id}
    assert (command.kind, command.actor) == ("trigger.webhook", "ci")
    assert command.arguments == {"reason": "nightly"}


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({}, b"{}", 401),
        ({"authorization": "Bearer wrong"}, b"{}", 401),
        ({"authorization": "Basic secret"}, b"{}", 401),
        ({"authorization": "Bearer looks"}, b"{}", 403),
        ({"authorization": "Bearer secret"}, b"[]", 400),
        ({"authorization": "Bearer secret"}, b"{", 400),
        ({"authorization": "Bearer secret"}, b'{"reason": 1}', 400),
        ({"authorization": "Bearer secret"}, b'{"other": 1}', 400),
        ({"authorization": "Bearer secret"}, b'{"reason": "' + b"x" * 400 + b'"}', 400),
        ({"authorization": "Bearer secret"}, b" " * 5000, 413),
    ],
)
def test_what_is_refused_is_not_written(
    tmp_path: Path, ledger: Ledger, headers: dict[str, str], body: bytes, status: int
) -> None:
    answer = client(tmp_path, ledger).post("/api/trigger", content=body, headers=headers)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]
    assert ledger.new_commands() == []


def test_a_webhook_that_is_off(tmp_path: Path, ledger: Ledger) -> None:
    answer = client(tmp_path, ledger, webhook=False).post(
        "/api/trigger", headers={"authorization": "Bearer secret"}
    )
    assert answer.status_code == 403
    assert "decision.triggers.webhook" in answer.json()["error"]["message"]


def test_a_token_that_is_not_set_is_found_at_the_start() -> None:
    person = Person(name="ci", token="env:NOT_SET")
    with pytest.raises(ConfigError, match="NOT_SET is not set"):
        People([person], {})
    assert People([person], {"NOT_SET": "x"})
