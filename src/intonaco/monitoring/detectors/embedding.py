"""E-detector for embeddings: has what people ask for moved?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intonaco.errors import ConfigError
from intonaco.monitoring.detectors.arrays import pack, unpack
from intonaco.monitoring.detectors.dedupe import SessionDedupe
from intonaco.monitoring.detectors.kmeans import kmeans, unit
from intonaco.monitoring.detectors.mixture import STAKES, Mixture, slack_of
from intonaco.monitoring.detectors.settings import DetectorSettings
from intonaco.types import Json

Vector = NDArray[np.float64]

# Prior share of the evidence: most changes of demand bring something new, so novelty gets half.
PRIOR = {"novelty": 0.5, "cluster": 0.2, "component": 0.15, "witness": 0.15}
NOVELTIES = 6  # three by the nearest centroid, three by the nearest neighbours
MEMORY = 256  # rows of the reference that are kept as neighbours
NEIGHBOUR = 2  # the distance to the second nearest: one odd request in the reference is no norm


class EmbeddingDetector:
    """Mixture Shiryaev-Roberts e-detector over bounded features of unit vectors.

    The first ``reference`` fresh updates say what is normal. They are split at random: on one part
    it learns features (k-means clusters, principal components, distance to the nearest centroid),
    on the other it measures their means. Bets on a feature win when its mean leaves
    ``mean +- slack``; the slack covers the error of a finite reference. One more feature is learned
    as it goes: the direction from the reference mean to the recent mean (the witness), frozen
    before it is bet on.

    ``threshold``: log of the mean number of updates to a false alarm, kept while the conditional
    mean of every feature given the past stays within its band: shares that swing over the day need
    a ``tolerance`` (in shares of requests) or a reference that covers the day. ``dedupe``: leave
    out requests that repeat their session's last prompt; they count as updates but are not bet on.
    ``z``: standard errors in the slack.

    >>> rng = np.random.default_rng(0)
    >>> topics = unit(rng.standard_normal((6, 32)))
    >>> def ask(known):
    ...     topic = topics[rng.integers(5)] if known else topics[5]
    ...     return unit(topic + 0.1 * rng.standard_normal(32))
    >>> detector = EmbeddingDetector(threshold=math.log(10_000), reference=300)
    >>> any(detector.update(ask(True)) for _ in range(1000))
    False
    >>> any(detector.update(ask(rng.random() > 0.3)) for _ in range(150))
    True

    Shin, Ramdas & Rinaldo, "E-detectors", arXiv 2203.03532; the learned witness after Shekhar &
    Ramdas, arXiv 2112.09162.
    """

    name = "e-detector"

    def __init__(
        self,
        *,
        threshold: float,
        reference: int = 2000,
        tolerance: float = 0.0,
        dedupe: bool = True,
        z: float = 3.5,
        clusters: int = 32,
        components: int = 16,
        witness_every: int = 25,
        witness_rate: float = 0.03,
        seed: int = 0,
    ) -> None:
        if reference < 20:
            raise ConfigError(f"reference: at least 20 updates are needed (given: {reference})")
        self.threshold = threshold
        self.reference = reference
        self.tolerance = tolerance
        self.z = z
        self.clusters = clusters
        self.components = components
        self.witness_every = witness_every
        self.witness_rate = witness_rate
        self.seed = seed
        self._dedupe = SessionDedupe() if dedupe else None
        self.reset()

    @classmethod
    def of(cls, settings: DetectorSettings) -> EmbeddingDetector:
        return cls(
            threshold=settings.threshold,
            reference=settings.reference,
            tolerance=settings.tolerance,
            dedupe=settings.sessions,
            seed=settings.seed,
        )

    def reset(self) -> None:
        """Forget all, the reference too."""
        self._n = 0
        self._fired = False
        self._used: list[int] = []  # update number of the last uses, so that `since` is in updates
        self._used_from = 0
        self._pending: list[Vector] = []
        self._mixture: Mixture | None = None
        self._fitted: Mapping[str, Json] | None = None
        self._novel_share = math.nan
        if self._dedupe:
            self._dedupe.clear()

    # ------------------------------------------------------------------------------- what it says

    @property
    def armed(self) -> bool:
        return self._mixture is not None

    @property
    def updates(self) -> int:
        return self._n

    @property
    def evidence(self) -> float:
        return self._mixture.evidence if self._mixture else -math.inf

    @property
    def drift_detected(self) -> bool:
        """Whether it fired; it stays so until ``reset``."""
        return self._fired

    @property
    def since(self) -> int:
        """Estimate of the update at which the change began."""
        if not self._mixture or not self._used:
            return self._n
        return self._used[max(0, self._mixture.since - self._used_from)]

    @property
    def reference_value(self) -> float | None:
        """Share of the reference that lies unusually far from every known cluster."""
        return float(self._mean[self._k]) if self._mixture else None

    @property
    def value(self) -> float | None:
        """The same share among about the last hundred updates."""
        return None if math.isnan(self._novel_share) else self._novel_share

    def evidence_shares(self) -> Mapping[str, float]:
        """Which features hold the evidence, in words: shares that sum to 1. Empty without any."""
        if self._mixture is None:
            return {}
        shares = self._mixture.shares()
        k, components = self._k, len(self._axes)
        named = {"requests unlike any of the reference": shares[k : k + NOVELTIES].sum()}
        named |= {f"how often group {c} is asked for": shares[c] for c in range(k)}
        named["shifts along known directions"] = shares[
            k + NOVELTIES : k + NOVELTIES + components
        ].sum()
        named["a shift in a direction learned since"] = shares[-1]
        return {name: float(share) for name, share in named.items()}

    # -------------------------------------------------------------------------------- what it does

    def update(
        self,
        x: Any,
        *,
        session: str | None = None,
        topic: str | None = None,
        at: float | None = None,
    ) -> bool:
        vector = unit(np.asarray(x, dtype=np.float64))
        self._n += 1
        if self._dedupe and self._dedupe.repeats(session, vector, at):
            return self.drift_detected
        if self._mixture is None:
            self._pending.append(vector)
            if len(self._pending) >= self.reference:
                self.fit(np.stack(self._pending))
            return False
        features = self._features(vector)
        self._novel_share += 0.01 * (features[self._k] - self._novel_share)
        if self._fired:
            return True  # evidence and date stay those of the alarm
        self._fired = self._mixture.update(features) >= self.threshold
        self._used.append(self._n - 1)
        if len(self._used) > 1024:
            del self._used[:512]
            self._used_from += 512
        self._recent += self.witness_rate * (vector - self._recent)
        if self._mixture.updates % self.witness_every == 0:
            self._aim()
        return self.drift_detected

    def update_many(self, xs: Iterable[Any]) -> bool:
        for x in xs:
            self.update(x)
        return self.drift_detected

    def fit(self, reference: NDArray[np.floating[Any]]) -> None:
        """Take rows [n, d] as what is normal and arm. Rows should be free of repeats."""
        rows = unit(reference)
        rng = np.random.default_rng(self.seed)
        order = rng.permutation(len(rows))
        learn, measure = np.split(rows[order], [max(10, int(0.4 * len(rows)))])
        self._mean_learn = learn.mean(axis=0)
        k = max(2, min(self.clusters, len(learn) // 8))
        self._centroids, _ = kmeans(learn, k, rng=rng)
        self._k = len(self._centroids)
        near = 1.0 - (learn @ self._centroids.T).max(axis=1)
        self._memory = learn[:MEMORY]
        others = learn @ self._memory.T
        others[np.arange(len(self._memory)), np.arange(len(self._memory))] = -1.0
        close = 1.0 - np.partition(others, -NEIGHBOUR, axis=1)[:, -NEIGHBOUR]
        far = 1.0 - float(np.median(others))  # any two requests: mostly of different topics
        self._limits = np.concatenate([_limits(near, far), _limits(close, far)])
        centred = learn - self._mean_learn
        wanted = min(self.components, rows.shape[1], len(learn) // 8)
        _, scale, axes = np.linalg.svd(centred, full_matrices=False)
        sd = scale[:wanted] / math.sqrt(len(learn))
        self._axes = axes[:wanted] / np.maximum(sd, 1e-6)[:, None]
        self._recent = self._mean_learn.copy()
        self._witness = np.zeros(rows.shape[1])
        self._measured = len(measure)
        self._centre = measure.mean(axis=0)
        self._covariance = np.atleast_2d(np.cov(measure.T))
        values = np.stack([self._features(row) for row in measure])
        self._mean = values.mean(axis=0)
        slack = slack_of(values.var(axis=0, ddof=1), len(measure), self.z) + self.tolerance
        self._mixture = self._bets(slack)
        self._novel_share = float(self._mean[self._k])
        self._pending = []
        self._fitted = None

    def _features(self, x: Vector) -> Vector:
        """[k clusters, 6 novelties, p components, witness]; all but the witness in [0, 1]."""
        k, components = self._k, len(self._axes)
        features = np.zeros(k + NOVELTIES + components + 1)
        cosine = self._centroids @ x
        nearest = int(np.argmax(cosine))
        features[nearest] = 1.0
        neighbour = np.partition(self._memory @ x, -NEIGHBOUR)[-NEIGHBOUR]
        features[k : k + 3] = _novelty(1.0 - float(cosine[nearest]), self._limits[:4])
        features[k + 3 : k + 6] = _novelty(1.0 - float(neighbour), self._limits[4:])
        standard = np.clip(self._axes @ (x - self._mean_learn), -30.0, 30.0)
        features[k + NOVELTIES : -1] = 1.0 / (1.0 + np.exp(-standard))
        features[-1] = float(self._witness @ x)
        return features

    def _bets(self, slack: Vector) -> Mixture:
        k, components = self._k, len(self._axes)
        kinds = ["cluster"] * k + ["novelty"] * NOVELTIES + ["component"] * components + ["witness"]
        both = {"cluster", "component"}
        bets = [
            (feature, sign, stake, PRIOR[kind] / kinds.count(kind) / (2 if kind in both else 1))
            for feature, kind in enumerate(kinds)
            for sign in ((1.0, -1.0) if kind in both else (1.0,))
            for stake in STAKES
        ]
        index, sign, stake, weight = (np.array(column) for column in zip(*bets, strict=True))
        low = np.zeros(len(kinds))
        low[-1] = -1.0  # the witness is a unit vector: its product with x lies in [-1, 1]
        mixture = Mixture(
            index=index.astype(np.int64),
            sign=sign,
            stake=stake,
            weight=weight,
            mean=self._mean,
            slack=slack,
            low=low,
        )
        # no witness yet: with an infinite slack's worth of caution it stakes next to nothing
        mixture.reset_feature(len(kinds) - 1, 0.0, 1.0, -1.0, 1.0)
        return mixture

    def _aim(self) -> None:
        """Freeze a new witness from what was seen so far; it is bet on from the next update on."""
        assert self._mixture is not None
        direction = self._recent - self._mean_learn
        length = float(np.linalg.norm(direction))
        if length < 1e-9:
            return
        self._witness = direction / length
        mean = float(self._witness @ self._centre)
        variance = float(self._witness @ self._covariance @ self._witness)
        # range 2 instead of 1: Bernstein's second term doubles
        slack = float(slack_of(variance, self._measured, self.z))
        slack += self.z**2 / (3 * self._measured) + self.tolerance
        self._mixture.reset_feature(len(self._mean) - 1, mean, slack, -1.0, 1.0)

    # ----------------------------------------------------------------------------------- its state

    def state(self) -> Mapping[str, Json]:
        if self._mixture is None:
            live: dict[str, Json] = {
                "pending": pack(np.stack(self._pending)) if self._pending else None
            }
        else:
            if self._fitted is None:
                self._fitted = {name: pack(getattr(self, f"_{name}")) for name in _FITTED}
            live = {
                "fitted": self._fitted,
                "measured": self._measured,
                "mixture": self._mixture.state(),
                "witness": pack(self._witness),
                "recent": pack(self._recent),
                "novel_share": self._novel_share,
                "used": pack(np.array(self._used, dtype=np.int64)),
                "used_from": self._used_from,
            }
        return {
            "n": self._n,
            "fired": self._fired,
            "dedupe": self._dedupe.state() if self._dedupe else None,
            **live,
        }

    def restore(self, state: Mapping[str, Json]) -> None:
        self.reset()
        self._n = int(state["n"])
        self._fired = bool(state["fired"])
        if self._dedupe and state["dedupe"]:
            self._dedupe.restore(state["dedupe"])
        if "fitted" not in state:
            pending = state["pending"]
            self._pending = [] if pending is None else list(unpack(pending))
            return
        self._fitted = state["fitted"]
        for name in _FITTED:
            setattr(self, f"_{name}", unpack(state["fitted"][name]))
        self._k = len(self._centroids)
        self._measured = int(state["measured"])
        self._mixture = Mixture.of_state(state["mixture"])
        self._witness = unpack(state["witness"])
        self._recent = unpack(state["recent"])
        self._novel_share = float(state["novel_share"])
        self._used = [int(u) for u in unpack(state["used"])]
        self._used_from = int(state["used_from"])


def _limits(near: Vector, far: float) -> Vector:
    """[unusual, half way, usual, width] of a distance that is ``near`` for requests like those of
    the reference and about ``far`` for any others."""
    usual = float(np.median(near))
    width = max(far - usual, 1e-3)
    return np.array([float(np.quantile(near, 0.95)), usual + width / 2, usual, width])


def _novelty(distance: float, limits: Vector) -> tuple[float, float, float]:
    """Is it farther than most? Farther than half way to anything else? By how much?"""
    unusual, half_way, usual, width = limits
    by = min(max((distance - usual) / width, 0.0), 1.0)
    return float(distance > unusual), float(distance > half_way), by


_FITTED = ("mean_learn", "centroids", "memory", "limits", "axes", "centre", "covariance", "mean")
