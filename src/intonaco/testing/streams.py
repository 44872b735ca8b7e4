"""Synthetic request streams for judging detectors: text-like embeddings and scalar signals.

Embeddings are unit vectors of 384 dimensions with an anisotropic mean, 40 topics of Zipf
popularity and a power-law covariance within a topic (cosine about 0.49 within and 0.09 between
topics, effective dimension about 50). Everything is deterministic given (world seed, stream seed).

    world = World(0)
    reference = world.stream("null_iid", n=10_000, seed=900).x
    s = world.stream("new20", n=5_000, seed=1, change_at=2_000)
    s.x          float32 [n, 384]   embeddings, one a request
    s.at         float [n]          seconds since the start; about 6 requests a minute, 8,640 a day
    s.session    int [n]            who asked: equal ids belong to one user's session
    s.topic      int [n]            true topic (for judging explanations only)
    s.change_at  int | None         index of the first request after the change, None for a null

A kind is a change, an environment, or environments and a change joined by ``+``.
Changes, from ``change_at`` on: ``new10|new20|new50`` (a new topic takes that share), ``mix`` (a
rare topic gains 10 points), ``rot`` (slow rotation, 0 to 45 degrees over 8,000 requests).
Environments (no change of their own; alone they are nulls, also written ``null_NAME``):

    iid      independent requests
    burst    a user re-rolls about 4 variants of one prompt in a row
    diurnal  topic shares swing by half over a day
    weekly   the same over a day, and other shares at the week's end
    growth   traffic doubles over the stream (seen in `at` only); topic shares stay
    robot    one client repeats one prompt: 200 requests in a row, about every 3,000

``scalar(kind, n, seed)`` gives latency (seconds), CLIP score and thumbs streams.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

D, K = 384, 40
DAY = 8_640  # requests
ENVIRONMENTS = ("iid", "burst", "diurnal", "weekly", "growth", "robot")
CHANGES = ("new10", "new20", "new50", "mix", "rot")


@dataclass(frozen=True)
class Stream:
    x: Array
    at: Array
    session: Array
    topic: Array
    change_at: int | None


def parse(kind: str) -> tuple[set[str], str]:
    """``"burst+diurnal+new10"`` to ({"burst", "diurnal"}, "new10"); ValueError on anything else."""
    parts = kind.removeprefix("null_").split("+")
    change = parts.pop() if parts[-1] in CHANGES else ""
    unknown = [p for p in parts if p not in ENVIRONMENTS]
    if unknown or (change and kind.startswith("null_")):
        raise ValueError(f"unknown kind {kind!r}: {ENVIRONMENTS} joined by '+', then {CHANGES}")
    return set(parts), change


class World:
    """One service: fixed topics, one fixed new topic, fixed rotation planes."""

    def __init__(self, seed: int) -> None:
        r = np.random.default_rng([7, seed])
        spec = (np.arange(D) + 5.0) ** -0.8
        spec /= spec.sum()
        q, _ = np.linalg.qr(r.standard_normal((D, D)))
        self.basis = q * np.sqrt(spec)  # noise = z @ basis.T has mean squared norm 1
        self.common = q[:, 0] * np.sqrt(0.10)
        c = r.standard_normal((K + 1, D)) @ self.basis.T
        c /= np.linalg.norm(c, axis=1, keepdims=True)
        self.centre = c * np.sqrt(0.40)  # the last row is the new topic
        w = 1.0 / np.arange(1, K + 1)
        self.share = w / w.sum()
        self.phase = r.uniform(0, 2 * np.pi, K)
        self.weekend = r.uniform(0.5, 1.5, K)
        self.plane, _ = np.linalg.qr(r.standard_normal((D, D)))
        self.rare = K - 5

    def embed(self, topics: Array, r: np.random.Generator) -> Array:
        z = r.standard_normal((len(topics), D)) @ self.basis.T
        x = self.common + self.centre[topics] + np.sqrt(0.5) * z
        return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))

    def rotate(self, x: Array, angle: Array) -> Array:
        y = x @ self.plane
        c, s = np.cos(angle)[:, None], np.sin(angle)[:, None]
        a, b = y[:, 0:128:2].copy(), y[:, 1:128:2].copy()
        y[:, 0:128:2], y[:, 1:128:2] = c * a - s * b, s * a + c * b
        return np.asarray(y @ self.plane.T)

    def shares(self, t: Array, env: set[str]) -> Array:
        """Topic shares [n, K] by request index."""
        w = np.broadcast_to(self.share, (len(t), K)).copy()
        if env & {"diurnal", "weekly"}:
            w *= 1 + 0.5 * np.sin(2 * np.pi * t[:, None] / DAY + self.phase)
        if "weekly" in env:
            w[(t // DAY) % 7 >= 5] *= self.weekend
        return np.asarray(w / w.sum(1, keepdims=True))

    def stream(self, kind: str, n: int, seed: int, change_at: int = 2_000) -> Stream:
        env, change = parse(kind)
        r = np.random.default_rng([3, seed])
        t = np.arange(n)
        cum = np.cumsum(self.shares(t, env), 1)
        topics = (r.random(n)[:, None] > cum).sum(1).clip(0, K - 1)
        after = t >= change_at
        if change.startswith("new"):
            topics[after & (r.random(n) < int(change[3:]) / 100)] = K
        elif change == "mix":
            topics[after & (r.random(n) < 0.10)] = self.rare
        session = t.copy()
        if "burst" in env:
            session = np.maximum.accumulate(np.where((r.random(n) < 0.25) | (t == 0), t, 0))
        if "robot" in env:
            for start in np.flatnonzero(r.random(n) < 1 / 3_000):
                session[start : start + 200] = start
        topics = topics[session]
        x = self.embed(topics, r)
        x = x[session] + np.where(session == t, 0.0, 0.2)[:, None] * (x - x[session])
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        if change == "rot":
            x = self.rotate(x, np.clip((t - change_at) / 8_000, 0, 1) * np.pi / 4)
        rate = (1 + t / n if "growth" in env else np.ones(n)) / 10.0  # requests a second
        at = np.cumsum(r.exponential(size=n) / rate)
        return Stream(x.astype(np.float32), at, session, topics, change_at if change else None)


def scalar(kind: str, n: int, seed: int, change_at: int = 2_000) -> tuple[Array, int | None]:
    """``latency_null|latency_15|latency_tail`` (s), ``clip_null|clip_01|clip_02`` (0..1),
    ``thumb_null|thumb_70|thumb_60`` (0 or 1); returns (values, change_at or None)."""
    r = np.random.default_rng([5, seed])
    after = np.arange(n) >= change_at
    if kind in ("latency_null", "latency_15", "latency_tail"):
        x = np.exp(np.log(3.0) + 0.25 * r.standard_normal(n) + 0.75 * (r.random(n) < 0.03))
        if kind == "latency_15":
            x = np.where(after, x * 1.15, x)
        if kind == "latency_tail":
            x = np.where(after & (r.random(n) < 0.05), x * 3, x)
    elif kind in ("clip_null", "clip_01", "clip_02"):
        drop = {"clip_01": 0.01, "clip_02": 0.02}.get(kind, 0.0)
        x = np.clip(0.30 + 0.04 * r.standard_normal(n), 0, 1) - drop * after
    elif kind in ("thumb_null", "thumb_70", "thumb_60"):
        p = {"thumb_70": 0.70, "thumb_60": 0.60}.get(kind, 0.80)
        x = (r.random(n) < np.where(after, p, 0.80)).astype(float)
    else:
        raise ValueError(f"unknown kind {kind!r}")
    return x, None if kind.endswith("_null") else change_at
