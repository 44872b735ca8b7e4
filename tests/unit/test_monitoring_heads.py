"""Scorers by name: what they measure, and that their weights are pinned."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from safetensors.numpy import save_file

from intonaco.config import Head, Monitoring, Signal
from intonaco.errors import ConfigError
from intonaco.monitoring import heads
from intonaco.monitoring.heads import Heads
from intonaco.protocols import EmbeddingScorer, Scorer
from intonaco.testing.scorers import ScriptedScorer, check_embedding_scorer, check_scorer


class Colours:
    """An extractor: the mean colour of an image."""

    name, digest = "colours", "c" * 64

    def images(self, images: Sequence[Any]) -> NDArray[np.float32]:
        rows = np.array([np.asarray(i, float).reshape(-1, 3).mean(0) + 1e-6 for i in images])
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        raise NotImplementedError


class Words:
    """A plug-in: how many words the prompt has; not a number where there is none."""

    name = "words"

    def score(self, images: Sequence[Any], prompts: Sequence[str]) -> NDArray[np.float64]:
        return np.array([len(p.split()) or np.nan for p in prompts], dtype=np.float64)


def words(spec: Head, root: Path, extractor: Any) -> Words:
    return Words()


def no_scorer(spec: Head, root: Path, extractor: Any) -> object:
    return object()


def noise(sd: float, side: int = 64) -> Image.Image:
    shape = np.add.outer(np.linspace(40, 120, side), np.linspace(0, 80, side))
    pixels = shape + np.random.default_rng(0).normal(0, sd, (side, side))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert("RGB")


def linear(root: Path, **tensors: Any) -> Head:
    file = root / "aesthetic.safetensors"
    save_file({k: np.asarray(v, dtype=np.float32) for k, v in tensors.items()}, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return Head(type="linear", path=file.name, digest=digest)


def load(root: Path, **specs: Head) -> Heads:
    return Heads.load(specs, root, Colours())


def test_a_blurred_picture_is_less_sharp(tmp_path: Path) -> None:
    sharp = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    pictures = [sharp, *(sharp.filter(ImageFilter.GaussianBlur(r)) for r in (1, 2, 4))]
    made = load(tmp_path, sharpness=Head(type="sharpness"))
    values = [s["sharpness"] for s in made.score(pictures, [""] * 4, Colours().images(pictures))]
    assert values == sorted(values, reverse=True)
    assert values[0] > 20 * values[2]


@pytest.mark.parametrize("sd", [2.0, 5.0, 10.0])
def test_noise_is_measured_in_grey_levels(tmp_path: Path, sd: float) -> None:
    made = load(tmp_path, noise=Head(type="noise"))
    [scores] = made.score([noise(sd)], [""], np.zeros((1, 3)))
    assert scores["noise"] == pytest.approx(sd, rel=0.1)
    [none] = made.score([Image.new("RGB", (2, 2))], [""], np.zeros((1, 3)))
    assert none == {}  # too small to tell: no data


def test_a_linear_head_scores_the_extractors_vectors(tmp_path: Path) -> None:
    spec = linear(tmp_path, weight=[[1.0, 0.0, -1.0]], bias=[0.5])
    made = load(tmp_path, aesthetic=spec)
    pictures = [Image.new("RGB", (4, 4), c) for c in ((255, 0, 0), (0, 0, 255))]
    rows = Colours().images(pictures)
    assert [s["aesthetic"] for s in made.score(pictures, ["", ""], rows)] == [
        pytest.approx(1.5, abs=1e-4),
        pytest.approx(-0.5, abs=1e-4),
    ]
    head = made.scorers["aesthetic"]
    assert isinstance(head, Scorer)
    assert isinstance(head, EmbeddingScorer)
    assert np.allclose(head.score(pictures, ["", ""]), head.score_embeddings(rows))
    with pytest.raises(ConfigError, match="vectors of 3 numbers"):
        head.score_embeddings(np.zeros((1, 4)))


def test_weights_are_pinned(tmp_path: Path) -> None:
    spec = linear(tmp_path, weight=[1.0, 0.0, 0.0])
    first = load(tmp_path, a=spec).digest
    other = linear(tmp_path, weight=[0.0, 1.0, 0.0])
    assert load(tmp_path, a=other).digest != first
    with pytest.raises(ConfigError, match="is configured"):
        load(tmp_path, a=spec)
    assert "is configured" in heads.check({"a": spec}, tmp_path)[0]
    assert heads.check({"a": other}, tmp_path) == []
    (tmp_path / "head.pt").write_bytes(b"")
    pickle = Head(type="linear", path="head.pt", digest="0" * 64)
    assert "can run code" in heads.check({"a": pickle}, tmp_path)[0]
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    digest = hashlib.sha256(b"nonsense").hexdigest()
    with pytest.raises(ConfigError, match="not a safetensors file"):
        load(tmp_path, a=Head(type="linear", path="bad.safetensors", digest=digest))


def test_what_is_no_head_is_refused(tmp_path: Path) -> None:
    for spec, message in (
        (Head(type="nonsense"), "nothing is called 'nonsense'; known: linear, noise, sharpness"),
        (Head(type="linear"), "needs path and digest"),
        (Head(type="sharpness", path="x", digest="0" * 64), "has no weights"),
        (Head(type=f"{__name__}:no_scorer"), "is no scorer"),
    ):
        with pytest.raises(ConfigError, match=message):
            load(tmp_path, x=spec)
    for tensors in ({"weight": np.ones((2, 3))}, {"other": [1.0]}, {"weight": [np.nan]}):
        with pytest.raises(ConfigError, match="a linear head is weight"):
            load(tmp_path, x=linear(tmp_path, **tensors))


def test_a_plug_in_and_what_is_not_a_number(tmp_path: Path) -> None:
    made = load(tmp_path, words=Head(type=f"{__name__}:words"), sharpness=Head(type="sharpness"))
    pictures = [Image.new("RGB", (4, 4))] * 2
    assert made.score(pictures, ["two words", ""], np.zeros((2, 3))) == [
        {"words": 2.0, "sharpness": 0.0},
        {"sharpness": 0.0},
    ]
    assert load(tmp_path).digest == ""


def test_heads_keep_what_the_seams_promise(tmp_path: Path) -> None:
    pictures = [noise(sd, side) for sd, side in ((0.0, 32), (3.0, 64), (9.0, 48))]
    spec = linear(tmp_path, weight=[1.0, 2.0, -1.0])
    made = load(tmp_path, a=Head(type="sharpness"), b=Head(type="noise"), c=spec)
    for head in made.scorers.values():
        assert isinstance(head, Scorer)
        check_scorer(head, pictures, ["a", "b", "c"])
    aesthetic = made.scorers["c"]
    assert isinstance(aesthetic, EmbeddingScorer)
    check_embedding_scorer(aesthetic, Colours().images(pictures))
    check_scorer(ScriptedScorer({"a": 1.0}), pictures, ["a", "b", "c"])


class Ranks:
    """Breaks its promise: a score is the rank among the images it is given with."""

    name = "ranks"

    def score(self, images: Sequence[Any], prompts: Sequence[str]) -> NDArray[np.float64]:
        return np.arange(len(images), dtype=np.float64)


class Columns(Ranks):
    def score(self, images: Sequence[Any], prompts: Sequence[str]) -> NDArray[np.float64]:
        return np.zeros((len(images), 1))


@pytest.mark.parametrize(
    ("scorer", "message"), [(Ranks(), "depends on the others"), (Columns(), "of shape")]
)
def test_the_checks_find_what_is_wrong(scorer: Scorer, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_scorer(scorer, [noise(1.0)] * 2, ["a", "b"])


def test_signals_name_heads_that_there_are() -> None:
    with pytest.raises(ValueError, match="extractor give: clip"):
        Monitoring(signals={"s": Signal(of="score", score="aesthetic")})
    with pytest.raises(ValueError, match="a signal of score needs score"):
        Signal(of="score")
    with pytest.raises(ValueError, match="not of errors"):
        Signal(of="errors", score="clip")
    with pytest.raises(ValueError, match="must be below"):
        Signal(of="score", score="clip", range=(1.0, 1.0))
    with pytest.raises(ValueError, match="another name"):
        Monitoring.model_validate({"scoring": {"heads": {"clip": {"type": "noise"}}}})
    with pytest.raises(ValueError, match="digest"):
        Head(type="linear", path="x.safetensors")
