"""The cache of features: one look a set, never another's numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from intonaco.errors import ConfigError, StorageError
from intonaco.evaluation.feature_cache import (
    FeatureCache,
    FeatureKey,
    digest_of_files,
    digest_of_pixels,
)
from intonaco.evaluation.metrics import FeatureStats, frechet_distance

PICTURES = list(np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3), dtype=np.uint8))


@dataclass
class Means:
    """Means of the channels, and how often it was asked."""

    name: str = "means"
    digest: str = "a" * 64
    preprocessing: str = "rgb"
    looks: list[int] = field(default_factory=list)

    def images(self, images: Sequence[Any]) -> NDArray[np.float32]:
        self.looks.append(len(images))
        return np.stack([np.asarray(i).mean((0, 1)) for i in images]).astype(np.float32)


def test_a_set_is_looked_at_once(tmp_path: Path) -> None:
    cache, extractor = FeatureCache(tmp_path / "new"), Means()
    key, features = cache.look(PICTURES, extractor)
    again = FeatureCache(tmp_path / "new").look(
        [Image.fromarray(p) for p in PICTURES][:0] or PICTURES, extractor
    )
    assert extractor.looks == [40]
    assert again[0] == key
    assert again[1].dtype == np.float32
    np.testing.assert_array_equal(again[1], features)


@pytest.mark.parametrize(
    "other",
    [Means(name="others"), Means(digest="b" * 64), Means(preprocessing="grey")],
)
def test_another_extractor_is_another_entry(tmp_path: Path, other: Means) -> None:
    cache = FeatureCache(tmp_path)
    key, _ = cache.look(PICTURES, Means())
    assert cache.look(PICTURES, other)[0].digest != key.digest
    assert other.looks == [40]


def test_other_images_are_another_entry(tmp_path: Path) -> None:
    cache, extractor = FeatureCache(tmp_path), Means()
    changed = [p.copy() for p in PICTURES]
    changed[3][0, 0, 0] ^= 1
    sets = (
        PICTURES,
        changed,
        PICTURES[::-1],
        PICTURES[:-1],
        [p.reshape(2, 8, 3) for p in PICTURES],
    )
    assert len({cache.look(s, extractor)[0].digest for s in sets}) == 5
    assert len(extractor.looks) == 5


def test_the_root_of_a_reference_is_taken_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, extractor = FeatureCache(tmp_path), Means()
    key = FeatureKey.of(digest_of_pixels(PICTURES), extractor)
    first = cache.statistics(key, lambda: extractor.images(PICTURES))
    assert (first.extractor, first.preprocessing) == ("means@" + "a" * 16, "rgb")
    candidate = FeatureStats(key.label, preprocessing="rgb")
    candidate.update(extractor.images(PICTURES) * [1.1, 1.2, 1.3])
    monkeypatch.setattr(np.linalg, "cholesky", lambda _: pytest.fail("factored again"))
    again = cache.statistics(key, lambda: pytest.fail("looked at again"))
    assert again.root.tobytes() == first.root.tobytes()
    assert frechet_distance(candidate, again) > 0
    with pytest.raises(ConfigError, match="different extractors"):
        frechet_distance(FeatureStats("means@other").update(np.eye(3)), again)


def test_what_is_damaged_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache, extractor = FeatureCache(tmp_path), Means()
    key, features = cache.look(PICTURES, extractor)
    stats = cache.statistics(key, lambda: pytest.fail("looked at again"))
    file, kept = tmp_path / f"{key.digest}.npy", tmp_path / f"{key.digest}.stats.npz"
    raw = file.read_bytes()
    for broken in (b"", raw[:50], raw[:-1] + bytes([raw[-1] ^ 1])):
        file.write_bytes(broken)
        np.testing.assert_array_equal(cache.look(PICTURES, extractor)[1], features)
    assert extractor.looks == [40] * 4
    kept.write_bytes(b"PK")
    again = cache.statistics(key, lambda: pytest.fail("looked at again"))
    np.testing.assert_array_equal(again.scatter, stats.scatter)
    assert {getattr(r, "action", "") for r in caplog.records} == {"feature_cache.broken"}


@pytest.mark.parametrize(
    "made", [np.full((3, 2), np.nan), np.zeros(3), np.zeros((3, 2), dtype=np.int64)]
)
def test_what_are_no_features_is_not_kept(tmp_path: Path, made: NDArray[Any]) -> None:
    key = FeatureKey(images="i", extractor="e", weights="w" * 64, preprocessing="")
    with pytest.raises(StorageError, match="no finite features"):
        FeatureCache(tmp_path).features(key, lambda: made)
    assert list(tmp_path.iterdir()) == []


def test_files_are_known_by_content_and_order(tmp_path: Path) -> None:
    one, two, three = (tmp_path / name for name in ("1.png", "2.png", "3.png"))
    for file, picture in ((one, PICTURES[0]), (two, PICTURES[1]), (three, PICTURES[0])):
        Image.fromarray(picture).save(file)
    assert digest_of_files([one, two]) == digest_of_files([three, two])
    assert digest_of_files([one, two]) != digest_of_files([two, one])


def test_keys_do_not_run_into_each_other() -> None:
    key = FeatureKey(images="ab", extractor="c", weights="d", preprocessing="e")
    assert key.digest != replace(key, images="a", extractor="bc").digest
