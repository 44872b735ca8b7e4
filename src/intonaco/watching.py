"""Feeds scored records to the monitors and to the rollout's analysis, each once.

The reader's offset is committed together with the state of what was fed, so that a kill neither
loses a record nor counts it twice.
"""

from __future__ import annotations

import json
from collections import deque
from statistics import median

from intonaco.codec import decode
from intonaco.executor import Parts
from intonaco.monitoring.monitor import Monitor
from intonaco.rollout.analysis import RolloutAnalysis
from intonaco.segment_log import SegmentReader
from intonaco.types import Finding, Json, Outcome, Rollout, ScoredRecord

CONSUMER = "watch"
COMMIT_SECONDS = 1.0
BATCH = 500
SCORED_SECONDS = 10.0  # with nothing left to read, everything older than this has been scored
LATENCIES = 200  # champion's service times kept in each request class


class Watch:
    """What the service's traffic looks like now."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.reader = SegmentReader(parts.workspace.scores)
        self.monitor = Monitor(parts.config.service, parts.config.monitoring)
        self.analysis: RolloutAnalysis | None = None
        self.release: str | None = None  # champion that the monitor's reference belongs to
        self.requests = 0  # user requests ever seen
        self.last_at = 0.0
        self._latencies: dict[str, deque[float]] = {}
        self._arrivals: deque[float] = deque(maxlen=200)
        self._committed_at = 0.0
        self._dirty = False
        self._restore()

    # ------------------------------------------------------------------ one look

    def look(self, fence: int, now: float) -> None:
        """Take in what was scored since the last look; write findings and state."""
        self._follow_champion(now)
        self._follow_rollout()
        findings: list[Finding] = []
        idle = True
        for line in self.reader.read(BATCH):
            item = decode(ScoredRecord, line)
            idle, self._dirty = False, True
            self._count(item)
            findings.extend(self.monitor.observe(item))
            if self.analysis is not None:
                self.analysis.observe(item)
        scored = self.last_at or now
        unscored = self._unscored_bytes()
        if idle and unscored == 0 and self.analysis is not None:
            self.analysis.advance(now - SCORED_SECONDS)
        silence = self.monitor.silence(now, scored, unscored)
        if silence is not None:
            findings.append(silence)
        if findings or (self._dirty and now - self._committed_at >= COMMIT_SECONDS):
            self._commit(fence, now, findings)

    def _unscored_bytes(self) -> int:
        """Bytes of gateway records that the scorer has not taken yet."""
        offset_file = self.parts.workspace.run / "scorer-heartbeat.json"
        try:
            return int(json.loads(offset_file.read_text())["lag_bytes"])
        except (FileNotFoundError, ValueError, KeyError):
            return 0

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
            self.release = champion
            self._latencies.clear()
            self._dirty = True

    def _follow_rollout(self) -> None:
        rollout = self.parts.ledger.active_rollout()
        if rollout is None:
            self.analysis = None
        elif self.analysis is None or self.analysis.rollout_id != rollout.rollout_id:
            self.analysis = self._analysis_of(rollout, self.medians())
            self._dirty = True

    def medians(self) -> dict[str, float]:
        """The champion's median service time in each request class, in seconds."""
        return {name: median(values) for name, values in self._latencies.items() if values}

    def _analysis_of(self, rollout: Rollout, medians: dict[str, float]) -> RolloutAnalysis:
        return RolloutAnalysis(
            rollout.rollout_id,
            self.parts.config.rollout,
            rollout.alpha,
            salt=rollout.salt,
            medians=medians,
            score_range=self.parts.config.rollout.score_range,
            settle_seconds=self.parts.config.serving.gateway.challenger_timeout_s + 1.0,
        )

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
            tx.commit_consumer(CONSUMER, self.reader.offset, self._state(), now)
        self._committed_at = now
        self._dirty = False

    def _state(self) -> Json:
        return {
            "monitor": self.monitor.state(),
            "release": self.release,
            "requests": self.requests,
            "last_at": self.last_at,
            "latencies": {name: list(values) for name, values in self._latencies.items()},
            "arrivals": list(self._arrivals),
            "analysis": self.analysis.state() if self.analysis else None,
            "rollout": self.analysis.rollout_id if self.analysis else None,
        }

    def _restore(self) -> None:
        stored = self.parts.ledger.consumer(CONSUMER)
        if stored is None:
            return
        offset, state = stored
        self.reader.seek(offset)
        self.monitor.restore(state["monitor"])
        self.release = state["release"]
        self.requests = state["requests"]
        self.last_at = state["last_at"]
        for name, values in state["latencies"].items():
            self._latencies[name] = deque(values, maxlen=LATENCIES)
        self._arrivals.extend(state["arrivals"])
        if state["rollout"] is not None:
            rollout = self.parts.ledger.find(Rollout, state["rollout"])
            if rollout is not None and not rollout.status.final:
                self.analysis = self._analysis_of(rollout, {})
                self.analysis.restore(state["analysis"])
