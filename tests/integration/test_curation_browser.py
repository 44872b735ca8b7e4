"""A person looks through proposed images with mouse and keys, in a real browser."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from PIL import Image
from tests.browser import CHROMIUM, Browser

from intonaco import config as configuration
from intonaco import loop
from intonaco.clock import FakeClock
from intonaco.console import create_app
from intonaco.console.main import listen, settings
from intonaco.datasets import proposals
from intonaco.datasets.proposing import Choice, Proposed
from intonaco.ledger import Ledger
from intonaco.types import Action, Cause, Plan
from intonaco.workspace import Workspace

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="not verified: there is no Chromium")

ITEMS = 9
CONFIG = f"""
service: svc
console: {{people: [{{name: ann, role: curate, sha256: {hashlib.sha256(b"may").hexdigest()}}}]}}
data: {{curation: {{enabled: true, consents: consents.jsonl}}}}
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path / "workspace")
    workspace.images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for n in range(ITEMS):
        pixels = rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 64)).save(workspace.images / f"{n}.png")
    return workspace


@pytest.fixture
def ledger(workspace: Workspace) -> Iterator[Ledger]:
    opened = Ledger.open(workspace.ledger, "svc")
    yield opened
    opened.close()


@pytest.fixture
def url(workspace: Workspace, ledger: Ledger) -> Iterator[str]:
    plan = Plan(
        plan_id="p",
        service_id="svc",
        at=0.0,
        action=Action.FINE_TUNE,
        cause=Cause.CONCEPT_DRIFT,
        reason="r",
        recipes=("tune",),
    )
    update = loop.start(plan, "a" * 64, 0.0)
    with ledger.begin() as tx:
        tx.update(update)
    items = tuple(
        Proposed(
            item_id=f"{n:012x}",
            image=f"images/{n}.png",
            prompt=f"<b>prompt</b> {n}",
            source="feedback",
        )
        for n in range(ITEMS)
    )
    proposals.make(workspace, update.update_id, Choice(items=items, considered=50), 0.0, 2**20)
    app = create_app(ledger, workspace, configuration.parse(CONFIG), clock=FakeClock(60.0))
    with listen("127.0.0.1", 0) as socket:
        server = uvicorn.Server(settings(app))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
        thread.start()
        yield f"http://127.0.0.1:{socket.getsockname()[1]}/curation/{update.update_id}"
        server.should_exit = True
        thread.join(30.0)
        assert not thread.is_alive()


def dropped(browser: Browser) -> list[int]:
    found = browser.run(
        "[...document.querySelectorAll('.proposed .dropped')]"
        ".map((e) => parseInt(e.dataset.id, 16))"
    )
    return [int(n) for n in found]


SAID = """new Promise((done) => {
  const said = document.querySelector(".word .said");
  const look = () => said.textContent && said.textContent !== "…" && done(said.textContent);
  new MutationObserver(look).observe(said, {childList: true, characterData: true, subtree: true});
  look();
})"""


def test_items_are_dropped_by_click_and_key_and_the_word_is_given(
    url: str, ledger: Ledger, tmp_path: Path
) -> None:
    with Browser(tmp_path / "profile") as browser:
        browser.open(url)
        assert browser.run("document.querySelector('.count').textContent") == "9 of 9 are kept."
        arrived = "[...document.images].slice(1).every((i) => i.naturalWidth === 64)"
        end = time.monotonic() + 60
        while not browser.run(arrived):  # the page is there before its pictures
            assert time.monotonic() < end
            time.sleep(0.05)
        assert browser.run("document.querySelector('main b b')") is None
        browser.click("#item-000000000002 img")
        assert dropped(browser) == [2]
        browser.press(
            "ArrowRight", "d", "ArrowRight", " ", "ArrowLeft", "ArrowLeft", "ArrowLeft", "k"
        )
        assert dropped(browser) == [3, 5]
        browser.open(url)  # marks outlive the page
        assert dropped(browser) == [3, 5]
        assert browser.run("document.querySelector('.count').textContent") == "7 of 9 are kept."
        browser.press("u")
        assert browser.run(
            "[...document.querySelectorAll('.proposed li')].filter((e) => e.offsetParent).length"
        ) == len(dropped(browser))
        browser.press("u")
        browser.click(".approve")
        assert "bearer token" in browser.run(SAID)
        assert ledger.new_commands() == []
        browser.click(".token")
        browser.press("m", "a", "y")  # keys that are typed into the field mark nothing
        assert dropped(browser) == [3, 5]
        browser.run("document.querySelector('.word .said').textContent = ''")
        browser.click(".approve")
        assert "written down" in browser.run(SAID)
        assert browser.run("localStorage.length") == 0
    (command,) = ledger.new_commands()
    assert (command.kind, command.actor) == ("curation.approve", "ann")
    assert command.arguments["drop"] == [f"{n:012x}" for n in (3, 5)]
