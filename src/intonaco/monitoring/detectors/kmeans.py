"""Spherical k-means: clusters of unit vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]


def unit(x: NDArray[np.floating[Any]]) -> Rows:
    """Rows scaled to length 1; a zero row stays zero."""
    x = np.asarray(x, dtype=np.float64)
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.asarray(x / np.where(norm > 0, norm, 1.0), dtype=np.float64)


def kmeans(
    x: Rows, k: int, *, rng: np.random.Generator, restarts: int = 4, rounds: int = 25
) -> tuple[Rows, NDArray[np.int64]]:
    """Unit centroids [k', d] and labels [n] of unit rows ``x`` [n, d], k' <= k: empty clusters are
    dropped. Best of ``restarts`` k-means++ starts by mean cosine.

    Arthur & Vassilvitskii, "k-means++", SODA 2007; Dhillon & Modha, Machine Learning 42, 2001.
    """
    best: tuple[float, Rows] | None = None
    for _ in range(restarts):
        centroids = _seeds(x, k, rng)
        labels = np.full(len(x), -1, dtype=np.int64)
        for _ in range(rounds):
            new = np.argmax(x @ centroids.T, axis=1)
            if np.array_equal(new, labels):
                break
            labels = new
            sums = np.zeros_like(centroids)
            np.add.at(sums, labels, x)
            used = np.bincount(labels, minlength=len(centroids)) > 0
            centroids = np.where(used[:, None], unit(sums), centroids)
        fit = float((x @ centroids.T).max(axis=1).mean())
        if best is None or fit > best[0]:
            best = (fit, centroids)
    assert best is not None
    centroids = best[1]
    labels = np.argmax(x @ centroids.T, axis=1)
    used = np.unique(labels)
    return centroids[used], np.searchsorted(used, labels)


def _seeds(x: Rows, k: int, rng: np.random.Generator) -> Rows:
    chosen = [int(rng.integers(len(x)))]
    distance = 1.0 - x @ x[chosen[0]]
    for _ in range(1, min(k, len(x))):
        weight = np.maximum(distance, 0.0)
        total = weight.sum()
        if total <= 1e-9:
            break
        chosen.append(int(rng.choice(len(x), p=weight / total)))
        distance = np.minimum(distance, 1.0 - x @ x[chosen[-1]])
    return x[chosen].copy()


def silhouette(x: Rows, labels: NDArray[np.int64]) -> float:
    """Mean silhouette of a clustering of unit rows under cosine distance, in [-1, 1].

    Rousseeuw, J. Comput. Appl. Math. 20, 1987. Computed from cluster sums: exact for cosine
    distance and linear in n.
    """
    count = np.bincount(labels)
    if len(count) < 2:
        return -1.0
    sums = np.zeros((len(count), x.shape[1]))
    np.add.at(sums, labels, x)
    to_sum = x @ sums.T  # sum of cosines of each row with all rows of each cluster
    rows = np.arange(len(x))
    own = count[labels]
    itself = np.einsum("ij,ij->i", x, x)
    inside = 1.0 - (to_sum[rows, labels] - itself) / np.maximum(own - 1, 1)
    other = 1.0 - to_sum / count
    other[rows, labels] = np.inf
    outside = other.min(axis=1)
    score = (outside - inside) / np.maximum(np.maximum(inside, outside), 1e-12)
    return float(np.where(own > 1, score, 0.0).mean())
