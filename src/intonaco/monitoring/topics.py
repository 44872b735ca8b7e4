"""Groups of the reference's prompts, so that scores and votes can be judged given the topic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intonaco.monitoring.detectors.arrays import pack, unpack
from intonaco.monitoring.detectors.kmeans import Rows, kmeans, unit
from intonaco.types import Json

NEW = "new"  # the topic of prompts that lie far from all of the reference
MOST = 16
FEWEST = 8  # requests of the reference in a topic, on average
ROUNDS = 12
NEWER = 0.5  # see ``of_reference``
ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Topics:
    """Topics are named by their number; the numbers mean the same as long as this object lives,
    which is from one reference to the next.

    ``centroids`` [k, d] unit rows. ``limit``: cosine distance to the nearest centroid from which a
    prompt belongs to none of them.
    """

    centroids: NDArray[np.float32]
    limit: float

    @classmethod
    def of_reference(cls, reference: NDArray[np.floating[Any]], *, seed: int = 0) -> Topics:
        """Spherical k-means of the reference's embeddings [n, d]: a topic for eight requests, up to
        sixteen. Too many topics cost a little delay; too few put what users like and what they do
        not into one, where a move of traffic is a fall again. So no measure of how well they part
        decides their number. New is what lies farther from its centroid than 99 %
        of the reference does, and half as far again beyond that as those lie beyond the median:
        the reference's own outliers are no news. Raises ValueError for fewer than two rows."""
        rows = unit(reference)
        if len(rows) < 2:
            raise ValueError(f"topics need at least two requests, and there are {len(rows)}")
        k = max(1, min(MOST, len(rows) // FEWEST))
        centroids, _ = kmeans(rows, k, rng=np.random.default_rng(seed), rounds=ROUNDS)
        away = 1.0 - (rows @ centroids.T).max(axis=1)
        far = float(np.quantile(away, 0.99))
        limit = far + NEWER * (far - float(np.median(away)))
        return cls(centroids.astype(np.float32), limit + ROUNDING)

    def of(self, row: Rows) -> str:
        """The topic of a prompt's unit vector [d]."""
        cosines = self.centroids @ row.astype(np.float32)
        nearest = int(np.argmax(cosines))
        return NEW if 1.0 - float(cosines[nearest]) > self.limit else str(nearest)

    @property
    def names(self) -> tuple[str, ...]:
        return (*(str(k) for k in range(len(self.centroids))), NEW)

    def state(self) -> Mapping[str, Json]:
        return {"centroids": pack(self.centroids), "limit": self.limit}

    @classmethod
    def of_state(cls, state: Mapping[str, Json]) -> Topics:
        return cls(unpack(state["centroids"]), float(state["limit"]))
