"""Where prompts shall not show, they do not: everything that a run writes is searched for them.

Gateway, scorer, watch, diagnosis and console are the real ones; workers are made up.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from starlette.testclient import TestClient
from tests.fixtures_gateway import OLD, FakeWorker, in_one_loop, png

from intonaco import deciding
from intonaco.clock import FakeClock
from intonaco.config import Config, parse
from intonaco.console import create_app
from intonaco.executor import Parts
from intonaco.ledger import Ledger
from intonaco.messages import GenerateRequest
from intonaco.monitoring.scorer import Scorer
from intonaco.serving.gateway.retention import prune
from intonaco.types import Diagnosis, Finding
from intonaco.watching import Watch
from intonaco.workspace import Workspace

SECRET = "xylophonequartz"  # in every prompt
FEEDBACK = "feedback: {mature_after_s: 30}"
WITHOUT = f"""
monitoring:
  requests_between_false_alarms: 500
  {FEEDBACK}
  signals:
    blank: {{of: blank_images, direction: up, reference: 50}}
    diversity: {{of: diversity, direction: up, reference: 50}}
"""
SHOWN = f"""
monitoring:
  requests_between_false_alarms: 500
  {FEEDBACK}
  show_prompts: SHOW
  settle_requests: 0
  signals:
    prompts: {{of: prompt_embedding, reference: 80}}
    blank: {{of: blank_images, direction: up, reference: 50}}
"""


class Letters:
    """An extractor: counts of a few letters, the mean colour of a picture."""

    name, digest = "letters", "c" * 64

    def images(self, images: Sequence[Any]) -> NDArray[np.float32]:
        rows = [[*np.asarray(i, float).reshape(-1, 3).mean(0) + 1.0, 1, 1, 1] for i in images]
        return self._unit(rows)

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._unit([[t.count(letter) + 0.1 for letter in "abcghw"] for t in texts])

    def _unit(self, rows: Any) -> NDArray[np.float32]:
        x = np.array(rows, dtype=np.float32)
        return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), dtype=np.float32)


@dataclass
class Noisy(FakeWorker):
    """Pictures that differ, until they are of one tone."""

    broken: bool = False

    def picture(self, wanted: GenerateRequest, step: int) -> bytes:
        if self.broken:
            return super().picture(wanted, step)
        pixels = np.random.default_rng(wanted.seed).integers(0, 256, (8, 8, 3), np.uint8)
        out = io.BytesIO()
        size = (wanted.width, wanted.height)
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(out, format="PNG")
        return out.getvalue()


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.DEBUG):
        yield caplog


@pytest.mark.parametrize(
    ("prompts", "monitoring", "may_hold"),
    [
        ("drop", WITHOUT, ()),
        ("hash", WITHOUT, ()),
        ("keep", SHOWN.replace("SHOW", "false"), ("records/", "scores/")),
    ],
    ids=["dropped", "hashed", "kept-but-not-shown"],
)
async def test_prompts_are_nowhere(
    tmp_path: Path,
    said: pytest.LogCaptureFixture,
    prompts: str,
    monitoring: str,
    may_hold: tuple[str, ...],
) -> None:
    findings, texts = await story(tmp_path, prompts, monitoring)
    wanted = {"blank", "prompts"} if prompts == "keep" else {"blank", "diversity"}
    assert {f.signal for f in findings} == wanted
    texts["log"] = "\n".join(
        [r.getMessage() + repr(r.__dict__) for r in said.records if r.name.startswith("intonaco")]
    )
    assert "monitor.finding" in texts["log"]
    held = {name for name, text in texts.items() if SECRET in text}
    assert {name for name in held if not name.startswith(may_hold or ("nothing",))} == set()
    assert bool(held) == bool(may_hold)


async def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    """The same run, with prompts shown: they are in records, state, findings and pages."""
    _, texts = await story(tmp_path, "keep", SHOWN.replace("SHOW", "true"))
    held = {name.partition("/")[0] for name, text in texts.items() if SECRET in text}
    assert {"records", "scores", "state", "findings", "diagnosis", "page "} <= held


async def story(root: Path, prompts: str, monitoring: str) -> tuple[list[Finding], dict[str, str]]:
    """150 requests, the last 70 for something else and with broken pictures; then all that was
    written, by name."""
    random = np.random.default_rng(0)
    async with in_one_loop(root, f"prompts: {prompts}") as stage:
        worker = Noisy(OLD)
        stage.old.picture = worker.picture  # type: ignore[method-assign]
        stage.route()
        answers = []
        for n in range(180):
            worker.broken = n >= 100
            words = random.choice(
                ["hill", "whale", "wheel"] if worker.broken else ["cab", "bag"], 3
            )
            answer = await stage.ask(
                prompt=f"{SECRET} {' '.join(words)} {n}", seed=n, user=f"user-{n}"
            )
            assert answer.status_code == 200
            if n % 3 == 0:
                token = answer.json()["data"][0]["feedback_token"]
                body = {"token": token, "vote": "up"}
                answers.append(await stage.http.post("/v1/feedback", json=body))
        assert {a.status_code for a in answers} == {201}
        refused = await stage.ask(prompt=f"{SECRET} {'x' * 40_000}")
        assert refused.status_code == 400
        await stage.records()
        workspace = stage.workspace
        texts = {"metrics": await stage.metrics(), "refusal": refused.text}
    texts |= watch_and_show(workspace, parse(f"service: tiny\n{source(prompts)}{monitoring}"))
    ledger = Ledger.open(workspace.ledger, "tiny")
    findings = ledger.all(Finding)
    texts["findings"] = repr(findings)
    texts["diagnosis"] = repr(ledger.all(Diagnosis)) + repr(ledger.events())
    ledger.close()
    for path in workspace.root.rglob("*"):
        if path.is_file():
            name = path.relative_to(workspace.root).as_posix()
            texts[name] = path.read_bytes().decode("latin-1")
    return findings, texts


def source(prompts: str) -> str:
    return f"serving: {{gateway: {{prompts: {prompts}}}}}\n"


def watch_and_show(workspace: Workspace, config: Config) -> dict[str, str]:
    """Score what was recorded, watch it, judge it, and look at every page of the console."""
    scorer = Scorer(workspace, Letters(), scoring=config.monitoring.scoring)
    while scorer.step():
        pass
    scorer.close()
    ledger = Ledger.open(workspace.ledger, "tiny")
    clock = FakeClock()
    with ledger.begin() as tx:
        fence = tx.lease("test", 0.0, 1e12)
        tx.crown(OLD, 0.0, "first")
    assert fence is not None
    known: dict[str, Any] = {
        "config": config,
        "workspace": workspace,
        "ledger": ledger,
        "clock": clock,
    }
    missing = {name: cast(Any, None) for name in Parts.__dataclass_fields__ if name not in known}
    parts = Parts(**known, **missing)
    watch = Watch(parts)
    clock.at = 4e9  # when all images are mature
    for _ in range(3):
        watch.look(fence, clock.now())
        deciding.look(parts, watch, fence, clock.now())
    deciding.look(parts, watch, fence, clock.now() + 1_000.0)
    app = create_app(ledger, workspace, config, clock=clock)
    pages = ("/", "/updates", "/releases", "/events", "/partials/overview", "/partials/events")
    data = ("/api/snapshot", "/api/signals", "/api/events", "/api/releases", "/api/updates")
    shown = {}
    with TestClient(app, base_url="http://127.0.0.1") as client:
        for path in (*pages, *data):
            answer = client.get(path)
            assert answer.status_code == 200
            shown[f"page {path}"] = answer.text
    shown["state"] = json.dumps(watch._state())
    ledger.close()
    return shown


async def test_pictures_that_users_send_in_are_kept_only_on_wish(tmp_path: Path) -> None:
    sent = png((64, 64), (200, 10, 10))
    async with in_one_loop(tmp_path / "off") as stage:
        stage.route()
        assert (await stage.edit(sent)).status_code == 200
        [record] = await stage.records()
        assert record.task == "edit"
        assert record.condition is None
        assert not stage.workspace.conditions.exists()
    async with in_one_loop(tmp_path / "on", "keep_conditions: true") as stage:
        stage.route()
        assert (await stage.edit(sent)).status_code == 200
        assert (await stage.ask()).status_code == 200
        edit, plain = await stage.records()
        assert plain.condition is None
        assert edit.condition is not None
        kept = stage.workspace.resolve(edit.condition)
        with Image.open(kept) as picture:
            assert picture.getpixel((5, 5)) == (200, 10, 10)
        # What is kept is no file that the gateway hands out.
        name = edit.condition.removeprefix("conditions/")
        assert edit.image is not None
        shown = edit.image.removeprefix("images/")
        assert name == shown
        answer = await stage.http.get(f"/v1/files/{shown}")
        assert answer.status_code == 200
        assert answer.content != kept.read_bytes()
    async with in_one_loop(tmp_path / "none", "keep_conditions: true, keep_images: 0.0") as stage:
        stage.route()
        await stage.edit(sent)
        [record] = await stage.records()
        assert (record.image, record.condition) == (None, None)


def test_kept_pictures_expire_with_the_images(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    now = 1_700_000_000.0
    for root in (workspace.images, workspace.conditions):
        for minute in ("20230901/1200", "20231114/1200"):
            (root / minute).mkdir(parents=True)
            (root / minute / "a.png").write_bytes(b"")
    assert prune(workspace, now, 30) == 2
    left = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.png"))
    assert left == ["conditions/20231114/1200/a.png", "images/20231114/1200/a.png"]
