"""Real images of an evaluation: the held-out reference and what arms were trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from intonaco.errors import ConfigError
from intonaco.evaluation.cache import EvaluationCache
from intonaco.evaluation.metrics.arrays import Float
from intonaco.protocols import FeatureExtractor

METADATA = "metadata.jsonl"
MOST_TRAINING = 20_000  # images of it that are compared; more are taken at even steps
CHUNK = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFolder:
    """An image folder, read as far as its metadata. ``digests``: sha256 of each file."""

    root: Path
    files: tuple[str, ...]
    topics: tuple[str, ...]
    captions: tuple[str, ...]
    digests: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Of its files in their order."""
        return hashlib.sha256("".join(self.digests).encode()).hexdigest()


def read_folder(folder: Path, field: str, *, most: int | None = None) -> ImageFolder:
    """An image folder with ``metadata.jsonl``; at most ``most`` of its images, at even steps.
    ``field``: of the configuration, for errors. Raises ConfigError."""
    file = folder / METADATA
    try:
        lines: list[Mapping[str, Any]] = [
            json.loads(line) for line in file.read_text().splitlines() if line.strip()
        ]
        captions = [text for entry in lines for text in _texts(entry)]
        if most is not None and len(lines) > most:
            lines = [lines[int(i)] for i in np.linspace(0, len(lines) - 1, most).round()]
        names = [str(entry["file_name"]) for entry in lines]
        digests = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{field}: {file} cannot be read: {error!r}") from error
    if not lines:
        raise ConfigError(f"{field}: {file} is empty")
    topics = [entry.get("topic") for entry in lines]
    return ImageFolder(
        root=folder,
        files=tuple(names),
        topics=() if not any(topics) else tuple(str(t) for t in topics),
        captions=tuple(captions),
        digests=tuple(digests),
    )


def features_of(
    folder: ImageFolder, extractor: FeatureExtractor, cache: EvaluationCache, field: str
) -> Float:
    """Features [n, d] of all its images. Raises ConfigError for one that cannot be read."""

    def make() -> NDArray[Any]:
        # In parts: a training set need not fit into memory at once.
        parts = [
            np.asarray(extractor.images(_pictures(folder, chunk, field)))
            for chunk in _chunks(folder.files)
        ]
        return np.concatenate(parts)

    out: Float = cache.features(extractor, folder.digest, len(folder.files), make).astype(
        np.float64
    )
    return out


def shared_files(reference: ImageFolder, training: Iterable[ImageFolder]) -> tuple[str, ...]:
    """Files of the reference that are, byte for byte, in a training set."""
    learnt = {digest for folder in training for digest in folder.digests}
    return tuple(
        name
        for name, digest in zip(reference.files, reference.digests, strict=True)
        if digest in learnt
    )


def _pictures(folder: ImageFolder, names: Sequence[str], field: str) -> list[NDArray[np.uint8]]:
    pictures = []
    for name in names:
        try:
            with Image.open(folder.root / name) as picture:
                pictures.append(np.asarray(picture.convert("RGB"), dtype=np.uint8))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{field}: {folder.root / name} cannot be read: {error!r}") from error
    return pictures


def _chunks(names: Sequence[str]) -> list[Sequence[str]]:
    return [names[i : i + CHUNK] for i in range(0, len(names), CHUNK)]


def _texts(entry: Mapping[str, Any]) -> list[str]:
    text = entry.get("text")
    if isinstance(text, str):
        return [text]
    return [str(t) for t in text] if isinstance(text, list) else []
