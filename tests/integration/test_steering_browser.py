"""A person signs in and aborts a rollout, in a real browser: no single click does anything."""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvicorn
from tests.browser import CHROMIUM, Browser
from tests.unit.console.conftest import fill

from intonaco import config as configuration
from intonaco.clock import FakeClock
from intonaco.console import create_app
from intonaco.console.main import listen, settings
from intonaco.ledger import Ledger
from intonaco.workspace import Workspace

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="not verified: there is no Chromium")

CONFIG = f"""
service: digits
console: {{people: [{{name: ann, role: operator, sha256: {hashlib.sha256(b"op").hexdigest()}}}]}}
"""


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    workspace = Workspace(tmp_path / "workspace")
    workspace.root.mkdir()
    opened = Ledger.open(workspace.ledger, "digits")
    fill(opened, workspace)
    yield opened
    opened.close()
    shutil.rmtree(workspace.root)


@pytest.fixture
def url(ledger: Ledger, tmp_path: Path) -> Iterator[str]:
    workspace = Workspace(tmp_path / "workspace")
    clock = FakeClock(1_700_000_600.0)
    app = create_app(ledger, workspace, configuration.parse(CONFIG), clock=clock)
    with listen("127.0.0.1", 0) as socket:
        server = uvicorn.Server(settings(app))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
        thread.start()
        yield f"http://127.0.0.1:{socket.getsockname()[1]}/rollouts/u2-1"
        server.should_exit = True
        thread.join(30.0)
        assert not thread.is_alive()


def until(done: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)  # the page is being changed


def test_an_abort_is_confirmed_with_a_reason(url: str, ledger: Ledger, tmp_path: Path) -> None:
    with Browser(tmp_path / "profile") as browser:
        browser.open(url)
        assert browser.run("document.querySelectorAll('[data-ask]').length") == 0
        browser.click(".who summary")
        browser.click(".who input")
        browser.press("o", "p")
        browser.click(".who form button")
        until(lambda: browser.run("!!document.querySelector('.do-abort')"))

        browser.click(".acts .do-abort")
        assert browser.run("document.querySelector('#ask').open")
        said = browser.run("document.querySelector('#ask').innerText")
        assert "All users go back to a1a1a1a1a1, which stays champion." in said
        browser.click("#ask .do-abort")  # without a reason
        assert ledger.new_commands() == []
        browser.press("u", "g", "l", "y")
        browser.click("#ask [data-close]")
        assert not browser.run("document.querySelector('#ask').open")
        assert ledger.new_commands() == []

        browser.click(".acts .do-abort")
        assert browser.run("document.querySelector('#ask [name=reason]').value") == ""
        browser.press("u", "g", "l", "y")
        browser.click("#ask .do-abort")
        until(ledger.new_commands)
        (command,) = ledger.new_commands()
        assert (command.kind, command.actor) == ("rollout.abort", "ann")
        assert command.arguments["reason"] == "ugly"
        with ledger.begin() as tx:
            done = {"ok": True, "text": "abort of rollout u2-1"}
            tx.take_command(command.command_id, 1.0, done)
        told = "document.querySelector('#ask .said').textContent"
        until(lambda: browser.run(told) == "abort of rollout u2-1")

        browser.click("#ask [data-close]")
        browser.click(".who [data-sign-out]")
        until(lambda: browser.run("!!document.querySelector('[data-sign-in]')"))
        assert browser.run("document.querySelectorAll('[data-ask]').length") == 0
