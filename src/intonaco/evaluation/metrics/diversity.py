"""Metrics that need no reference."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from intonaco.evaluation.metrics.arrays import Float, directions, matrix, warn_of_constants

NONE = 1e-15  # an eigenvalue of a matrix of trace 1 below this is rounding


def inception_score(
    logits: ArrayLike,
    *,
    splits: int = 10,
    seed: int | None = 2020,
    probabilities: bool = False,
) -> tuple[float, float]:
    """Inception score (Salimans et al. 2016): exp of the mean divergence of p(y|x) from p(y), as
    mean and standard deviation over ``splits`` parts. The deviation is of parts, no error of the
    mean. Shuffle and parts are those of torch-fidelity.

    ``logits`` [n, classes], before the softmax; with ``probabilities`` they are after it, rows that
    sum to 1. ``seed`` shuffles the rows first (None: taken as they come). Raises ValueError.
    """
    if splits < 1:
        raise ValueError(f"splits must be at least 1, got {splits}")
    x = matrix(logits, "logits", rows=max(2, splits))
    if x.shape[1] < 2:
        raise ValueError("one class has a score of 1 whatever the images: pass logits of several")
    warn_of_constants(logits=x)
    if seed is not None:
        x = x[np.random.RandomState(seed).permutation(len(x))]
    p, log_p = _probabilities(x) if probabilities else _softmax(x)
    scores = []
    for i in range(splits):
        part = slice(i * len(x) // splits, (i + 1) * len(x) // splits)
        mean = p[part].mean(0)
        seen = mean > 0.0  # the rest contributes 0 log 0 = 0
        ratio = log_p[part][:, seen] - np.log(mean[seen])
        scores.append(np.exp((p[part][:, seen] * ratio).sum(1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def _softmax(x: Float) -> tuple[Float, Float]:
    shifted = x - x.max(1, keepdims=True)
    log_p: Float = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return np.exp(log_p), log_p


def _probabilities(x: Float) -> tuple[Float, Float]:
    if x.min() < 0.0 or np.abs(x.sum(1) - 1.0).max() > 1e-4:
        raise ValueError(
            "probabilities must be 0 or more and sum to 1 in each row; are they logits?"
        )
    return x, np.log(np.where(x > 0.0, x, 1.0))


def vendi_score(features: ArrayLike, *, q: float = 1.0) -> float:
    """Vendi score (Friedman & Dieng 2023; orders other than 1: Pasarkar & Dieng 2024): the
    effective number of distinct rows, from 1 to n: exp of the Rényi entropy of order ``q`` of the
    eigenvalues of the cosine similarity matrix over n. Small ``q`` counts rare rows, ``inf`` only
    the most frequent.

    ``features`` [n, d]; the matrix of the smaller of n and d is decomposed. Raises ValueError, also
    for a row of zeros, which is like nothing, itself included.
    """
    order = float(q)
    if not order > 0.0:
        raise ValueError(f"q must be positive, got {q}")
    x = directions(features, "features", rows=1)
    gram = x.T @ x if x.shape[1] < len(x) else x @ x.T  # the same eigenvalues but for zeros
    values = np.linalg.eigvalsh(gram / len(x))
    p = values[values > NONE]
    p = p / p.sum()
    if order == 1.0:
        return float(np.exp(-(p * np.log(p)).sum()))
    if np.isinf(order):
        return float(1.0 / p.max())
    return float((p**order).sum() ** (1.0 / (1.0 - order)))
