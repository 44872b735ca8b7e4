"""Feeds what gateways and scorer wrote to the monitors, to the windows of traffic and to the
rollout's analysis, each line once.

The readers' offsets are committed together with the state of what was fed, so that a kill neither
loses a line nor counts it twice. Scored records go to monitors and analysis; the gateways' own
records, which need no scorer, to the windows.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TypeVar

from intonaco.codec import decode
from intonaco.decision.history import History
from intonaco.errors import StorageError
from intonaco.executor import Parts
from intonaco.monitoring.breakdown import Breakdown, told
from intonaco.monitoring.monitor import RECORDS, Monitor
from intonaco.monitoring.polls import Polls, polls_of
from intonaco.monitoring.silence import RecordLog, Unscored
from intonaco.monitoring.windows import TrafficWindows, expiry
from intonaco.rollout.analysis import RATIO_ALPHA, RolloutAnalysis
from intonaco.rollout.baseline_analysis import BaselineAnalysis
from intonaco.rollout.split_analysis import SplitAnalysis
from intonaco.segment_log import SegmentReader
from intonaco.types import (
    Feedback,
    Finding,
    Json,
    Outcome,
    Record,
    Rollout,
    ScoredRecord,
    Tally,
    TrafficWindow,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

CONSUMER = "watch"
DOOR = "watch.door"  # reads records and tallies of the gateways
COMMIT_SECONDS = 1.0
# A state of embeddings is some megabytes, and nothing is lost by writing it seldom: what was read
# since is read again.
COMMIT_BYTES_PER_SECOND = 500_000
THIN_SECONDS = 60.0  # between two looks for signal points that are too old to be kept
BATCH = 500
FEEDBACK_BATCH = 20_000
SCORED_SECONDS = 10.0  # with nothing left to read, everything older than this has been scored
LATENCIES = 200  # champion's service times kept in each request class


class Watch:
    """What the service's traffic looks like now."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.reader = SegmentReader(parts.workspace.scores)
        self.feedback = SegmentReader(parts.workspace.feedback)
        self.records = SegmentReader(parts.workspace.records)
        self.tallies = SegmentReader(parts.workspace.tallies)
        self.monitor = Monitor(parts.config.service, parts.config.monitoring)
        self.windows = TrafficWindows(self._written_window)
        self.log = RecordLog()
        self.unscored = Unscored()
        self.polls: Polls = polls_of(parts.config.monitoring, self._worker_urls)
        self.breakdown = Breakdown()
        self.history = History()  # the same records, kept for telling causes apart
        self.analysis: RolloutAnalysis | SplitAnalysis | BaselineAnalysis | None = None
        self.release: str | None = None  # champion that the monitor's reference belongs to
        self.requests = 0  # user requests ever seen
        self.last_at = 0.0
        self._latencies: dict[str, deque[float]] = {}
        self._arrivals: deque[float] = deque(maxlen=200)
        self._committed_at = 0.0
        self._pause = COMMIT_SECONDS  # until the next commit, unless there is a finding
        self._told_at = 0.0
        self._thinned_at = 0.0
        self._dirty = False
        self._unwritten: list[Finding] = []
        self._full = False  # there was more to read than one look takes
        self._restore()

    # ------------------------------------------------------------------ one look

    def look(self, fence: int, now: float) -> None:
        """Take in what was scored since the last look; write findings and state."""
        self._follow_champion(now)
        self._follow_rollout()
        findings = self._door(now)
        kept, self._unwritten = self._unwritten, []
        taken = 0
        # First all that was said, so that an image that its record's time makes mature has it.
        said_all = self._hear(findings, now)
        for item in self._read(self.reader, ScoredRecord, BATCH if said_all else 0):
            taken += 1
            self._count(item)
            self.unscored.scored(item.record)
            self.breakdown.observe(item)
            findings.extend(self.monitor.observe(item))
            self.history.observe(item)
            if self.analysis is not None:
                self.analysis.observe(item)
        scored = self.last_at or now
        unscored = self._unscored_bytes(now)
        self._full = taken >= BATCH or not said_all
        if taken == 0 and said_all and unscored == 0:
            waiting = self.monitor.waiting
            findings.extend(self.monitor.mature(now - SCORED_SECONDS))
            self._dirty |= self.monitor.waiting != waiting
            if self.analysis is not None:
                self.analysis.advance(now - SCORED_SECONDS)
        silence = self.monitor.silence(now, scored, unscored)
        if silence is not None:
            findings.append(silence)
        for sample in self.polls.collect(now):
            findings.extend(self.monitor.take(sample))
            self._dirty = True
        findings.extend(self.monitor.tick(now, workers=len(self._worker_urls())))
        findings = [*kept, *(self.explained(finding) for finding in findings)]
        self._unwritten = findings  # until they are in the ledger: a detector says a thing once
        if findings or (self._dirty and now - self._committed_at >= self._pause):
            self._commit(fence, now, findings)
        elif self._dirty and now - self._told_at >= COMMIT_SECONDS:
            with self.parts.ledger.begin(fence=fence) as tx:
                tx.signals(now, self.monitor.status())
            self._told_at = now

    @property
    def blind(self) -> str:
        """What has to come before anybody may say how the traffic is now; empty if nothing."""
        if self._full:
            return "the records that wait to be read"
        return "the scorer, which is silent" if self.monitor.scorer_silent else ""

    @property
    def unjudged_at(self) -> float | None:
        """Time of the oldest record that no scores, and so no rollout's evidence, are of yet."""
        return self.unscored.oldest_at

    def explained(self, finding: Finding) -> Finding:
        """The finding with what its evidence lies on, and which requests hold the change."""
        signal = self.parts.config.monitoring.signals.get(finding.signal)
        facts = {
            **self.monitor.evidence_of(finding),
            **self.breakdown.explain(finding, getattr(signal, "part", "service")),
        }
        held = told(facts.get("parts", ()))
        text = finding.text if not held or held in finding.text else f"{finding.text} {held}."
        return replace(finding, text=text, facts={**finding.facts, **facts})

    def _hear(self, findings: list[Finding], now: float) -> bool:
        """Take in feedback; whether that was all of it."""
        taken = 0
        for feedback in self._read(self.feedback, Feedback, FEEDBACK_BATCH):
            taken += 1
            findings.extend(self.monitor.hear(feedback, now))
            self.history.hear(feedback)
            if self.analysis is not None:
                self.analysis.hear(feedback)
        return taken < FEEDBACK_BATCH

    def _read(self, reader: SegmentReader, cls: type[T], most: int = BATCH) -> Iterator[T]:
        """Lines not read yet. One that cannot be read is told of and left out: it would be none the
        better for stopping at it."""
        for line in reader.read(most):
            self._dirty = True
            try:
                yield decode(cls, line)
            except StorageError as error:
                log.error("a line is skipped: %s", error, extra={"action": "watch.broken_line"})

    def _door(self, now: float) -> list[Finding]:
        """Take in what the gateways wrote themselves."""
        findings: list[Finding] = []
        scored = self.parts.config.extractor is not None  # else there is no scorer to wait for
        for record in self._read(self.records, Record):
            self.windows.record(record, now)
            self.log.record(record)
            if scored:
                self.unscored.record(record)
        tallies = self._read(self.tallies, Tally)
        for tally in sorted(tallies, key=lambda t: (t.at, t.gateway, t.seq)):
            self.windows.tally(tally, now)
            self.log.tally(tally)
            findings.extend(self.monitor.tally(tally))
        limit = self.parts.config.monitoring.silent_after_s
        missing = self.log.missing(now, limit)
        if missing:
            text = (
                f"{', '.join(missing)} answered requests, and no record of them came for "
                f"{limit:.0f} s: errors, latency and traffic are not being watched"
            )
            findings.append(self.monitor.dead_man(RECORDS, now, limit, limit, text))
        return findings

    def _worker_urls(self) -> tuple[str, ...]:
        """Of the champion's workers."""
        table = self.parts.ledger.latest_routing()
        return () if table is None else table.champion().urls

    def _written_window(self, level: str, start: int) -> TrafficWindow | None:
        return self.parts.ledger.find(TrafficWindow, _window_id(level, start))

    def _unscored_bytes(self, now: float) -> int:
        """Bytes of gateway records that the scorer has not taken yet."""
        run = self.parts.workspace.run
        beat = _json(run / "scorer-heartbeat.json") or {"lag_bytes": 0, "at": 0.0}
        lag = int(beat.get("lag_bytes", 0))
        oldest = self.unscored.oldest_at
        late = oldest is not None and now - oldest > SCORED_SECONDS
        if lag or not late or now - float(beat.get("at", now)) <= SCORED_SECONDS:
            return lag
        # What it said last is old, and records wait: it died with nothing to do.
        taken = SegmentReader(self.parts.workspace.records)
        taken.seek((_json(run / "scorer-offset.json") or {"records": {}})["records"])
        return taken.lag_bytes()

    def _count(self, item: ScoredRecord) -> None:
        record = item.record
        if record.probe or record.shadow_of is not None:
            return
        self.requests += 1
        self.last_at = max(self.last_at, record.at)
        self._arrivals.append(record.at)
        last = record.attempts[-1] if record.attempts else None
        if last is not None and last.outcome is Outcome.OK and last.release == self.release:
            kept = self._latencies.setdefault(record.request_class, deque(maxlen=LATENCIES))
            kept.append(last.service_seconds)

    @property
    def arrivals(self) -> int:
        """How many requests ``rate`` is counted over."""
        return len(self._arrivals)

    def rate(self) -> float:
        """User requests per second, lately."""
        if len(self._arrivals) < 2:
            return 0.0
        span = max(self._arrivals) - min(self._arrivals)
        return (len(self._arrivals) - 1) / span if span > 0 else 0.0

    # ------------------------------------------------------------------ whose traffic

    def _follow_champion(self, now: float) -> None:
        champion = self.parts.ledger.champion()
        if champion is not None and champion != self.release:
            self.monitor.rebaseline(champion)
            self.breakdown.forget(champion)
            self.history.clear()
            self.release = champion
            self._latencies.clear()
            self._dirty = True

    def _follow_rollout(self) -> None:
        rollout = self.parts.ledger.active_rollout()
        if rollout is None:
            self.analysis = None
        elif self.analysis is None or self.analysis.rollout_id != rollout.rollout_id:
            self.analysis = self._analysis_of(rollout, self.medians(), self._latencies)
            self._dirty = True
        if isinstance(self.analysis, SplitAnalysis) and rollout is not None:
            self.analysis.follow(rollout)
        if self.analysis is not None and rollout is not None and rollout.promoted_epoch is not None:
            self.analysis.promoted(rollout.promoted_epoch)

    def medians(self) -> dict[str, float]:
        """The champion's median service time in each request class, in seconds."""
        return {name: median(values) for name, values in self._latencies.items() if values}

    def _analysis_of(
        self, rollout: Rollout, medians: dict[str, float], times: Mapping[str, Iterable[float]]
    ) -> RolloutAnalysis | SplitAnalysis | BaselineAnalysis:
        settle = self.parts.config.serving.gateway.challenger_timeout_s + 1.0

        def make(
            name: str,
            alpha: float,
            *,
            metrics: tuple[str, ...] | None = None,
            ratio_alpha: float = RATIO_ALPHA,
            judged: int | None = None,
        ) -> RolloutAnalysis:
            return RolloutAnalysis(
                name,
                self.parts.config.rollout,
                alpha,
                salt=rollout.salt,
                metrics=metrics,
                medians=medians,
                times=times,
                score_range=self.parts.config.rollout.score_range,
                settle_seconds=settle,
                ratio_alpha=ratio_alpha,
                maturity=self.parts.config.monitoring.feedback,
                judged=judged,
            )

        if rollout.split is not None:
            return SplitAnalysis(rollout, make, self.parts.ledger.routing_at)
        if rollout.baseline:
            return BaselineAnalysis(
                rollout,
                self.parts.config.rollout,
                make,
                self.parts.ledger.routing_at,
                settle_seconds=settle,
            )
        return make(rollout.rollout_id, rollout.alpha)

    # ------------------------------------------------------------------ state

    def _commit(self, fence: int, now: float, findings: list[Finding]) -> None:
        with self.parts.ledger.begin(fence=fence) as tx:
            for finding in findings:
                tx.put(finding, id=finding.finding_id, at=finding.at, status="new")
                tx.event(
                    now,
                    "finding",
                    finding.finding_id,
                    finding.text,
                    data={
                        "signal": finding.signal,
                        "request": finding.request,
                        "since": finding.since,
                        "armed_at": finding.armed_at,
                        "evidence": finding.evidence,
                        "threshold": finding.threshold,
                    },
                )
            tx.signals(now, self.monitor.status())
            if now - self._thinned_at >= THIN_SECONDS:
                tx.thin_signals(now)
                self._thinned_at = now
            size = tx.commit_consumer(CONSUMER, self.reader.offset, self._state(), now)
            for window in self.windows.changed():
                tx.put(
                    window,
                    id=_window_id(window.level, window.start),
                    at=window.start,
                    status=window.level,
                )
            for level, before in expiry(now).items():
                tx.drop(TrafficWindow, status=level, before=before)
            tx.commit_consumer(DOOR, self.records.offset, self._door_state(), now)
        self.windows.written()
        self._unwritten = []
        self._committed_at = self._told_at = now
        self._pause = max(COMMIT_SECONDS, size / COMMIT_BYTES_PER_SECOND)
        self._dirty = False

    def _state(self) -> Json:
        return {
            "feedback": dict(self.feedback.offset),
            "monitor": self.monitor.state(),
            "breakdown": self.breakdown.state(),
            "history": self.history.state(),
            "release": self.release,
            "requests": self.requests,
            "last_at": self.last_at,
            "latencies": {name: list(values) for name, values in self._latencies.items()},
            "arrivals": list(self._arrivals),
            "analysis": self.analysis.state() if self.analysis else None,
            "rollout": self.analysis.rollout_id if self.analysis else None,
        }

    def _door_state(self) -> Json:
        return {
            "tallies": dict(self.tallies.offset),
            "log": self.log.state(),
            "unscored": self.unscored.state(),
        }

    def _restore(self) -> None:
        door = self.parts.ledger.consumer(DOOR)
        if door is not None:
            self.records.seek(door[0])
            self.tallies.seek(door[1]["tallies"])
            self.log = RecordLog.of_state(door[1]["log"])
            if "unscored" in door[1]:  # older versions kept none
                self.unscored = Unscored.of_state(door[1]["unscored"])
        stored = self.parts.ledger.consumer(CONSUMER)
        if stored is None:
            return
        offset, state = stored
        self.reader.seek(offset)
        self.feedback.seek(state.get("feedback", {}))
        self.monitor.restore(state["monitor"])
        if "breakdown" in state:
            self.breakdown.restore(state["breakdown"])
        if "history" in state:  # older versions kept none
            self.history.restore(state["history"])
        self.release = state["release"]
        self.requests = state["requests"]
        self.last_at = state["last_at"]
        for name, values in state["latencies"].items():
            self._latencies[name] = deque(values, maxlen=LATENCIES)
        self._arrivals.extend(state["arrivals"])
        if state["rollout"] is not None:
            rollout = self.parts.ledger.find(Rollout, state["rollout"])
            if rollout is not None and not rollout.status.final:
                self.analysis = self._analysis_of(rollout, {}, {})
                try:
                    self.analysis.restore(state["analysis"])
                except StorageError as error:
                    log.error(
                        "evidence of %s is gathered anew: %s",
                        rollout.rollout_id,
                        error,
                        extra={"action": "watch.evidence_lost"},
                    )
                    self.analysis = self._analysis_of(rollout, self.medians(), self._latencies)


def _json(file: Path) -> Json:
    """What a process wrote for others to see; None if it is not there or being written."""
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return None


def _window_id(level: str, start: int) -> str:
    return f"{level}-{start:012d}"
