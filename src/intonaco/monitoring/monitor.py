"""The monitor of one service: scored records in, findings out. No input or output of its own."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from intonaco.codec import digest
from intonaco.config import Monitoring
from intonaco.monitoring.detectors.dedupe import SessionDedupe
from intonaco.monitoring.detectors.kmeans import unit
from intonaco.monitoring.explanation import explain, moved_share, summary
from intonaco.monitoring.recent import Recent
from intonaco.monitoring.signals import champion_score, is_user_request
from intonaco.monitoring.sources import Reading, Seen
from intonaco.monitoring.watch import Watch
from intonaco.types import ClusterMove, Feedback, Finding, Json, ScoredRecord, SignalStatus

logger = logging.getLogger(__name__)

SCORE = "clip"  # the score that explanations compare
SILENCE_SECONDS = 60.0
SILENCE = "scorer"  # name of the signal of the dead-man's switch
STATE_VERSION = 2
MOST_SHARES, LEAST_SHARE = 3, 0.01  # of a detector's features, those that a finding tells


class Monitor:
    """Watches the signals of one service.

    Each signal takes its first ``reference`` requests as what is normal, then watches. It fires
    once and stays firing until ``rebaseline``: the old reference is kept until a new release, or a
    person, makes another state the normal one. The budget of false alarms is shared: signal i may
    raise one in ``requests_between_false_alarms * sum(weights) / weight_i`` updates, so that all
    together raise at most one in ``requests_between_false_alarms`` requests.

    Give it every scored record once, in order, and keep ``state()`` together with the reader's
    offset.
    """

    def __init__(self, service_id: str, config: Monitoring, *, release: str | None = None) -> None:
        self.service_id = service_id
        self.config = config
        self.requests = 0  # user requests seen
        self._release = release
        self._extractor: str | None = None
        self._dedupe = SessionDedupe()
        self._recent = Recent()
        self._watches = self._new_watches()
        self._silent_since: float | None = None
        self._silence_told = False

    def _new_watches(self) -> dict[str, Watch]:
        signals = self.config.signals
        total = sum(s.weight for s in signals.values())
        between = self.config.requests_between_false_alarms
        return {
            name: Watch(name, signal, between * total / signal.weight)
            for name, signal in signals.items()
        }

    # ------------------------------------------------------------------------------- what it sees

    def observe(self, item: ScoredRecord) -> list[Finding]:
        """Take one scored record; the findings it completes. Probes and shadow copies say nothing
        about users. Prompts count for every user request; scores, errors and latency only where
        the champion (or the equal baseline arm) answered a user assigned to it."""
        record = item.record
        if not is_user_request(record):
            return []
        self.requests += 1
        if item.prompt_embedding:
            self._check_extractor(item.extractor)
        row = unit(np.array(item.prompt_embedding)) if item.prompt_embedding else None
        repeat = row is not None and self._dedupe.repeats(record.unit, row, record.at)
        score = champion_score(item, SCORE, self._release)
        if row is not None and not repeat:
            self._recent.add(
                at=record.at,
                row=row,
                prompt=record.prompt if record.prompt_form == "text" else "",
                image=record.image,
                score=score,
                unit=record.unit,
            )
            if not self._reference_complete():
                self._recent.add_reference(row, record.image)
        seen = Seen(item=item, release=self._release, row=row, repeat=repeat)
        return [
            self._finding(watch, record.at)
            for watch in self._watches.values()
            if self._feed(watch, watch.source.of_record(seen), counts=not repeat)
        ]

    def hear(self, feedback: Feedback, now: float) -> list[Finding]:
        """Take what a user said of an image; the findings it completes."""
        return [
            self._finding(watch, now)
            for watch in self._watches.values()
            if self._feed(watch, watch.source.of_feedback(feedback, now))
        ]

    def tick(self, now: float) -> list[Finding]:
        """Let time pass: what is measured by the clock, not by requests. Call it every second or
        so; the findings it completes."""
        return [
            self._finding(watch, now)
            for watch in self._watches.values()
            if self._feed(watch, watch.source.tick(now))
        ]

    @staticmethod
    def _feed(watch: Watch, readings: Iterable[Reading], *, counts: bool = True) -> bool:
        """Whether one of the readings made the signal fire. What does not count (the same user
        asking the same again) is seen, but no news."""
        fired = False
        for reading in readings:
            watch.seen += 1
            if counts or watch.source.repeats:
                fired |= watch.feed(reading)
        return fired

    def _reference_complete(self) -> bool:
        """The sample of the reference ends when the first signal about requests is armed."""
        from_extractor = [w for w in self._watches.values() if w.source.extracted]
        first = sorted(from_extractor, key=lambda w: w.signal.of != "prompt_embedding")[:1]
        return all(watch.armed for watch in first)

    def _check_extractor(self, extractor: str) -> None:
        """Vectors and scores of two extractors cannot be compared: start those signals anew."""
        if self._extractor not in (None, extractor):
            logger.warning(
                "extractor changed, prompts and scores get a new reference",
                extra={"action": "monitor.extractor_changed", "service_id": self.service_id},
            )
            fresh = self._new_watches()
            for name, watch in self._watches.items():
                if watch.source.extracted:
                    self._watches[name] = fresh[name]
            self._recent = Recent()
            self._dedupe.clear()
        self._extractor = extractor

    # -------------------------------------------------------------------------------- what it says

    def _finding(self, watch: Watch, at: float) -> Finding:
        since, since_at = watch.since()
        before = watch.reference_value
        now = watch.raw(watch.value_since())
        direction: str = watch.signal.direction
        if watch.source.direction == "moved":
            direction = "moved"
        elif direction == "both":
            direction = "up" if (now or 0.0) > (before or 0.0) else "down"
        finding = Finding(
            finding_id=digest([self.service_id, watch.name, self._release, watch.seen, at])[:16],
            service_id=self.service_id,
            signal=watch.name,
            of=watch.signal.of,
            detector=watch.detector_name,
            at=at,
            request=watch.seen,
            armed_at=watch.armed_at or 0,
            since=since,
            since_at=since_at,
            evidence=watch.detector.evidence,
            threshold=watch.detector.threshold,
            value_before=0.0 if before is None else before,
            value_now=0.0 if now is None else now,
            unit=watch.source.unit,
            direction=direction,
            release=self._release,
        )
        finding = self.refresh(finding)
        logger.info(
            "signal %s changed",
            watch.name,
            extra={"action": "monitor.finding", "finding_id": finding.finding_id},
        )
        return finding

    def refresh(self, finding: Finding) -> Finding:
        """The finding with its clusters worked out from all requests since its change. Call it
        again once more requests have come, before a diagnosis."""
        watch = self._watches.get(finding.signal)
        if watch is None:
            return finding
        clusters = explain(
            self._recent.reference(),
            self._recent.since(finding.since_at),
            images_before=self._recent.reference_images(),
        )
        if watch.signal.of == "prompt_embedding" and any(c.moved for c in clusters):
            finding = replace(
                finding,
                value_before=sum(c.share_before for c in clusters if c.moved),
                value_now=moved_share(clusters),
            )
        return replace(finding, clusters=clusters, text=_text(watch, finding, clusters))

    def evidence_of(self, finding: Finding) -> Mapping[str, Json]:
        """What the evidence lies on, for the finding's ``facts``: {"evidence_shares": {name:
        share}}, largest first, where the signal's detector can tell."""
        watch = self._watches.get(finding.signal)
        tell = getattr(watch.detector, "evidence_shares", None) if watch is not None else None
        shares = tell() if tell is not None and watch is not None and watch.firing else {}
        top = sorted(shares.items(), key=lambda item: -item[1])[:MOST_SHARES]
        told = {name: float(share) for name, share in top if share >= LEAST_SHARE}
        return {"evidence_shares": told} if told else {}

    def settled(self, finding: Finding) -> bool:
        """Whether ``settle_requests`` more have come since a finding, so that its refreshed
        explanation is worth a diagnosis."""
        watch = self._watches.get(finding.signal)
        return watch is None or watch.seen >= finding.request + self.config.settle_requests

    def status(self) -> list[SignalStatus]:
        return [watch.status() for watch in self._watches.values()]

    def reference_quality(self) -> float | None:
        """Mean raw score of the reference, None while it is being collected or not watched."""
        for watch in self._watches.values():
            if watch.signal.of == "clip_score":
                return watch.reference_value
        return None

    def rebaseline(self, release: str | None) -> None:
        """Forget what is normal and collect it anew, from what ``release`` serves from now on."""
        self._release = release
        self._watches = self._new_watches()
        self._recent = Recent()

    def silence(self, now: float, last_scored_at: float | None, lag_bytes: int) -> Finding | None:
        """Dead-man's switch: records wait and nothing was scored for a minute. One finding an
        episode; the next needs the lag to go away first. ``last_scored_at``: time of the scorer's
        last work, None if it never did any."""
        if lag_bytes <= 0:
            self._silent_since, self._silence_told = None, False
            return None
        if self._silent_since is None:
            self._silent_since = now
        since = max(self._silent_since, last_scored_at or 0.0)
        seconds = now - since
        if self._silence_told or seconds < SILENCE_SECONDS:
            return None
        self._silence_told = True
        return Finding(
            finding_id=digest([self.service_id, SILENCE, since])[:16],
            service_id=self.service_id,
            signal=SILENCE,
            detector="dead-man's switch",
            at=now,
            request=self.requests,
            armed_at=0,
            since=self.requests,
            since_at=since,
            evidence=seconds,
            threshold=SILENCE_SECONDS,
            value_before=0.0,
            value_now=seconds,
            unit="s",
            direction="up",
            release=self._release,
            text=f"Nothing was scored for {seconds:.0f} s while {lag_bytes:,} bytes of records "
            "wait: prompts and quality are not being watched",
        )

    # ----------------------------------------------------------------------------------- its state

    def state(self) -> Mapping[str, Json]:
        return {
            "version": STATE_VERSION,
            "requests": self.requests,
            "release": self._release,
            "extractor": self._extractor,
            "dedupe": self._dedupe.state(),
            "recent": self._recent.state(),
            "watches": {name: watch.state() for name, watch in self._watches.items()},
            "silent_since": self._silent_since,
            "silence_told": self._silence_told,
        }

    def restore(self, state: Mapping[str, Json]) -> None:
        """Go on exactly where ``state`` was taken. A signal that is new in the configuration, or
        whose detector is another now, starts with a new reference; so do all when an older version
        of this code wrote the state."""
        if state.get("version") != STATE_VERSION:
            logger.warning(
                "the monitors' state is of another version: all signals get a new reference",
                extra={"action": "monitor.state_version", "service_id": self.service_id},
            )
            return
        self.requests = int(state["requests"])
        self._release = state["release"]
        self._extractor = state["extractor"]
        self._dedupe.restore(state["dedupe"])
        self._recent.restore(state["recent"])
        self._silent_since = state["silent_since"]
        self._silence_told = bool(state["silence_told"])
        self._watches = self._new_watches()
        for name, watch in self._watches.items():
            kept = state["watches"].get(name)
            if kept and kept["detector_name"] == watch.detector_name:
                watch.restore(kept)


def _text(watch: Watch, finding: Finding, clusters: Sequence[ClusterMove]) -> str:
    if watch.source.direction == "moved":
        return f"{summary(clusters)}."
    text = watch.source.text(finding)
    if watch.source.extracted and any(c.moved for c in clusters):
        return f"{text}. {summary(clusters)}."
    return f"{text}."
