"""What the traffic of a rollout shows so far: challenger against champion, metric by metric.

Two lanes read the same events. The quick one takes them as they arrive and looks for harm: a bad
challenger should be gone before its slow failures are in. The settled one takes them in the order
in which the requests began, once ``settle_seconds`` (longer than a challenger may take) have passed
over them, and is what non-inferiority, intervals and the sample-ratio test rest on: there the
slow cannot hide behind the quick, and the assignment of each event is independent of the past.

What people say comes later still: of the settled lane's units, once their images are mature
(``opinions``).

One event a unit and metric: at its first randomised exposure, with the probability logged then;
of errors also the first, whenever it comes. Shadow pairs (same prompt, same seed, the user's own
answer not randomised) bet on the same hypotheses where they can. Which tests judge a metric is told
in ``evidence``.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace

from intonaco.config import ONLINE_METRICS, Maturity, RolloutConfig
from intonaco.errors import StorageError
from intonaco.rollout.alone import Alone
from intonaco.rollout.assessing import assessed, narrowed
from intonaco.rollout.evidence import Differences, Evidence, Times, split_keys
from intonaco.rollout.expecting import Expected
from intonaco.rollout.lanes import Event, Lane
from intonaco.rollout.opinions import Opinions
from intonaco.rollout.outcomes import (
    CLIP_SCORE,
    COST,
    ERRORS,
    FEEDBACK,
    LATENCY,
    Medians,
    device_seconds,
    ended,
    key_of,
    outcomes,
    started,
)
from intonaco.rollout.pairing import Pair, Pairing, Scored
from intonaco.rollout.words import no_data
from intonaco.stats import SampleRatioTest
from intonaco.types import Assessment, Feedback, Json, MetricAssessment, Record, ScoredRecord

RATIO_ALPHA = 0.001  # chance that a split as logged is ever called wrong
_UNRANDOMISED = 1e-9
_AFTER = {"champion": "challenger", "holdback": "champion"}  # whom arms belong to once promoted


class RolloutAnalysis:
    """Evidence of one rollout. Feed it every record, in any batches; ask at any time.

    ``alpha``: of this attempt (a retry has half the one before). ``salt``: the rollout's; records
    under another are not of its randomisation. ``metrics``: those that the configuration names,
    unless given. ``medians``: champion's service seconds per request class, fixed beforehand.
    ``times``: its last service seconds per class, so that times can be judged from the first unit
    on. ``score_range``: cosines are clamped into it; a range that fits the
    champion's usual scores makes small differences show sooner. ``settle_seconds``: longer than a
    challenger may take before the champion answers instead. ``max_units``: beyond it, new units are
    ignored rather than old ones forgotten. ``maturity``: how feedback is counted, where it is a
    metric. ``judged``: how many metrics share the error budget for harm, if there are others than
    these.
    """

    def __init__(
        self,
        rollout_id: str,
        config: RolloutConfig,
        alpha: float,
        *,
        salt: str,
        metrics: tuple[str, ...] | None = None,
        medians: Mapping[str, float] | None = None,
        times: Mapping[str, Iterable[float]] | None = None,
        score_range: tuple[float, float] = (-1.0, 1.0),
        settle_seconds: float = 60.0,
        max_units: int = 100_000,
        ratio_alpha: float = RATIO_ALPHA,
        maturity: Maturity | None = None,
        judged: int | None = None,
    ) -> None:
        metrics = config.guardrails if metrics is None else metrics
        known = metrics and set(metrics) <= set(ONLINE_METRICS)
        if not known or not score_range[0] < score_range[1]:
            raise ValueError(
                f"metrics are some of {ONLINE_METRICS}, the score range is (low, high)"
            )
        self.rollout_id, self.alpha, self.metrics = rollout_id, alpha, metrics
        self._config, self._salt, self._settle = config, salt, settle_seconds
        self._max_units = max_units
        self._range = score_range
        self._units_of = dict.fromkeys(metrics, 1.0) | {CLIP_SCORE: score_range[1] - score_range[0]}
        self._tolerance = {m: config.tolerance(m) / self._units_of[m] for m in metrics}
        self._margin = {m: getattr(config.margins, m) / self._units_of[m] for m in metrics}
        self._quick, self._settled = self._lane(), self._lane()
        self._maturity = maturity or Maturity()
        self._opinions: Opinions | None = None
        if FEEDBACK in metrics:
            tolerance, margin = self._tolerance[FEEDBACK], self._margin[FEEDBACK]
            self._opinions = Opinions(self._maturity, tolerance=tolerance, margin=margin)
        for request_class, seconds in (times or {}).items():
            for lane in (self._quick, self._settled):
                for each in seconds if LATENCY in metrics else ():
                    lane.evidence[LATENCY].learn(each, request_class)
        self._ratio = SampleRatioTest(ratio_alpha)
        self._medians = Medians(medians or {})
        self._usual = Medians({})  # device seconds
        self._expected = Expected()
        self._waiting: list[Event] = []  # heap, by start
        self._until = -math.inf  # the log has been seen up to here
        self._seq = 0
        self._pairs = Pairing(max_units)
        self._scored = Scored()
        self._step = (-1, 0.0, 0.0)
        self._step_units: set[str] = set()
        self._alone = Alone()
        self._promoted: int | None = None  # last routing epoch before it became champion
        # One harm test a metric, and one for errors once nobody is left to compare with.
        self._harm_threshold = math.log(((judged or len(metrics)) + 1) / alpha)
        self._threshold = math.log(1 / alpha)

    def _lane(self) -> Lane:
        points = {m: (self._tolerance[m], self._margin[m]) for m in self.metrics if m != FEEDBACK}
        return Lane(points, self._max_units)

    # -------------------------------------------------------------------------------- taking in

    def begin_step(self, step: int, since: float, weight: float) -> None:
        """The rollout is at this step since then; the same step again changes nothing."""
        if (step, since) != self._step[:2]:
            self._step, self._step_units = (step, since, weight), set()

    def promoted(self, epoch: int) -> None:
        """The challenger is champion in routing tables after ``epoch``; again changes nothing. Its
        users are compared with those held back, every user once more. What proved it stays."""
        if self._promoted is not None:
            return
        self._promoted = epoch
        if ERRORS in self.metrics:
            self._alone.begin(self._limit())
        before, self._quick = self._quick, self._lane()
        for metric, evidence in self._quick.evidence.items():
            known = before.evidence[metric]
            if isinstance(evidence, Times) and isinstance(known, Times):
                evidence.learned(known)

    def observe(self, item: ScoredRecord, challenger_weight: float | None = None) -> bool:
        """Take a record; False if it says nothing here.

        ``challenger_weight``: probability of the challenger for this unit, among challenger,
        champion and baseline. Needed only where a table has more arms than champion and challenger;
        without it, it follows from the record's own probability.
        """
        record = item.record
        if record.probe or record.salt != self._salt:
            return False
        losses = outcomes(
            item,
            self.metrics,
            medians=self._medians,
            slower_than=self._config.slower_than,
            score_range=self._range,
            usual=self._usual,
        )
        self._until = max(self._until, ended(record))
        if record.shadow_of is not None:
            taken = self._shadow(item, losses)
        else:
            taken = self._user(item, losses, challenger_weight)
        self._settle_waiting()
        return taken

    def hear(self, feedback: Feedback) -> None:
        """Take what somebody said of an image. Hear all that was said before ``observe`` is given
        records of requests that ended later."""
        if self._opinions is not None:
            self._opinions.hear(feedback, self._until)

    def advance(self, until: float) -> None:
        """Every record of requests that ended before ``until`` has been observed (call it when
        traffic falls silent: otherwise the records themselves tell)."""
        self._until = max(self._until, until)
        self._settle_waiting()

    def _user(
        self,
        item: ScoredRecord,
        losses: Mapping[str, float] | None,
        challenger_weight: float | None,
    ) -> bool:
        record = item.record
        role = record.assigned_arm.partition(":")[0]
        if self._promoted is not None and record.routing_epoch > self._promoted:
            role = _AFTER.get(role, role)
        if role not in ("champion", "challenger", "baseline"):
            return False
        challenger = role == "challenger"
        weight = challenger_weight
        if weight is None:
            if role == "baseline":
                return False
            weight = record.probability if challenger else 1 - record.probability
        if not challenger:
            self._learn(record)  # after this record's own outcome was taken
        if losses is None:
            return False
        unit, start = key_of(self._salt, record.unit), started(record)
        if challenger and start >= self._step[1] and len(self._step_units) < self._max_units:
            new = unit not in self._step_units
            self._step_units.add(unit)
            if new and self._step[2] == 1 and weight >= 1 - _UNRANDOMISED and ERRORS in losses:
                self._alone.begin(self._limit())
                self._alone.watch(losses[ERRORS])
        if not _UNRANDOMISED < weight < 1 - _UNRANDOMISED:
            if role == "champion":
                self._unrandomised(record, unit, start, losses)
            return role == "champion"
        topic = key_of(self._salt, record.prompt)
        event = self._event(start, unit, weight, challenger, losses, topic, record.request_class)
        if self._opinions is not None:
            event = replace(event, request=record.request_id)
        if self._quick.take(event) and CLIP_SCORE in self.metrics and record.served_by is not None:
            self._scored.take(challenger=challenger, scored=CLIP_SCORE in losses)
        heapq.heappush(self._waiting, event)
        return True

    def _learn(self, record: Record) -> None:
        self._medians.learn(record)
        device = device_seconds(record) if COST in self.metrics else None
        if device is not None:
            self._usual.take(device[1], device[0])

    def _unrandomised(
        self, record: Record, unit: str, start: float, losses: Mapping[str, float]
    ) -> None:
        """A champion's request may have a shadow, and tells of the champion's times."""
        prompt = key_of(self._salt, record.prompt)
        self._pair(self._pairs.user(record.request_id, unit, start, losses, prompt))
        if LATENCY in losses:
            told = {LATENCY: losses[LATENCY]}
            event = self._event(start, unit, 0.0, False, told, prompt, record.request_class)
            self._quick.take(event)
            heapq.heappush(self._waiting, event)

    def _event(
        self,
        start: float,
        unit: str,
        weight: float | None,
        challenger: bool,
        values: Mapping[str, float],
        topic: str,
        request_class: str = "",
    ) -> Event:
        self._seq += 1
        return Event(
            start=start,
            seq=self._seq,
            unit=unit,
            weight=weight,
            challenger=challenger,
            topic=topic,
            request_class=request_class,
            values=dict(values),
        )

    def _shadow(self, item: ScoredRecord, losses: Mapping[str, float] | None) -> bool:
        if losses is None or item.record.shadow_of is None:
            return False
        self._pair(self._pairs.shadow(item.record.shadow_of, losses))
        return True

    def _pair(self, pair: Pair | None) -> None:
        if pair is None:
            return
        event = self._event(pair.start, pair.unit, None, True, pair.differences, pair.prompt)
        self._quick.take(event)
        heapq.heappush(self._waiting, event)

    def _limit(self) -> float:
        """Highest error rate that is no harm, by the champion's until now."""
        before = self._quick.evidence[ERRORS]
        rate = before.champion_rate() if isinstance(before, Differences) else 0.0
        limit: float = rate + max(self._margin[ERRORS], self._tolerance[ERRORS])
        return limit

    def _settle_waiting(self) -> None:
        while self._waiting and self._waiting[0].start <= self._until - self._settle:
            event = heapq.heappop(self._waiting)
            if self._settled.take(event) and event.weight is not None:
                self._ratio.assign(challenger=event.challenger, weight=event.weight)
                if self._opinions is not None:
                    self._opinions.follow(
                        event.request,
                        event.start,
                        event.unit,
                        challenger=event.challenger,
                        weight=event.weight,
                    )
        if self._opinions is not None:
            self._opinions.close(self._until)

    # -------------------------------------------------------------------------------- what it shows

    @property
    def units_challenger(self) -> int:
        """Distinct randomised users judged on the challenger."""
        return self._quick.units[1]

    @property
    def units_at_step(self) -> int:
        """Distinct users judged on the challenger since the step began."""
        return len(self._step_units)

    @property
    def shadow_pairs(self) -> int:
        """Pairs of a user's answer and its shadow, one a unit and prompt."""
        return len(self._pairs)

    @property
    def sample_ratio_ok(self) -> bool:
        """False once the split is proven not to be the one that was logged."""
        return self._ratio.ok

    @property
    def sample_ratio_text(self) -> str:
        """The split in figures, for a person."""
        units = self._ratio.units
        return (
            f"{units[1]} of {sum(units)} users reached the challenger, "
            f"{self._ratio.expected:.1f} were foretold"
        )

    def assess(self, *, narrow: bool = True) -> tuple[MetricAssessment, ...]:
        """Every metric as it stands. Differences and margins in the metric's own unit: shares,
        cosine for the clip score (there, down is worse), relative for latency and cost. Intervals
        are cut where a proof ends them, unless ``narrow`` is false."""
        found = tuple(self._assess(m) for m in self.metrics)
        tolerance = self._config.tolerance
        return tuple(narrowed(a, tolerance(a.metric)) for a in found) if narrow else found

    @property
    def harmful(self) -> tuple[str, ...]:
        """Metrics that are proven harmful: for good, as soon as they were at any look."""
        return tuple(m for m in self.metrics if self._harm(m)[1] >= self._harm_threshold)

    def _evidence(self, metric: str) -> tuple[Evidence, Evidence]:
        """What harm and what proof rests on."""
        if metric == FEEDBACK and self._opinions is not None:
            return self._opinions.evidence, self._opinions.evidence
        return self._quick.evidence[metric], self._settled.evidence[metric]

    def _harm(self, metric: str) -> tuple[float, float]:
        """Log evidence of harm, now and at its highest."""
        harm, worst = self._evidence(metric)[0].harm
        alone = self._alone.harm if metric == ERRORS else None
        return (harm, worst) if alone is None else (max(harm, alone[0]), max(worst, alone[1]))

    def _assess(self, metric: str) -> MetricAssessment:
        quick, settled = self._evidence(metric)
        harm, worst = self._harm(metric)
        doubt = self._doubt(metric)
        assessment = assessed(
            worst,
            settled,
            harmful_at=self._harm_threshold,
            proven_at=self._threshold,
            has_data=self._has_data(metric),
            doubtful=bool(doubt),
        )
        source = quick if assessment is Assessment.HARMFUL or not settled.count else settled
        shown = source.shown(self.alpha)
        unit = self._units_of[metric]
        sign = -unit if metric == CLIP_SCORE else unit
        ends = None if shown.interval is None else sorted(b * sign for b in shown.interval)
        open_yet = assessment in (Assessment.UNDECIDED, Assessment.NO_DATA)
        ahead = self._ahead(metric) if open_yet else None
        lane = self._quick if any(self._quick.units) else self._settled  # empty once promoted
        units = quick.units if metric == FEEDBACK else lane.units
        missing = ""
        if open_yet and metric == FEEDBACK and self._opinions is not None:
            missing = self._opinions.missing(ahead)
        if not missing and assessment is Assessment.NO_DATA:
            missing = no_data(metric, self._quick.units, bool(self._pairs))
        elif not missing and open_yet:
            missing = doubt
        return MetricAssessment(
            metric=metric,
            assessment=assessment,
            difference=None if shown.estimate is None else shown.estimate * sign,
            interval=None if ends is None else (ends[0], ends[1]),
            margin=self._margin[metric] * unit,
            evidence_harm=worst if assessment is Assessment.HARMFUL else harm,
            evidence_non_inferior=settled.within[0],
            threshold=self._harm_threshold,
            units_challenger=units[1],
            units_champion=units[0],
            shadow_pairs=quick.pairs,
            units_ahead=ahead,
            missing=missing,
        )

    def _ahead(self, metric: str) -> int | None:
        """Units still expected at the present weight; None before the first step."""
        if self._step[0] < 0:
            return None
        settled = self._evidence(metric)[1]
        return self._expected.ahead(metric, settled, self._step[2], self._threshold)

    def _has_data(self, metric: str) -> bool:
        if metric == FEEDBACK and self._opinions is not None:
            return self._opinions.has_data
        return any(evidence.has_data for evidence in self._evidence(metric))

    def _doubt(self, metric: str) -> str:
        """Why a metric stays undecided whatever was seen. Scores that are missing on the
        challenger's side prove nothing about those that are not, and silence nothing of opinions.
        """
        if metric == FEEDBACK and self._opinions is not None:
            return self._opinions.doubt
        unscored = metric == CLIP_SCORE and (self._scored.too_few or self._pairs.unscored)
        return "too many of the challenger's answers have no score" if unscored else ""

    # -------------------------------------------------------------------------------- state

    def state(self) -> Mapping[str, Json]:
        """JSON from which ``restore`` continues exactly. Holds no prompt and no user in clear."""
        return {
            "made_with": self._made_with(),
            "quick": self._quick.state(),
            "settled": self._settled.state(),
            "ratio": self._ratio.state(),
            "medians": self._medians.state(),
            "usual": self._usual.state(),
            "waiting": [asdict(e) for e in sorted(self._waiting)],
            "until": None if math.isinf(self._until) else self._until,
            "seq": self._seq,
            "opinions": None if self._opinions is None else self._opinions.state(),
            **self._pairs.state(),
            "scored": self._scored.state(),
            "step": list(self._step),
            "step_units": "".join(sorted(self._step_units)),
            "promoted": self._promoted,
            "expected": self._expected.state(),
            "final": self._alone.state(),
        }

    def restore(self, state: Mapping[str, Json]) -> None:
        """Continue from a state of the same rollout with the same settings. Raises StorageError
        for any other."""
        if dict(state["made_with"]) != self._made_with():
            raise StorageError("the stored evidence belongs to another rollout or other settings")
        self._expected.restore(state["expected"])
        self._quick.restore(state["quick"])
        self._settled.restore(state["settled"])
        self._ratio.restore(state["ratio"])
        self._medians.restore(state["medians"])
        self._usual.restore(state["usual"])
        self._waiting = [Event(**e) for e in state["waiting"]]  # sorted, so a heap
        self._until = -math.inf if state["until"] is None else float(state["until"])
        self._seq = int(state["seq"])
        self._pairs.restore(state)
        if self._opinions is not None:
            self._opinions.restore(state["opinions"])
        self._scored.restore(state["scored"])
        step, since, weight = state["step"]
        self._step = (int(step), float(since), float(weight))
        self._step_units = split_keys(state["step_units"])
        self._promoted = state.get("promoted")
        self._alone.restore(state["final"])

    def _made_with(self) -> dict[str, Json]:
        aged = {"mature_after_s": self._maturity.mature_after_s}
        return {
            **(aged if self._opinions is not None else {}),
            "rollout_id": self.rollout_id,
            "salt": self._salt,
            "alpha": self.alpha,
            "metrics": list(self.metrics),
            "margins": [self._margin[m] for m in self.metrics],
            "tolerances": [self._tolerance[m] for m in self.metrics],
            "slower_than": self._config.slower_than,
            "score_range": list(self._range),
            "settle_seconds": self._settle,
        }
