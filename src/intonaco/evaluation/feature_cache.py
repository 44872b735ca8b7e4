"""Features of image sets, and what a reference costs once, kept on disk.

A set of images is looked at once by each extractor, and all metrics share the features; the root
of a reference's covariance is taken once and every later candidate is compared with it. An entry
is found by what decides its numbers: the digest of the images in their order, and the extractor's
name, weights and preprocessing. If one of them changes it is another entry.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from intonaco.codec import digest
from intonaco.errors import StorageError
from intonaco.evaluation.metrics import FeatureStats
from intonaco.protocols import ImageExtractor
from intonaco.sources import file_digest
from intonaco.workspace import write_atomic

log = logging.getLogger(__name__)
LAYOUT = 1  # raised when an entry means something else


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureKey:
    """What decides features. ``images``: digest of the set (``digest_of_pixels``,
    ``digest_of_files``); the others are the extractor's."""

    images: str
    extractor: str
    weights: str
    preprocessing: str

    @classmethod
    def of(cls, images: str, extractor: ImageExtractor) -> FeatureKey:
        return cls(
            images=images,
            extractor=extractor.name,
            weights=extractor.digest,
            preprocessing=extractor.preprocessing,
        )

    @property
    def label(self) -> str:
        """Name of the extractor with the beginning of its digest, as ``FeatureStats.extractor``."""
        return f"{self.extractor}@{self.weights[:16]}"

    @property
    def digest(self) -> str:
        return digest([LAYOUT, self.images, self.extractor, self.weights, self.preprocessing])


@dataclass(frozen=True, slots=True)
class FeatureCache:
    """Entries under ``root``, each a file of features and one of statistics, whole or not there."""

    root: Path

    def features(
        self, key: FeatureKey, extract: Callable[[], ArrayLike]
    ) -> NDArray[np.floating[Any]]:
        """Features [n, d] of the key, made by ``extract`` if they are not there. A file that cannot
        be read is made anew. Raises what ``extract`` raises, StorageError."""
        file = self.root / f"{key.digest}.npy"
        found = _read(file)
        if found is not None:
            return found
        made = np.asarray(extract())
        if made.ndim != 2 or made.dtype.kind != "f" or not np.isfinite(made).all():
            raise StorageError(
                f"extractor {key.label} made {made.dtype} {list(made.shape)}, no finite features"
            )
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.ascontiguousarray(made), allow_pickle=False)
        body = buffer.getvalue()
        self.root.mkdir(parents=True, exist_ok=True)
        write_atomic(file, hashlib.sha256(body).digest() + body)
        return made

    def statistics(self, key: FeatureKey, extract: Callable[[], ArrayLike]) -> FeatureStats:
        """Statistics of the key's features with their root, from the file of an earlier call or
        from the features. Raises as ``features`` does, and ValueError with fewer than 2 rows."""
        file = self.root / f"{key.digest}.stats.npz"
        if file.is_file():
            try:
                return FeatureStats.load(file)
            except StorageError as error:
                log.warning("%s", error, extra={"action": "feature_cache.broken"})
        stats = FeatureStats(key.label, preprocessing=key.preprocessing)
        stats.update(self.features(key, extract))
        assert stats.root.size  # taken before it is kept, which is what the file is for
        stats.save(file)
        return stats

    def look(
        self, images: Sequence[Any], extractor: ImageExtractor
    ) -> tuple[FeatureKey, NDArray[np.floating[Any]]]:
        """Key and features of images in memory (uint8 [h, w, 3] or PIL)."""
        key = FeatureKey.of(digest_of_pixels(images), extractor)
        return key, self.features(key, lambda: extractor.images(images))


def digest_of_pixels(images: Iterable[Any]) -> str:
    """sha256 over shapes and pixels of images (uint8 arrays or PIL), in their order."""
    total = hashlib.sha256()
    for image in images:
        pixels = np.ascontiguousarray(image)
        total.update(f"{getattr(image, 'mode', '')} {pixels.dtype} {pixels.shape} ".encode())
        total.update(pixels.tobytes())
    return total.hexdigest()


def digest_of_files(files: Iterable[Path]) -> str:
    """sha256 over the contents of image files, in their order; their names do not count."""
    return digest([file_digest(file) for file in files])


def _read(file: Path) -> NDArray[np.floating[Any]] | None:
    try:
        raw = file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{file} cannot be read: {error}") from error
    if len(raw) < 32 or hashlib.sha256(raw[32:]).digest() != raw[:32]:
        log.warning(
            "%s is damaged and is made anew", file, extra={"action": "feature_cache.broken"}
        )
        return None
    out: NDArray[np.floating[Any]] = np.lib.format.read_array(
        io.BytesIO(raw[32:]), allow_pickle=False
    )
    return out
