"""The loop over servers that are not ours: one is taken over, another challenges it. Real servers
and the real backend; twins for gateway, jobs and registry."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from tests.fixtures_upstreams import ENVIRON, GENERATION, KEY, OpenAIServer, WebUI, both, in_threads
from tests.integration.test_loop_in_memory import PROMPT, measured_as_asked, metrics
from typer.testing import CliRunner

from intonaco import app, commands, config
from intonaco.cli import main
from intonaco.clock import FakeClock, SystemClock
from intonaco.codec import as_json
from intonaco.controller import Controller
from intonaco.errors import ConfigError
from intonaco.executor import Parts
from intonaco.jobs import job_folder
from intonaco.ledger import Ledger
from intonaco.protocols import Matrix
from intonaco.releases import ReleaseStore
from intonaco.serving.remote import HttpServingBackend, smoke_test
from intonaco.testing.datasets import MemoryDatasetStore
from intonaco.testing.notify import MemoryNotifier
from intonaco.testing.registry import MemoryRegistry
from intonaco.testing.serving import MemoryRouter
from intonaco.testing.tracking import MemoryTracker
from intonaco.testing.training import MemoryTrainingBackend
from intonaco.types import JobSpec, Json, Phase, Update, Verdict
from intonaco.workspace import Workspace


def embed(texts: Sequence[str]) -> Matrix:
    return np.eye(2)[[0] * len(texts)]


class World:
    def __init__(self, root: Path, urls: Sequence[str]) -> None:
        self.clock = FakeClock()
        self.workspace = Workspace(root)
        self.upstreams = both(urls)
        self.upstreams["webui"]["timeout_s"] = 33
        self.submitted: list[JobSpec] = []
        (root / "prompts.jsonl").write_text(PROMPT)
        text = {
            "service": "svc",
            "model": {"generation": GENERATION},
            "serving": {"type": "http", "upstreams": self.upstreams},
            "extractor": {"type": "clip", "path": "extractor", "digest": "abc"},
            "data": {"reference": "data/reference"},
            "evaluation": {"prompts": "prompts.jsonl"},
            "approval": {"mode": "auto"},
            "rollout": {
                "bake_seconds": 5,
                "steps": [{"weight": 0.5, "min_units": 0}, {"weight": 1.0, "min_units": 0}],
            },
            "registry": {"type": "none"},
            "tracker": {"type": "none"},
        }
        self.workspace.config_file.write_text(yaml.safe_dump(text))
        settings = config.load(self.workspace.config_file)
        self.ledger = Ledger.open(self.workspace.ledger, "svc")
        self.router = MemoryRouter()
        upstreams = settings.serving.upstreams
        self.parts = Parts(
            config=settings,
            workspace=self.workspace,
            ledger=self.ledger,
            releases=ReleaseStore(self.workspace, "svc"),
            datasets=MemoryDatasetStore(root / "scratch"),
            training=MemoryTrainingBackend(on_submit=self._job),
            serving=HttpServingBackend(self.workspace, settings.serving, self.clock, ENVIRON),
            router=self.router,
            registry=MemoryRegistry(),
            tracker=MemoryTracker(),
            embed=embed,
            probe=lambda release, prompt, seed: None,
            smoke=smoke_test(self.workspace, upstreams, ENVIRON, SystemClock()),
            clock=self.clock,
        )
        self.controller = Controller(self.parts, holder="test", notifier=MemoryNotifier())

    def _job(self, spec: JobSpec) -> dict[str, Json]:
        self.submitted.append(spec)
        folder = job_folder(self.workspace, spec.key) / "out"
        folder.mkdir(parents=True)
        names = [c["name"] for c in spec.payload["candidates"]]
        report = {
            "candidates": names,
            "champion": "champion",
            **measured_as_asked(spec),
            "keep": ["zero"],
            "improve": [],
            "not_ours": True,
            "comparisons": {
                n: as_json([m for m in metrics(True) if m.metric != "memory"]) for n in names
            },
        }
        (folder / "report.json").write_text(json.dumps(report))
        return {"report": "out/report.json"}

    def tick(self) -> None:
        self.clock.advance(1.0)
        assert self.controller.tick()
        for future in list(self.controller._running.values()):
            while not future.done():  # effects run in threads; the clock of the story stands still
                time.sleep(0.001)

    def until(self, done: object) -> None:
        assert callable(done)
        for _ in range(200):
            if done():
                return
            self.tick()
        raise AssertionError([e.text for e in self.ledger.events(newest=True, limit=5)])

    def update(self) -> Update:
        return self.ledger.all(Update)[-1]

    def command(self, kind: str, **arguments: Json) -> Json:
        number = commands.submit(self.ledger, self.clock.now(), kind, "ann", arguments)
        self.tick()
        return self.ledger.command_outcome(number)

    def challenge(self, name: str, **more: Json) -> Json:
        assemble = {"name": name, "upstream": name, **more}
        return self.command("update.start", action="assemble", reason="try", assemble=assemble)

    def arms(self) -> list[tuple[str, tuple[str, ...], float]]:
        table = self.router.table
        return [(a.name.partition(":")[0], a.urls, a.weight) for a in table.arms] if table else []


@pytest.fixture
def theirs() -> OpenAIServer:
    return OpenAIServer()


@pytest.fixture
def webui() -> WebUI:
    return WebUI()


@pytest.fixture
def world(tmp_path: Path, theirs: OpenAIServer, webui: WebUI) -> Iterator[World]:
    with in_threads(theirs.app(), webui.app()) as urls:
        made = World(tmp_path, urls)
        yield made
        made.controller.close()
        made.ledger.close()


def test_a_server_is_taken_over_and_another_challenges_it(
    world: World, theirs: OpenAIServer, webui: WebUI
) -> None:
    world.until(lambda: world.ledger.champion() and world.update().phase.final)
    champion = str(world.ledger.champion())
    first = world.update()
    assert first.phase is Phase.PROMOTED
    assert first.candidates[0].verdict is Verdict.INCONCLUSIVE  # nobody proved anything
    assert world.arms() == [("champion", ("upstream:theirs",), 1.0)]
    texts = [e.text for e in world.ledger.events(kind="update.phase")]
    assert any("identity declared, not proved" in t for t in texts)
    assert [a["prompt"] for a in theirs.asked] == ["smoke test"]

    assert world.challenge("webui")["ok"]
    world.until(lambda: len(world.arms()) == 2)
    assert world.arms() == [
        ("champion", ("upstream:theirs",), 0.5),
        ("challenger", ("upstream:webui",), 0.5),
    ]
    [spec] = world.submitted
    assert spec.payload["environments"] is not None
    [candidate] = spec.payload["candidates"]
    assert candidate["upstream"]["timeout_s"] == 33
    assert spec.payload["champion"]["upstream"]["timeout_s"] == 120
    assert world.update().candidates[0].verdict is Verdict.PASS
    assert any("memory is not judged" in r for r in world.update().candidates[0].reasons)

    assert world.command("rollout.abort")["ok"]
    world.until(lambda: world.update().phase.final)
    assert world.update().phase is Phase.ROLLED_BACK
    assert world.ledger.champion() == champion
    assert world.arms() == [("champion", ("upstream:theirs",), 1.0)]
    assert [a["prompt"] for a in webui.asked] == ["smoke test"]


def test_status_shows_an_update_that_is_running(world: World) -> None:
    world.tick()
    shown = CliRunner().invoke(main.app, ["status", "-w", str(world.workspace.root)])
    assert shown.exit_code == 0, shown.output
    assert f"{world.update().update_id} in" in shown.output


def test_other_defaults_on_the_same_server_are_a_release_too(world: World) -> None:
    world.until(lambda: world.ledger.champion() and world.update().phase.final)
    changed = {"name": "fewer", "generation": {"steps": 4}}
    assert world.command("update.start", action="assemble", assemble=changed)["ok"]
    world.until(lambda: world.update().chosen)
    release = world.parts.releases.get(str(world.update().chosen))
    assert release.serving.generation["steps"] == 4
    assert release.release_id != world.ledger.champion()


def test_what_cannot_be_done_with_a_server_elsewhere_is_refused(world: World) -> None:
    world.until(lambda: world.ledger.champion() and world.update().phase.final)
    refused = world.command("update.start", reason="train it")
    assert "cannot be trained here" in refused["text"]
    refused = world.challenge("nobody")
    assert "serving.upstreams has: theirs, webui" in refused["text"]
    assert world.challenge("theirs")["ok"]
    world.until(lambda: world.update().phase.final)
    assert "it is the champion" in world.update().reason
    assert world.challenge("webui", scheduler={"class": "DDIMScheduler"})["ok"]
    world.until(lambda: world.update().phase.final)
    assert "its owner chooses it" in world.update().reason


def test_a_challenger_that_is_declared_differently_is_taken_out(world: World) -> None:
    world.until(lambda: world.ledger.champion() and world.update().phase.final)
    assert world.challenge("webui")["ok"]
    world.until(lambda: len(world.arms()) == 2)
    serving = world.parts.serving
    assert isinstance(serving, HttpServingBackend)
    upstreams = world.upstreams | {"webui": world.upstreams["webui"] | {"version": "2"}}
    serving.config = config.Serving.model_validate({"type": "http", "upstreams": upstreams})
    world.until(lambda: world.update().phase.final)
    assert world.update().phase is Phase.ROLLED_BACK
    assert world.arms() == [("champion", ("upstream:theirs",), 1.0)]


def test_a_server_that_fails_its_first_picture_is_not_staged(world: World, webui: WebUI) -> None:
    world.until(lambda: world.ledger.champion() and world.update().phase.final)
    webui.failing = 500
    assert world.challenge("webui")["ok"]
    world.until(lambda: world.update().phase.final)
    assert world.update().phase is Phase.FAILED
    assert "smoke test: webui: 500" in world.update().reason


def test_the_application_knows_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = world.parts.config
    problems = app.check(settings, world.workspace)
    assert any(
        "headers.authorization: the environment's THEIR_KEY is not set" in p for p in problems
    )
    monkeypatch.setenv("THEIR_KEY", KEY)
    assert not any("THEIR_KEY" in p for p in app.check(settings, world.workspace))
    opened = app.open_app(world.workspace.root)
    parts = opened.parts()
    assert isinstance(parts.serving, HttpServingBackend)
    assert parts.smoke.__module__ == "intonaco.serving.remote"
    opened.ledger.close()
    with pytest.raises(ConfigError):
        config.parse("service: s\nserving: {type: http}")
