"""What the traffic of a rollout with an equal baseline arm shows.

Champion and baseline are the same release, so both are the old one to every metric but
``end_to_end``, with the challenger's share among all three. How long users wait is told only by the
two slices of equal size (``waits``).

The shares are those of the routing table that a record's epoch names. A record whose probability
is not that of its arm there (a breaker had tripped), or of a table that is not the ledger's, says
nothing. Above a share of one half there is no equal slice, nor while its workers do not answer:
then the other metrics go on as without one, and waits are not judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from intonaco.config import RolloutConfig
from intonaco.errors import StorageError
from intonaco.rollout.analysis import RATIO_ALPHA, RolloutAnalysis
from intonaco.rollout.assessing import assessed, narrowed
from intonaco.rollout.facts import EQUAL
from intonaco.rollout.outcomes import END_TO_END, error, key_of, waited
from intonaco.rollout.waits import Wait, Waits
from intonaco.rollout.words import no_data
from intonaco.types import (
    ArmRole,
    Assessment,
    Feedback,
    Json,
    MetricAssessment,
    Rollout,
    RoutingTable,
    ScoredRecord,
)

_SAME = 1e-9
_EPOCHS = 64  # tables that are kept at hand

Make = Callable[..., RolloutAnalysis]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shares:
    """Of one table. ``arms``: of users, by arm."""

    arms: Mapping[str, float]
    challenger: float
    baseline: float


class BaselineAnalysis:
    """Feed and ask it as a ``RolloutAnalysis``.

    ``make``: a fresh one of the rollout, of ``metrics`` that share the error budget with
    ``judged - len(metrics)`` others. ``table_at``: the routing table that was given out under an
    epoch, None for one that nobody here gave out."""

    def __init__(
        self,
        rollout: Rollout,
        config: RolloutConfig,
        make: Make,
        table_at: Callable[[int], RoutingTable | None],
        *,
        settle_seconds: float,
    ) -> None:
        self.rollout_id, self.alpha = rollout.rollout_id, rollout.alpha
        self.metrics = config.guardrails
        self._salt, self._table_at = rollout.salt, table_at
        rest = tuple(m for m in self.metrics if m != END_TO_END)
        several = END_TO_END in self.metrics
        ratio_alpha = RATIO_ALPHA / 2 if several else RATIO_ALPHA
        self._rest = make(
            rollout.rollout_id,
            rollout.alpha,
            metrics=rest,
            ratio_alpha=ratio_alpha,
            judged=len(self.metrics),
        )
        self._waits: Waits | None = None
        if several:
            self._margin = config.margins.end_to_end
            self._tolerance = config.tolerance(END_TO_END)
            self._waits = Waits(
                tolerance=self._tolerance,
                margin=self._margin,
                settle_seconds=settle_seconds,
                ratio_alpha=ratio_alpha,
            )
        self._harm_threshold = math.log((len(self.metrics) + 1) / rollout.alpha)
        self._threshold = math.log(1 / rollout.alpha)
        self._step = (-1, 0.0, 0.0)
        self._seq = 0
        self._tables: dict[int, _Shares] = {}

    # -------------------------------------------------------------------------------- taking in

    def begin_step(self, step: int, since: float, weight: float) -> None:
        """The rollout is at this step since then; the same step again changes nothing."""
        self._step = (step, since, weight)
        self._rest.begin_step(step, since, weight)

    def promoted(self, epoch: int) -> None:
        """The challenger is champion in routing tables after ``epoch``."""
        self._rest.promoted(epoch)

    def observe(self, item: ScoredRecord) -> bool:
        """Take a record; False if it says nothing here."""
        record = item.record
        if record.probe or record.salt != self._salt:
            return False
        if record.shadow_of is not None:
            return self._rest.observe(item)
        shares = self._shares(record.routing_epoch)
        if shares is None:
            return False
        if not shares.baseline:
            if self._waits is not None and 0 < shares.challenger <= EQUAL:
                self._waits.leave_out(key_of(self._salt, record.unit))
            return self._rest.observe(item)
        own = shares.arms.get(record.assigned_arm)
        if own is None or abs(own - record.probability) > _SAME:
            return False
        taken = self._rest.observe(item, shares.challenger)
        return self._wait(item) or taken

    def hear(self, feedback: Feedback) -> None:
        """Take what somebody said of an image, whichever arm drew it."""
        self._rest.hear(feedback)

    def _wait(self, item: ScoredRecord) -> bool:
        record = item.record
        role = record.assigned_arm.partition(":")[0]
        if self._waits is None or role not in (ArmRole.BASELINE, ArmRole.CHALLENGER):
            return False
        seconds = waited(record) if error(record) is not None else None
        self._seq += 1
        self._waits.take(
            Wait(
                start=record.at,
                seq=self._seq,
                end=record.at + max(0.0, record.seconds),
                unit=key_of(self._salt, record.unit),
                challenger=role == ArmRole.CHALLENGER,
                request_class=record.request_class,
                seconds=seconds,
            )
        )
        return True

    def advance(self, until: float) -> None:
        """Every record of requests that ended before ``until`` has been observed."""
        self._rest.advance(until)
        if self._waits is not None:
            self._waits.advance(until)

    def _shares(self, epoch: int) -> _Shares | None:
        if epoch not in self._tables:
            table = self._table_at(epoch)
            if table is None:
                return None
            while len(self._tables) >= _EPOCHS:
                del self._tables[next(iter(self._tables))]
            arms = [a for a in table.arms if a.role is not ArmRole.SHADOW]

            def of(role: ArmRole) -> float:
                return math.fsum(a.weight for a in arms if a.role is role)

            equal = abs(of(ArmRole.BASELINE) - of(ArmRole.CHALLENGER)) <= _SAME
            self._tables[epoch] = _Shares(
                arms={a.name: a.weight for a in arms},
                challenger=of(ArmRole.CHALLENGER),
                baseline=of(ArmRole.BASELINE) if equal else 0.0,
            )
        return self._tables[epoch]

    # -------------------------------------------------------------------------------- what it shows

    @property
    def units_challenger(self) -> int:
        """Distinct randomised users judged on the challenger."""
        return self._rest.units_challenger

    @property
    def units_at_step(self) -> int:
        """Distinct users judged on the challenger since the step began."""
        return self._rest.units_at_step

    @property
    def shadow_pairs(self) -> int:
        """Pairs of a user's answer and its shadow, one a unit and prompt."""
        return self._rest.shadow_pairs

    @property
    def sample_ratio_ok(self) -> bool:
        """False once the split is proven not to be the one that was logged: of the challenger from
        all, or of it and the baseline from each other."""
        return self._rest.sample_ratio_ok and (self._waits is None or self._waits.ratio.ok)

    @property
    def sample_ratio_text(self) -> str:
        """The split in figures, for a person."""
        text = self._rest.sample_ratio_text
        if self._waits is None or self._waits.ratio.ok:
            return text
        ratio = self._waits.ratio
        return (
            f"{text}; {ratio.units[1]} of {sum(ratio.units)} users of the two equal slices reached "
            f"the challenger, {ratio.expected:.1f} were foretold"
        )

    @property
    def harmful(self) -> tuple[str, ...]:
        """Metrics that are proven harmful."""
        found = self._rest.harmful
        worst = self._waits.evidence.harm[1] if self._waits is not None else 0.0
        return (*found, END_TO_END) if worst >= self._harm_threshold else found

    def assess(self) -> tuple[MetricAssessment, ...]:
        """Every metric as it stands; of ``end_to_end`` "champion" is the baseline."""
        found = {a.metric: a for a in self._rest.assess()}
        if self._waits is not None:
            found[END_TO_END] = narrowed(self._assess(self._waits), self._tolerance)
        return tuple(found[m] for m in self.metrics if m in found)

    def _assess(self, waits: Waits) -> MetricAssessment:
        evidence = waits.evidence
        harm, worst = evidence.harm
        assessment = assessed(
            worst,
            evidence,
            harmful_at=self._harm_threshold,
            proven_at=self._threshold,
            has_data=evidence.has_data,
        )
        open_yet = assessment in (Assessment.UNDECIDED, Assessment.NO_DATA)
        shown = evidence.shown(self.alpha)
        missing = self._missing(waits, assessment) if open_yet else ""
        return MetricAssessment(
            metric=END_TO_END,
            assessment=assessment,
            difference=shown.estimate,
            interval=shown.interval,
            margin=self._margin,
            evidence_harm=worst if assessment is Assessment.HARMFUL else harm,
            evidence_non_inferior=evidence.within[0],
            threshold=self._harm_threshold,
            units_challenger=evidence.units[1],
            units_champion=evidence.units[0],
            units_ahead=self._ahead(waits) if open_yet and not missing else None,
            missing=missing,
        )

    def _missing(self, waits: Waits, assessment: Assessment) -> str:
        if self._step[2] > EQUAL:
            return f"no equal baseline above {EQUAL:.0%}"
        if not waits.even:
            ours, theirs = waits.requests[1], waits.requests[0]
            return (
                f"slices that ask equally often: {ours} requests of the challenger's users and "
                f"{theirs} of the baseline's"
            )
        if assessment is Assessment.NO_DATA:
            return no_data(END_TO_END, waits.ratio.units, False)
        return ""

    def _ahead(self, waits: Waits) -> int | None:
        """Users of all arms still expected at the present share: of each block one is judged."""
        share, users = self._step[2], sum(waits.ratio.units)
        if not 0 < share <= EQUAL or not waits.blocks:
            return None
        blocks = waits.evidence.ahead(0.5, self._threshold)
        if blocks is None:
            return None
        return math.ceil(blocks * max(1.0, users / waits.blocks) / (2 * share))

    # -------------------------------------------------------------------------------- state

    def state(self) -> Mapping[str, Json]:
        """JSON from which ``restore`` continues exactly. Holds no prompt and no user in clear."""
        return {
            "rest": dict(self._rest.state()),
            "waits": None if self._waits is None else dict(self._waits.state()),
            "seq": self._seq,
            "step": list(self._step),
        }

    def restore(self, state: Mapping[str, Json]) -> None:
        """Continue from a state of the same rollout with the same settings. Raises StorageError
        for any other."""
        if "rest" not in state or (self._waits is None) != (state["waits"] is None):
            raise StorageError("the stored evidence belongs to another rollout or other settings")
        self._rest.restore(state["rest"])
        if self._waits is not None:
            self._waits.restore(state["waits"])
        self._seq = int(state["seq"])
        step, since, weight = state["step"]
        self._step = (int(step), float(since), float(weight))
