"""Whatever a person asks of a rollout, by the command line, the pages or the API, is done by the
controller and is an event with who and why."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from tests.assessed import assessed
from tests.integration.test_loop_in_memory import World
from tests.integration.test_rollouts_in_memory import configure, rollout_of
from typer.testing import CliRunner

from intonaco import config as configuration
from intonaco.app import App
from intonaco.cli import steer
from intonaco.cli.main import app as cli
from intonaco.console import create_app
from intonaco.rollout.analysis import RolloutAnalysis
from intonaco.types import Assessment, Event, Phase

Ask = Callable[[str, str], None]  # a command such as "rollout abort", and why
PEOPLE = [{"name": "ann", "role": "operator", "sha256": hashlib.sha256(b"op").hexdigest()}]
STEPS = [
    {"weight": 0.5, "min_seconds": 1000, "min_units": 0},
    {"kind": "pause", "min_seconds": None},
]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    good = Assessment.NON_INFERIOR
    monkeypatch.setattr(RolloutAnalysis, "assess", lambda a: assessed(a.metrics, good))
    made = World(tmp_path)
    configure(made, steps=STEPS, holdback=0.0)
    made.workspace.announce("controller")
    yield made
    made.close()


@pytest.fixture(params=["cli", "page", "api"])
def ask(
    request: pytest.FixtureRequest, world: World, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Ask]:
    if request.param == "cli":
        opened = App(
            config=world.parts.config,
            workspace=world.workspace,
            ledger=world.ledger,
            clock=world.clock,
        )
        monkeypatch.setattr(steer, "opened", lambda folder: opened)
        monkeypatch.setattr(steer, "actor", lambda: "ann")
        yield lambda what, why: by_cli(world, what, why)
        return
    people = configuration.parse(f"service: svc\nconsole: {{people: {PEOPLE!r}}}\n").console
    config = world.parts.config.model_copy(update={"console": people})
    made = create_app(world.ledger, world.workspace, config, clock=world.clock)
    with TestClient(made, base_url="http://127.0.0.1") as client:
        headers = {"authorization": "Bearer op"}
        if request.param == "page":
            client.post("/api/session", json={"token": "op"})
            headers = {"origin": "http://127.0.0.1"}
        yield lambda what, why: by_http(world, client, headers, what, why)


def by_cli(world: World, what: str, why: str) -> None:
    over = threading.Event()

    def controlled() -> None:
        while not over.is_set():
            if world.ledger.new_commands():
                world.tick(0.0)
            over.wait(0.01)

    thread = threading.Thread(target=controlled)
    thread.start()
    try:
        result = CliRunner().invoke(cli, [*what.split(), "--reason", why])
        assert result.exit_code == 0, (result.output, result.exception)
    finally:
        over.set()
        thread.join(20)


def by_http(world: World, client: TestClient, headers: dict[str, str], what: str, why: str) -> None:
    match what.split():
        case ["rollout", command]:
            path = f"/api/rollouts/{rollout_of(world).rollout_id}/{command}"
        case ["update", command, update]:
            path = f"/api/updates/{update}/{command}"
        case _:
            path = f"/api/{what}"
    answer = client.post(path, json={"reason": why}, headers=headers)
    assert answer.status_code == 202, answer.text
    world.tick(0.0)
    outcome = client.get(f"/api/commands/{answer.json()['command']}").json()["outcome"]
    assert outcome["ok"], outcome


def said(world: World, kind: str, why: str) -> Event:
    """The event that says who and why."""
    found = [e for e in world.ledger.events(newest=True, limit=60) if e.kind == kind]
    assert found, [(e.kind, e.text) for e in world.ledger.events(newest=True, limit=12)]
    assert found[-1].actor == "ann"
    assert why in found[-1].text
    return found[-1]


def in_step(world: World, step: int) -> None:
    rollout = world.ledger.active_rollout
    world.until(lambda: (r := rollout()) is not None and bool(r.history) and r.step == step)
    world.tick()
    world.tick()


def test_every_command_is_an_event_with_who_and_why(world: World, ask: Ask) -> None:
    first = world.first_release()
    world.technique()
    in_step(world, 0)
    ask("freeze", "the database moves")
    said(world, "command.freeze", "the database moves")
    ask("unfreeze", "it has moved")
    said(world, "command.unfreeze", "it has moved")
    ask("rollout pause", "lunch")
    said(world, "command.rollout.pause", "lunch")
    said(world, "rollout.paused", "paused by ann: lunch")
    ask("rollout resume", "fed")
    said(world, "rollout.resumed", "resumed by ann: fed")
    ask("rollout skip", "enough of it")
    said(world, "rollout.step", "skipped by ann: enough of it")
    in_step(world, 1)
    asked = world.ledger.events(kind="rollout.asked")[-1]
    assert "until somebody resumes" in asked.text
    ask("rollout abort", "six fingers")
    said(world, "command.rollout.abort", "six fingers")
    said(world, "rollout.rolled_back", "aborted by ann: six fingers")
    world.until(lambda: world.updates()[-1].phase.final)
    ask("rollout retry", "it was the light")
    said(world, "command.rollout.retry", "it was the light")
    in_step(world, 0)
    ask("rollout promote", "seen enough")
    said(world, "rollout.step", "promoted by ann: seen enough")
    world.until(lambda: world.updates()[-1].phase is Phase.PROMOTED)
    second = world.ledger.champion()
    assert second != first
    ask("rollback", "ugly after all")
    said(world, "command.rollback", "ugly after all")
    assert "ugly after all" in world.updates()[-1].plan.reason
    world.until(lambda: world.ledger.champion() == first)


def test_updates_are_approved_and_rejected_by_people(world: World, ask: Ask) -> None:
    world.first_release()
    approval = world.parts.config.approval.model_copy(update={"mode": "ask"})
    config = world.parts.config.model_copy(update={"approval": approval})
    world.parts = replace(world.parts, config=config)
    world.controller.close()
    world.controller = world._controller()
    update = world.technique()
    world.until(lambda: world.updates()[-1].phase is Phase.APPROVE)
    (asked,) = world.ledger.events(kind="update.asked")  # not of the first, which nobody was asked
    assert (asked.subject, "update approve" in asked.text) == (update.update_id, True)
    ask(f"update reject {update.update_id}", "not on a Friday")
    said(world, "command.update.reject", "not on a Friday")
    world.until(lambda: world.updates()[-1].phase is Phase.REJECTED)
    again = world.technique(5)
    world.until(lambda: world.updates()[-1].phase is Phase.APPROVE)
    ask(f"update approve {again.update_id}", "on a Monday")
    said(world, "command.update.approve", "on a Monday")
    world.until(lambda: world.ledger.active_rollout() is not None)
