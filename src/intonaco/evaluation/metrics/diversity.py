"""Metrics that need no reference."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from intonaco.evaluation.metrics.arrays import matrix, unit_rows


def inception_score(
    logits: ArrayLike, *, splits: int = 10, seed: int | None = 2020
) -> tuple[float, float]:
    """Inception score (Salimans et al. 2016): exp of the mean divergence of p(y|x) from p(y), as
    mean and standard deviation over ``splits`` parts.

    ``logits`` [n, classes]; ``seed`` shuffles the rows first (None: taken as they come). Raises
    ValueError.
    """
    x = matrix(logits, "logits", rows=max(2, splits))
    if seed is not None:
        x = x[np.random.RandomState(seed).permutation(len(x))]
    shifted = x - x.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    p = np.exp(log_p)
    scores = []
    for i in range(splits):
        part = slice(i * len(x) // splits, (i + 1) * len(x) // splits)
        marginal = np.log(p[part].mean(0, keepdims=True))
        scores.append(np.exp((p[part] * (log_p[part] - marginal)).sum(1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def vendi_score(features: ArrayLike, *, q: float = 1.0) -> float:
    """Vendi score (Friedman & Dieng 2023): the effective number of distinct rows, from 1 to n: exp
    of the Rényi entropy of order ``q`` of the eigenvalues of the cosine similarity matrix over n.

    ``features`` [n, d]. Raises ValueError.
    """
    if not q > 0:
        raise ValueError(f"q must be positive, got {q}")
    x = unit_rows(matrix(features, "features", rows=1))
    gram = x.T @ x if x.shape[1] < len(x) else x @ x.T  # the same eigenvalues but for zeros
    values = np.linalg.eigvalsh(gram / len(x))
    p = values[values > 1e-15]
    p = p / p.sum()
    if q == 1.0:
        return float(np.exp(-(p * np.log(p)).sum()))
    if np.isinf(q):
        return float(1.0 / p.max())
    return float((p**q).sum() ** (1.0 / (1.0 - q)))
