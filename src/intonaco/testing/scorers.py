"""Twin and conformance checks of the Scorer seams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intonaco.protocols import EmbeddingScorer, Matrix, Scorer
from intonaco.testing import require


class ScriptedScorer:
    """Gives each prompt the number that it was told, not a number to others."""

    name = "scripted"

    def __init__(self, scores: Mapping[str, float]) -> None:
        self.scores = scores

    def score(self, images: Sequence[Any], prompts: Sequence[str]) -> NDArray[np.float64]:
        return np.array([self.scores.get(p, np.nan) for p in prompts], dtype=np.float64)


def check_scorer(scorer: Scorer, images: Sequence[Any], prompts: Sequence[str]) -> None:
    """Runs a scorer through the protocol, on at least two images with their prompts. Raises
    AssertionError."""
    require(isinstance(scorer.name, str) and scorer.name, "it has no name")
    whole = np.asarray(scorer.score(images, prompts))
    _check(whole, len(images))
    parts = [
        np.asarray(scorer.score([image], [prompt]))[0]
        for image, prompt in zip(images, prompts, strict=True)
    ]
    _check_same(whole, np.array(parts))


def check_embedding_scorer(scorer: EmbeddingScorer, rows: Matrix) -> None:
    """The same for one that scores unit vectors [n, d], n at least 2. Raises AssertionError."""
    require(isinstance(scorer.name, str) and scorer.name, "it has no name")
    before = np.array(rows)
    whole = np.asarray(scorer.score_embeddings(rows))
    _check(whole, len(rows))
    require(np.array_equal(before, rows), "it changes the vectors that it is given")
    parts = [np.asarray(scorer.score_embeddings(rows[i : i + 1]))[0] for i in range(len(rows))]
    _check_same(whole, np.array(parts))


def _check(values: NDArray[Any], n: int) -> None:
    require(values.shape == (n,), f"{n} images give numbers of shape {values.shape}")
    require(np.issubdtype(values.dtype, np.number), f"it gives {values.dtype}, not numbers")
    require(not np.isinf(values).any(), "a score is infinite")


def _check_same(whole: NDArray[Any], parts: NDArray[Any]) -> None:
    require(
        np.allclose(whole, parts, rtol=1e-4, atol=1e-6, equal_nan=True),
        "an image's score depends on the others that it is scored with",
    )
