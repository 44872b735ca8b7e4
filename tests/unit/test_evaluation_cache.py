"""What evaluations keep: by the right key, whole or not at all, and not for ever."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intonaco.evaluation.cache import EvaluationCache, extractor_digest, pixels_digest


class Extractor:
    def __init__(self, name: str = "e", digest: str = "d", preprocessing: str = "p") -> None:
        self.name = name
        self.digest = digest
        self.preprocessing = preprocessing

    def images(self, images: Any) -> Any:
        raise NotImplementedError

    def texts(self, texts: Any) -> Any:
        raise NotImplementedError


def test_features_are_kept_by_images_extractor_preprocessing_and_weights(tmp_path: Path) -> None:
    cache = EvaluationCache(tmp_path)
    images = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    made: list[int] = []

    def ask(extractor: Extractor, of: Any = images) -> Any:
        def make() -> Any:
            made.append(1)
            return np.full((2, 3), float(len(made)))

        return cache.features(extractor, pixels_digest(of), 2, make)

    first = ask(Extractor())
    np.testing.assert_array_equal(ask(Extractor()), first)
    assert len(made) == 1
    others = [Extractor(name="f"), Extractor(digest="x"), Extractor(preprocessing="q")]
    assert len({extractor_digest(e) for e in (Extractor(), *others)}) == 4
    for number, other in enumerate(others, 2):
        assert ask(other)[0, 0] == number
    assert ask(Extractor(), images + 1)[0, 0] == 5


def test_a_digest_tells_shapes_apart() -> None:
    flat = np.zeros((1, 2, 8, 3), dtype=np.uint8)
    assert pixels_digest(flat) != pixels_digest(flat.reshape(1, 4, 4, 3))


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_a_broken_file_is_made_again(tmp_path: Path, content: bytes | None) -> None:
    cache = EvaluationCache(tmp_path)
    cache.images("k", 3, lambda: np.ones((3, 2, 2, 3), dtype=np.uint8))
    (file,) = tmp_path.glob("images/*.npz")
    file.write_bytes(file.read_bytes()[:-40] if content is None else content)
    again = cache.images("k", 3, lambda: np.full((3, 2, 2, 3), 7, dtype=np.uint8))
    assert again[0, 0, 0, 0] == 7
    assert cache.images("k", 3, lambda: np.zeros((3, 1, 1, 3)))[0, 0, 0, 0] == 7


def test_a_file_of_another_number_of_images_is_not_taken(tmp_path: Path) -> None:
    cache = EvaluationCache(tmp_path)
    cache.images("k", 3, lambda: np.ones((3, 2, 2, 3), dtype=np.uint8))
    assert len(cache.images("k", 4, lambda: np.ones((4, 2, 2, 3), dtype=np.uint8))) == 4


def test_the_longest_unused_goes_first(tmp_path: Path) -> None:
    cache = EvaluationCache(tmp_path)
    for number, key in enumerate(("old", "middle", "new")):
        cache.images(key, 1, lambda: np.zeros((1, 8, 8, 3), dtype=np.uint8))
        os.utime(tmp_path / "images" / f"{key}.npz", (1000.0 * number, 1000.0 * number))
    size = (tmp_path / "images" / "new.npz").stat().st_size
    spare = cache.spare(keep_bytes=2 * size, unused_s=1e9, now=3000.0)
    assert [file.stem for file, _, _ in spare] == ["old"]
    spare = cache.spare(keep_bytes=10**9, unused_s=1500.0, now=3000.0)
    assert {file.stem for file, _, _ in spare} == {"old", "middle"}
    assert cache.trim(keep_bytes=size, unused_s=1e9, now=3000.0) == 2 * size
    assert [f.stem for f in tmp_path.glob("images/*.npz")] == ["new"]


def test_use_keeps_a_file(tmp_path: Path) -> None:
    cache = EvaluationCache(tmp_path)
    file = tmp_path / "images" / "k.npz"
    cache.images("k", 1, lambda: np.zeros((1, 8, 8, 3), dtype=np.uint8))
    os.utime(file, (50.0, 50.0))
    cache.images("k", 1, lambda: np.zeros((1, 8, 8, 3), dtype=np.uint8))
    assert file.stat().st_mtime > 50.0


def test_without_a_folder_nothing_is_kept() -> None:
    cache = EvaluationCache(None)
    assert cache.images("k", 1, lambda: np.ones((1, 1, 1, 3)))[0, 0, 0, 0] == 1
    assert cache.spare(keep_bytes=0, unused_s=0, now=1.0) == []
