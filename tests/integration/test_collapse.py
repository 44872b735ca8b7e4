"""A real pipeline that collapses, seen by a real CLIP: noticed within a hundred requests."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests import fixtures_tiny
from tests.traffic import Traffic

from intonaco.codec import decode, encode
from intonaco.config import Extractor, Head, Monitoring, Scoring, Signal
from intonaco.demo.data import WORDS
from intonaco.demo.extractor import MAX_TOKENS, build, save
from intonaco.demo.model import build_tokenizer
from intonaco.errors import ConfigError
from intonaco.evaluation.features import ClipExtractor, folder_digest, load_extractor
from intonaco.monitoring.monitor import Monitor
from intonaco.monitoring.scorer import Scorer
from intonaco.segment_log import SegmentReader, SegmentWriter
from intonaco.types import Finding, ScoredRecord
from intonaco.workspace import Workspace

REFERENCE = 60
PROMPTS = [f"a handwritten {name}" for name in ("zero", "one", "two", "three", "four")]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real CLIP folder with random weights: it tells pictures apart, if not what they show."""
    torch.manual_seed(0)
    words = build_tokenizer(WORDS, MAX_TOKENS)
    folder = tmp_path_factory.mktemp("clip")
    save(build(words).eval(), words, folder)
    return folder


@pytest.fixture(scope="module")
def pipeline() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own deprecations
        made = fixtures_tiny.build()
    made.set_progress_bar_config(disable=True)
    return made


class Service:
    """Requests answered by the pipeline, scored by the scorer, watched by the monitor."""

    def __init__(self, root: Path, clip: Path, pipeline: Any) -> None:
        self.workspace = Workspace(root)
        self.workspace.images.mkdir()
        self.pipeline = pipeline
        self.traffic = Traffic(seed=1)
        scoring = Scoring(heads={"sharpness": Head(type="sharpness")})
        self.scorer = Scorer(self.workspace, ClipExtractor(clip), scoring=scoring)
        self.log = SegmentWriter(self.workspace.records, "gateway")
        self.scores = SegmentReader(self.workspace.scores)
        signals = {
            "diversity": Signal(of="diversity", direction="up", reference=REFERENCE),
            "blank": Signal(of="blank_images", direction="up", reference=REFERENCE),
            "sharpness": Signal(
                of="score", score="sharpness", direction="down", reference=REFERENCE
            ),
        }
        self.monitor = Monitor("tiny", Monitoring(signals=signals, scoring=scoring))
        self.seed = 0

    def ask(self, n: int) -> list[Finding]:
        seeds = range(self.seed, self.seed + n)
        self.seed += n
        prompts = [PROMPTS[s % len(PROMPTS)] for s in seeds]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = self.pipeline(
                prompts,
                num_inference_steps=2,
                guidance_scale=1.5,
                width=32,
                height=32,
                generator=[torch.Generator().manual_seed(s) for s in seeds],
            ).images
        for seed, prompt, picture in zip(seeds, prompts, made, strict=True):
            path = self.workspace.images / f"{seed}.png"
            picture.save(path)
            record = replace(
                self.traffic.ask().record,
                prompt=prompt,
                seed=seed,
                unit=f"u{seed}",
                image=self.workspace.relative(path),
            )
            self.log.append(encode(record))
        while self.scorer.step():
            pass
        items = [decode(ScoredRecord, line) for line in self.scores.read(10**6)]
        return [finding for item in items for finding in self.monitor.observe(item)]

    def close(self) -> None:
        self.log.close()
        self.scorer.close()


@pytest.fixture
def service(tmp_path: Path, clip: Path, pipeline: Any) -> Iterator[Service]:
    made = Service(tmp_path, clip, pipeline)
    yield made
    made.close()


def test_a_pipeline_that_draws_one_thing_is_noticed(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its noise no longer reaches the picture and its prompts no longer matter: a decoder that
    always gets the same latents."""
    assert service.ask(180) == []
    assert {s.signal for s in service.monitor.status() if s.armed} >= {"diversity", "blank"}
    vae = service.pipeline.vae
    same = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    decode_ = vae.decode
    monkeypatch.setattr(vae, "decode", lambda z, **k: decode_(same.expand_as(z), **k))
    findings = service.ask(100)
    assert "diversity" in {f.signal for f in findings}
    found = next(f for f in findings if f.signal == "diversity")
    assert found.value_now > 0.9


def test_a_pipeline_that_draws_nothing_is_noticed(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What half precision that overflowed looks like: black pictures."""
    assert service.ask(180) == []
    out = service.pipeline.vae.decoder.conv_out
    with torch.no_grad():
        weight, bias = out.weight.clone(), out.bias.clone()
        out.weight.zero_()
        out.bias.fill_(-1.0)
    try:
        findings = service.ask(100)
    finally:
        with torch.no_grad():
            out.weight.copy_(weight)
            out.bias.copy_(bias)
    assert {"diversity", "blank"} <= {f.signal for f in findings}
    with Image.open(service.workspace.images / f"{service.seed - 1}.png") as last:
        assert np.asarray(last).max() == 0


def test_the_extractor_is_pinned(clip: Path, tmp_path: Path) -> None:
    digest = folder_digest(clip)
    spec = Extractor(path=".", digest=digest)
    assert load_extractor(spec, clip).digest == digest
    with pytest.raises(ConfigError, match="is configured"):
        load_extractor(Extractor(path=".", digest="0" * 64), clip)


def test_the_extractor_is_no_part_of_a_release(clip: Path, tmp_path: Path) -> None:
    """The same weights are the same release, whoever judges them."""
    workspace = Workspace(tmp_path)
    release = fixtures_tiny.add_release(workspace, fixtures_tiny.save(tmp_path / "p"))
    facts = encode(release.serving)
    assert folder_digest(clip) not in facts
    assert "extractor" not in facts
