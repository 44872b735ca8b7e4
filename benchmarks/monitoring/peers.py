"""Detectors of River, Evidently and Frouros beside ours, on the same streams.

Each is taken as its library sets it up by default, behind the adapters of
``intonaco.monitoring.detectors`` and judged by the same harness. Those that take scalars see one
number of each embedding: its **novelty** (cosine distance to the nearest of 32 centroids, in
standard deviations from the mean) or its first principal component; both are learned from the week
of reference. They have no sessions: what a user asks again counts again, which is part of what is
compared. Evidently compares windows of 500 with about 2,000 rows taken evenly from the week; the
change falls on the border of a window, its best case.

Libraries that are not installed are left out, and told.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from intonaco.config import DetectorChoice
from intonaco.monitoring.detectors import DetectorSettings, resolve
from intonaco.monitoring.detectors.kmeans import kmeans
from intonaco.monitoring.detectors.river import RiverDetector
from intonaco.monitoring.evaluation import Evaluation, Recorded, Score, total
from intonaco.protocols import Detector
from intonaco.testing import drift, scalars
from intonaco.testing.streams import CHANGES, World, parse

OURS = "intonaco"
LIBRARIES = {
    "river": "pip install 'intonaco[river]'",
    "evidently": "pip install 'intonaco[evidently]'",
    # 0.9.0 asks for scipy below 1.15, River for a later one; it runs with both nevertheless.
    "frouros": "pip install --no-deps frouros; pip install matplotlib requests scipy tqdm",
}
SCALAR_KINDS = (*scalars.CHANGES, *scalars.NULLS)
CENTROIDS = 32
FITTED = 6_000  # rows of the week that the centroids are of
JOURNAL = 1_000_000  # longer than any stream here: River's detectors are never made anew in it

Sees = Literal["vectors", "novelty", "pc1", "scalars"]
Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """``reference``: values it sees before it is judged: the last of the week, or ``even``ly from
    all of it. ``null_events``: of each null, for those that judge scalars."""

    name: str
    detector: str
    sees: Sees
    reference: int
    even: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    null_events: int = 30_000

    @property
    def library(self) -> str:
        return self.detector.partition(":")[0]

    @property
    def installed(self) -> bool:
        return self.library not in LIBRARIES or find_spec(self.library) is not None


def _river(member: str, sees: Sees, reference: int, **other: Any) -> Peer:
    name = f"river_{member.lower()}" + ("" if sees == "scalars" else f"_{sees}")
    options = {"journal": JOURNAL}
    return Peer(
        name=name,
        detector=f"river:{member}",
        sees=sees,
        reference=reference,
        options=options,
        **other,
    )


def _frouros(member: str, sees: Sees) -> Peer:
    name = f"frouros_{member.lower()}" + ("" if sees == "scalars" else f"_{sees}")
    return Peer(name=name, detector=f"frouros:{member}", sees=sees, reference=2_000)


def _evidently(member: str, sees: Sees) -> Peer:
    name = f"evidently_{member}"
    return Peer(
        name=name,
        detector=f"evidently:{member}",
        sees=sees,
        reference=2_000,
        even=sees != "scalars",
    )


VECTOR_PEERS = (
    Peer(name=OURS, detector="e-detector", sees="vectors", reference=drift.WEEK),
    _river("ADWIN", "novelty", 10_000),
    _river("ADWIN", "pc1", 10_000),
    _river("PageHinkley", "novelty", 2_000),
    _river("KSWIN", "novelty", 200),  # its window is 100
    _frouros("CUSUM", "novelty"),
    _frouros("PageHinkley", "novelty"),
    *(_evidently(method, "vectors") for method in ("distance", "mmd", "model", "ratio")),
)
SCALAR_PEERS = (
    Peer(name=OURS, detector="", sees="scalars", reference=2_000),
    _river("ADWIN", "scalars", 2_000),
    _river("PageHinkley", "scalars", 2_000),
    _river("KSWIN", "scalars", 200, null_events=12_000),
    _frouros("CUSUM", "scalars"),
    *(_evidently(test, "scalars") for test in ("ks", "wasserstein", "psi")),
)


def missing() -> list[str]:
    """What is not installed and how to get it, a line each."""
    return [
        f"{library} is not installed and left out: {how}"
        for library, how in LIBRARIES.items()
        if find_spec(library) is None
    ]


# ------------------------------------------------------------------------------------------ Frouros


class _Frouros:
    """A detector of Frouros used as River's are: those start anew by themselves after an alarm,
    Frouros' ones stay up until they are reset."""

    def __init__(self, member: str) -> None:
        self._inner = getattr(import_module("frouros.detectors.concept_drift"), member)()

    def update(self, x: float) -> None:
        if self.drift_detected:
            self._inner.reset()
        self._inner.update(value=x)

    @property
    def drift_detected(self) -> bool:
        return bool(self._inner.status["drift"])


def make(peer: Peer, reference: int | None = None) -> Detector:
    """A new detector."""
    reference = reference or peer.reference
    if peer.library == "frouros":
        member = peer.detector.partition(":")[2]
        return RiverDetector(
            name=peer.detector,
            make=lambda: _Frouros(member),
            reference=reference,
            journal=JOURNAL,
        )
    choice = DetectorChoice(name=peer.detector, options=dict(peer.options))
    _, factory = resolve(choice, stream="vector" if peer.sees == "vectors" else "bounded")
    return factory(
        DetectorSettings(
            requests_between_false_alarms=scalars.BUDGET,
            reference=reference,
            sessions=peer.detector == "e-detector",
        )
    )


# ------------------------------------------------------------------------------------------ vectors


class Projections:
    """One number of an embedding, learned from a reference [n, d]."""

    def __init__(self, reference: Array) -> None:
        rows = reference[:: max(1, len(reference) // FITTED)].astype(np.float64)
        rng = np.random.default_rng(0)
        self._centroids, _ = kmeans(rows, CENTROIDS, rng=rng, restarts=1, rounds=10)
        self._mean = rows.mean(0)
        self._axis = np.linalg.svd(rows - self._mean, full_matrices=False)[2][0]
        far = self._distance(rows)
        self._novelty = far.mean(), far.std()

    def _distance(self, x: Array) -> Array:
        return np.asarray(1.0 - (x @ self._centroids.T).max(1))

    def of(self, sees: Sees, x: Array) -> Array:
        if sees == "novelty":
            mean, sd = self._novelty
            return np.asarray((self._distance(x) - mean) / sd)
        if sees == "pc1":
            return np.asarray((x - self._mean) @ self._axis)
        return x


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """How many. ``scalar_share``: of the scalar streams' nulls; 1 is all."""

    worlds: Sequence[int] = (10, 11)
    seeds: Sequence[int] = (0, 1)
    null_events: int = 8_640
    kinds: tuple[str, ...] = (*drift.NULLS, *CHANGES)
    scalar_seeds: int = 10
    scalar_share: float = 1.0


Scores = dict[str, dict[str, Score]]  # of a peer and a kind of stream
Progress = Callable[[str], None]


def run_part(streams: Streams, world: int, environment: str) -> Scores:
    """All peers that are installed, on the streams of one world and environment."""
    here = World(world)
    week = here.stream(f"null_{environment}", drift.WEEK, drift.REFERENCE_SEED)
    projections = Projections(week.x)
    judged = [
        (kind, drift.recorded(here.stream(kind, n, seed)))
        for kind in streams.kinds
        if drift.environment_of(kind) == environment
        for n in [_length(kind, streams)]
        for seed in streams.seeds
    ]
    found: Scores = {}
    for peer in VECTOR_PEERS:
        if not peer.installed:
            continue
        reference = drift.recorded(week)
        if peer.even:
            every = len(reference) // peer.reference
            reference = Recorded(x=reference.x[::every][: peer.reference])
        elif peer.sees != "vectors":
            reference = Recorded(x=reference.x[-peer.reference :])
        evaluation = Evaluation(make(peer), _seen(reference, peer, projections), time.process_time)
        scores: dict[str, list[Score]] = defaultdict(list)
        for kind, stream in judged:
            scores[kind].append(evaluation.score(_seen(stream, peer, projections)))
        found[peer.name] = {kind: total(of) for kind, of in scores.items()}
    return found


def vectors(streams: Streams, *, processes: int = 2, progress: Progress = print) -> Scores:
    environments = sorted({drift.environment_of(kind) for kind in streams.kinds})
    jobs = [(world, environment) for world in streams.worlds for environment in environments]
    parts: dict[str, dict[str, list[Score]]] = defaultdict(lambda: defaultdict(list))
    with ProcessPoolExecutor(processes) as pool:
        waiting = {pool.submit(run_part, streams, *job): job for job in jobs}
        for number, done in enumerate(as_completed(waiting), 1):
            world, environment = waiting[done]
            progress(f"peers: world {world}, {environment} ({number} of {len(jobs)})")
            for name, by_kind in done.result().items():
                for kind, score in by_kind.items():
                    parts[name][kind].append(score)
    return {name: {kind: total(of[kind]) for kind in streams.kinds} for name, of in parts.items()}


def vector_figures(scores: Scores) -> dict[str, float]:
    """``drift.peers.NAME.KIND.alarms_per_10k`` of nulls, ``.median_delay`` and ``.misses`` of
    changes (no median where more than half are missed), ``drift.peers.NAME.us_per_event``."""
    found: dict[str, float] = {}
    for name, by_kind in scores.items():
        for kind, score in by_kind.items():
            at = f"drift.peers.{name}.{kind}"
            if not parse(kind)[1]:
                found[f"{at}.alarms_per_10k"] = score.alarms_per_10k
                continue
            found[f"{at}.misses"] = float(score.misses)
            if np.isfinite(score.median_delay):
                found[f"{at}.median_delay"] = score.median_delay
        every = total(by_kind.values())
        found[f"drift.peers.{name}.us_per_event"] = every.us_per_event
        found[f"drift.peers.{name}.streams"] = float(every.streams)
    return found


def _length(kind: str, streams: Streams) -> int:
    change = parse(kind)[1]
    if not change:
        return streams.null_events
    return drift.CHANGE_AT + (drift.AFTER_ROTATION if change == "rot" else drift.AFTER)


def _seen(stream: Recorded, peer: Peer, projections: Projections) -> Recorded:
    """What the peer is shown of a stream: an array of plain numbers for those of scalars."""
    if peer.sees == "vectors":
        return stream
    return Recorded(x=projections.of(peer.sees, stream.x), change_at=stream.change_at)


# ------------------------------------------------------------------------------------------ scalars


def _scalars_of(streams: Streams, peer: Peer) -> dict[str, scalars.Found]:
    def build(kind: str, reference: int) -> Detector:
        if peer.name == OURS:
            return scalars.built_in(kind, reference)
        return make(peer, reference)

    return scalars.table(
        seeds=streams.scalar_seeds,
        null_events=max(10_000, int(peer.null_events * streams.scalar_share)),
        reference=peer.reference,
        make=build,
    )


def scalar_figures(
    streams: Streams, *, processes: int = 2, progress: Progress = print
) -> dict[str, float]:
    """``scalar.peers.NAME.KIND.median_delay`` (a miss counts as the stream's length), ``.misses``,
    ``.alarms_per_10k``."""
    found: dict[str, float] = {}
    peers = [peer for peer in SCALAR_PEERS if peer.installed]
    with ProcessPoolExecutor(processes) as pool:
        waiting = {pool.submit(_scalars_of, streams, peer): peer for peer in peers}
        for number, done in enumerate(as_completed(waiting), 1):
            name = waiting[done].name
            progress(f"peers: scalars, {name} ({number} of {len(peers)})")
            by_kind = done.result()
            for kind, of in by_kind.items():
                at = f"scalar.peers.{name}.{kind}"
                if of.delays:
                    found[f"{at}.median_delay"] = float(np.median(of.delays))
                    found[f"{at}.misses"] = float(of.misses)
                else:
                    found[f"{at}.alarms_per_10k"] = of.alarms_per_10k
    return found


def figures(streams: Streams, *, progress: Progress = print) -> dict[str, float]:
    """Of all peers that are installed, ours among them."""
    for line in missing():
        progress(line)
    return scalar_figures(streams, progress=progress) | vector_figures(
        vectors(streams, progress=progress)
    )
