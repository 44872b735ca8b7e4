"""Looks at the running rollout, lets the machine decide, and makes the traffic follow.

Every switch has one order: target loaded and attested → routing table with a higher epoch →
confirmed by the gateway → drain → retire.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from intonaco.codec import as_json, decode
from intonaco.errors import BackendError, Conflict
from intonaco.executor import Parts
from intonaco.ledger import Transaction
from intonaco.rollout import machine, restarts
from intonaco.rollout.routing import desired_arms, next_table, split_arms
from intonaco.rollout.split import ArmFacts, undecided
from intonaco.rollout.split_analysis import SplitAnalysis
from intonaco.types import (
    ArmRole,
    BreakerTrip,
    Observed,
    Rollout,
    RolloutStatus,
    RoutingTable,
    ServingStatus,
    StepKind,
)
from intonaco.watching import Watch

log = logging.getLogger(__name__)

RESTARTS = "champion:restarts"  # the setting of the ledger that keeps them
BACK = "previous:restarts"  # of the one to go back to while the new champion bakes


class RolloutController:
    """One look at the rollout and the routing of a service."""

    def __init__(self, parts: Parts, watch: Watch) -> None:
        self.parts = parts
        self.watch = watch
        self._gateway_lost = False

    def tick(self, fence: int, now: float) -> None:
        observed = self._observed()
        rollout = self.parts.ledger.active_rollout()
        weights: Mapping[str, float] = {}
        if rollout is not None:
            rollout, weights = self._step(rollout, observed, fence, now)
        self._route(rollout, weights, observed, fence, now)

    # ------------------------------------------------------------------ decide

    def _step(
        self, rollout: Rollout, observed: Observed | None, fence: int, now: float
    ) -> tuple[Rollout | None, Mapping[str, float]]:
        parts = self.parts
        asked = parts.ledger.setting(f"rollout:{rollout.rollout_id}")
        decision = machine.tick(rollout, self._facts(rollout, observed, asked), now)
        after = decision.rollout
        if after.promoted_at is not None and rollout.promoted_at is None:
            table = parts.ledger.latest_routing()
            after = replace(after, promoted_epoch=table.epoch if table else 0)
        if after != rollout or asked:
            with parts.ledger.begin(fence=fence) as tx:
                tx.rollout(after)
                if asked:
                    tx.set(f"rollout:{rollout.rollout_id}", None)
                for kind, text in decision.events:
                    tx.event(
                        now,
                        f"rollout.{kind}",
                        rollout.rollout_id,
                        text,
                        actor=asked["actor"] if asked else "controller",
                        data=self._event_data(after, observed),
                    )
                self._crown(tx, rollout, after, now)
        return (None if after.status.final else after), decision.weights

    def _crown(self, tx: Transaction, before: Rollout, after: Rollout, now: float) -> None:
        """Write down who is champion now: the challenger once it is promoted, the previous one
        again if it is rolled back after that."""
        if after.promoted_at is not None and before.promoted_at is None:
            champion, previous = after.challenger, after.champion
        elif after.promoted_at is not None and after.status is RolloutStatus.ROLLED_BACK:
            assert after.champion is not None  # the machine goes back to nothing else
            champion, previous = after.champion, after.challenger
        else:
            return
        tx.crown(champion, now, after.reason)
        tx.event(
            now,
            "champion",
            champion,
            f"{champion[:10]} is champion" + (" again" if previous == after.challenger else ""),
            data={"previous": previous, "update_id": after.update_id},
        )

    def _facts(
        self, rollout: Rollout, observed: Observed | None, asked: Mapping[str, Any] | None
    ) -> machine.RolloutFacts:
        parts = self.parts
        comparing = undecided(rollout) is not None
        status = parts.serving.status(rollout.challenger)
        back = parts.serving.status(rollout.champion) if rollout.champion else None
        analysis = self.watch.analysis
        table = parts.ledger.latest_routing()
        trips = observed.trips if observed else ()
        asked = asked or {}
        if analysis is not None and rollout.history:
            weight = machine.weights_of(rollout)["challenger"]
            analysis.begin_step(rollout.step, rollout.step_since, weight)
        return machine.RolloutFacts(
            assessments=analysis.assess() if analysis else (),
            units_at_step=analysis.units_at_step if analysis else 0,
            shadow_pairs=analysis.shadow_pairs if analysis else 0,
            trips=() if comparing else _trips(trips, rollout.challenger, rollout.started_at),
            challenger_ready=status.ready,
            champion_ready=back is None or back.ready,
            observed_epoch_applied=observed is not None
            and table is not None
            and observed.epoch >= table.epoch,
            sample_ratio_ok=analysis.sample_ratio_ok if analysis else True,
            sample_ratio_text=analysis.sample_ratio_text if analysis else "",
            command=asked.get("command"),
            actor=asked.get("actor", "somebody"),
            why=asked.get("reason", ""),
            asked_at=asked.get("at"),
            frozen=bool(parts.ledger.setting("frozen")),
            dead=bool(status.error) and not comparing,
            arms=self._arms(rollout, trips),
            pairs=analysis.pairs() if comparing and isinstance(analysis, SplitAnalysis) else (),
            arm=asked.get("arm"),
        )

    def _arms(self, rollout: Rollout, trips: tuple[BreakerTrip, ...]) -> tuple[ArmFacts, ...]:
        """What is known of the arms of a split that are in it still."""
        split, analysis = undecided(rollout), self.watch.analysis
        found = []
        for arm in split.live if split is not None else ():
            status = self.parts.serving.status(arm.release)
            seen = analysis.arms.get(arm.name) if isinstance(analysis, SplitAnalysis) else None
            found.append(
                ArmFacts(
                    name=arm.name,
                    assessments=seen.assess() if seen else (),
                    units=seen.units_at_step if seen else 0,
                    ready=status.ready,
                    dead=bool(status.error),
                    trips=_trips(trips, arm.release, rollout.started_at),
                )
            )
        return tuple(found)

    def _event_data(self, rollout: Rollout, observed: Observed | None) -> Mapping[str, object]:
        arms = rollout.split.arms if rollout.split is not None else ()
        of = {rollout.challenger, *(a.release for a in arms)}
        trips = [t for t in observed.trips if t.release in of] if observed else []
        return {
            "step": rollout.step,
            "status": rollout.status,
            "assessments": list(rollout.assessments),
            "trips": list(trips),
            "requests": self.watch.requests,
        }

    # ------------------------------------------------------------------ route

    def _route(
        self,
        rollout: Rollout | None,
        weights: Mapping[str, float],
        observed: Observed | None,
        fence: int,
        now: float,
    ) -> None:
        parts = self.parts
        champion_id = parts.ledger.champion()
        champion = self._healthy(champion_id, fence, now) if champion_id else None
        challenger = previous = None
        if rollout is not None:
            challenger = parts.serving.status(rollout.challenger)
            if rollout.champion is None and champion_id is None and challenger.ready:
                champion = challenger  # the first release
            if rollout.promoted_at is not None and rollout.champion is not None:
                previous = self._healthy(rollout.champion, fence, now, BACK)
        latest = parts.ledger.latest_routing()
        split = undecided(rollout) if rollout is not None else None
        if rollout is not None and split is not None and _splits(rollout):
            statuses = {a.release: parts.serving.status(a.release) for a in split.live}
            arms = split_arms(champion, rollout, split, statuses, latest)
        else:
            arms = desired_arms(champion, rollout, challenger, weights, previous)
        if arms is not None:
            salt = rollout.salt if rollout else (latest.salt if latest else "none")
            table = next_table(
                latest, arms, service_id=parts.config.service, salt=salt, reason=_reason(rollout)
            )
            if table is not None:
                with parts.ledger.begin(fence=fence) as tx:
                    tx.routing(table, now)
                    tx.event(
                        now, "routing", str(table.epoch), _describe(table), data={"table": table}
                    )
                latest = table
        if latest is not None and (observed is None or observed.epoch < latest.epoch):
            self._apply(latest, fence, now)

    def _apply(self, table: RoutingTable, fence: int, now: float) -> None:
        try:
            self.parts.router.apply(table)
        except BackendError:
            return
        except Conflict:
            # Somebody used the emergency brake: the gateway is ahead. Take its epoch as ours.
            observed = self._observed()
            if observed is not None and observed.epoch >= table.epoch:
                self._catch_up(table, observed.epoch, fence, now)

    def _catch_up(self, table: RoutingTable, epoch: int, fence: int, now: float) -> None:
        ahead = replace(table, epoch=epoch + 1, reason="after an emergency at the gateway")
        with self.parts.ledger.begin(fence=fence) as tx:
            tx.routing(ahead, now)

    def _observed(self) -> Observed | None:
        try:
            observed = self.parts.router.observed()
        except BackendError:
            if not self._gateway_lost:
                log.warning("no gateway answers", extra={"action": "observe"})
            self._gateway_lost = True
            return None
        self._gateway_lost = False
        return observed

    def _healthy(
        self, champion: str, fence: int, now: float, setting: str = RESTARTS
    ) -> ServingStatus:
        """Status of the champion, or of the one before. One whose worker died is started again, one
        that dies each time after longer and longer."""
        parts = self.parts
        status = parts.serving.status(champion)
        kept = parts.ledger.setting(setting)
        stored = decode(restarts.Restarts, json.dumps(kept)) if kept else None
        decision = restarts.decide(stored, status, now)
        if decision.after != stored:
            with parts.ledger.begin(fence=fence) as tx:
                tx.set(setting, as_json(decision.after))
                if decision.event is not None:
                    kind, text = decision.event
                    tx.event(now, kind, champion, text, data={"error": status.error})
        if decision.start:
            parts.serving.deploy(parts.releases.get(champion))
        return status


def _splits(rollout: Rollout) -> bool:
    """Whether its present step is the split."""
    return bool(rollout.history) and rollout.steps[rollout.step].kind is StepKind.SPLIT


def _trips(trips: tuple[BreakerTrip, ...], release: str, since: float) -> tuple[BreakerTrip, ...]:
    """A release's, of this rollout."""
    return tuple(t for t in trips if t.release == release and t.at >= since)


def _reason(rollout: Rollout | None) -> str:
    return f"rollout {rollout.rollout_id}, step {rollout.step}" if rollout else "champion alone"


def _describe(table: RoutingTable) -> str:
    several = sum(a.role is ArmRole.CHALLENGER for a in table.arms) > 1
    shares = ", ".join(
        f"{a.name if several else a.name.split(':')[0]} {a.weight:.0%}" for a in table.arms
    )
    return f"routing epoch {table.epoch}: {shares}"
