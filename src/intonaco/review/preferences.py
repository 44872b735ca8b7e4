"""Strengths of several releases from pairwise votes: Bradley–Terry with ties after Davidson.

R. A. Bradley and M. E. Terry, Biometrika 39 (1952) 324; R. R. Davidson, "On extending the
Bradley–Terry model to accommodate ties in paired comparison experiments", JASA 65 (1970) 317:

    P(i beats j) = p_i / (p_i + p_j + v sqrt(p_i p_j)),   P(tie) = v sqrt(p_i p_j) / (the same)

Maximum likelihood by Newton's method: the log-likelihood is concave in (log p, log v). The maximum
exists if no part of the releases only ever loses to the rest or ties with it (without ties that is
L. R. Ford's condition, American Mathematical Monthly 64 (1957) 28). Standard errors are robust to
clusters (K.-Y. Liang and S. L. Zeger, Biometrika 73 (1986) 13), as votes on one prompt are alike.
NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Duel:
    """One vote. ``score``: 1 the first was preferred, 0.5 a tie, 0 the second."""

    first: str
    second: str
    score: float
    cluster: Hashable  # the prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Strength:
    """``log_odds``: of being preferred to the first release, ties aside; 0 for that itself."""

    name: str
    log_odds: float
    interval: Interval | None


def bradley_terry(
    names: Sequence[str], duels: Sequence[Duel], *, alpha: float = 0.05
) -> tuple[Strength, ...] | None:
    """Strengths of ``names``, each with a two-sided interval of level ``1 - 2 alpha`` (None with
    fewer than two clusters more than parameters). None if the maximum need not exist: some releases
    were never preferred to any of the others, or not compared. Raises ValueError for a duel of
    unknown names or another score."""
    index = {name: k for k, name in enumerate(names)}
    for duel in duels:
        if duel.first not in index or duel.second not in index or duel.first == duel.second:
            raise ValueError(f"a duel of {duel.first!r} and {duel.second!r}")
        if duel.score not in (0.0, 0.5, 1.0):
            raise ValueError(f"a score of {duel.score}: 1, 0.5 or 0")
    if len(names) < 2 or not duels:
        return None
    first = np.array([index[d.first] for d in duels])
    second = np.array([index[d.second] for d in duels])
    score = np.array([d.score for d in duels])
    if not _connected(len(names), first, second, score):
        return None
    ties = bool((score == 0.5).any())
    # The design of the three outcomes: what each adds to its log weight, relative to the first
    # release (left out) and, last, log v.
    size = len(names) - 1 + ties
    x = np.zeros((len(duels), 3, size))
    for k, (i, j) in enumerate(zip(first, second, strict=True)):
        for outcome, (of_i, of_j) in enumerate(((1.0, 0.0), (0.5, 0.5), (0.0, 1.0))):
            if i:
                x[k, outcome, i - 1] += of_i
            if j:
                x[k, outcome, j - 1] += of_j
    if ties:
        x[:, 1, -1] = 1.0
    seen = np.where(score == 1.0, 0, np.where(score == 0.5, 1, 2))
    theta, information = _newton(x, seen, ties)
    scores = x[np.arange(len(duels)), seen] - _expected(x, theta, ties)[0]
    errors = _errors([d.cluster for d in duels], scores, information)
    z = NormalDist().inv_cdf(1 - alpha)
    found = [Strength(name=names[0], log_odds=0.0, interval=(0.0, 0.0))]
    for k, name in enumerate(names[1:]):
        value = float(theta[k])
        error = None if errors is None else float(errors[k])
        found.append(
            Strength(
                name=name,
                log_odds=value,
                interval=None if error is None else (value - z * error, value + z * error),
            )
        )
    return tuple(found)


def _newton(x: Array, seen: NDArray[np.intp], ties: bool) -> tuple[Array, Array]:
    """(parameters, information) at the maximum. Steps are halved until they do not lower the
    likelihood."""
    rows = np.arange(len(x))
    theta = np.zeros(x.shape[2])
    reached = _likelihood(x, seen, theta, ties)
    for _ in range(200):
        mean, information = _expected(x, theta, ties)
        gradient = (x[rows, seen] - mean).sum(axis=0)
        step = np.linalg.solve(information, gradient)
        scale = 1.0
        while True:
            tried = theta + scale * step
            now = _likelihood(x, seen, tried, ties)
            if now >= reached - 1e-12 * abs(reached) or scale < 1e-10:
                break
            scale /= 2
        theta, reached = tried, now
        if float(np.abs(step).max()) * scale < 1e-11:
            break
    return theta, _expected(x, theta, ties)[1]


def _probabilities(x: Array, theta: Array, ties: bool) -> Array:
    weights = x @ theta  # [duels, 3]
    if not ties:
        weights = weights.copy()
        weights[:, 1] = -math.inf
    weights = np.exp(weights - weights.max(axis=1, keepdims=True))
    shares: Array = weights / weights.sum(axis=1, keepdims=True)
    return shares


def _likelihood(x: Array, seen: NDArray[np.intp], theta: Array, ties: bool) -> float:
    p = _probabilities(x, theta, ties)[np.arange(len(x)), seen]
    return float(np.log(np.maximum(p, 1e-300)).sum())


def _expected(x: Array, theta: Array, ties: bool) -> tuple[Array, Array]:
    """(expected design of each duel [duels, size], Fisher information [size, size])."""
    p = _probabilities(x, theta, ties)
    mean = np.einsum("do,dos->ds", p, x)
    second = np.einsum("do,dos,dot->st", p, x, x)
    return mean, second - mean.T @ mean


def _errors(clusters: Sequence[Hashable], scores: Array, information: Array) -> Array | None:
    """Cluster-robust standard errors; None with too few clusters."""
    names = {name: k for k, name in enumerate(dict.fromkeys(clusters))}
    groups = len(names)
    if groups < scores.shape[1] + 2:
        return None
    summed = np.zeros((groups, scores.shape[1]))
    np.add.at(summed, [names[c] for c in clusters], scores)
    bread = np.linalg.inv(information)
    meat = summed.T @ summed * groups / (groups - 1)
    variance = np.diag(bread @ meat @ bread)
    errors: Array = np.sqrt(np.maximum(variance, 0.0))
    return errors


def _connected(size: int, first: NDArray[np.intp], second: NDArray[np.intp], score: Array) -> bool:
    """Whether from each release a chain of preferences leads to each other one."""
    beats = np.eye(size, dtype=bool)
    for i, j, s in zip(first, second, score, strict=True):
        beats[i, j] |= s == 1
        beats[j, i] |= s == 0
    for k in range(size):
        beats |= beats[:, k : k + 1] & beats[k : k + 1, :]
    return bool(beats.all())
