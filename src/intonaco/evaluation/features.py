"""Feature extraction: which pinned model looks at pictures, by its name in the configuration.

The extractor is never part of a release: the same one looks at champion and candidate, in the gate
and in live traffic. Its digest covers every file that decides a feature: weights, configuration,
tokenizer, preprocessing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intonaco import config
from intonaco.errors import ConfigError
from intonaco.evaluation.extractors.clip import ClipExtractor
from intonaco.evaluation.extractors.folder import folder_digest, located
from intonaco.evaluation.extractors.preparation import ImagePreparation
from intonaco.plugins import resolve
from intonaco.protocols import FeatureExtractor, ImageExtractor

__all__ = [
    "ClipExtractor",
    "ClipScorer",
    "ImagePreparation",
    "cosines",
    "folder_digest",
    "load_extractor",
    "load_image_extractor",
]

BUILT_IN = {"clip": "intonaco.evaluation.extractors.clip:ClipExtractor"}
IMAGES_ONLY = {
    "dinov2": "intonaco.evaluation.extractors.dinov2:Dinov2Extractor",
    "inception": "intonaco.evaluation.extractors.inception:InceptionExtractor",
    "torchscript": "intonaco.evaluation.extractors.torchscript:TorchScriptExtractor",
}


class ClipScorer:
    """Raw cosine of image and prompt, -1 to 1: no rescaling, no clamping."""

    name = "clip"

    def __init__(self, extractor: FeatureExtractor) -> None:
        self.extractor = extractor

    def score(self, images: Sequence[Any], prompts: Sequence[str]) -> NDArray[np.floating[Any]]:
        """Cosines [n]. Raises ValueError unless there are as many prompts as images."""
        if len(images) != len(prompts):
            raise ValueError(f"{len(images)} images for {len(prompts)} prompts")
        return cosines(self.extractor.images(images), self.extractor.texts(prompts))


def cosines(images: NDArray[Any], texts: NDArray[Any]) -> NDArray[np.floating[Any]]:
    """Row by row cosines [n] of unit rows."""
    out: NDArray[np.floating[Any]] = np.einsum("nd,nd->n", images, texts, dtype=np.float64)
    return out


def load_extractor(spec: config.Extractor, root: Path, *, threads: int = 1) -> FeatureExtractor:
    """The configured extractor of images and texts. ``spec.path`` is relative to ``root``, or
    ``hf://ORG/NAME@COMMIT``. ``type`` is "clip", an entry point of ``intonaco.extractor`` or
    ``module:attribute``, called with (folder, digest, threads) and ``spec.options`` by name. Raises
    ConfigError."""
    made = _make(spec, root, BUILT_IN, threads)
    if not isinstance(made, FeatureExtractor):
        raise ConfigError(
            f"extractor.type {spec.type!r} made a {type(made).__name__}, which is no extractor",
            hint="it needs name, digest, images(images) and texts(texts)",
        )
    return made


def load_image_extractor(spec: config.Extractor, root: Path, *, threads: int = 1) -> ImageExtractor:
    """The same for pictures alone, which is all that most metrics need: "dinov2", "inception" and
    "torchscript" besides the types of ``load_extractor``. Raises ConfigError."""
    made = _make(spec, root, {**BUILT_IN, **IMAGES_ONLY}, threads)
    if not isinstance(made, ImageExtractor):
        raise ConfigError(
            f"extractor.type {spec.type!r} made a {type(made).__name__}, which is no extractor",
            hint="it needs name, digest, preprocessing and images(images)",
        )
    return made


def _make(spec: config.Extractor, root: Path, known: dict[str, str], threads: int) -> Any:
    make = resolve("extractor", spec.type, known)
    try:
        return make(located(spec.path, root), spec.digest, threads, **spec.options)
    except TypeError as error:
        if not spec.options:
            raise
        raise ConfigError(
            f"extractor.options: {spec.type!r} does not take {', '.join(spec.options)}: {error}"
        ) from error
