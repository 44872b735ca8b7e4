"""``intonaco drift`` and the console's findings over a service that really was watched, and that
nothing of a redacted prompt is in any of it."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient
from tests.traffic import NAMES, Traffic
from tests.watched import Watched
from typer.testing import CliRunner

from intonaco.cli.main import app
from intonaco.console import create_app
from intonaco.errors import ConfigError, NotFound
from intonaco.types import ScoredRecord

WIDE = {"COLUMNS": "200"}


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Users ask for new digits; then the model is changed behind our back and begins to fail."""
    world = Watched(tmp_path_factory.mktemp("watched") / "w")
    world.round()
    traffic = Traffic(seed=3)
    world.serve(traffic.many(500))
    world.serve(traffic.many(150, new=0.35))
    world.shift = 25
    world.round(3600.0)
    world.serve(traffic.many(80, failing=0.4))
    yield world
    world.close()


def run(world: Watched, *arguments: str) -> str:
    done = CliRunner().invoke(app, [*arguments, "-w", str(world.root)], env=WIDE)
    if done.exception is not None:
        raise done.exception
    return done.output


def found(world: Watched, signal: str) -> str:
    return next(f.finding_id for f in world.findings() if f.signal == signal)


def console(world: Watched) -> TestClient:
    made = create_app(world.ledger, world.workspace, world.config, clock=world.clock)
    return TestClient(made, base_url="http://127.0.0.1", raise_server_exceptions=False)


# ---------------------------------------------------------------------- what is said


def test_show_has_every_signal_with_its_evidence(watched: Watched) -> None:
    said = run(watched, "drift", "show")
    for signal in ("prompts", "clip_score", "errors", "latency"):
        assert signal in said
    assert "FIRING" in said
    assert "3 of 3 probes changed" in said
    facts = json.loads(run(watched, "drift", "show", "--json"))
    assert {s["signal"] for s in facts["signals"]} >= {"prompts", "errors"}
    assert facts["probes"]["rounds"][0]["ok"] is False
    assert {f["signal"] for f in facts["findings"]} == {"prompts", "clip_score", "probes", "errors"}


def test_the_card_of_new_demand(watched: Watched) -> None:
    said = run(watched, "drift", "explain", found(watched, "prompts")[:8])
    first = said.splitlines()[0]
    assert "of requests are now for what was rarely asked for before; they score" in first
    assert len(first) < 100, "to be read at a glance"
    assert "concept drift" in said
    assert "ask for data" in said
    assert any(name in said for name in NAMES[5:])
    assert "unlike any of the reference" in said
    facts = json.loads(run(watched, "drift", "explain", found(watched, "prompts"), "--json"))
    (shares,) = (facts["shares"],)
    assert max(shares.values()) > 0.5
    for cluster in facts["finding"]["clusters"]:
        assert cluster["share_before"] < 0.02 < cluster["share_now"]
        assert len(cluster["sample_prompts"]) <= 5
        for path in cluster["sample_images"]:
            assert (watched.root / path).is_file()
    assert facts["nearest"]["text"].endswith("became champion")
    assert "centroid" not in json.dumps(facts)


def test_the_card_of_a_changed_model(watched: Watched) -> None:
    said = run(watched, "drift", "explain", found(watched, "probes"))
    assert said.startswith("3 of 3 probes changed under the same release")
    assert "between " in said
    assert "tell a person" in said
    assert "one cat" in said


def test_the_card_of_failures_says_which(watched: Watched) -> None:
    said = run(watched, "drift", "explain", found(watched, "errors"))
    assert "requests now fail" in said
    assert "failed attempts since: " in said


def test_the_newest_finding_is_explained_without_an_id(watched: Watched) -> None:
    assert found(watched, "errors") in run(watched, "drift", "explain")
    with pytest.raises(NotFound, match="no finding nothing"):
        run(watched, "drift", "explain", "nothing")


def test_the_rounds_of_probes(watched: Watched) -> None:
    said = run(watched, "drift", "probes")
    assert "CHANGED" in said
    assert "as stored" in said
    assert "next round in" in said
    facts = json.loads(run(watched, "drift", "probes", "--json", "--limit", "2"))
    assert len(facts["rounds"]) == 2
    assert facts["every_s"] == 3600.0


def test_detectors_are_scored_on_what_was_recorded(watched: Watched) -> None:
    on = ("drift", "evaluate", "--signal", "clip_score", "--change-at", "500")
    said = run(watched, *on, "--reference", "300", "--detector", "e-mean:direction=down")
    assert "e-mean:direction=down" in said
    assert "kept" in said
    facts = json.loads(run(watched, *on, "--json"))
    assert [d["detector"] for d in facts["detectors"]] == ["e-mean", "periodic"]
    ours, baseline = facts["detectors"]
    assert (ours["misses"], ours["false_alarms"]) == (0, 0)
    assert 0 < ours["delay"] < 100
    assert baseline["misses"] == 1
    with pytest.raises(ConfigError, match=r"known: e-detector, e-mean, e-quantile, .*periodic"):
        run(watched, *on, "--detector", "nope")
    with pytest.raises(ConfigError, match=r"no signal .nope.; monitoring\.signals has: clip_score"):
        run(watched, "drift", "evaluate", "--signal", "nope")
    with pytest.raises(ConfigError, match="give --stream FILE, or --signal"):
        run(watched, "drift", "evaluate")


def test_a_file_is_scored(watched: Watched, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(10, 1, 900), rng.normal(13, 1, 300)])
    np.savez(tmp_path / "s.npz", x=x, change_at=900)
    file = ("drift", "evaluate", "--stream", str(tmp_path / "s.npz"), "--reference", "400")
    with pytest.raises(ConfigError, match="takes those from 0 to 1"):
        run(watched, *file)
    facts = json.loads(run(watched, *file, "--range", "0", "20", "--json"))
    assert facts["change_at"] == 900
    assert facts["detectors"][0]["delay"] < 60


def test_the_console_shows_each_finding(watched: Watched) -> None:
    with console(watched) as client:
        listed = client.get("/findings").text
        for finding in watched.findings():
            assert f'href="/findings/{finding.finding_id}"' in listed
            page = client.get(f"/findings/{finding.finding_id}")
            assert page.status_code == 200
            assert client.get(f"/api/findings/{finding.finding_id}").status_code == 200
        text = client.get(f"/findings/{found(watched, 'prompts')}").text
        assert '<svg class="shares"' in text
        assert '<svg class="evidence"' in text
        assert "/images/" in text
        probe = client.get(f"/findings/{found(watched, 'probes')}").text
        assert probe.count("/images/probes/rounds/") == 6
        assert client.get("/findings/nothing").status_code == 404
        rounds = client.get("/api/probes").json()["rounds"]
        assert rounds[0]["release"] == watched.champion.release_id


# ---------------------------------------------------------------------- redaction

SECRET = "zebra-in-my-garden"


def redacted(item: ScoredRecord, form: str) -> ScoredRecord:
    """As a gateway that was told to would never write it: the text is still there."""
    return replace(item, record=replace(item.record, prompt=SECRET, prompt_form=form))


@pytest.mark.parametrize("form", ["hash", "none", "text"])
def test_nothing_of_a_redacted_prompt_is_anywhere(
    tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Kept as text, they are embedded and scored, and shown to nobody by ``show_prompts``."""
    caplog.set_level(logging.DEBUG)
    shown = "show_prompts: false" if form == "text" else ""
    world = Watched(tmp_path / "w", probes=(), monitoring=shown)
    traffic = Traffic(seed=4)
    world.serve(redacted(i, form) for i in traffic.many(420))
    world.serve(redacted(i, form) for i in traffic.many(120, new=0.5))
    world.serve(redacted(i, form) for i in traffic.many(60, failing=0.5))
    signals = {f.signal for f in world.findings()}
    assert {"prompts", "errors"} <= signals
    told = [caplog.text]
    with console(world) as client:
        pages = ("/", "/findings", "/events", "/updates", "/releases", "/partials/findings")
        facts = ("/metrics", *(f"/api/{n}" for n in ("snapshot", "signals", "events", "updates")))
        for path in (*pages, *facts, "/api/findings", "/api/probes", "/api/traffic"):
            answer = client.get(path)
            assert answer.status_code == 200
            told.append(answer.text)
        for finding in world.findings():
            for path in (f"/findings/{finding.finding_id}", f"/api/findings/{finding.finding_id}"):
                told.append(client.get(path).text)
            told.append(run(world, "drift", "explain", finding.finding_id))
            told.append(run(world, "drift", "explain", finding.finding_id, "--json"))
    for command in ("show", "probes"):
        told.append(run(world, "drift", command))
        told.append(run(world, "drift", command, "--json"))
    told.append(run(world, "status", "--json"))
    told.append(run(world, "events"))
    told.append(run(world, "update", "plan", "--explain"))
    world.close()
    with sqlite3.connect(world.workspace.ledger) as ledger:
        told += list(ledger.iterdump())
    assert len(told) > 20
    for text in told:
        assert SECRET not in text
