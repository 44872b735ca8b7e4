"""Clusters of a stream of unit vectors, learned in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from intonaco.monitoring.detectors.arrays import pack, unpack
from intonaco.monitoring.detectors.kmeans import kmeans, unit
from intonaco.types import Json

Row = NDArray[np.float32]
Rows = NDArray[np.float32]

FIRST = 48  # clusters that k-means looks for in the first rows
MOST = 96  # clusters in all
PER_CLUSTER = 8  # first rows for each cluster, at least
FAR = 0.45  # a row this far on the way from "usual" to "any two rows" founds a cluster
FOUNDED = 3  # a cluster that was not seen as often is forgotten
EDGE = 512  # last distances, from which the limits are taken


class Codebook:
    """k-means on the first rows, then one pass: each row moves the mean of its cluster, and a row
    that is far from all founds one. So topics that the first rows hold too few of are found too;
    k-means alone on a thousand rows leaves the rare ones merged, and a new topic hidden among them.

    MacQueen, "Some methods for classification", 1967 (the pass); Kulis & Jordan, "DP-means", ICML
    2012 (founding by distance).
    """

    def __init__(self, first: Rows, rng: np.random.Generator) -> None:
        """From ``first`` rows [n, d], n at least 10."""
        rows = np.asarray(first, dtype=np.float64)
        k = max(2, min(FIRST, len(rows) // PER_CLUSTER))
        _, labels = kmeans(rows, k, rng=rng, restarts=4 if len(rows) < 500 else 2)
        self.k = int(labels.max()) + 1
        self._count = np.zeros(MOST, dtype=np.int64)
        self._count[: self.k] = np.bincount(labels, minlength=self.k)
        sums = np.zeros((self.k, rows.shape[1]))
        np.add.at(sums, labels, rows)
        means = sums / self._count[: self.k, None]
        self.means = np.zeros((MOST, rows.shape[1]), dtype=np.float32)
        self.centroids = np.zeros_like(self.means)
        self.means[: self.k] = means
        self.centroids[: self.k] = unit(means)
        near = 1.0 - (first @ self.centroids[: self.k].T).max(axis=1)
        some = rows[: 4 * MOST]
        self.far = 1.0 - float(np.median((some @ some.T)[np.triu_indices(len(some), 1)]))
        self.usual = float(np.median(near))
        self._limit = self.usual + FAR * (self.far - self.usual)
        self._near = [float(d) for d in near[-EDGE:]]

    def learn(self, row: Row) -> None:
        """Take one more row [d]."""
        cosine = self.centroids[: self.k] @ row
        nearest = int(cosine.argmax())
        distance = 1.0 - float(cosine[nearest])
        self._near.append(distance)
        if len(self._near) >= 2 * EDGE:
            del self._near[:EDGE]
        if distance > self._limit and self.k < MOST:
            nearest = self.k
            self.k += 1
        self.follow(nearest, row)
        mean = self.means[nearest]
        self.centroids[nearest] = mean / max(float(np.sqrt(mean @ mean)), 1e-9)

    def follow(self, label: int, row: Row) -> None:
        """Take a row into the mean of its cluster; the centroid, which assigns rows, stays."""
        self._count[label] += 1
        mean = self.means[label]
        mean += (row - mean) / np.float32(self._count[label])

    def close(self) -> NDArray[np.float64]:
        """End of the learning: forget clusters that were hardly seen. Returns the distances of the
        last rows to their centroids, of which nothing was learned but where the centroids lie."""
        keep = np.flatnonzero(self._count[: self.k] >= FOUNDED)
        if 2 <= len(keep) < self.k:
            self.means, self._count = self.means[keep], self._count[keep]
            self.centroids = self.centroids[keep]
        else:
            self.means, self._count = self.means[: self.k].copy(), self._count[: self.k].copy()
            self.centroids = self.centroids[: self.k].copy()
        self.k = len(self.means)
        near = np.array(self._near[-EDGE:])
        self.usual = float(np.median(near))
        self._near = []
        return near

    def state(self) -> Mapping[str, Json]:
        return {
            "k": self.k,
            "means": pack(self.means[: self.k]),
            "centroids": pack(self.centroids[: self.k]),
            "count": pack(self._count[: self.k]),
            "rows": len(self.means),
            "far": self.far,
            "usual": self.usual,
            "limit": self._limit,
            "near": pack(np.array(self._near)),
        }

    @classmethod
    def of_state(cls, state: Mapping[str, Json]) -> Codebook:
        codebook = cls.__new__(cls)
        codebook.k, rows = int(state["k"]), int(state["rows"])
        means, centroids, count = (unpack(state[n]) for n in ("means", "centroids", "count"))
        codebook.means = np.zeros((rows, means.shape[1]), dtype=np.float32)
        codebook.centroids = np.zeros_like(codebook.means)
        codebook._count = np.zeros(rows, dtype=np.int64)
        codebook.means[: codebook.k] = means
        codebook.centroids[: codebook.k] = centroids
        codebook._count[: codebook.k] = count
        codebook.far, codebook.usual = float(state["far"]), float(state["usual"])
        codebook._limit = float(state["limit"])
        codebook._near = [float(d) for d in unpack(state["near"])]
        return codebook
