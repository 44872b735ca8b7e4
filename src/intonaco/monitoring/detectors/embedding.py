"""E-detector for embeddings: has what people ask for moved?"""

from __future__ import annotations

import logging
import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intonaco.errors import ConfigError
from intonaco.monitoring.detectors.arrays import pack, unpack
from intonaco.monitoring.detectors.bets import Bets
from intonaco.monitoring.detectors.codebook import Codebook
from intonaco.monitoring.detectors.dedupe import Dedupe
from intonaco.monitoring.detectors.envelope import Envelope
from intonaco.monitoring.detectors.history import History, began
from intonaco.monitoring.detectors.sample import Sample, rounded, rounding
from intonaco.monitoring.detectors.settings import DetectorSettings
from intonaco.monitoring.detectors.witness import CLIP, MEMORIES, Witness
from intonaco.types import Json

logger = logging.getLogger(__name__)

Row = NDArray[np.float32]

FORMAT = 2  # of the state

SAMPLE = 1000  # rows that are kept while the reference is collected; a shorter one is kept whole
LEARN = 6000  # rows from which clusters are learned, at most
FRESH = 300  # rows that are no repeats, at least, however many updates there were
MEMORY = 256  # rows kept as neighbours, where there are too few to learn clusters well
NEIGHBOUR = 2  # the distance to the second nearest: one odd request in the reference is no norm
WITHIN = (0.35, 0.5)  # limits of distance, on the way from "usual" to "any two rows"
TAILS = (0.95, 0.99)  # limits of distance, as quantiles
DAY, WEEK = 86_400.0, 604_800.0
COVERED = 0.95  # of a cycle
UNIT = 1e-5  # what a squared length of 1 may be off by after rounding
TAIL = 0.005  # what cutting the tails of a projection may add to its mean, in standard deviations


class EmbeddingDetector:
    """Mixture Shiryaev-Roberts e-detector over bounded features of unit vectors.

    The first ``reference`` updates (repeats too, but at least 300 others or, if it is shorter, all
    of it) say what is normal. From the first part of them it learns clusters, limits of distance
    and the covariance within clusters; on the rest it measures how often each cluster is asked for,
    how often a request lies far from all of them, and where the mean within clusters lies. It bets
    that one of these leaves the band in which it was then. The band holds the error of a finite
    reference (``z`` standard errors) and the whole rhythm that the reference went through: a
    reference of a week covers the day and the week (``cycles``).

    ``threshold``: log of the mean number of updates to a false alarm, kept while the conditional
    mean of every feature given the past stays in its band. ``tolerance``: shares (of requests) by
    which the bands are widened. ``dedupe``: leave out requests that repeat their session's last
    prompt, or, where there is no session, one of the last prompts of all; they count as updates but
    are not bet on.

    Memory is bounded: under 1 MB for 384 dimensions, also while the reference is collected.

    >>> rng = np.random.default_rng(0)
    >>> topics = rng.standard_normal((6, 32))
    >>> def ask(known):
    ...     topic = topics[rng.integers(5)] if known else topics[5]
    ...     return topic + 0.5 * rng.standard_normal(32)
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
        seed: int = 0,
    ) -> None:
        if reference < 20:
            raise ConfigError(f"reference: at least 20 updates are needed (given: {reference})")
        self.threshold = threshold
        self.reference = reference
        self.tolerance = tolerance
        self.z = z
        self.seed = seed
        self._limit = math.exp(min(threshold, 600.0))
        self._dedupe = Dedupe() if dedupe else None
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
        self._fresh = 0
        self._fired = False
        self._times = (math.nan, math.nan)  # first and last `at` of the reference
        self._sample = Sample()
        self._codebook: Codebook | None = None
        self._limits: tuple[list[float], ...] = ()
        self._memory: NDArray[np.float32] | None = None
        self._coarse = False  # what is normal was measured on rounded rows: so is what comes
        self._witness: Witness | None = None
        self._envelope: Envelope | None = None
        self._bets: Bets | None = None
        self._history = History(1, len(MEMORIES))
        self._novel_before = math.nan
        self._novel_share = math.nan
        self._follow_until = 0  # number of the update up to which cluster means are learned
        if self._dedupe:
            self._dedupe.clear()

    def rearm(self) -> None:
        """Forget the evidence and an alarm, keep the reference: for going on after a false one."""
        if self._bets is None or self._witness is None:
            return
        self._bets.clear()
        self._witness.clear()
        self._history = History(len(self._limits), len(MEMORIES))
        self._fired = False

    # ------------------------------------------------------------------------------- what it says

    @property
    def armed(self) -> bool:
        return self._bets is not None

    @property
    def updates(self) -> int:
        return self._n

    @property
    def evidence(self) -> float:
        return self._bets.evidence if self._bets else -math.inf

    @property
    def drift_detected(self) -> bool:
        """Whether it fired; it stays so until ``reset`` or ``rearm``."""
        return self._fired

    @property
    def cycles(self) -> tuple[str, ...]:
        """Of "day" and "week", what the times of the reference cover. What it does not cover can
        look like a change: without times, or with a short reference, the rhythm of demand does."""
        first, last = self._times
        span = last - first if math.isfinite(last - first) else 0.0
        return tuple(n for n, s in (("day", DAY), ("week", WEEK)) if span >= COVERED * s)

    @property
    def since(self) -> int:
        """Estimate of the update at which the change began."""
        if self._bets is None or not len(self._history):
            return self._n
        return self._history.update_of(began(self._bets.factors(*self._history.rows())))

    @property
    def reference_value(self) -> float | None:
        """Share of the reference that lies unusually far from every known cluster."""
        return None if self._bets is None else self._novel_before

    @property
    def value(self) -> float | None:
        """The same share among about the last hundred updates."""
        return None if math.isnan(self._novel_share) else self._novel_share

    def evidence_shares(self) -> Mapping[str, float]:
        """Which features hold the evidence, in words: shares that sum to 1. Empty without any."""
        if self._bets is None or self._bets.total <= 0:
            return {}
        grew, shrank, novelty, witness = self._bets.shares()
        named = {"requests unlike any of the reference": novelty}
        named |= {f"group {c} is asked for more": float(s) for c, s in enumerate(grew)}
        named |= {f"group {c} is asked for less": float(s) for c, s in enumerate(shrank)}
        named["a shift within the groups"] = witness
        return named

    # -------------------------------------------------------------------------------- what it does

    def update(
        self,
        x: Any,
        *,
        session: str | None = None,
        topic: str | None = None,
        at: float | None = None,
    ) -> bool:
        row: Row = np.asarray(x, dtype=np.float32)
        self._n += 1
        square = float(row @ row)
        if not 0.0 < square < math.inf:
            return self._fired  # no direction: nothing to learn from it
        if abs(square - 1.0) > UNIT:
            row = row * np.float32(1.0 / math.sqrt(square))
        if self._dedupe is not None and self._dedupe.repeats(session, row, at):
            if self._bets is None and self._envelope is not None:
                self._arm_if_complete()
            return self._fired
        self._fresh += 1
        if self._bets is None:
            self._collect(row, at)
            return False
        codebook, witness = self._codebook, self._witness
        assert codebook is not None
        assert witness is not None
        if self._coarse:
            row = rounded(row)
        label, beyond = self._features(row)
        seen = witness.see(row - codebook.means[label])
        self._novel_share += 0.01 * ((beyond[0] > 0) - self._novel_share)
        if self._fired:
            return True  # evidence and date stay those of the alarm
        self._history.add(label, beyond, seen, self._n - 1)
        self._fired = self._bets.update(label, beyond, seen) >= self._limit
        return self._fired

    def update_many(self, xs: Iterable[Any]) -> bool:
        for x in xs:
            self.update(x)
        return self._fired

    def fit(self, reference: NDArray[np.floating[Any]]) -> None:
        """Take rows [n, d] as what is normal and arm. Rows should be free of repeats."""
        self.reset()
        wanted, self.reference = self.reference, len(reference)
        dedupe, self._dedupe = self._dedupe, None
        self.update_many(reference)
        self.reference, self._dedupe = wanted, dedupe
        if self._bets is None:
            raise ConfigError(f"reference: too few rows with a direction ({self._fresh})")

    def _features(self, row: Row) -> tuple[int, tuple[int, ...]]:
        """Cluster, and the limits exceeded by the distance to it (and to the neighbours)."""
        codebook = self._codebook
        assert codebook is not None
        cosine = codebook.centroids @ row
        label = int(cosine.argmax())
        near = bisect_left(self._limits[0], 1.0 - float(cosine[label]))
        beyond: tuple[int, ...] = (near,)
        if self._memory is not None:
            close = float(np.partition(self._memory @ row, -NEIGHBOUR)[-NEIGHBOUR])
            beyond = (near, bisect_left(self._limits[1], 1.0 - close))
        return label, beyond

    # ------------------------------------------------------------------------- learning, measuring

    def _collect(self, row: Row, at: float | None) -> None:
        if at is not None:
            self._times = (at if math.isnan(self._times[0]) else self._times[0], at)
        if self.reference <= SAMPLE:
            self._sample.add(row)
            if self._n >= self.reference and self._fresh >= min(self.reference, FRESH):
                self._fit_whole()
        elif self._codebook is None:
            self._sample.add(row)
            if len(self._sample) >= SAMPLE or self._learned():
                self._codebook = Codebook(self._sample.rows(), np.random.default_rng(self.seed))
        elif self._envelope is None:
            self._codebook.learn(row)
            if self._learned():
                self._follow_until = (self._n + self.reference) // 2
                self._close(self._sample.rows())
        else:
            self._measure(row, follow=self._n < self._follow_until)
            self._arm_if_complete()

    def _arm_if_complete(self) -> None:
        assert self._witness is not None
        if self._n >= self.reference and self._witness.measured >= FRESH // 2:
            self._arm()

    def _learned(self) -> bool:
        until = min(max(2 * SAMPLE, self.reference // 4), 2 * self.reference // 5)
        return self._fresh >= LEARN or (self._n >= until and self._fresh >= FRESH)

    def _fit_whole(self) -> None:
        """A short reference: learn from two fifths of its rows, measure on the others."""
        rows = self._sample.rows()
        rng = np.random.default_rng(self.seed)
        learn, measure = np.split(rows[rng.permutation(len(rows))], [max(10, 2 * len(rows) // 5)])
        self._codebook = Codebook(learn, rng)
        self._coarse = True
        self._close(learn)
        for row in measure:
            self._measure(row, follow=False)
        self._arm()

    def _close(self, rows: NDArray[np.float32]) -> None:
        """End of the learning. ``rows`` [n, d]: what is still there of the rows learned from."""
        codebook = self._codebook
        assert codebook is not None
        near = codebook.close()
        usual, far = codebook.usual, codebook.far
        limits = [_limits(near, usual, far)]
        if self._fresh < 2 * SAMPLE:
            self._memory = rows[:MEMORY].copy()
            cosine = rows @ self._memory.T
            own = np.arange(len(self._memory))
            cosine[own, own] = -1.0
            close = 1.0 - np.partition(cosine, -NEIGHBOUR, axis=1)[:, -NEIGHBOUR]
            limits.append(_limits(close, float(np.median(close)), far))
        self._limits = tuple(limits)
        labels = (rows @ codebook.centroids.T).argmax(axis=1)
        residuals = np.asarray(rows - codebook.means[labels], dtype=np.float64)
        self._witness = Witness(residuals, rounding=rounding(rows))
        groups = [len(limits) for limits in self._limits]
        self._envelope = Envelope(codebook.k + sum(groups))
        self._sample.clear()

    def _measure(self, row: Row, *, follow: bool) -> None:
        codebook, envelope, witness = self._codebook, self._envelope, self._witness
        assert codebook is not None
        assert envelope is not None
        assert witness is not None
        label, beyond = self._features(row)
        if follow:
            codebook.follow(label, row)
        else:
            witness.measure(row - codebook.means[label])
        sums = envelope.row
        sums[label] += 1.0
        at = codebook.k
        for limits, exceeded in zip(self._limits, beyond, strict=True):
            sums[at : at + exceeded] += 1.0
            at += len(limits)
        envelope.next()

    def _arm(self) -> None:
        codebook, envelope, witness = self._codebook, self._envelope, self._witness
        assert codebook is not None
        assert envelope is not None
        assert witness is not None
        low, mean, high = envelope.band(self.z)
        self._bets = Bets(
            clusters=codebook.k,
            novelties=tuple(len(limits) for limits in self._limits),
            low=low - self.tolerance,
            high=high + self.tolerance,
            witnesses=len(MEMORIES),
            slack=self.z / math.sqrt(witness.measured) + TAIL + self.tolerance / witness.scale,
            bound=CLIP,
        )
        self._novel_before = self._novel_share = float(mean[codebook.k])
        self._envelope = None
        if self._dedupe is not None:
            self._dedupe.settle()
        self.rearm()

    # ----------------------------------------------------------------------------------- its state
    def state(self) -> Mapping[str, Json]:
        return {
            "format": FORMAT,
            "n": self._n,
            "fresh": self._fresh,
            "fired": self._fired,
            "follow_until": self._follow_until,
            "times": list(self._times),
            "dedupe": self._dedupe.state() if self._dedupe else None,
            "sample": self._sample.state(),
            "codebook": self._codebook.state() if self._codebook else None,
            "limits": [list(limits) for limits in self._limits],
            "memory": None if self._memory is None else pack(self._memory),
            "coarse": self._coarse,
            "witness": self._witness.state() if self._witness else None,
            "envelope": self._envelope.state() if self._envelope else None,
            "bets": self._bets.state() if self._bets else None,
            "history": self._history.state(),
            "novel_before": self._novel_before,
            "novel_share": self._novel_share,
        }

    def restore(self, state: Mapping[str, Json]) -> None:
        """Go on exactly where ``state`` was taken. One of another format cannot be gone on with: it
        leaves the detector reset, to collect a new reference."""
        self.reset()
        if state.get("format") != FORMAT:
            logger.warning(
                "state of another version of the embedding detector, it gets a new reference",
                extra={"action": "detector.format_changed"},
            )
            return
        self._n, self._fresh = int(state["n"]), int(state["fresh"])
        self._fired = bool(state["fired"])
        self._follow_until = int(state["follow_until"])
        first, last = state["times"]
        self._times = (float(first), float(last))
        if self._dedupe and state["dedupe"]:
            self._dedupe.restore(state["dedupe"])
        self._sample.restore(state["sample"])
        self._codebook = Codebook.of_state(state["codebook"]) if state["codebook"] else None
        self._limits = tuple([float(v) for v in limits] for limits in state["limits"])
        self._memory = None if state["memory"] is None else unpack(state["memory"])
        self._coarse = bool(state.get("coarse", False))
        self._witness = Witness.of_state(state["witness"]) if state["witness"] else None
        self._envelope = Envelope.of_state(state["envelope"]) if state["envelope"] else None
        self._bets = Bets.of_state(state["bets"]) if state["bets"] else None
        self._history = History(max(1, len(self._limits)), len(MEMORIES))
        self._history.restore(state["history"])
        self._novel_before = float(state["novel_before"])
        self._novel_share = float(state["novel_share"])


def _limits(near: NDArray[Any], usual: float, far: float) -> list[float]:
    """Limits of a distance that is ``near`` for requests like those of the reference, ``usual`` in
    the middle, and about ``far`` for any others; ascending."""
    width = max(far - usual, 1e-3)
    tails = [float(np.quantile(near, q)) for q in TAILS]
    return sorted(tails + [usual + w * width for w in WITHIN])
