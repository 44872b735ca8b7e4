"""What the traffic of a rollout shows so far: challenger against champion, metric by metric.

Two lanes read the same events. The quick one takes them as they arrive and looks for harm: a bad
challenger should be gone before its slow failures are in. The settled one takes them in the order
in which the requests began, once ``settle_seconds`` (longer than a challenger may take) have passed
over them, and is what non-inferiority, intervals and the sample-ratio test rest on: there the
slow cannot hide behind the quick, and the assignment of each event is independent of the past.

One event a unit and metric: at its first randomised exposure, with the probability logged then;
of errors also the first, whenever it comes. Shadow pairs (same prompt, same seed, the user's own
answer not randomised) bet on the same hypotheses where they can. Which tests judge a metric is told
in ``evidence``.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict

from intonaco.config import ONLINE_METRICS, RolloutConfig
from intonaco.errors import StorageError
from intonaco.rollout.evidence import Differences, Times, split_keys
from intonaco.rollout.lanes import Event, Lane
from intonaco.rollout.outcomes import (
    BOUNDED,
    CLIP_SCORE,
    COST,
    ERRORS,
    LATENCY,
    Medians,
    device_seconds,
    ended,
    key_of,
    outcomes,
    started,
)
from intonaco.rollout.words import no_data
from intonaco.stats import BettingMean, SampleRatioTest
from intonaco.types import Assessment, Json, MetricAssessment, Record, ScoredRecord

RATIO_ALPHA = 0.001  # chance that a split as logged is ever called wrong
_UNRANDOMISED = 1e-9
_OPEN_PAIRS = 2000
_AFTER = {"champion": "challenger", "holdback": "champion"}  # whom arms belong to once promoted
_MISSING_TOLERATED = 0.2  # of scores, beyond what the champion's arm misses
_MISSING_NEEDED = 20


class RolloutAnalysis:
    """Evidence of one rollout. Feed it every record, in any batches; ask at any time.

    ``alpha``: of this attempt (a retry has half the one before). ``salt``: the rollout's; records
    under another are not of its randomisation. ``metrics``: those that the configuration names,
    unless given. ``medians``: champion's service seconds per request class, fixed beforehand.
    ``times``: its last service seconds per class, so that times can be judged from the first unit
    on. ``score_range``: cosines are clamped into it; a range that fits the
    champion's usual scores makes small differences show sooner. ``settle_seconds``: longer than a
    challenger may take before the champion answers instead. ``max_units``: beyond it, new units are
    ignored rather than old ones forgotten. ``judged``: how many metrics share the error budget for
    harm, if there are others than these.
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
        for request_class, seconds in (times or {}).items():
            for lane in (self._quick, self._settled):
                for each in seconds if LATENCY in metrics else ():
                    lane.evidence[LATENCY].learn(each, request_class)
        self._ratio = SampleRatioTest(ratio_alpha)
        self._medians = Medians(medians or {})
        self._usual = Medians({})  # device seconds
        # What was reckoned last of a metric: at how many units, at which weight, units still ahead.
        self._expected: dict[str, tuple[int, float, int | None]] = {}
        self._waiting: list[Event] = []  # heap, by start
        self._until = -math.inf  # the log has been seen up to here
        self._seq = 0
        self._open: dict[str, Json] = {}  # half pairs by request id
        self._paired: set[str] = set()
        self._scored = [[0, 0], [0, 0]]  # [champion, challenger][all, scored], of answered units
        self._pair_scores = [0, 0]  # [all, scored] shadow answers to users' scored answers
        self._step = (-1, 0.0, 0.0)
        self._step_units: set[str] = set()
        self._final: BettingMean | None = None  # challenger's error rate at 100 %
        self._promoted: int | None = None  # last routing epoch before it became champion
        # One harm test a metric, and one for errors once nobody is left to compare with.
        self._harm_threshold = math.log(((judged or len(metrics)) + 1) / alpha)
        self._threshold = math.log(1 / alpha)

    def _lane(self) -> Lane:
        points = {m: (self._tolerance[m], self._margin[m]) for m in self.metrics}
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
            self._begin_final()
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
                self._watch(losses[ERRORS])
        if not _UNRANDOMISED < weight < 1 - _UNRANDOMISED:
            if role == "champion":
                self._unrandomised(record, unit, start, losses)
            return role == "champion"
        topic = key_of(self._salt, record.prompt)
        event = self._event(start, unit, weight, challenger, losses, topic, record.request_class)
        if self._quick.take(event) and CLIP_SCORE in self.metrics and record.served_by is not None:
            self._scored[challenger][0] += 1
            self._scored[challenger][1] += CLIP_SCORE in losses
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
        paired = {m: loss for m, loss in losses.items() if m in BOUNDED}
        self._pair(record.request_id, {"user": [unit, start, paired, prompt]})
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
        paired = {m: loss for m, loss in losses.items() if m in BOUNDED}
        self._pair(item.record.shadow_of, {"shadow": paired})
        return True

    def _pair(self, request_id: str, half: Mapping[str, Json]) -> None:
        both = {**self._open.pop(request_id, {}), **half}
        if len(both) < 2:
            self._open[request_id] = both
            if len(self._open) > _OPEN_PAIRS:
                del self._open[next(iter(self._open))]
            return
        unit, start, user, prompt = both["user"]
        shadow = both["shadow"]
        once = key_of(unit, prompt)
        if once in self._paired or len(self._paired) >= self._max_units:
            return
        self._paired.add(once)
        if CLIP_SCORE in user:
            self._pair_scores[0] += 1
            self._pair_scores[1] += CLIP_SCORE in shadow
        differences = {m: shadow[m] - user[m] for m in shadow if m in user}
        event = self._event(start, unit, None, True, differences, prompt)
        self._quick.take(event)
        heapq.heappush(self._waiting, event)

    def _watch(self, failed: float) -> None:
        """At 100 % nobody is randomised any more: the challenger's error rate is held against the
        champion's, as it was measured before, plus the margin. A drift of the base rate counts
        against the challenger here."""
        self._begin_final().update(failed, scale=1.0, low=0.0, high=1.0)

    def _begin_final(self) -> BettingMean:
        if self._final is None:
            before = self._quick.evidence[ERRORS]
            rate = before.champion_rate() if isinstance(before, Differences) else 0.0
            limit = rate + max(self._margin[ERRORS], self._tolerance[ERRORS])
            self._final = BettingMean((min(limit, 0.5),))
        return self._final

    def _settle_waiting(self) -> None:
        while self._waiting and self._waiting[0].start <= self._until - self._settle:
            event = heapq.heappop(self._waiting)
            if self._settled.take(event) and event.weight is not None:
                self._ratio.assign(challenger=event.challenger, weight=event.weight)

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
        return len(self._paired)

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

    def assess(self) -> tuple[MetricAssessment, ...]:
        """Every metric as it stands. Differences and margins in the metric's own unit: shares,
        cosine for the clip score (there, down is worse), relative for latency and cost."""
        return tuple(self._assess(m) for m in self.metrics)

    @property
    def harmful(self) -> tuple[str, ...]:
        """Metrics that are proven harmful: for good, as soon as they were at any look."""
        return tuple(m for m in self.metrics if self._harm(m)[1] >= self._harm_threshold)

    def _harm(self, metric: str) -> tuple[float, float]:
        """Log evidence of harm, now and at its highest."""
        harm, worst = self._quick.evidence[metric].harm
        if metric == ERRORS and self._final is not None:
            limit = float(self._final.grid[0])
            harm = max(harm, self._final.log_evidence_above(limit))
            worst = max(worst, self._final.peak_above(limit))
        return harm, worst

    def _assess(self, metric: str) -> MetricAssessment:
        quick, settled = self._quick.evidence[metric], self._settled.evidence[metric]
        harm, worst = self._harm(metric)
        unscored = self._unscored(metric)
        if worst >= self._harm_threshold:
            assessment, harm = Assessment.HARMFUL, worst
        elif not quick.has_data:
            assessment = Assessment.NO_DATA
        elif unscored:
            assessment = Assessment.UNDECIDED
        elif self._proven(settled.better):
            assessment = Assessment.SUPERIOR
        elif self._proven(settled.within):
            assessment = Assessment.NON_INFERIOR
        else:
            assessment = Assessment.UNDECIDED
        source = quick if assessment is Assessment.HARMFUL or not settled.count else settled
        shown = source.shown(self.alpha)
        unit = self._units_of[metric]
        sign = -unit if metric == CLIP_SCORE else unit
        ends = None if shown.interval is None else sorted(b * sign for b in shown.interval)
        open_yet = assessment in (Assessment.UNDECIDED, Assessment.NO_DATA)
        missing = ""
        if assessment is Assessment.NO_DATA:
            missing = no_data(metric, self._quick.units, bool(self._paired))
        elif open_yet and unscored:
            missing = "too many of the challenger's answers have no score"
        return MetricAssessment(
            metric=metric,
            assessment=assessment,
            difference=None if shown.estimate is None else shown.estimate * sign,
            interval=None if ends is None else (ends[0], ends[1]),
            margin=self._margin[metric] * unit,
            evidence_harm=harm,
            evidence_non_inferior=settled.within[0],
            threshold=self._harm_threshold,
            units_challenger=self._quick.units[1],
            units_champion=self._quick.units[0],
            shadow_pairs=quick.pairs,
            units_ahead=self._ahead(metric) if open_yet else None,
            missing=missing,
        )

    def _proven(self, evidence: tuple[float, float]) -> bool:
        """Proven once is proven, at every look (Ville): records that trickle in afterwards do not
        undo it by a hair. It is given up only when the evidence has turned to the other side."""
        now, highest = evidence
        return highest >= self._threshold and now > 0

    def _ahead(self, metric: str) -> int | None:
        """Units still expected at the present weight. Reckoned anew when a twentieth more is there
        (futures are drawn, which takes some milliseconds), counted down in between."""
        settled, weight = self._settled.evidence[metric], self._step[2]
        if self._step[0] < 0:
            return None
        known = self._expected.get(metric)
        if known is None or known[1] != weight or settled.count > 1.05 * known[0]:
            units = settled.ahead(weight, self._threshold)
            known = (settled.count, weight, None if units is None else math.ceil(units))
            self._expected[metric] = known
        count, _, expected = known
        return None if expected is None else max(0, expected - (settled.count - count))

    def _unscored(self, metric: str) -> bool:
        """Scores that are missing on the challenger's side prove nothing about those that are not:
        too many of them and the metric stays undecided."""
        if metric != CLIP_SCORE:
            return False
        missing = [1 - scored / n if n else 0.0 for n, scored in self._scored]
        if self._scored[1][0] >= _MISSING_NEEDED and missing[1] - missing[0] > _MISSING_TOLERATED:
            return True
        pairs, scored = self._pair_scores
        return pairs >= _MISSING_NEEDED and 1 - scored / pairs > _MISSING_TOLERATED

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
            "open": {k: dict(v) for k, v in self._open.items()},
            "paired": "".join(sorted(self._paired)),
            "scored": [list(s) for s in self._scored],
            "pair_scores": list(self._pair_scores),
            "step": list(self._step),
            "step_units": "".join(sorted(self._step_units)),
            "promoted": self._promoted,
            "expected": {m: list(known) for m, known in self._expected.items()},
            "final": None
            if self._final is None
            else {"limit": float(self._final.grid[0]), "evidence": self._final.state()},
        }

    def restore(self, state: Mapping[str, Json]) -> None:
        """Continue from a state of the same rollout with the same settings. Raises StorageError
        for any other."""
        if dict(state["made_with"]) != self._made_with():
            raise StorageError("the stored evidence belongs to another rollout or other settings")
        self._expected = {m: (int(n), float(w), u) for m, (n, w, u) in state["expected"].items()}
        self._quick.restore(state["quick"])
        self._settled.restore(state["settled"])
        self._ratio.restore(state["ratio"])
        self._medians.restore(state["medians"])
        self._usual.restore(state["usual"])
        self._waiting = [Event(**e) for e in state["waiting"]]  # sorted, so a heap
        self._until = -math.inf if state["until"] is None else float(state["until"])
        self._seq = int(state["seq"])
        self._open = {k: dict(v) for k, v in state["open"].items()}
        self._paired = split_keys(state["paired"])
        self._scored = [[int(n) for n in arm] for arm in state["scored"]]
        self._pair_scores = [int(n) for n in state["pair_scores"]]
        step, since, weight = state["step"]
        self._step = (int(step), float(since), float(weight))
        self._step_units = split_keys(state["step_units"])
        self._promoted = state.get("promoted")
        self._final = None
        if state["final"] is not None:
            self._final = BettingMean((float(state["final"]["limit"]),))
            self._final.restore(state["final"]["evidence"])

    def _made_with(self) -> dict[str, Json]:
        return {
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
