"""What is kept of each request so that a diagnosis can compare before with after. Pure.

The monitors' detectors say *that* something moved. To say *why*, their findings are held against
the same requests seen from other sides: queue against service time, within a class and batch size,
champion against the release before it, each topic against itself. For that the last ``KEPT``
requests and a uniform sample of ``SAMPLED`` older ones are remembered, a few numbers each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intonaco.decision.evidence import (
    ArmFigures,
    Load,
    Rate,
    Times,
    TopicChange,
    TrafficChange,
)
from intonaco.monitoring.detectors.arrays import pack, unpack
from intonaco.monitoring.signals import OWN_ARMS, is_user_request, usual_of_batch
from intonaco.types import (
    Attempt,
    ClusterMove,
    Feedback,
    Finding,
    Json,
    Outcome,
    Record,
    ScoredRecord,
)

Rows = NDArray[np.float64]

KEPT = 2048  # last requests
SAMPLED = 1024  # of all since the champion took over
CLASSES = 64  # request classes that are told apart; the rest is one more
DIMENSIONS = 32  # embeddings are projected to as many; topics stay apart, prompts cannot be read
FAR = 2.0  # times the usual
FEWEST = 20  # requests on each side of a comparison
ENOUGH = 400  # recent requests before the change; with fewer the sample is used
HOLDBACK = "holdback"
SCORE = "clip"

# columns of a row
AT, CLASS, PADDED, QUEUE, SERVICE, DEVICE, KIND, ARM, WORK, SCORED, VOTE = range(11)
WIDTH = 11
OK, ERROR, TIMEOUT, REFUSED, NOTHING = range(5)  # KIND: how the arm that was assigned did
CHAMPION, PREVIOUS, OTHER = range(3)  # ARM


class History:
    """Give it every scored record once, every vote once, and ``clear`` it when another release
    becomes champion. Personal data, as the monitors' state is: it lives as long as that."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._rows = np.zeros((0, WIDTH))
        self._vectors = np.zeros((0, DIMENSIONS), np.float32)
        self._ids: list[str] = []
        self._new: list[tuple[str, list[float], NDArray[np.float32]]] = []
        self._slots: dict[str, int] | None = None
        self._sample = np.zeros((SAMPLED, WIDTH))
        self._offered = 0
        self._classes: list[str] = []
        self._votes: list[tuple[str, float, float]] = []  # request, up, made_at; not yet in a row

    # ------------------------------------------------------------------------------- what it sees

    def observe(self, item: ScoredRecord) -> None:
        record = item.record
        if not is_user_request(record):
            return
        row = self._row(record, item.scores.get(SCORE))
        self._new.append((record.request_id, row, _projected(item.prompt_embedding)))
        if len(self._new) >= KEPT // 4:
            self._settle()
        self._offered += 1
        place = self._offered - 1
        if place >= SAMPLED:  # reservoir sampling, its draws seeded by the count
            place = int(np.random.default_rng(self._offered).integers(self._offered))
        if place < SAMPLED:
            self._sample[place] = row

    def hear(self, feedback: Feedback) -> None:
        """An explicit vote; stars count as up from four on, as down up to two."""
        up = _liked(feedback.vote) if feedback.kind == "explicit" else None
        if up is not None:
            self._votes.append((feedback.request_id, up, feedback.made_at))
            if len(self._votes) >= 2 * KEPT:
                self._settle()

    def _settle(self) -> None:
        """Take what came since into the arrays."""
        if self._new:
            rows = np.array([row for _, row, _ in self._new])
            vectors = np.stack([vector for _, _, vector in self._new])
            self._rows = np.concatenate([self._rows, rows])[-KEPT:]
            self._vectors = np.concatenate([self._vectors, vectors])[-KEPT:]
            self._ids = [*self._ids, *(name for name, _, _ in self._new)][-KEPT:]
            self._new.clear()
            self._slots = None
        if self._votes:
            if self._slots is None:
                self._slots = {name: i for i, name in enumerate(self._ids)}
            waiting = []
            for name, up, made_at in self._votes:
                if name in self._slots:
                    self._rows[self._slots[name], VOTE] = up
                elif len(self._rows) < KEPT or made_at >= self._rows[0, AT]:
                    waiting.append((name, up, made_at))  # read before its record
            self._votes = waiting[-KEPT:]

    def _row(self, record: Record, score: float | None) -> list[float]:
        arm, attempts = _attempts(record)
        kind = _kind(attempts, served=record.served_by is not None)
        ok = next((a for a in attempts if a.outcome is Outcome.OK), None)
        # the canary shield's answer says nothing of the arm that was assigned
        own = ok is not None and ok.release == record.served_by
        return [
            record.at,
            self._class(record.request_class),
            ok.padded_size if ok else 0,
            ok.queue_seconds if ok else max((a.queue_seconds for a in attempts), default=0.0),
            ok.service_seconds if ok else 0.0,
            ok.gpu_seconds if ok else 0.0,
            kind,
            arm,
            record.width * record.height * 1e-6 * max(1, record.steps),
            score if own and score is not None else math.nan,
            math.nan,
        ]

    def _class(self, name: str) -> int:
        if name in self._classes:
            return self._classes.index(name)
        if len(self._classes) >= CLASSES:
            return CLASSES
        self._classes.append(name)
        return len(self._classes) - 1

    # -------------------------------------------------------------------------------- what it says

    def change(self, since: float, clusters: Sequence[ClusterMove] = ()) -> TrafficChange | None:
        """Requests from ``since`` on against those before; None if there are too few of either.
        ``clusters``: the groups of requests that topics are told by."""
        self._settle()
        rows, vectors = self._rows, self._vectors
        late = rows[:, AT] >= since
        now, before = rows[late], rows[~late]
        older = self._sample[: min(self._offered, SAMPLED)]
        older = older[older[:, AT] < since]
        normal = before if len(before) >= min(ENOUGH, len(older)) else older
        if len(now) < FEWEST or len(normal) < FEWEST:
            return None
        mine_before, mine = normal[normal[:, ARM] == CHAMPION], now[now[:, ARM] == CHAMPION]
        medians = _medians(mine_before)
        times, limit = self._times(mine_before, mine, medians)
        own = self._arm(mine, medians, limit)
        other = self._arm(now[now[:, ARM] == PREVIOUS], medians, limit)
        return TrafficChange(
            requests_before=len(normal),
            requests_now=len(now),
            times=times,
            load=_load(normal, now, before, since),
            failed_before=_failed(mine_before),
            failed_now=_failed(mine),
            champion=own,
            previous=other,
            topics=_topics(rows, vectors, late, clusters),
        )

    def of_findings(
        self, findings: Sequence[Finding], *, performance: Callable[[Finding], bool]
    ) -> tuple[TrafficChange | None, TrafficChange | None]:
        """What the findings about content and those about performance rest on, each since the
        change that they date."""
        clusters = next((f.clusters for f in findings if any(c.moved for c in f.clusters)), ())
        clusters = clusters or next((f.clusters for f in findings if f.clusters), ())
        by = {True: [], False: []}  # type: dict[bool, list[float]]
        for finding in findings:
            by[performance(finding)].append(finding.since_at)
        content = self.change(min(by[False]), clusters) if by[False] else None
        return content, self.change(min(by[True])) if by[True] else None

    def _times(
        self, before: Rows, now: Rows, medians: Mapping[tuple[float, ...], float]
    ) -> tuple[Times | None, float]:
        r_before, _ = _ratios(before, medians)
        # a change is often dated some requests early: what is slow now shows in the later part
        r_now, classes = _ratios(now[len(now) // 3 :], medians)
        if len(r_now) < FEWEST:
            r_now, classes = _ratios(now, medians)
        if len(r_before) < FEWEST or len(r_now) < FEWEST:
            return None, math.inf
        limit = _limit(r_before, r_now)
        slow = r_now > limit
        names = {float(i): name for i, name in enumerate(self._classes)}
        by_class = {
            names.get(float(c), "other"): Rate(
                count=int(slow[classes == c].sum()), total=int((classes == c).sum())
            )
            for c in np.unique(classes)
        }
        return (
            Times(
                n=len(r_now),
                n_before=len(r_before),
                ratio=float(np.median(r_now)),
                quick=float(np.quantile(r_now, 0.25) / np.quantile(r_before, 0.25)),
                slow=_beyond(r_now, limit),
                slow_before=_beyond(r_before, limit),
                slow_by_class=by_class,
                above=_beyond(r_now, float(np.median(r_before))),
                above_before=_beyond(r_before, float(np.median(r_before))),
            ),
            limit,
        )

    @staticmethod
    def _arm(
        rows: Rows, medians: Mapping[tuple[float, ...], float], limit: float
    ) -> ArmFigures | None:
        if len(rows) < FEWEST:
            return None
        ratios, _ = _ratios(rows, medians)
        judged = rows[rows[:, KIND] != NOTHING]
        failed = int(np.isin(judged[:, KIND], (ERROR, TIMEOUT)).sum())
        return ArmFigures(
            failed=Rate(count=failed, total=len(judged)),
            slow=Rate(count=int((ratios > limit).sum()), total=len(ratios)),
            score=_mean(rows[:, SCORED]),
        )

    # ----------------------------------------------------------------------------------- its state

    def state(self) -> Mapping[str, Json]:
        self._settle()
        return {
            "rows": pack(self._rows),
            "vectors": pack(self._vectors),
            "ids": list(self._ids),
            "sample": pack(self._sample[: min(self._offered, SAMPLED)]),
            "offered": self._offered,
            "classes": list(self._classes),
            "votes": [list(vote) for vote in self._votes],
        }

    def restore(self, state: Mapping[str, Json]) -> None:
        self.clear()
        self._rows = unpack(state["rows"])
        self._vectors = unpack(state["vectors"])
        self._ids = list(state["ids"])
        sample = unpack(state["sample"])
        self._sample[: len(sample)] = sample
        self._offered = int(state["offered"])
        self._classes = list(state["classes"])
        self._votes = [(str(n), float(up), float(at)) for n, up, at in state.get("votes", ())]


def _attempts(record: Record) -> tuple[int, list[Attempt]]:
    """What group of arms the user was assigned to, and what that group did."""
    if record.assigned_arm in OWN_ARMS:
        return CHAMPION, [a for a in record.attempts if a.arm in OWN_ARMS]
    if record.assigned_arm == HOLDBACK:
        return PREVIOUS, [a for a in record.attempts if a.arm == HOLDBACK]
    return OTHER, [a for a in record.attempts if a.arm == record.assigned_arm]


def _kind(attempts: Sequence[Attempt], *, served: bool) -> int:
    outcomes = [a.outcome for a in attempts]
    if Outcome.ERROR in outcomes:
        return ERROR
    if Outcome.TIMEOUT in outcomes:
        return TIMEOUT
    if Outcome.REJECTED in outcomes and not served:
        return REFUSED
    return OK if Outcome.OK in outcomes else NOTHING


def _liked(vote: str | None) -> float | None:
    if vote in ("up", "4", "5"):
        return 1.0
    return 0.0 if vote in ("down", "1", "2") else None


def _projected(embedding: Sequence[float]) -> NDArray[np.float32]:
    """A unit vector of few dimensions (Johnson & Lindenstrauss, 1984); zeros without one."""
    vector = np.asarray(embedding, dtype=np.float64)
    short = np.zeros(DIMENSIONS)
    if len(vector) > DIMENSIONS:
        short = vector @ _projection(len(vector))
    else:
        short[: len(vector)] = vector
    return (short / max(float(np.linalg.norm(short)), 1e-12)).astype(np.float32)


_PROJECTIONS: dict[int, NDArray[np.float64]] = {}


def _projection(dimension: int) -> NDArray[np.float64]:
    """The same in every process: its seed is the dimension."""
    if dimension not in _PROJECTIONS:
        random = np.random.default_rng([23, dimension])
        _PROJECTIONS[dimension] = random.standard_normal((dimension, DIMENSIONS))
    return _PROJECTIONS[dimension]


def _medians(rows: Rows) -> dict[tuple[float, ...], float]:
    """Median seconds per (class, padded size), and median device seconds per (class,)."""
    found: dict[tuple[float, ...], float] = {}
    served = rows[(rows[:, KIND] == OK) & (rows[:, SERVICE] > 0)]
    for stratum in np.unique(served[:, [CLASS, PADDED]], axis=0):
        here = served[(served[:, [CLASS, PADDED]] == stratum).all(axis=1)]
        if len(here) >= FEWEST:
            found[tuple(stratum)] = float(np.median(here[:, SERVICE]))
    for number in np.unique(served[:, CLASS]):
        device = served[(served[:, CLASS] == number) & (served[:, DEVICE] > 0), DEVICE]
        if len(device) >= FEWEST:
            found[(float(number),)] = float(np.median(device))
    return found


def _ratios(rows: Rows, medians: Mapping[tuple[float, ...], float]) -> tuple[Rows, Rows]:
    """Seconds over the usual of the stratum, and the classes, of the served requests that can be
    compared. A batch size that never occurred before is compared with what it takes at most by
    the sizes that did, if there were two, else by the device time of one image, which fuller
    batches lower: they are no slowness."""
    ratios, classes = [], []
    sizes: dict[float, dict[int, float]] = {}
    for stratum, median in medians.items():
        if len(stratum) == 2:
            sizes.setdefault(stratum[0], {})[max(1, int(stratum[1]))] = median
    for row in rows[(rows[:, KIND] == OK) & (rows[:, SERVICE] > 0)]:
        usual = medians.get((row[CLASS], row[PADDED]))
        value = row[SERVICE]
        known = sizes.get(row[CLASS], {})
        if usual is None and len(known) > 1:
            usual = usual_of_batch(known, max(1, int(row[PADDED])))
        if usual is None:
            usual, value = medians.get((row[CLASS],)), row[DEVICE]
        if usual:
            ratios.append(value / usual)
            classes.append(row[CLASS])
    return np.array(ratios), np.array(classes)


def _limit(before: Rows, now: Rows) -> float:
    """The ratio beyond which a request counts as slow: of two, the one that tells now from before
    more surely. A machine among many makes few requests slow, but those far slower than any."""
    limits = (
        max(1.2, float(np.quantile(before, 0.95))),
        max(FAR, float(np.quantile(before, 0.995))),
    )
    return max(limits, key=lambda limit: _beyond(now, limit).exceeds(_beyond(before, limit)))


def _beyond(ratios: Rows, limit: float) -> Rate:
    return Rate(count=int((ratios > limit).sum()), total=len(ratios))


def _failed(rows: Rows) -> dict[str, Rate]:
    judged = rows[rows[:, KIND] != NOTHING, KIND]
    return {
        name: Rate(count=int((judged == code).sum()), total=len(judged))
        for name, code in (("error", ERROR), ("timeout", TIMEOUT))
    }


def _load(normal: Rows, now: Rows, before: Rows, since: float) -> Load:
    def refused(rows: Rows) -> Rate:
        judged = rows[rows[:, KIND] != NOTHING, KIND]
        return Rate(count=int((judged == REFUSED).sum()), total=len(judged))

    def mean(rows: Rows, column: int) -> float:
        served = rows[rows[:, KIND] == OK, column]
        return float(served.mean()) if len(served) else 0.0

    def service(rows: Rows) -> float:
        served = rows[rows[:, KIND] == OK, SERVICE]
        return float(np.median(served)) if len(served) else 0.0

    span_before = since - float(before[:, AT].min()) if len(before) >= FEWEST else 0.0
    span_now = float(now[:, AT].max()) - since

    def used(rows: Rows, span: float) -> float | None:
        total = float(rows[:, DEVICE].sum())
        return total / span if span > 0 and total > 0 else None

    return Load(
        rate_before=len(before) / span_before if span_before > 0 else None,
        rate_now=len(now) / span_now if span_now > 0 else None,
        work_before=float(normal[:, WORK].mean()),
        work_now=float(now[:, WORK].mean()),
        queue_before=mean(normal, QUEUE),
        queue_now=mean(now, QUEUE),
        service_before=service(normal),
        service_now=service(now),
        refused_before=refused(normal),
        refused_now=refused(now),
        devices_before=used(before, span_before),
        devices_now=used(now, span_now),
    )


def _topics(
    rows: Rows,
    vectors: NDArray[np.float32],
    late: NDArray[np.bool_],
    clusters: Sequence[ClusterMove],
) -> tuple[TopicChange, ...]:
    if not clusters or not len(rows):
        return ()
    centroids = np.stack([_projected(c.centroid) for c in clusters])
    nearest = np.argmax(vectors @ centroids.T, axis=1)
    known = np.abs(vectors).sum(axis=1) > 0

    def of(index: int, cluster: ClusterMove) -> TopicChange:
        here = known & (nearest == index) & (rows[:, ARM] == CHAMPION)
        was, is_now = rows[here & ~late], rows[here & late]
        return TopicChange(
            cluster=cluster.cluster,
            requests_before=len(was),
            requests_now=len(is_now),
            score_before=_mean(was[:, SCORED]),
            score_now=_mean(is_now[:, SCORED]),
            liked_before=_votes(was),
            liked_now=_votes(is_now),
        )

    return tuple(of(i, c) for i, c in enumerate(clusters))


def _mean(values: Any) -> tuple[float, float] | None:
    """Mean and its standard error; None of fewer than two."""
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return None
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


def _votes(rows: Rows) -> Rate:
    votes = rows[~np.isnan(rows[:, VOTE]), VOTE]
    return Rate(count=int(votes.sum()), total=len(votes))
