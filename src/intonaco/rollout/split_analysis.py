"""What the traffic of a split shows: every challenger against the champion, and on the metric that
decides every two challengers against each other.

**Which records count.** A unit is dealt once, by its place on the line from 0 to 1, and each arm
keeps its part of the line as long as the split lasts. Given that a unit was dealt to one of two
arms, it was dealt to the first with probability ``w_1 / (w_1 + w_2)``, whatever its outcome would
have been under either: so a record feeds exactly those comparisons of which its arm is one side,
with that weight, from the table that its routing epoch names. Users whose arm was taken out are
answered by the champion under a name of their own (``returned``) and count nowhere: had they been
taken for the champion's, a unit known to be one arm's would stand where a coin should.

**Alpha** is shared out by Bonferroni: over the ``k`` arms for harm, for superiority and in the
sample-ratio tests (the ``k`` odds of arm to champion say all of an ``n``-arm split), over the
``k (k-1) / 2`` pairs for which of two arms is the better one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Protocol

from intonaco.errors import StorageError
from intonaco.rollout.analysis import RATIO_ALPHA, RolloutAnalysis
from intonaco.rollout.split import arm_name
from intonaco.types import (
    ArmRole,
    Feedback,
    Json,
    MetricAssessment,
    PairComparison,
    Rollout,
    RoutingTable,
    ScoredRecord,
)

_SAME = 1e-9  # of probabilities
_EPOCHS = 64  # tables kept at hand


class Make(Protocol):
    """An analysis with the settings of the service."""

    def __call__(
        self, name: str, alpha: float, *, metrics: tuple[str, ...] | None, ratio_alpha: float
    ) -> RolloutAnalysis: ...


@dataclass(frozen=True, slots=True)
class _Dealt:
    """How a table deals units: weight of every arm by its name, and whether it is a split."""

    weights: Mapping[str, float]
    champion: str
    split: bool


class SplitAnalysis:
    """Evidence of one split. Feed it every record, in any batches; ask at any time.

    ``make``: a fresh analysis under that name. ``table_at``: the routing table that was given out
    under an epoch, None for one that nobody here gave out (its records say nothing)."""

    def __init__(
        self, rollout: Rollout, make: Make, table_at: Callable[[int], RoutingTable | None]
    ) -> None:
        split = rollout.split
        if split is None:
            raise ValueError(f"rollout {rollout.rollout_id} is no split")
        self.rollout_id, self._salt, self._table_at = rollout.rollout_id, rollout.salt, table_at
        self._metric = split.metric
        names = [a.name for a in split.arms]
        self._labels = {f"challenger:{arm_name(rollout, n)}": n for n in names}
        self._label_of = {name: label for label, name in self._labels.items()}
        alpha = rollout.alpha / len(names)
        self._arms = {
            n: make(
                f"{rollout.rollout_id}.{n}",
                alpha,
                metrics=None,
                ratio_alpha=RATIO_ALPHA / len(names),
            )
            for n in names
        }
        pairs = list(combinations(names, 2))
        self._pair_alpha = rollout.alpha / max(len(pairs), 1)
        self._pairs = {
            (a, b): make(
                f"{rollout.rollout_id}.{a}|{b}",
                self._pair_alpha,
                metrics=(split.metric,),
                ratio_alpha=RATIO_ALPHA,
            )
            for a, b in pairs
        }
        self._winner: str | None = None
        self._tables: dict[int, _Dealt | None] = {}
        self.follow(rollout)

    def follow(self, rollout: Rollout) -> None:
        """Leave out the arms that the rollout has left out; again changes nothing."""
        split = rollout.split
        assert split is not None
        self._winner = split.winner
        live = {a.name for a in split.live} if split.winner is None else {split.winner}
        self._arms = {n: a for n, a in self._arms.items() if n in live}
        self._pairs = {p: a for p, a in self._pairs.items() if set(p) <= live}

    # -------------------------------------------------------------------------------- taking in

    def observe(self, item: ScoredRecord) -> bool:
        """Take a record; False if it says nothing here."""
        record = item.record
        if record.probe or record.salt != self._salt:
            return False
        dealt = self._dealt(record.routing_epoch)
        if dealt is None or not dealt.split:
            # Before the split nobody is dealt; after it the winner is compared as any challenger.
            alone = self._arms.get(self._winner or "")
            return alone is not None and alone.observe(item)
        weight = dealt.weights.get(record.assigned_arm)
        if weight is None or abs(record.probability - weight) > _SAME:
            return False
        if record.assigned_arm == dealt.champion:
            return self._champion(item, dealt)
        name = self._labels.get(record.assigned_arm)
        return name is not None and self._challenger(item, name, dealt)

    def _champion(self, item: ScoredRecord, dealt: _Dealt) -> bool:
        taken = False
        for name, analysis in self._arms.items():
            own = dealt.weights.get(self._label_of[name])
            if own is not None:
                other = dealt.weights[dealt.champion]
                taken |= analysis.observe(item, own / (own + other))
        return taken

    def _challenger(self, item: ScoredRecord, name: str, dealt: _Dealt) -> bool:
        taken = False
        own = dealt.weights[self._label_of[name]]
        if name in self._arms:
            weight = own / (own + dealt.weights[dealt.champion])
            taken = self._arms[name].observe(item, weight)
        for (first, second), analysis in self._pairs.items():
            if name not in (first, second):
                continue
            other = dealt.weights.get(self._label_of[second if name == first else first])
            if other is not None:
                # Which of the two stands for the champion here is no matter: the test is the same.
                role = "challenger" if name == first else "champion"
                share = own if name == first else other
                taken |= analysis.observe(_as(item, role), share / (own + other))
        return taken

    def _dealt(self, epoch: int) -> _Dealt | None:
        if epoch not in self._tables:
            table = self._table_at(epoch)
            if table is None:
                return None
            while len(self._tables) >= _EPOCHS:
                del self._tables[next(iter(self._tables))]
            self._tables[epoch] = _Dealt(
                weights={a.name: a.weight for a in table.arms if a.role is not ArmRole.SHADOW},
                champion=table.champion().name,
                split=any(a.start is not None for a in table.arms),
            )
        return self._tables[epoch]

    def hear(self, feedback: Feedback) -> None:
        """As of one analysis, for all: each knows whose images are its own."""
        for analysis in self._all():
            analysis.hear(feedback)

    def advance(self, until: float) -> None:
        """As of one analysis, for all."""
        for analysis in self._all():
            analysis.advance(until)

    def begin_step(self, step: int, since: float, weight: float) -> None:
        """As of one analysis, for all."""
        for analysis in self._all():
            analysis.begin_step(step, since, weight)

    def promoted(self, epoch: int) -> None:
        """The winner is champion in routing tables after ``epoch``."""
        for analysis in self._arms.values():
            analysis.promoted(epoch)

    def _all(self) -> tuple[RolloutAnalysis, ...]:
        return (*self._arms.values(), *self._pairs.values())

    # -------------------------------------------------------------------------------- what it shows

    @property
    def arms(self) -> Mapping[str, RolloutAnalysis]:
        """Of every arm that is in it still, against the champion."""
        return self._arms

    def pairs(self) -> tuple[PairComparison, ...]:
        """Every two arms that are in it still, on the metric that decides."""
        found = []
        for (first, second), analysis in self._pairs.items():
            shown = next(a for a in analysis.assess(narrow=False) if a.metric == self._metric)
            found.append(
                PairComparison(
                    first=first,
                    second=second,
                    difference=shown.difference,
                    interval=shown.interval,
                )
            )
        return tuple(found)

    def assess(self) -> tuple[MetricAssessment, ...]:
        """The winner's metrics; nothing until there is one."""
        return self._arms[self._winner].assess() if self._winner in self._arms else ()

    @property
    def units_at_step(self) -> int:
        """The least that any arm was judged on since the step began."""
        return min((a.units_at_step for a in self._arms.values()), default=0)

    @property
    def shadow_pairs(self) -> int:
        """None: nothing is copied in a split."""
        return 0

    @property
    def sample_ratio_ok(self) -> bool:
        """False once the split is proven not to be the one that was logged."""
        return all(a.sample_ratio_ok for a in self._arms.values())

    @property
    def sample_ratio_text(self) -> str:
        """The split in figures, of the arms for which it is not as logged."""
        return "; ".join(
            f"{name} beside the champion: {a.sample_ratio_text}"
            for name, a in self._arms.items()
            if not a.sample_ratio_ok
        )

    # -------------------------------------------------------------------------------- state

    def state(self) -> Mapping[str, Json]:
        """JSON from which ``restore`` continues exactly. Holds no prompt and no user in clear."""
        return {
            "split": self.rollout_id,
            "arms": {n: dict(a.state()) for n, a in self._arms.items()},
            "pairs": {"|".join(p): dict(a.state()) for p, a in self._pairs.items()},
        }

    def restore(self, state: Mapping[str, Json]) -> None:
        """Continue from a state of the same rollout with the same settings. Raises StorageError
        for any other. Arms that were left out since have no part in it any more."""
        if state.get("split") != self.rollout_id:
            raise StorageError("the stored evidence belongs to another rollout or other settings")
        missing = set(self._arms) - set(state["arms"])
        if missing:
            raise StorageError(f"the stored evidence lacks {', '.join(sorted(missing))}")
        for name, analysis in self._arms.items():
            analysis.restore(state["arms"][name])
        for pair, analysis in self._pairs.items():
            analysis.restore(state["pairs"]["|".join(pair)])


def _as(item: ScoredRecord, role: str) -> ScoredRecord:
    """The record with its own arm under another name, and whoever stepped in under a third."""
    record = item.record
    attempts = tuple(
        replace(a, arm=role if a.arm == record.assigned_arm else "shield") for a in record.attempts
    )
    return replace(item, record=replace(record, assigned_arm=role, attempts=attempts))
