"""Scorers of pictures that need no reference, by name; plug-ins of ``monitoring.scoring.heads``.

A head is called with its configuration, the workspace's folder and the extractor, and gives a
``Scorer`` (or an ``EmbeddingScorer``, which is spared a second look at the picture). Runs in the
scorer process only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from intonaco.codec import digest
from intonaco.config import Head
from intonaco.errors import ConfigError
from intonaco.monitoring.pictures import grey
from intonaco.plugins import resolve
from intonaco.protocols import EmbeddingScorer, FeatureExtractor, Matrix, Scorer
from intonaco.releases import file_digest

KIND = "scorers"  # entry points: the group ``intonaco.scorers``
BUILT_IN = {
    "sharpness": "intonaco.monitoring.heads:Sharpness.of",
    "noise": "intonaco.monitoring.heads:Noise.of",
    "linear": "intonaco.monitoring.heads:Linear.of",
}
FIELD = "monitoring.scoring.heads"

AnyScorer = Scorer | EmbeddingScorer
Row = NDArray[np.floating[Any]]


class Sharpness:
    """Variance of the Laplacian of the luminance (0 to 255): low where a picture is blurred.

    Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000. It means
    nothing between services: a drawing is sharper than a fog without being better.
    """

    name = "sharpness"

    @classmethod
    def of(cls, spec: Head, root: Path, extractor: FeatureExtractor) -> Sharpness:
        _no_weights("sharpness", spec)
        return cls()

    def score(self, images: Sequence[Any], prompts: Sequence[str]) -> Row:
        return np.array([_laplacian(image).var() for image in images], dtype=np.float64)


class Noise:
    """Standard deviation of the noise in grey levels (0 to 255), from what a mask that is blind to
    smooth shapes leaves of the luminance.

    Immerkær, "Fast Noise Variance Estimation", CVIU 64, 1996. Fine texture counts as noise.
    """

    name = "noise"

    @classmethod
    def of(cls, spec: Head, root: Path, extractor: FeatureExtractor) -> Noise:
        _no_weights("noise", spec)
        return cls()

    def score(self, images: Sequence[Any], prompts: Sequence[str]) -> Row:
        return np.array([_noise(image) for image in images], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Linear:
    """``embedding @ weight + bias`` of the extractor's unit vectors [d]: an aesthetic head in the
    manner of LAION's aesthetic predictor (https://github.com/LAION-AI/aesthetic-predictor), which
    has to be trained on this extractor's vectors.

    The safetensors file holds ``weight`` [d] or [1, d] and, if it likes, ``bias`` [1].
    """

    name: str
    weight: NDArray[np.float64]
    bias: float
    extractor: FeatureExtractor = field(repr=False)

    @classmethod
    def of(cls, spec: Head, root: Path, extractor: FeatureExtractor) -> Linear:
        """Raises ConfigError: no file, another digest, or no such head in it."""
        if spec.path is None:
            raise ConfigError(f"{FIELD}: type linear needs path and digest of its weights")
        tensors = _weights(root / spec.path, spec.digest)
        weight = np.asarray(tensors.get("weight"), dtype=np.float64)
        if weight.ndim == 2 and weight.shape[0] == 1:
            weight = weight[0]
        extra = set(tensors) - {"weight", "bias"}
        bias = np.asarray(tensors.get("bias", 0.0), dtype=np.float64).ravel()
        if weight.ndim != 1 or bias.size != 1 or extra or not np.isfinite(weight).all():
            shapes = {k: list(np.shape(v)) for k, v in tensors.items()}
            raise ConfigError(
                f"{FIELD}: {spec.path} holds {shapes}; a linear head is weight [d] and bias [1]"
            )
        return cls("linear", weight, float(bias[0]), extractor)

    def score(self, images: Sequence[Any], prompts: Sequence[str]) -> Row:
        return self.score_embeddings(self.extractor.images(images))

    def score_embeddings(self, rows: Matrix) -> Row:
        """Raises ConfigError if the head was made for another extractor's vectors."""
        if rows.shape[1] != len(self.weight):
            raise ConfigError(
                f"{FIELD}: the head takes vectors of {len(self.weight)} numbers, the extractor's "
                f"have {rows.shape[1]}: train the head on this extractor"
            )
        return np.asarray(rows, dtype=np.float64) @ self.weight + self.bias


@dataclass(frozen=True, slots=True)
class Heads:
    """The configured heads. ``digest``: of all that decides their numbers, "" without any."""

    scorers: Mapping[str, AnyScorer]
    digest: str

    @classmethod
    def load(cls, specs: Mapping[str, Head], root: Path, extractor: FeatureExtractor) -> Heads:
        """Raises ConfigError that names the head."""
        made: dict[str, AnyScorer] = {}
        for name, spec in specs.items():
            head = resolve(KIND, spec.type, BUILT_IN)(spec, root, extractor)
            if not isinstance(head, (Scorer, EmbeddingScorer)):
                raise ConfigError(
                    f"{FIELD}.{name}: {spec.type!r} made a {type(head).__name__}, which is no "
                    "scorer",
                    hint="it needs a name and score(images, prompts), or score_embeddings(rows)",
                )
            made[name] = head
        facts = {n: [s.type, s.digest] for n, s in specs.items()}
        return cls(made, digest(facts) if facts else "")

    def score(
        self, images: Sequence[Image.Image], prompts: Sequence[str], rows: Matrix
    ) -> list[dict[str, float]]:
        """Scores of each image by name. ``rows``: their embeddings [n, d]. A number that is not
        finite is left out: no data."""
        found: list[dict[str, float]] = [{} for _ in images]
        for name, head in self.scorers.items():
            if isinstance(head, EmbeddingScorer):
                values = head.score_embeddings(rows)
            else:
                values = head.score(images, prompts)
            for scores, value in zip(found, values, strict=True):
                if np.isfinite(value):
                    scores[name] = float(value)
        return found


def check(specs: Mapping[str, Head], root: Path) -> list[str]:
    """What is wrong with configured heads that can be told without the extractor."""
    problems = []
    for name, spec in specs.items():
        try:
            resolve(KIND, spec.type, BUILT_IN)
            if spec.path is not None:
                _pinned(root / spec.path, spec.digest)
        except ConfigError as error:
            problems.append(f"{FIELD}.{name}: {error}")
    return problems


def _no_weights(name: str, spec: Head) -> None:
    if spec.path is not None:
        raise ConfigError(f"{FIELD}: type {name} has no weights: leave path and digest out")


def _pinned(file: Path, wanted: str | None) -> None:
    if not file.is_file():
        raise ConfigError(f"{file} does not exist")
    if file.suffix != ".safetensors":
        raise ConfigError(f"{file} is not a .safetensors file: other formats can run code")
    found = file_digest(file)
    if found != wanted:
        raise ConfigError(
            f"{file} has the digest {found}, {wanted} is configured",
            hint="scores of different heads cannot be compared: put the pinned file back, or set "
            "digest and let the monitors learn what is normal again",
        )


def _weights(file: Path, wanted: str | None) -> Mapping[str, NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    _pinned(file, wanted)
    try:
        tensors: Mapping[str, NDArray[Any]] = load(file.read_bytes())
    except SafetensorError as error:
        raise ConfigError(f"{file} is not a safetensors file: {error}") from error
    return tensors


def _laplacian(image: Image.Image) -> NDArray[np.float64]:
    x = np.pad(grey(image), 1, mode="edge")
    middle = x[1:-1, 1:-1]
    return x[:-2, 1:-1] + x[2:, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:] - 4.0 * middle


def _noise(image: Image.Image) -> float:
    x = grey(image)
    if min(x.shape) < 3:
        return float("nan")
    across = x[:, :-2] - 2.0 * x[:, 1:-1] + x[:, 2:]
    left = across[:-2] - 2.0 * across[1:-1] + across[2:]
    return float(np.sqrt(np.pi / 2.0) * np.abs(left).mean() / 6.0)
