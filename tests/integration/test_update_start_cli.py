"""``intonaco update start`` with a recipe, from the keyboard to the release that it trains."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from tests import fixtures_tiny
from tests.fixtures_training import write_pictures
from typer.testing import CliRunner

from intonaco import commands
from intonaco.app import open_app
from intonaco.cli.main import app
from intonaco.errors import BackendError, ConfigError, Conflict, IntonacoError
from intonaco.jobs import job_folder
from intonaco.types import Action, Phase, Update
from intonaco.workspace import Workspace

SHORT: dict[str, Any] = {"method": "full", "steps": 4, "batch_size": 2, "estimated_seconds": 600}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A workspace without a champion, whose recipes start from a folder."""
    root = tmp_path / "workspace"
    write_pictures(root / "data")
    (root / "held").mkdir()
    Image.new("RGB", (32, 32), (9, 99, 199)).save(root / "held" / "0.png")
    fixtures_tiny.save(root / "base")
    short = {**SHORT, "init": "base"}
    config = {
        "service": "sample",
        "tracker": {"type": "none"},
        "registry": {"type": "none"},
        "data": {"train": "data", "reference": "held"},
        "extractor": {"type": "clip", "path": "nowhere", "digest": "0" * 64},
        "evaluation": {"prompts": "prompts.jsonl"},
        "decision": {
            "fine_tune": [],
            "full_retrain": ["short"],
            "budget": {"amount": 100, "hourly_price": 6.0},
        },
        "training": {"recipes": {"short": short, "dear": {**short, "estimated_seconds": 1e6}}},
    }
    (root / "intonaco.yaml").write_text(yaml.safe_dump(config))
    (root / "prompts.jsonl").write_text('{"prompt_id": "0", "prompt": "a two", "slice": "two"}\n')
    return root


@pytest.fixture
def controller(root: Path) -> Iterator[None]:
    """Ticks in a thread, with its own connection to the ledger."""
    stop = threading.Event()
    ready = threading.Event()

    def run() -> None:
        opened = open_app(root)
        ticking = opened.controller()
        opened.workspace.announce("controller")
        ready.set()
        ticking.run(stop, seconds=0.1)

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(60)
    yield
    stop.set()
    thread.join(60)
    assert not thread.is_alive()


def ask(root: Path, *arguments: str) -> str:
    done = CliRunner().invoke(app, ["update", "start", "-w", str(root), *arguments])
    if isinstance(done.exception, IntonacoError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def until(look: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + 180
    while not (seen := look()):
        assert time.monotonic() < end, what
        time.sleep(0.05)
    return seen


def test_without_a_controller_nothing_is_begun(root: Path) -> None:
    with pytest.raises(BackendError, match="no controller runs"):
        ask(root, "--recipe", "short")


@pytest.mark.usefixtures("controller")
def test_an_update_by_hand_trains_what_was_asked_for(root: Path) -> None:
    for options, kind, text in (
        (["--recipe", "none"], Conflict, "training.recipes has: dear, short"),
        (["--recipe", "dear"], Conflict, "it is estimated at"),
        (["--recipe", "short", "--steps", "3"], ConfigError, "give one kind"),
        (["--full", "--scheduler", "DDIMScheduler"], ConfigError, "give one kind"),
        (["--full", "--name", "x"], ConfigError, "--name"),
    ):
        with pytest.raises(kind, match=text):
            ask(root, *options)
    opened = open_app(root)
    for arguments, text in (
        ({"action": "fine_tune"}, "decision.fine_tune is empty"),
        ({"action": "assemble", "recipes": ["short"]}, "trains nothing"),
    ):
        number = commands.submit(opened.ledger, time.time(), "update.start", "me", arguments)
        said = until(partial(opened.ledger.command_outcome, number), "it is answered")
        assert not said["ok"]
        assert text in said["text"]
    assert opened.ledger.all(Update) == []

    said = json.loads(
        ask(root, "--recipe", "short", "--recipe", "short", "--reason", "by hand", "--json")
    )
    assert said["ok"]
    with pytest.raises(Conflict, match="is running"):
        ask(root, "--full")
    (update,) = opened.ledger.all(Update)
    assert update.update_id in said["text"]
    assert update.plan.recipes == ("short",), "one candidate, however often it was named"
    assert (update.plan.action, update.plan.reason) == (Action.FULL_RETRAIN, "by hand")
    ((settled, reserved),) = [(s.settled, s.amount) for s in opened.ledger.spending()]
    assert not settled
    assert reserved >= 1.0, "600 s at 6 an hour, and the evaluation"

    (release,) = until(opened.parts().releases.list, "it is trained")
    assert release.provenance.recipe == "short"
    assert release.provenance.update_id == update.update_id
    assert release.provenance.note == "by hand"
    folder = job_folder(Workspace(root), str(release.provenance.training_job))
    spec = json.loads((folder / "spec.json").read_text())
    assert spec["payload"]["recipe"]["steps"] == 4
    assert spec["payload"]["max_money"] <= 100
    # There is no extractor to prove it with, which fails the update and keeps the release.
    ended = until(
        lambda: next((u for u in opened.ledger.all(Update) if u.phase.final), None), "it ends"
    )
    assert ended.phase is Phase.FAILED
    assert "not evaluated" in ended.reason
    assert [s.settled for s in opened.ledger.spending()] == [True]


def test_what_cannot_be_evaluated_is_not_trained(root: Path, controller: None) -> None:
    (root / "prompts.jsonl").unlink()
    opened = open_app(root)
    ask(root, "--recipe", "short", "--reason", "by hand")
    ended = until(
        lambda: next((u for u in opened.ledger.all(Update) if u.phase.final), None), "it ends"
    )
    assert ended.phase is Phase.FAILED
    assert "prompts.jsonl" in ended.reason
    assert opened.parts().releases.list() == []
    assert not list(Workspace(root).jobs.glob("*"))
