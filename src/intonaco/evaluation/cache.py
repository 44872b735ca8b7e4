"""What evaluations keep so as not to make it again: drawn images, and features of images.

::

    images/KEY.npz                  by all that decides them: release, generation, shots, device …
    features/IMAGES-EXTRACTOR.npz   by the images' own bytes and everything that decides a feature:
                                    extractor, preprocessing, digest of the weights

A key that is right can be used by any evaluation: of the same images (a champion, the reference,
a training set) features are extracted once. Files are read by checking them; one that cannot be
read is made again. Each use touches its file, and the longest unused goes first.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from intonaco.codec import digest
from intonaco.protocols import FeatureExtractor
from intonaco.workspace import write_atomic

log = logging.getLogger(__name__)

Values = NDArray[Any]


def pixels_digest(images: NDArray[np.uint8] | Sequence[NDArray[np.uint8]]) -> str:
    """sha256 of images, in order: of their shapes and pixels."""
    out = hashlib.sha256()
    for image in images:
        array = np.ascontiguousarray(image)
        out.update(f"{array.shape}{array.dtype}".encode())
        out.update(array.tobytes())
    return out.hexdigest()


def extractor_digest(extractor: FeatureExtractor) -> str:
    """sha256 of what decides a feature: name, preprocessing where the extractor states its own,
    and the digest of its files."""
    stated = getattr(extractor, "preprocessing", "")
    return digest([extractor.name, str(stated), extractor.digest])


@dataclass(frozen=True, slots=True)
class EvaluationCache:
    """A folder of kept arrays; without a folder nothing is kept."""

    root: Path | None

    def images(self, key: str | None, shape: int, make: Callable[[], Values]) -> Values:
        """``shape``: number of images. Without a key they are made anew."""
        return self._kept(f"images/{key}.npz" if key else None, shape, make)

    def features(
        self,
        extractor: FeatureExtractor,
        images_digest: str,
        count: int,
        make: Callable[[], Values],
    ) -> Values:
        """Features [count, d] of the images of that digest."""
        name = f"features/{images_digest[:32]}-{extractor_digest(extractor)[:32]}.npz"
        return self._kept(name, count, make)

    def spare(
        self, *, keep_bytes: int, unused_s: float, now: float
    ) -> list[tuple[Path, float, int]]:
        """(file, last use, bytes) of what need not be kept: what was not used for ``unused_s``,
        and the longest unused of the rest until ``keep_bytes`` are left."""
        found = sorted(self._files(), key=lambda f: f[1], reverse=True)
        spare, held = [], 0
        for file, used, size in found:
            held += size
            if held > keep_bytes or now - used > unused_s:
                spare.append((file, used, size))
        return spare

    def trim(self, *, keep_bytes: int, unused_s: float, now: float) -> int:
        """Remove what need not be kept; bytes freed."""
        freed = 0
        for file, _, size in self.spare(keep_bytes=keep_bytes, unused_s=unused_s, now=now):
            file.unlink(missing_ok=True)
            freed += size
        return freed

    def _files(self) -> list[tuple[Path, float, int]]:
        if self.root is None:
            return []
        out = []
        # what lies in the folder itself was written by earlier versions
        for file in (*self.root.glob("*.npz"), *self.root.glob("*/*.npz")):
            try:
                stat = file.stat()
            except FileNotFoundError:  # another process was faster
                continue
            out.append((file, stat.st_mtime, stat.st_size))
        return out

    def _kept(self, name: str | None, count: int, make: Callable[[], Values]) -> Values:
        if name is None or self.root is None:
            return make()
        file = self.root / name
        if (values := _read(file, count)) is not None:
            return values
        values = make()
        buffer = io.BytesIO()
        np.savez_compressed(buffer, values=values)
        write_atomic(file, buffer.getvalue())
        return values


def _read(file: Path, count: int) -> Values | None:
    try:
        # opened here: of a broken archive NumPy would leave the file open
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as kept:
            values: Values = kept["values"]
        os.utime(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, BadZipFile, EOFError) as error:
        log.warning(
            "%s cannot be read and is made again: %s",
            file.name,
            type(error).__name__,
            extra={"action": "evaluation.cache"},
        )
        return None
    if len(values) != count:
        return None
    return values
