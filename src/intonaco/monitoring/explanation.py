"""Which group of requests explains a finding: clusters before and now, in words and pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intonaco.monitoring.detectors.kmeans import Matrix, Rows, kmeans, silhouette, unit
from intonaco.types import ClusterMove

Z95 = 1.959963984540054
MOST_CLUSTERS = 16
SAMPLES = 5
FALSE_DISCOVERIES = 0.05  # expected share of wrongly named clusters among those said to have moved


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """Requests of a window: embeddings [n, d], and per request its prompt ("" if it is not to be
    shown), the path of its image (if kept), the raw score of the champion's image (NaN without
    one) and who asked, where that is known."""

    embeddings: NDArray[np.floating[Any]]
    prompts: Sequence[str]
    images: Sequence[str | None]
    scores: NDArray[np.float64]
    units: Sequence[str] = ()


def groups(before: Matrix, *, seed: int = 0) -> Rows:
    """The groups of a reference [m, d], as centroids [k, d]: most of what ``explain`` takes, and
    the same for every finding against it. Empty for fewer than two rows."""
    old = _singles(before)
    return _cluster(old, seed) if len(old) >= 2 else np.zeros((0, old.shape[-1]))


def explain(
    before: Matrix,
    now: Requests,
    *,
    images_before: Sequence[str | None] = (),
    known: Rows | None = None,
    seed: int = 0,
) -> tuple[ClusterMove, ...]:
    """Group the requests and compare each group's share before and now.

    ``before``: embeddings [m, d] of the reference, ``images_before`` the paths of its images, one
    a row, ``known`` its ``groups`` where they are at hand. The reference is clustered by itself;
    recent requests that lie far from all of it are clustered by themselves, so that a few requests
    for something new neither hide in an old cluster nor spoil its figures. All clusters are
    returned, those whose share rose significantly first (``moved``, the largest rise first):
    Fisher's exact test per old cluster and for the new ones together (they moved as one or not at
    all), false discoveries held at 5 % by Benjamini & Hochberg. Nothing to compare gives no
    clusters.
    """
    m, n = len(before), len(now.prompts)
    if m < 2 or n < 2:
        return ()
    old, current = _singles(before), _singles(now.embeddings)
    known = _cluster(old, seed) if known is None else known
    novel = _novel(old, current)
    new = _cluster(current[novel], seed) if novel.any() else np.zeros((0, old.shape[1]))
    centroids = np.concatenate([known, new])
    rows = np.concatenate([old, current])
    labels = np.argmax(rows @ known.T, axis=1)
    if len(new):
        labels[m:][novel] = len(known) + np.argmax(current[novel] @ new.T, axis=1)
    k = len(centroids)
    was = np.bincount(labels[:m], minlength=k)
    is_now = np.bincount(labels[m:], minlength=k)
    p = [_rise(int(b), m, int(a), n) for b, a in zip(was, is_now, strict=True)][: len(known)]
    found = _discoveries(np.array([*p, _rise(0, m, int(novel.sum()), n)]))
    moved = np.concatenate([found[:-1], np.full(len(new), found[-1])])
    recent = labels[m:]
    moves = [
        ClusterMove(
            cluster=c,
            share_before=float(was[c] / m),
            share_now=float(is_now[c] / n),
            share_now_interval=wilson(int(is_now[c]), n),
            quality_inside=_mean(now.scores[recent == c]),
            quality_outside=_mean(now.scores[recent != c]),
            sample_prompts=_distinct(now.prompts, shown),
            sample_images=_distinct(now.images, shown),
            centroid=tuple(float(v) for v in centroids[c]),
            moved=bool(moved[c]),
            share_before_interval=wilson(int(was[c]), m),
            images_before=_distinct(images_before, _central(old, labels[:m] == c))
            if images_before
            else (),
        )
        for c, shown in enumerate(_samples(_central(current, recent == c), now) for c in range(k))
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


def _singles(rows: Matrix) -> NDArray[np.float32]:
    """Unit rows in single precision: a tenth of a second for a clustering in place of one."""
    return unit(rows).astype(np.float32)


def _cluster(rows: Matrix, seed: int) -> Rows:
    """Centroids of as many clusters as give the best mean silhouette."""
    distinct = len(np.unique(rows.round(6), axis=0))
    best = (0.0, unit(rows.mean(axis=0, keepdims=True)))
    for k in range(2, min(MOST_CLUSTERS, distinct, len(rows) // 2) + 1):
        rng = np.random.default_rng([seed, k])
        centroids, labels = kmeans(rows, k, rng=rng)
        score = silhouette(rows, labels)
        if score > best[0]:
            best = (score, centroids)
    return best[1]


def _novel(old: Matrix, current: Matrix) -> NDArray[np.bool_]:
    """Which recent rows lie farther from all of the reference than its rows lie from each other."""
    between = old @ old.T
    np.fill_diagonal(between, -1.0)
    nearest = 1.0 - between.max(axis=1)
    usual, far = float(np.median(nearest)), 1.0 - float(np.median(between))
    limit = max(usual + (far - usual) / 3, float(np.quantile(nearest, 0.99)))
    return np.asarray(1.0 - (current @ old.T).max(axis=1) > limit, dtype=bool)


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


def _central(rows: Matrix, inside: NDArray[np.bool_]) -> list[int]:
    """Members of a cluster, the medoid first: that with the largest sum of cosines to all others,
    which is the largest cosine to their mean."""
    members = np.flatnonzero(inside)
    if not len(members):
        return []
    order = np.argsort(-(rows[members] @ rows[members].sum(axis=0)), kind="stable")
    return [int(i) for i in members[order]]


def _samples(members: Sequence[int], now: Requests) -> list[int]:
    """Requests that stand for a cluster: distinct prompts of distinct people, the most central
    first, so that nobody fills the card alone; people's further prompts only where few asked."""
    firsts: list[int] = []
    rest: list[int] = []
    units: set[str] = set()
    prompts: set[str] = set()
    for i in members:
        prompt, unit_ = now.prompts[i], now.units[i] if now.units else ""
        if prompt and prompt in prompts:
            continue
        prompts.add(prompt)
        again = bool(unit_) and unit_ in units
        units.add(unit_)
        (rest if again else firsts).append(i)
        if len(firsts) == SAMPLES:
            break
    return [*firsts, *rest][:SAMPLES]


def _distinct(values: Sequence[str | None], chosen: Sequence[int]) -> tuple[str, ...]:
    found = dict.fromkeys(value for i in chosen if (value := values[i]))
    return tuple(found)[:SAMPLES]
