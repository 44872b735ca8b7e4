"""Spherical k-means: clusters of unit vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]
Matrix = NDArray[np.floating[Any]]


def unit(x: Matrix) -> Rows:
    """Rows scaled to length 1; a zero row stays zero."""
    x = np.asarray(x, dtype=np.float64)
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.asarray(x / np.where(norm > 0, norm, 1.0), dtype=np.float64)


def kmeans(
    x: Matrix, k: int, *, rng: np.random.Generator, restarts: int = 4, rounds: int = 25
) -> tuple[Rows, NDArray[np.int64]]:
    """Unit centroids [k', d] and labels [n] of unit rows ``x`` [n, d], k' <= k: empty clusters are
    dropped. Best of ``restarts`` k-means++ starts by mean cosine. Reckons in the precision of
    ``x``: single is many times as fast.

    Arthur & Vassilvitskii, "k-means++", SODA 2007; Dhillon & Modha, Machine Learning 42, 2001.
    """
    best: tuple[float, Matrix] | None = None
    for _ in range(restarts):
        centroids = _seeds(x, k, rng)
        labels = np.full(len(x), -1, dtype=np.int64)
        for _ in range(rounds):
            new = np.argmax(_cosines(x, centroids), axis=1)
            if np.array_equal(new, labels):
                break
            labels = new
            used = np.bincount(labels, minlength=len(centroids)) > 0
            means = unit(_sums(x, labels, len(centroids))).astype(x.dtype)
            centroids = np.where(used[:, None], means, centroids)
        fit = float(_cosines(x, centroids).max(axis=1).mean())
        if best is None or fit > best[0]:
            best = (fit, centroids)
    assert best is not None
    centroids = best[1]
    labels = np.argmax(_cosines(x, centroids), axis=1)
    used = np.unique(labels)
    return centroids[used].astype(np.float64), np.searchsorted(used, labels)


def _cosines(x: Matrix, centroids: Matrix) -> Matrix:
    """[n, k]. The copy is much cheaper than a product with a transposed matrix."""
    return np.asarray(x @ np.ascontiguousarray(centroids.T))


def _sums(x: Matrix, labels: NDArray[np.int64], k: int) -> Matrix:
    """Sum of the rows of each cluster, [k, d]."""
    members = np.zeros((k, len(x)), dtype=x.dtype)
    members[labels, np.arange(len(x))] = 1.0
    return members @ x


def _seeds(x: Matrix, k: int, rng: np.random.Generator) -> Matrix:
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


def silhouette(x: Matrix, labels: NDArray[np.int64]) -> float:
    """Mean silhouette of a clustering of unit rows under cosine distance, in [-1, 1].

    Rousseeuw, J. Comput. Appl. Math. 20, 1987. Computed from cluster sums: exact for cosine
    distance and linear in n.
    """
    count = np.bincount(labels)
    if len(count) < 2:
        return -1.0
    # sum of cosines of each row with all rows of each cluster
    to_sum = _cosines(x, _sums(x, labels, len(count)))
    rows = np.arange(len(x))
    own = count[labels]
    itself = np.einsum("ij,ij->i", x, x)
    inside = 1.0 - (to_sum[rows, labels] - itself) / np.maximum(own - 1, 1)
    other = 1.0 - to_sum / count
    other[rows, labels] = np.inf
    outside = other.min(axis=1)
    score = (outside - inside) / np.maximum(np.maximum(inside, outside), 1e-12)
    return float(np.where(own > 1, score, 0.0).mean())
