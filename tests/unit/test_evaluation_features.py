"""The CLIP extractor: preprocessing, digest, unit rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from intonaco import config
from intonaco.demo.data import WORDS
from intonaco.demo.extractor import build, save
from intonaco.demo.model import build_tokenizer
from intonaco.errors import ConfigError
from intonaco.evaluation.features import (
    ClipExtractor,
    ClipScorer,
    ImagePreparation,
    folder_digest,
    load_extractor,
)
from intonaco.protocols import FeatureExtractor, Scorer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real CLIP, untrained."""
    path = tmp_path_factory.mktemp("models") / "clip"
    torch.manual_seed(0)
    words = build_tokenizer(WORDS, 12)
    save(build(words).eval(), words, path)
    return path


@pytest.fixture(scope="module")
def extractor(folder: Path) -> ClipExtractor:
    return ClipExtractor(folder, batch_size=3)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(7)]


def test_it_meets_the_protocols(extractor: ClipExtractor) -> None:
    assert isinstance(extractor, FeatureExtractor)
    assert isinstance(ClipScorer(extractor), Scorer)


def test_rows_are_unit_vectors(extractor: ClipExtractor, pictures: list[Image.Image]) -> None:
    for rows in (extractor.images(pictures), extractor.texts(["a three", "four", "a one"])):
        assert rows.shape[1] == extractor.dimension == 32
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-6)


def test_batches_and_arrays_change_nothing(
    folder: Path, extractor: ClipExtractor, pictures: list[Image.Image]
) -> None:
    whole = ClipExtractor(folder, batch_size=64)
    arrays = [np.asarray(p) for p in pictures]
    np.testing.assert_allclose(extractor.images(pictures), whole.images(arrays), atol=1e-6)
    prompts = ["seven", "please draw a two", "nine", "a photo of the digit zero"]
    np.testing.assert_allclose(extractor.texts(prompts), whole.texts(prompts), atol=1e-5)


def test_nothing_gives_no_rows(extractor: ClipExtractor) -> None:
    assert extractor.images([]).shape == extractor.texts([]).shape == (0, 32)


def test_a_long_prompt_is_cut(extractor: ClipExtractor) -> None:
    assert extractor.texts(["seven " * 100]).shape == (1, 32)


def test_scores_are_cosines_row_by_row(
    extractor: ClipExtractor, pictures: list[Image.Image]
) -> None:
    prompts = [f"the digit {i}" for i in range(7)]
    expected = np.diag(extractor.images(pictures) @ extractor.texts(prompts).T)
    np.testing.assert_allclose(ClipScorer(extractor).score(pictures, prompts), expected, atol=1e-6)
    with pytest.raises(ValueError, match="7 images for 6 prompts"):
        ClipScorer(extractor).score(pictures, prompts[:6])


class TestDigest:
    def test_the_pinned_one_is_accepted(self, folder: Path) -> None:
        assert ClipExtractor(folder, folder_digest(folder)).digest == folder_digest(folder)

    @pytest.mark.parametrize("file", ["preprocessor_config.json", "tokenizer.json"])
    def test_every_file_counts(self, folder: Path, tmp_path: Path, file: str) -> None:
        pinned = folder_digest(folder)
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        assert folder_digest(copy) == pinned
        (copy / file).write_text((copy / file).read_text() + "\n")
        with pytest.raises(ConfigError, match=pinned):
            ClipExtractor(copy, pinned)


class TestFolder:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="does not exist"):
            ClipExtractor(tmp_path / "nothing")

    def test_incomplete(self, folder: Path, tmp_path: Path) -> None:
        shutil.copytree(folder, tmp_path / "copy")
        (tmp_path / "copy" / "preprocessor_config.json").unlink()
        with pytest.raises(ConfigError, match=r"has no preprocessor_config\.json"):
            ClipExtractor(tmp_path / "copy")

    def test_pickles_are_refused(self, folder: Path, tmp_path: Path) -> None:
        shutil.copytree(folder, tmp_path / "copy")
        (tmp_path / "copy" / "pytorch_model.bin").write_bytes(b"")
        with pytest.raises(ConfigError, match="pickle"):
            ClipExtractor(tmp_path / "copy")


class TestLoad:
    def test_clip_by_a_relative_path(self, folder: Path) -> None:
        spec = config.Extractor(path=folder.name, digest=folder_digest(folder))
        assert load_extractor(spec, folder.parent).digest == spec.digest

    def test_module_attribute(self, folder: Path) -> None:
        spec = config.Extractor(type="intonaco.evaluation.features:ClipExtractor", path=str(folder))
        assert load_extractor(spec, Path("/")).name == "digits-clip32"

    def test_unknown_and_wrong_types(self, folder: Path) -> None:
        with pytest.raises(ConfigError, match="known: clip"):
            load_extractor(config.Extractor(type="dino", path="x"), folder)
        with pytest.raises(ConfigError, match="is no extractor"):
            load_extractor(config.Extractor(type="builtins:slice", path="x"), folder)


class TestPreparation:
    def prepare(self, tmp_path: Path, **settings: Any) -> ImagePreparation:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
        return ImagePreparation(tmp_path)

    def test_clips_own_settings(self, tmp_path: Path) -> None:
        """As published for CLIP: shortest edge, bicubic, centre crop, its mean and deviation."""
        mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
        prepare = self.prepare(
            tmp_path,
            size={"shortest_edge": 224},
            crop_size={"height": 224, "width": 224},
            do_center_crop=True,
            resample=3,
            image_mean=mean,
            image_std=std,
        )
        picture = Image.fromarray(
            np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
        )
        pixels = prepare([picture]).numpy()[0]
        resized = picture.resize((298, 224), Image.Resampling.BICUBIC).crop((37, 0, 261, 224))
        expected = (np.asarray(resized, dtype=np.float64) / 255 - mean) / std
        np.testing.assert_allclose(pixels, expected.transpose(2, 0, 1), atol=1e-5)

    def test_steps_can_be_off(self, tmp_path: Path) -> None:
        prepare = self.prepare(
            tmp_path, do_resize=False, do_rescale=False, do_normalize=False, image_mean=[9, 9, 9]
        )
        picture = np.full((5, 4, 3), 7, dtype=np.uint8)
        pixels = prepare([picture])
        assert pixels.shape == (1, 3, 5, 4)
        assert (pixels == 7).all()

    def test_other_modes_become_rgb(self, tmp_path: Path) -> None:
        prepare = self.prepare(tmp_path, size={"height": 8, "width": 8})
        assert prepare([Image.new("L", (20, 10)), Image.new("RGBA", (8, 8))]).shape == (2, 3, 8, 8)

    def test_a_size_that_it_does_not_know(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="longest_edge"):
            self.prepare(tmp_path, size={"longest_edge": 8})
