"""A service that is watched: the controller's real tick with ledger, monitors, probes, diagnosis
and plan; twins for what lies outside. Scored records are written to its log as the scorer does."""

from __future__ import annotations

import io
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tests.traffic import NAMES

from intonaco import config
from intonaco.clock import FakeClock
from intonaco.codec import encode
from intonaco.controller import Controller
from intonaco.errors import BackendError
from intonaco.executor import Parts
from intonaco.ledger import Ledger
from intonaco.monitoring.probes import ProbeImage
from intonaco.protocols import Matrix
from intonaco.releases import ReleaseStore, read_serving_spec
from intonaco.segment_log import SegmentWriter
from intonaco.testing.datasets import MemoryDatasetStore
from intonaco.testing.notify import MemoryNotifier
from intonaco.testing.registry import MemoryRegistry
from intonaco.testing.serving import MemoryRouter, MemoryServingBackend
from intonaco.testing.tracking import MemoryTracker
from intonaco.testing.training import MemoryTrainingBackend
from intonaco.types import Finding, ProbeRound, Provenance, ScoredRecord, ServingStatus
from intonaco.workspace import Workspace

PROBES = ("one cat", "two dogs", "three")
CONFIG = """
service: digits
model: {name: digits, generation: {steps: 10, width: 32, height: 32}}
monitoring:
  requests_between_false_alarms: 20000
  settle_requests: 60
  probe_every_s: EVERY
  probes: [PROBES]
  signals:
    prompts: {of: prompt_embedding, reference: 300}
    clip_score: {of: clip_score, direction: down, reference: 300, given_topic: false}
    errors: {of: errors, direction: up, reference: 300, tolerance: 0.02, weight: 0.5}
    latency: {of: latency, direction: up, reference: 300, tolerance: 0.05, weight: 0.5}
decision: {min_labelled: 10}
training:
  recipes: {fine_tune: {method: full, steps: 5, estimated_seconds: 60}, full: {method: full, init: "a:b", steps: 5}}
registry: {type: none}
tracker: {type: none}
serving: {gateway: {prompts: FORM}}
"""  # noqa: E501


class Serving(MemoryServingBackend):
    """Of a machine that can be exchanged."""

    device = "cpu, A, 1 thread"

    def status(self, release_id: str) -> ServingStatus:
        status = super().status(release_id)
        return replace(status, facts={**status.facts, "device": self.device})


@dataclass
class Watched:
    """``draw`` stands in for gateway and worker of the probes: ``shift`` is what was done to the
    model behind our back, in levels; ``size`` the padded batch of the next answers, and
    ``rounding`` what larger batches are off by. ``monitoring``, ``signals``: further lines there;
    ``upstreams``: other people's servers, which serve then."""

    root: Path
    every: float = 3600.0
    form: str = "keep"
    probes: Sequence[str] = PROBES
    clock: FakeClock = field(default_factory=FakeClock)
    shift: int = 0
    size: int = 1
    rounding: int = 0
    busy: bool = False
    dead: bool = False
    drawn: list[str] = field(default_factory=list)
    monitoring: str = ""
    signals: str = ""
    upstreams: str = ""

    def __post_init__(self) -> None:
        text = CONFIG.replace("EVERY", str(self.every)).replace("FORM", self.form)
        text = text.replace("PROBES", ", ".join(self.probes))
        if self.monitoring:
            text = text.replace("  signals:\n", f"  {self.monitoring}\n  signals:\n")
        if self.signals:
            text = text.replace("  signals:\n", f"  signals:\n    {self.signals}\n")
        if self.upstreams:
            http = f"serving: {{type: http, upstreams: {self.upstreams}, gateway:"
            text = text.replace("serving: {gateway:", http)
        if self.form != "keep":  # nothing can be embedded then
            text = "\n".join(
                line for line in text.splitlines() if "prompt_embedding" not in line
                and "clip_score" not in line
            )  # fmt: skip
        self.workspace = Workspace(self.root)
        self.root.mkdir(exist_ok=True)
        self.workspace.config_file.write_text(text)
        self.ledger = Ledger.open(self.workspace.ledger, "digits")
        self.scores = SegmentWriter(self.workspace.scores, "scorer")
        self.serving = Serving(polls_until_ready=0)
        self.config = config.parse(text)
        releases = ReleaseStore(self.workspace, "digits")
        self.parts = Parts(
            config=self.config,
            workspace=self.workspace,
            ledger=self.ledger,
            releases=releases,
            datasets=MemoryDatasetStore(self.root / "scratch"),
            training=MemoryTrainingBackend(on_submit=lambda spec: {}),
            serving=self.serving,
            router=MemoryRouter(),
            registry=MemoryRegistry(),
            tracker=MemoryTracker(),
            embed=_embed,
            probe=self.draw,
            smoke=lambda url, release: 0.01,
            clock=self.clock,
        )
        folder = self.root / "pipeline"
        _write_pipeline(folder)
        self.champion = releases.add(
            folder,
            read_serving_spec(folder, generation={"steps": 10}),
            Provenance(created_at=self.clock.now()),
        )
        with self.ledger.begin() as tx:
            tx.put(self.champion, id=self.champion.release_id, at=self.clock.now())
            tx.crown(self.champion.release_id, self.clock.now(), "test")
        self.parts.registry.register(self.champion, folder, {})
        self.serving.deploy(self.champion)
        self.controller = self.new_controller()

    def new_controller(self) -> Controller:
        return Controller(self.parts, holder="test", notifier=MemoryNotifier())

    def draw(self, release_id: str, prompt: str, seed: int) -> ProbeImage | None:
        if self.dead:
            raise BackendError("no gateway runs", backend="gateway", retriable=True)
        if self.busy:
            return None
        self.drawn.append(prompt)
        pixels = np.random.default_rng(seed).integers(20, 200, (8, 8, 3)) + self.shift
        if self.size > 1:
            pixels[0, 0, 0] += self.rounding
        return ProbeImage(png=_png(pixels), padded_size=self.size)

    # ------------------------------------------------------------------ time

    def tick(self, seconds: float = 1.0) -> None:
        self.clock.advance(seconds)
        assert self.controller.tick()
        for future in list(self.controller._running.values()):
            while not future.done():  # in threads; the clock of the story stands still
                time.sleep(0.001)

    def round(self, seconds: float = 0.0) -> ProbeRound | None:
        """Let time pass and see a due round to its end."""
        before = len(self.rounds())
        for wait in (seconds, 1.0, 1.0, 1.0):
            self.tick(wait)
        found = self.rounds()
        return found[0] if len(found) > before else None

    def serve(self, items: Iterable[ScoredRecord], *, per_tick: int = 20) -> None:
        """Users are answered by the champion and the controller looks on. Times are those of the
        controller's clock."""
        for waiting, item in enumerate(items, start=1):
            self.clock.advance(0.2)
            self.scores.append(encode(self._now(item)))
            if waiting % per_tick == 0:
                self.tick(0.0)
        for _ in range(6):
            self.tick(1.0)

    def _now(self, item: ScoredRecord) -> ScoredRecord:
        r, release, at = item.record, self.champion.release_id, self.clock.now()
        attempts = tuple(replace(a, release=release, started_at=at) for a in r.attempts)
        served = release if r.served_by else None
        record = replace(r, at=at, attempts=attempts, served_by=served)
        if record.image is not None:
            self._picture(record.image, record.prompt, record.seq, item.scores.get("clip", 1.0))
        return replace(item, record=record)

    def _picture(self, path: str, prompt: str, seed: int, score: float) -> None:
        """A real handwritten digit of what was asked for; noise where the model cannot do it."""
        from sklearn.datasets import load_digits

        if not _DIGITS:
            data = load_digits()
            for image, digit in zip(data.images, data.target, strict=True):
                _DIGITS.setdefault(int(digit), []).append(255 - image * 15.9)
        digit = next((d for d, name in enumerate(NAMES) if name in prompt), 0)
        rng = np.random.default_rng(seed)
        kept = max(0.0, min(1.0, score))
        image = kept * _DIGITS[digit][seed % 100] + (1 - kept) * rng.uniform(0, 255, (8, 8))
        file = self.workspace.resolve(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(_png(np.kron(image, np.ones((4, 4)))[..., None].repeat(3, axis=2)))

    # ------------------------------------------------------------------ what it says

    def rounds(self) -> list[ProbeRound]:
        return self.ledger.newest(ProbeRound, 100)

    def findings(self) -> list[Finding]:
        return self.ledger.all(Finding)

    def close(self) -> None:
        self.scores.close()
        self.controller.close()
        self.ledger.close()


_DIGITS: dict[int, list[NDArray[Any]]] = {}


def _png(pixels: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def _embed(texts: Sequence[str]) -> Matrix:
    return np.eye(2)[[0] * len(texts)]


def _write_pipeline(folder: Path) -> None:
    (folder / "scheduler").mkdir(parents=True)
    (folder / "scheduler" / "scheduler_config.json").write_text('{"a": 1}')
    index = '{"_class_name": "TinyPipeline", "scheduler": ["diffusers", "DDIMScheduler"]}'
    (folder / "model_index.json").write_text(index)
    (folder / "weights.safetensors").write_bytes(b"weights")
