"""Which group of requests explains a finding: clusters before and now, in words and pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intonaco.monitoring.detectors.kmeans import Rows, kmeans, silhouette, unit
from intonaco.types import ClusterMove

Z95 = 1.959963984540054
MOST_CLUSTERS = 16
SAMPLES = 5
FALSE_DISCOVERIES = 0.05  # expected share of wrongly named clusters among those said to have moved


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """Requests of a window: embeddings [n, d], and per request its prompt, the path of its image
    (if kept) and the raw score of the champion's image (NaN without one)."""

    embeddings: NDArray[np.floating[Any]]
    prompts: Sequence[str]
    images: Sequence[str | None]
    scores: NDArray[np.float64]


def explain(
    before: NDArray[np.floating[Any]], now: Requests, *, seed: int = 0
) -> tuple[ClusterMove, ...]:
    """Cluster reference and recent requests together and compare each cluster's shares.

    ``before``: embeddings [m, d] of the reference. All clusters are returned, those whose share
    rose significantly first (``moved``, the largest rise first): Fisher's exact test per cluster,
    false discoveries held at 5 % by Benjamini & Hochberg. The number of clusters is the one with
    the best mean silhouette. Nothing to compare gives no clusters.
    """
    m, n = len(before), len(now.prompts)
    if m < 2 or n < 2:
        return ()
    rows = unit(np.concatenate([np.asarray(before, float), np.asarray(now.embeddings, float)]))
    centroids, labels = _cluster(rows, seed)
    k = len(centroids)
    was = np.bincount(labels[:m], minlength=k)
    is_now = np.bincount(labels[m:], minlength=k)
    p = np.array([_rise(int(b), m, int(a), n) for b, a in zip(was, is_now, strict=True)])
    moved = _discoveries(p)
    recent = labels[m:]
    moves = [
        ClusterMove(
            cluster=c,
            share_before=float(was[c] / m),
            share_now=float(is_now[c] / n),
            share_now_interval=wilson(int(is_now[c]), n),
            quality_inside=_mean(now.scores[recent == c]),
            quality_outside=_mean(now.scores[recent != c]),
            sample_prompts=_nearest(rows[m:], centroids[c], recent == c, now.prompts),
            sample_images=_nearest(rows[m:], centroids[c], recent == c, now.images),
            centroid=tuple(float(v) for v in centroids[c]),
            moved=bool(moved[c]),
        )
        for c in range(k)
    ]
    outside = _mean(now.scores[~np.isin(recent, np.flatnonzero(moved))])
    moves = [_against_unmoved(move, outside) for move in moves]
    return tuple(sorted(moves, key=lambda c: (not c.moved, c.share_before - c.share_now)))


def summary(moves: Sequence[ClusterMove]) -> str:
    """The moved clusters in one sentence that a person judges in ten seconds."""
    moved = [c for c in moves if c.moved]
    if not moved:
        return "Requests moved, but no single group of them explains it"
    now, before = moved_share(moves), sum(c.share_before for c in moved)
    prompts = ", ".join(f"'{c.sample_prompts[0]}'" for c in moved[:4] if c.sample_prompts)
    more = " …" if len(moved) > 4 else ""
    like = f"things like {prompts}{more}" if prompts else "things rarely asked before"
    text = f"{now:.0%} of requests now ask for {like} (before: {before:.0%})"
    inside, outside = quality(moves)
    if inside is None:
        return f"{text}; no image there was scored yet"
    against = f" against {outside:.2f} elsewhere" if outside is not None else ""
    return f"{text}; CLIP score there {inside:.2f}{against}"


def moved_share(moves: Sequence[ClusterMove]) -> float:
    """Share of requests in the moved clusters now."""
    return sum(c.share_now for c in moves if c.moved)


def quality(moves: Sequence[ClusterMove]) -> tuple[float | None, float | None]:
    """Mean score inside the moved clusters (weighted by their shares) and in all others."""
    scored = [c for c in moves if c.moved and c.quality_inside is not None and c.share_now > 0]
    outside = next((c.quality_outside for c in moves if c.moved), None)
    if not scored:
        return None, outside
    total = sum(c.share_now for c in scored)
    return sum((c.quality_inside or 0.0) * c.share_now for c in scored) / total, outside


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Interval of a share. Wilson, JASA 22, 1927; 95 % unless ``z`` says otherwise."""
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def _cluster(rows: Rows, seed: int) -> tuple[Rows, NDArray[np.int64]]:
    best: tuple[float, Rows, NDArray[np.int64]] | None = None
    for k in range(2, min(MOST_CLUSTERS, len(rows) // 5) + 1):
        rng = np.random.default_rng([seed, k])
        centroids, labels = kmeans(rows, k, rng=rng, restarts=6)
        score = silhouette(rows, labels)
        if best is None or score > best[0]:
            best = (score, centroids, labels)
    if best is None:
        return unit(rows.mean(axis=0, keepdims=True)), np.zeros(len(rows), dtype=np.int64)
    return best[1], best[2]


def _rise(before: int, m: int, now: int, n: int) -> float:
    """One-sided p-value of Fisher's exact test that the share rose."""
    total = before + now
    base = _log_choose(m + n, total)
    tail = [
        _log_choose(n, i) + _log_choose(m, total - i) - base
        for i in range(now, min(n, total) + 1)
        if total - i <= m
    ]
    return min(1.0, math.fsum(math.exp(t) for t in tail))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _discoveries(p: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Benjamini & Hochberg, JRSS B 57, 1995."""
    order = np.argsort(p)
    passing = np.flatnonzero(p[order] <= FALSE_DISCOVERIES * np.arange(1, len(p) + 1) / len(p))
    found = np.zeros(len(p), dtype=bool)
    if len(passing):
        found[order[: passing[-1] + 1]] = True
    return found


def _mean(scores: NDArray[np.float64]) -> float | None:
    scores = scores[~np.isnan(scores)]
    return float(scores.mean()) if len(scores) else None


def _against_unmoved(move: ClusterMove, outside: float | None) -> ClusterMove:
    """A moved cluster is compared with what did not move, not with the other moved ones."""
    if not move.moved:
        return move
    values = {name: getattr(move, name) for name in ClusterMove.__dataclass_fields__}
    return ClusterMove(**{**values, "quality_outside": outside})


def _nearest(
    rows: Rows, centroid: Rows, inside: NDArray[np.bool_], values: Sequence[str | None]
) -> tuple[str, ...]:
    """Distinct values of the requests inside a cluster, nearest to its centroid first."""
    members = np.flatnonzero(inside)
    found: dict[str, None] = {}
    for i in members[np.argsort(-(rows[members] @ centroid), kind="stable")]:
        value = values[i]
        if value:
            found.setdefault(value)
        if len(found) == SAMPLES:
            break
    return tuple(found)
