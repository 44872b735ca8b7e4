"""The monitor of one service: scored records in, findings out. No input or output of its own."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from intonaco.codec import digest
from intonaco.config import Monitoring, Signal
from intonaco.monitoring.cohorts import Cohorts
from intonaco.monitoring.detectors.dedupe import SessionDedupe
from intonaco.monitoring.detectors.kmeans import Rows, unit
from intonaco.monitoring.explanation import explain, groups, moved_share, summary
from intonaco.monitoring.pace import HOUR, REQUESTS, WEEK, Pace
from intonaco.monitoring.recent import REFERENCE, Recent
from intonaco.monitoring.signals import champion_made, champion_score, is_user_request
from intonaco.monitoring.silence import Silence
from intonaco.monitoring.sources import SOURCES, Reading, Seen
from intonaco.monitoring.topics import Topics
from intonaco.monitoring.watch import Watch
from intonaco.types import (
    ClusterMove,
    Feedback,
    Finding,
    Json,
    Sample,
    ScoredRecord,
    SignalStatus,
    Tally,
)

logger = logging.getLogger(__name__)

SCORE = "clip"  # the score that explanations compare
DEAD_MAN = "dead-man's switch"
SILENCE = "scorer"  # names of the signals of the dead-man's switches
RECORDS = "records"
STATE_VERSION = 2
OF_FEEDBACK = ("thumbs", "stars", "regenerate", "download", "response_rate")
MOST_SHARES, LEAST_SHARE = 3, 0.01  # of a detector's features, those that a finding tells


class Monitor:
    """Watches the signals of one service.

    Each signal takes its first ``reference`` requests as what is normal, then watches. It fires
    once and stays firing until ``rebaseline``: the old reference is kept until a new release, or a
    person, makes another state the normal one. The budget of false alarms is shared: signal i may
    raise one in ``requests_between_false_alarms * sum(weights) / weight_i`` updates, so that all
    together raise at most one in ``requests_between_false_alarms`` requests. Where the budget is
    given per week, and for signals that do not update on requests, how often a signal updates is
    measured (``Pace``).

    The first quarter of the reference is grouped into topics; from then on every request has one,
    and signals that are judged given the topic begin.

    Give it every scored record once, in order, and keep ``state()`` together with the reader's
    offset.
    """

    def __init__(self, service_id: str, config: Monitoring, *, release: str | None = None) -> None:
        self.service_id = service_id
        self.config = config
        self.requests = 0  # user requests seen
        self._release = release
        self._extractor: str | None = None
        self._heads: str | None = None
        self._topics: Topics | None = None
        self._cohorts = Cohorts(config.feedback)
        self._counts_feedback = any(s.of in OF_FEEDBACK for s in config.signals.values())
        self._dedupe = SessionDedupe()
        self._recent = Recent()
        self._groups: tuple[int, Rows] | None = None
        self._watches = self._new_watches()
        self._scorer = Silence()  # while records wait for it

    def _new_watches(self) -> dict[str, Watch]:
        signals = self.config.signals
        total = sum(s.weight for s in signals.values())
        return {
            name: self._new_watch(name, signal, total / signal.weight)
            for name, signal in signals.items()
        }

    def _new_watch(self, name: str, signal: Signal, share: float) -> Watch:
        """``share``: how many such signals would spend the whole budget."""
        weekly = self.config.false_alarms_per_week
        if weekly is not None:
            between = WEEK / weekly * share  # seconds; the threshold begins with an update a second
            return Watch(name, signal, max(2.0, between), Pace(between, HOUR))
        between = self.config.requests_between_false_alarms * share
        if SOURCES[signal.of].per_request:
            return Watch(name, signal, between)
        return Watch(name, signal, between, Pace(between, REQUESTS))

    # ------------------------------------------------------------------------------- what it sees

    def observe(self, item: ScoredRecord) -> list[Finding]:
        """Take one scored record; the findings it completes. Probes and shadow copies say nothing
        about users. Prompts count for every user request; scores, errors and latency only where
        the champion (or the equal baseline arm) answered a user assigned to it."""
        record = item.record
        if not is_user_request(record):
            return []
        self.requests += 1
        if item.prompt_embedding or item.image_embedding or item.image_hash:
            self._check_extractor(item.extractor)
            self._check_heads(item.heads)
        row = unit(np.array(item.prompt_embedding)) if item.prompt_embedding else None
        repeat = row is not None and self._dedupe.repeats(record.unit, row, record.at)
        score = champion_score(item, SCORE, self._release)
        if row is not None and not repeat:
            shown = self.config.show_prompts and record.prompt_form == "text"
            self._recent.add(
                at=record.at,
                row=row,
                prompt=record.prompt if shown else "",
                image=record.image,
                score=score,
                unit=record.unit,
            )
            if self._topics is None or not self._reference_complete():
                self._recent.add_reference(row, record.image)
            if self._topics is None and self._recent.offered >= self._topics_after():
                self._topics = Topics.of_reference(self._recent.reference())
        # Prompts of which nothing is known have no topic, and never will: those are judged together
        waiting = row is not None and self._topics is None
        topic = self._topics.of(row) if row is not None and self._topics is not None else None
        if self._counts_feedback and not waiting and champion_made(item, self._release):
            self._cohorts.made(record.request_id, record.at, record.unit, topic)
        seen = Seen(item=item, release=self._release, row=row, repeat=repeat, topic=topic)
        return [
            self._finding(watch, record.at)
            for watch in self._watches.values()
            if not (waiting and watch.given_topic)
            and self._feed(watch, watch.source.of_record(seen), counts=not repeat)
        ] + self.mature(record.at)

    def hear(self, feedback: Feedback, now: float) -> list[Finding]:
        """Take what a user said of an image; the findings it completes. Hear all that was said
        before ``observe`` is given what was made at about that time."""
        if self._counts_feedback:
            self._cohorts.heard(feedback, self._release)
        return [
            self._finding(watch, now)
            for watch in self._watches.values()
            if self._feed(watch, watch.source.of_feedback(feedback, now))
        ]

    def mature(self, now: float) -> list[Finding]:
        """Count the images whose time for feedback is over at ``now``; the findings that
        completes. ``observe`` does so by its records' time; where none come, give it a time up to
        which all records have been observed and all feedback was heard."""
        return [
            self._finding(watch, image.at)
            for image in self._cohorts.close(now)
            for watch in self._watches.values()
            if self._feed(watch, watch.source.of_cohort(image))
        ]

    @property
    def waiting(self) -> int:
        """Images that are not yet mature."""
        return len(self._cohorts)

    def tally(self, tally: Tally) -> list[Finding]:
        """Take what a gateway counted at its door; the findings it completes."""
        return [
            self._finding(watch, tally.at)
            for watch in self._watches.values()
            if self._feed(watch, watch.source.of_tally(tally))
        ]

    def take(self, sample: Sample) -> list[Finding]:
        """Take what a signal that is asked by the clock answered; the finding it completes."""
        watch = self._watches.get(sample.signal)
        if watch is None:
            return []
        watch.reason = sample.reason
        if sample.value is None or not self._feed(watch, watch.source.of_sample(sample)):
            return []
        return [self._finding(watch, sample.at)]

    def tick(self, now: float, *, workers: int = 0) -> list[Finding]:
        """Let time pass: what is measured by the clock, not by requests, and who is silent. Call it
        every second or so; the findings it completes. ``workers``: how many serve the champion, 0
        if that is not known."""
        findings = []
        for watch in self._watches.values():
            watch.source.workers = workers
            if self._feed(watch, watch.source.tick(now)):
                findings.append(self._finding(watch, now))
            limit = watch.source.silent_after
            seconds = None if limit is None else watch.silence.lasts(now, limit)
            if limit is not None and seconds is not None:
                findings.append(self._no_data(watch, now, seconds, limit))
        return findings

    def _feed(self, watch: Watch, readings: Iterable[Reading], *, counts: bool = True) -> bool:
        """Whether one of the readings made the signal fire. What does not count (the same user
        asking the same again) is seen, but no news."""
        fired = False
        for reading in readings:
            watch.seen += 1
            watch.silence.heard(reading.at)
            if counts or watch.source.repeats:
                weekly = self.config.false_alarms_per_week is not None
                fired |= watch.feed(reading, reading.at if weekly else float(self.requests))
        return fired

    def _topics_after(self) -> int:
        """Requests that topics are made of: a quarter of the longest reference, as many as a
        sample of it holds at most."""
        longest = max((w.signal.reference for w in self._watches.values()), default=0)
        return max(20, min(REFERENCE, longest // 4))

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
                if watch.source.extracted or watch.given_topic:
                    self._watches[name] = fresh[name]
            self._forget_requests()
            self._dedupe.clear()
        self._extractor = extractor

    def _check_heads(self, heads: str) -> None:
        if self._heads not in (None, heads):
            logger.warning(
                "scoring heads changed, scores get a new reference",
                extra={"action": "monitor.heads_changed", "service_id": self.service_id},
            )
            fresh = self._new_watches()
            for name, watch in self._watches.items():
                if watch.source.of_heads:
                    self._watches[name] = fresh[name]
        self._heads = heads

    def _forget_requests(self) -> None:
        """Topics get other numbers, so what waits with one must go too."""
        self._recent = Recent()
        self._groups = None
        self._topics = None
        self._cohorts = Cohorts(self.config.feedback)

    # -------------------------------------------------------------------------------- what it says

    def _finding(self, watch: Watch, at: float) -> Finding:
        since, since_at = watch.since()
        before = watch.raw(watch.value_before())
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
            threshold=watch.threshold,
            value_before=0.0 if before is None else before,
            value_now=0.0 if now is None else now,
            unit=watch.source.unit,
            direction=direction,
            release=self._release,
            facts=self._cohorts.facts() if watch.signal.of in OF_FEEDBACK else {},
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
        if watch is None or finding.detector == DEAD_MAN:
            return finding
        clusters = explain(
            self._recent.reference(),
            self._recent.since(finding.since_at),
            images_before=self._recent.reference_images(),
            known=self._reference_groups(),
        )
        if watch.signal.of == "prompt_embedding" and any(c.moved for c in clusters):
            finding = replace(
                finding,
                value_before=sum(c.share_before for c in clusters if c.moved),
                value_now=moved_share(clusters),
            )
        return replace(finding, clusters=clusters, text=_text(watch, finding, clusters))

    def _reference_groups(self) -> Rows:
        """Found once: the reference is the same for all findings."""
        drawn_from = self._recent.offered
        if self._groups is None or self._groups[0] != drawn_from:
            self._groups = drawn_from, groups(self._recent.reference())
        return self._groups[1]

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
        if finding.detector == DEAD_MAN:
            return True
        return watch is None or watch.seen >= finding.request + self.config.settle_requests

    def status(self) -> list[SignalStatus]:
        return [watch.status() for watch in self._watches.values()]

    def watched(self) -> frozenset[str]:
        """Kinds of signals (``of``) that have a reference."""
        return frozenset(watch.signal.of for watch in self._watches.values() if watch.armed)

    def reference_quality(self) -> float | None:
        """Mean raw score of the reference, None while it is being collected or not watched."""
        for watch in self._watches.values():
            if watch.signal.of == "clip_score":
                return watch.reference_mean
        return None

    def rebaseline(self, release: str | None) -> None:
        """Forget what is normal and collect it anew, from what ``release`` serves from now on."""
        self._release = release
        before, self._watches = self._watches, self._new_watches()
        for name, watch in self._watches.items():
            watch.silence = before[name].silence  # another release makes nobody heard
        self._forget_requests()

    def silence(self, now: float, last_scored_at: float | None, lag_bytes: int) -> Finding | None:
        """Dead-man's switch: records wait and nothing was scored for ``silent_after_s``. One
        finding an episode; the next needs the lag to go away first. ``last_scored_at``: time of the
        scorer's last work, None if it never did any."""
        if lag_bytes <= 0:
            self._scorer = Silence()
            return None
        if last_scored_at is not None:
            self._scorer.moved(last_scored_at)
        seconds = self._scorer.lasts(now, self.config.silent_after_s)
        if seconds is None:
            return None
        return self.dead_man(
            SILENCE,
            now,
            seconds,
            self.config.silent_after_s,
            f"Nothing was scored for {seconds:.0f} s while {lag_bytes:,} bytes of records wait: "
            "prompts and quality are not being watched",
        )

    @property
    def scorer_silent(self) -> bool:
        """Whether an episode of the scorer's silence is on that was told of."""
        return self._scorer.told

    def _no_data(self, watch: Watch, now: float, seconds: float, limit: float) -> Finding:
        why = f": {watch.reason}" if watch.reason else ""
        text = f"No data for {watch.name} for {seconds:.0f} s{why}; it is not being watched"
        return self.dead_man(watch.name, now, seconds, limit, text)

    def dead_man(self, signal: str, now: float, seconds: float, limit: float, text: str) -> Finding:
        """The finding that something was silent for so long."""
        return Finding(
            finding_id=digest([self.service_id, signal, "silent", now])[:16],
            service_id=self.service_id,
            signal=signal,
            of="silence",
            detector=DEAD_MAN,
            at=now,
            request=self.requests,
            armed_at=0,
            since=self.requests,
            since_at=now - seconds,
            evidence=seconds,
            threshold=limit,
            value_before=0.0,
            value_now=seconds,
            unit="s",
            direction="up",
            release=self._release,
            text=text,
            facts={"silent": True},
        )

    # ----------------------------------------------------------------------------------- its state

    def state(self) -> Mapping[str, Json]:
        return {
            "version": STATE_VERSION,
            "requests": self.requests,
            "release": self._release,
            "extractor": self._extractor,
            "heads": self._heads,
            "topics": self._topics.state() if self._topics else None,
            "cohorts": self._cohorts.state(),
            "dedupe": self._dedupe.state(),
            "recent": self._recent.state(),
            "watches": {name: watch.state() for name, watch in self._watches.items()},
            "scorer": self._scorer.state(),
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
        self._heads = state.get("heads")
        self._topics = Topics.of_state(state["topics"]) if state.get("topics") else None
        if "cohorts" in state:
            self._cohorts.restore(state["cohorts"])
        self._dedupe.restore(state["dedupe"])
        self._recent.restore(state["recent"])
        self._groups = None
        self._scorer = Silence.of_state(state["scorer"]) if "scorer" in state else Silence()
        self._watches = self._new_watches()
        for name, watch in self._watches.items():
            kept = state["watches"].get(name)
            # of a signal that has a pace now, and had none, nobody knows how often it updates
            paced = watch.pace is None or bool(kept and kept.get("pace"))
            if kept and kept["detector_name"] == watch.detector_name and paced:
                watch.restore(kept)


def _text(watch: Watch, finding: Finding, clusters: Sequence[ClusterMove]) -> str:
    if watch.signal.of == "prompt_embedding":
        return f"{summary(clusters)}."
    text = watch.source.text(finding)
    if watch.source.extracted and any(c.moved for c in clusters):
        return f"{text}. {summary(clusters)}."
    return f"{text}."
