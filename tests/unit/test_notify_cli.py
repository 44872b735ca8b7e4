"""``notify test`` and ``notify show``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.unit.test_notify_webhook import receiving
from typer.testing import CliRunner

from intonaco.cli.main import app
from intonaco.errors import BackendError, NotFound
from intonaco.ledger import Ledger
from intonaco.workspace import Workspace


def workspace(folder: Path, url: str) -> Workspace:
    (folder / "intonaco.yaml").write_text(
        f"service: svc\nnotify: [{{type: log}}, {{type: webhook, name: on-call, url: '{url}'}}]\n"
    )
    return Workspace(folder)


def run(root: Path, *arguments: str) -> tuple[str, BaseException | None]:
    result = CliRunner().invoke(app, ["notify", *arguments, "--workspace", str(root)])
    return result.output, result.exception


def test_a_test_event_says_what_came_back(tmp_path: Path) -> None:
    with receiving() as server:
        workspace(tmp_path, server.url)
        text, error = run(tmp_path, "test")
        assert error is None
        assert "on-call: answered 204 in" in text
        (_, body), *_ = server.got
        assert json.loads(body)["type"] == "notify.test"
        server.answer = 302
        text, error = run(tmp_path, "test", "--notifier", "on-call", "--json")
        assert isinstance(error, BackendError)
        assert "redirects are not followed" in json.loads(text)["on-call"]["text"]
    text, error = run(tmp_path, "test", "--notifier", "on-call")
    assert isinstance(error, BackendError)
    assert "cannot be reached" in text
    _, error = run(tmp_path, "test", "--notifier", "pager")
    assert isinstance(error, NotFound)
    assert "log, on-call" in str(error)


def test_what_is_in_the_way_is_shown(tmp_path: Path) -> None:
    ledger = Ledger.open(workspace(tmp_path, "http://127.0.0.1:9/").ledger, "svc")
    with ledger.begin() as tx:
        for _ in range(3):
            tx.event(1.0, "champion", "r", "t")
        state = {"tries": 7, "since": 1.0, "error": "the receiver answers 500", "lost": 2}
        tx.commit_consumer("notify:on-call", {"event": 1}, state, 1.0)
    ledger.close()
    text, error = run(tmp_path, "show")
    assert error is None
    assert "failing for" in text
    assert "the receiver answers 500" in text
    assert "no controller has run with it" in text
    rows = json.loads(run(tmp_path, "show", "--json")[0])
    assert [(r["name"], r["behind"], r["lost"]) for r in rows] == [
        ("log", None, 0),
        ("on-call", 2, 2),
    ]


@pytest.mark.parametrize("command", ["test", "show"])
def test_nobody_is_told(tmp_path: Path, command: str) -> None:
    (tmp_path / "intonaco.yaml").write_text("service: svc\nnotify: []\n")
    text, error = run(tmp_path, command, "--json")
    assert isinstance(error, NotFound) if command == "test" else json.loads(text) == []
