"""Sends a made-up incident through the real monitor, diagnosis and policy."""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from intonaco.config import Decision, Maturity, Monitoring, Signal
from intonaco.decision.diagnosis import (
    PERFORMANCE_KINDS,
    DiagnosisContext,
    diagnose,
    each_cause,
    signal_kind,
)
from intonaco.decision.evidence import Deploy
from intonaco.decision.history import History
from intonaco.decision.incidents import belongs, may_be_the_release, repeats
from intonaco.decision.policy import DecisionContext, decide
from intonaco.monitoring.monitor import RECORDS, Monitor
from intonaco.monitoring.silence import RecordLog
from intonaco.testing.incidents.catalogue import INCIDENTS, Incident
from intonaco.testing.incidents.traffic import CHAMPION, SERVICE, VOTED_SECONDS, Traffic
from intonaco.testing.incidents.world import BEGAN, World, draw
from intonaco.types import Action, Cause, Diagnosis, Factor, Feedback, Finding, Plan

REFERENCE = 400
MOST_REQUESTS = 3200  # a run ends here if nothing is found before
PROBE_EVERY = 300  # requests, so that a short run has some rounds
AFTER = 1500  # requests that a run goes on after its first diagnosis, for what fires late
SETTLE_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """``told``: causes in the latest diagnosis of each incident that the run was taken for,
    ``first``: in the diagnosis made at once. ``right_cause``: they are those that were at work (or,
    where nothing was, nothing harmful was told); ``right``: the factors too. ``actions``: all that
    the policy would have done; ``trains_for``: causes that it would have answered by training.
    ``delay``: requests from the fault to the first finding."""

    incident: str
    seed: int
    truth: frozenset[Cause]
    told: frozenset[Cause]
    first: frozenset[Cause]
    factors: Mapping[str, Factor | None]
    right_cause: bool
    right: bool
    actions: tuple[Action, ...]
    trains_for: frozenset[Cause]
    delay: int | None
    signals: tuple[str, ...]
    reason: str


def signals() -> Monitoring:
    """A configuration for short runs: the default signals and refusals, with small references."""
    wanted = {
        "prompts": Signal(of="prompt_embedding", reference=REFERENCE),
        "clip_score": Signal(of="clip_score", direction="down", reference=REFERENCE),
        "diversity": Signal(
            of="diversity", direction="up", tolerance=0.02, weight=0.5, reference=REFERENCE
        ),
        "blank_images": Signal(
            of="blank_images", direction="up", tolerance=0.01, weight=0.5, reference=REFERENCE
        ),
        "broken_images": Signal(
            of="broken_images", direction="up", tolerance=0.01, weight=0.5, reference=REFERENCE
        ),
        "errors": Signal(of="errors", direction="up", tolerance=0.01, reference=REFERENCE),
        "latency": Signal(
            of="latency", direction="up", tolerance=0.02, reference=REFERENCE, slower_than=2.0
        ),
        "thumbs": Signal(of="thumbs", direction="down", tolerance=0.02, reference=REFERENCE // 2),
        # of seconds with requests, of which a busy service has few in a short run
        "refused": Signal(of="refused", direction="up", tolerance=0.01, reference=50),
    }
    return Monitoring(
        requests_between_false_alarms=50_000,
        signals=wanted,
        settle_requests=100,
        feedback=Maturity(mature_after_s=VOTED_SECONDS),
    )


def play(
    name: str,
    seed: int,
    *,
    monitoring: Monitoring | None = None,
    decision: Decision | None = None,
) -> Outcome:
    """One run of one incident in one world. The same arguments give the same outcome."""
    incident = INCIDENTS[name]
    code = zlib.crc32(name.encode())
    random = np.random.default_rng([67, seed, code])
    world = draw(int(random.integers(2**31)))
    start = int(random.integers(750, 1100))
    if random.random() < 0.3:
        world.released_at = BEGAN - float(random.uniform(2.0, 72.0)) * 3600.0
    faults = incident.happens(world, start, random)
    run = _Run(
        world, Traffic(world, faults, seed=seed), monitoring or signals(), decision or Decision()
    )
    run.labelled = int(random.choice((0, 50, 500)))
    run.go()
    return run.outcome(incident, seed, start)


class _Run:
    def __init__(
        self, world: World, traffic: Traffic, monitoring: Monitoring, decision: Decision
    ) -> None:
        self.world, self.traffic, self.decision = world, traffic, decision
        self.monitor = Monitor(SERVICE, monitoring, release=CHAMPION)
        self.history = History()
        self.labelled = 0
        self.new: list[Finding] = []
        self.incidents: list[Diagnosis] = []  # the latest diagnosis of each
        self.first: Diagnosis | None = None
        self.plans: list[Plan] = []
        self.first_at: int | None = None
        self._votes: list[tuple[float, int, Feedback]] = []
        self._scored_at: float | None = None
        self._unscored = 0
        self._ticked = 0.0
        self._log = RecordLog()
        self._probed_at = BEGAN
        self._probe_told = False

    def go(self) -> None:
        until = MOST_REQUESTS
        while self.traffic.number < until:
            item, vote = self.traffic.next()
            now = self.traffic.at
            active = self.traffic.active()
            arrives = all(f.records for f in active)
            scores = all(f.scorer for f in active)
            while self.traffic.tallies:
                tally = self.traffic.tallies.pop(0)
                self._log.tally(tally)
                self.new += self.monitor.tally(tally)
            if vote is not None:
                heapq.heappush(self._votes, (vote.at, vote.seq, vote))
            while self._votes and self._votes[0][0] <= now:
                heard = heapq.heappop(self._votes)[2]
                self.history.hear(heard)
                self.new += self.monitor.hear(heard, now)
            if item is not None and arrives:
                self._log.record(item.record)
            if item is None or not arrives:
                pass  # nothing to score
            elif scores:
                self._scored_at, self._unscored = now, 0
                self.history.observe(item)
                self.new += self.monitor.observe(item)
            else:
                self._unscored += 1000
            if now - self._ticked >= 1.0:
                self._ticked = now
                workers = 0 if self.world.elsewhere else self.world.replicas
                self.new += self.monitor.tick(now, workers=workers)
                silence = self.monitor.silence(now, self._scored_at, self._unscored)
                if silence is not None:
                    self.new.append(silence)
                self.new += self._records_missing(now)
                self.new += self._probe(now)
            if self.new and self.first_at is None:
                self.first_at = self.traffic.number
            if self.new and self._settled(now):
                self._judge(now)
                until = min(until, self.traffic.number + AFTER)
        if self.new:
            self._judge(self.traffic.at)

    def _records_missing(self, now: float) -> list[Finding]:
        limit = self.monitor.config.silent_after_s
        missing = self._log.missing(now, limit)
        text = f"{', '.join(missing)} answered requests, and no record of them came"
        return [self.monitor.dead_man(RECORDS, now, limit, limit, text)] if missing else []

    def _probe(self, now: float) -> list[Finding]:
        """A round of probes, where it is due."""
        last = self._probed_at
        if not self.world.probes or now - last < PROBE_EVERY / self.world.rate:
            return []
        self._probed_at = now
        if self._probe_told or not any(f.probes_change for f in self.traffic.active()):
            return []
        self._probe_told = True
        return [
            Finding(
                finding_id=f"probe-{now:.3f}",
                service_id=SERVICE,
                signal="probes",
                of="probe",
                detector="golden set",
                at=now,
                request=self.monitor.requests,
                armed_at=0,
                since=self.monitor.requests,
                since_at=last,
                evidence=3.0,
                threshold=0.0,
                value_before=0.0,
                value_now=1.0,
                unit="share",
                direction="up",
                release=CHAMPION,
                text="Probes changed under the same release.",
            )
        ]

    def _settled(self, now: float) -> bool:
        first = self.new[0]
        return self.monitor.settled(first) or now - first.at >= SETTLE_SECONDS

    # ---------------------------------------------------------------- as the controller does it

    def _judge(self, now: float) -> None:
        last = self.incidents[-1] if self.incidents else None
        joins = last is not None and any(belongs(f, last) for f in self.new)
        found = [*(last.findings if last is not None and joins else ()), *self.new]
        self.new = []
        findings = [self.monitor.refresh(f) for f in found]
        context = self._context(findings)
        diagnosis = diagnose(findings, context, now)
        if self.first is None:
            self.first = diagnosis
        if last is not None and (joins or repeats(diagnosis, last)):
            self.incidents[-1] = diagnosis
        else:
            self.incidents.append(diagnosis)
        for each in each_cause(diagnosis):
            facts = self._decision_context(may_be_the_release(each, context.release_changed))
            self.plans.append(decide(each, facts, self.decision, now))

    def _context(self, findings: Sequence[Finding]) -> DiagnosisContext:
        w = self.world
        deploys = []
        if w.released_at is not None:
            deploys.append(Deploy(at=w.released_at, what="release"))
        if w.environment_at is not None:
            deploys.append(Deploy(at=w.environment_at, what="environment"))
        content, performance = self.history.of_findings(
            findings, performance=lambda f: signal_kind(f) in PERFORMANCE_KINDS
        )
        changed = any(f.probes_change for f in self.traffic.active())
        context = DiagnosisContext(
            probes_ok=not changed if w.probes else None,
            rollout_active=False,
            min_quality_gap=self.decision.min_quality_gap,
            reference_quality=self.monitor.reference_quality(),
            deploys=tuple(deploys),
            content=content,
            performance=performance,
            served_elsewhere=w.elsewhere,
        )
        since = min(f.since_at for f in findings)
        return replace(context, release_changed=context.changed("release", since) is not None)

    def _decision_context(self, release_changed: bool) -> DecisionContext:
        return DecisionContext(
            labelled_items=self.labelled,
            recipe_seconds={"fine_tune": 600.0, "full": 3600.0},
            spent=0.0,
            reserved=0.0,
            request_rate=self.world.rate,
            last_update_ended_at=None,
            active_update=None,
            previous_release_available=self.world.released_at is not None,
            release_changed=release_changed,
            trainable=not self.world.elsewhere,
        )

    # ------------------------------------------------------------------------------ what came of it

    def outcome(self, incident: Incident, seed: int, start: int) -> Outcome:
        told = frozenset(c for d in self.incidents for c in (d.cause, *d.also))
        factors: dict[str, Factor | None] = {}
        for diagnosis in self.incidents:
            factors |= {diagnosis.cause: diagnosis.factor, **diagnosis.factors}
        # "unknown" is no harm where nothing is wrong: a person is told that an alarm fits nothing
        harmless = told <= incident.benign | {Cause.UNKNOWN}
        right_cause = told == incident.truth if incident.truth else harmless
        right = right_cause and all(
            factors.get(cause) in allowed
            for cause, allowed in incident.factors.items()
            if cause in told
        )
        return Outcome(
            incident=incident.name,
            seed=seed,
            truth=incident.truth,
            told=told,
            first=frozenset((self.first.cause, *self.first.also) if self.first else ()),
            factors=factors,
            right_cause=right_cause,
            right=right,
            actions=tuple(p.action for p in self.plans),
            trains_for=frozenset(p.cause for p in self.plans if p.action.trains),
            delay=None if self.first_at is None else self.first_at - start,
            signals=tuple(f.signal for d in self.incidents for f in d.findings),
            reason=" | ".join(d.reason for d in self.incidents),
        )
