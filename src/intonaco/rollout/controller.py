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

from intonaco import emergency, rollout_commands
from intonaco.codec import as_json, decode
from intonaco.errors import BackendError, Conflict, IntonacoError
from intonaco.executor import Parts
from intonaco.ledger import Transaction
from intonaco.messages import table_digest
from intonaco.rollout import baseline, machine, restarts, staffing
from intonaco.rollout.capacity import can_take
from intonaco.rollout.replacing import in_place
from intonaco.rollout.routing import desired_arms, next_table, split_arms
from intonaco.rollout.split import ArmFacts, undecided
from intonaco.rollout.split_analysis import SplitAnalysis
from intonaco.types import (
    Action,
    ArmRole,
    BreakerTrip,
    Observed,
    Rollout,
    RolloutStatus,
    RoutingTable,
    ServingStatus,
    StepKind,
    Update,
)
from intonaco.watching import Watch

log = logging.getLogger(__name__)

RESTARTS = "champion:restarts"  # the setting of the ledger that keeps them
LONGEST_GAP_S = 120.0  # between two looks of one process; a longer one is no time that was watched
BACK = "previous:restarts"  # of the one to go back to while the new champion bakes


class RolloutController:
    """One look at the rollout and the routing of a service."""

    def __init__(self, parts: Parts, watch: Watch) -> None:
        self.parts = parts
        self.watch = watch
        self._gateway_lost = False
        self._looked_at: float | None = None

    def tick(self, fence: int, now: float, *, blind: str = "") -> None:
        """``blind``: why nobody knows how the traffic is; then nobody advances, all may go back."""
        observed = self._observed()
        rollout = self.parts.ledger.active_rollout()
        weights: Mapping[str, float] = {}
        if rollout is not None:
            rollout = self._hold_over(rollout, fence, now)
            rollout, weights = self._step(rollout, observed, blind, fence, now)
        self._looked_at = now
        self._route(rollout, weights, observed, fence, now)

    # ------------------------------------------------------------------ decide

    def _hold_over(self, rollout: Rollout, fence: int, now: float) -> Rollout:
        """Time in which this controller did not look, or that is there only because somebody set
        the clock, is nobody's waiting time."""
        gap = now - self._looked_at if self._looked_at is not None else 0.0
        if 0.0 <= gap <= LONGEST_GAP_S:
            return rollout
        rollout = machine.held_over(rollout, gap)
        text = f"the clock moved by {gap:+.0f} s between two looks: no step counts them"
        with self.parts.ledger.begin(fence=fence) as tx:
            tx.rollout(rollout)
            tx.event(now, "rollout.clock", rollout.rollout_id, text)
        return rollout

    def _step(
        self, rollout: Rollout, observed: Observed | None, blind: str, fence: int, now: float
    ) -> tuple[Rollout | None, Mapping[str, float]]:
        parts = self.parts
        rollout = self._noticed(rollout, fence, now)
        waiting = rollout_commands.asked(parts.ledger, rollout.rollout_id)
        asked = waiting[0] if waiting else None
        decision = machine.tick(rollout, self._facts(rollout, observed, asked, blind), now)
        after = decision.rollout
        if after.promoted_at is not None and rollout.promoted_at is None:
            table = parts.ledger.latest_routing()
            # In place the table that gave it everybody named it champion already.
            last = (table.epoch if table else 0) - int(in_place(after))
            after = replace(after, promoted_epoch=last)
        if after != rollout or asked:
            with parts.ledger.begin(fence=fence) as tx:
                tx.rollout(after)
                if after.status.final:
                    rollout_commands.answer(
                        tx, rollout, waiting[1:], f"it is over: {after.reason}", now
                    )
                    waiting = []
                if asked:
                    tx.set(f"rollout:{rollout.rollout_id}", waiting[1:] or None)
                for kind, text in decision.events:
                    by_asker = decision.by_command or kind == "refused"
                    tx.event(
                        now,
                        f"rollout.{kind}",
                        rollout.rollout_id,
                        text,
                        actor=str(asked["actor"]) if asked and by_asker else "controller",
                        data=self._event_data(after, observed),
                    )
                self._crown(tx, rollout, after, now)
        return (None if after.status.final else after), decision.weights

    def _noticed(self, rollout: Rollout, fence: int, now: float) -> Rollout:
        """What it will cost is said before it begins."""
        if rollout.history or rollout.notice:
            return rollout
        text = staffing.notice(self.parts, rollout, self.watch.rate())
        if not text:
            return rollout
        rollout = replace(rollout, notice=text)
        with self.parts.ledger.begin(fence=fence) as tx:
            tx.rollout(rollout)
            tx.event(now, "rollout.notice", rollout.rollout_id, text)
        return rollout

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
        self,
        rollout: Rollout,
        observed: Observed | None,
        asked: Mapping[str, Any] | None,
        blind: str,
    ) -> machine.RolloutFacts:
        parts = self.parts
        comparing = undecided(rollout) is not None
        status = parts.serving.status(rollout.challenger)
        back = parts.serving.status(rollout.champion) if rollout.champion else None
        cap = rollout.capacity
        replaces = cap is not None or in_place(rollout)
        analysis = self.watch.analysis
        table = parts.ledger.latest_routing()
        trips = observed.trips if observed else ()
        ours = observed is not None and observed.salt == rollout.salt
        asked = asked or {}
        if analysis is not None and rollout.history:
            weight = machine.weights_of(rollout)["challenger"]
            analysis.begin_step(rollout.step, rollout.step_since, weight)
        return machine.RolloutFacts(
            assessments=analysis.assess() if analysis else (),
            units_at_step=analysis.units_at_step if analysis else 0,
            shadow_pairs=analysis.shadow_pairs if analysis else 0,
            trips=() if comparing else _trips(trips, rollout, rollout.challenger, ours),
            challenger_ready=status.ready,
            champion_ready=back is None
            or (
                baseline.answers(parts, back)
                if cap is None
                else can_take(cap, len(back.urls), cap.total)
            ),
            observed_epoch_applied=_follows(observed, table)
            and (
                not staffing.swapping(rollout)
                or (table is not None and table.champion().release == rollout.challenger)
            ),
            sample_ratio_ok=analysis.sample_ratio_ok if analysis else True,
            sample_ratio_text=analysis.sample_ratio_text if analysis else "",
            guardrails=parts.config.rollout.guardrails,
            command=asked.get("command"),
            actor=asked.get("actor", "somebody"),
            why=asked.get("reason", ""),
            asked_at=asked.get("at"),
            frozen=bool(parts.ledger.setting("frozen")) and not self._way_back(rollout),
            blind=blind or self.watch.blind,
            unjudged_at=self.watch.unjudged_at,
            # One that waits for room is not deployed yet, or no more.
            dead=bool(status.error) and not comparing and (status.deployed or not replaces),
            challenger_replicas=len(status.urls),
            champion_replicas=len(back.urls) if back else 0,
            arms=self._arms(rollout, trips, ours),
            pairs=analysis.pairs() if comparing and isinstance(analysis, SplitAnalysis) else (),
            arm=asked.get("arm"),
            baseline=baseline.missing(parts, rollout, back),
        )

    def _way_back(self, rollout: Rollout) -> bool:
        """Whether a person asked for it to leave the champion: whoever froze wants that too."""
        plan = self.parts.ledger.get(Update, rollout.update_id).plan
        return plan.action is Action.ROLL_BACK and plan.requested_by != "policy"

    def _arms(
        self, rollout: Rollout, trips: tuple[BreakerTrip, ...], ours: bool
    ) -> tuple[ArmFacts, ...]:
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
                    trips=_trips(trips, rollout, arm.release, ours),
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
        latest = parts.ledger.latest_routing()
        swapped = rollout is not None and staffing.swapping(rollout)
        rolled: Mapping[str, ServingStatus] = {}
        champion: ServingStatus | None
        challenger: ServingStatus | None = None
        previous: ServingStatus | None = None
        if rollout is not None and swapped:
            champion = self._swapped(rollout, fence, now)
        else:
            champion = self._healthy(champion_id, fence, now) if champion_id else None
        if rollout is None and champion is not None:
            staffing.restore(parts, champion)
        if rollout is not None and rollout.capacity is not None:
            rolled = staffing.roll(parts, rollout, latest if _follows(observed, latest) else None)
        if rollout is not None:
            challenger = parts.serving.status(rollout.challenger)
            if rollout.champion is None and champion_id is None and challenger.ready:
                champion = challenger  # the first release
            if rollout.promoted_at is not None and rollout.champion is not None and not swapped:
                gone = rolled and not rolled[rollout.champion].deployed
                previous = None if gone else self._healthy(rollout.champion, fence, now, BACK)
        champion, challenger, previous = (
            rolled.get(s.release, s) if s is not None else None
            for s in (champion, challenger, previous)
        )
        latest = parts.ledger.latest_routing()
        equal: tuple[str, ...] = ()
        for status in (champion, previous):
            if status is None or swapped or rolled:
                continue
            followed = latest if _follows(observed, latest) else None
            own, urls = baseline.look(parts, rollout, weights, status, followed, fence, now)
            champion = own if status is champion else champion
            previous = own if status is previous else previous
            equal = equal or urls
        if latest is not None and observed is not None and _foreign(observed, latest):
            latest = self._assert_again(latest, observed, fence, now)
        split = undecided(rollout) if rollout is not None else None
        if rollout is not None and split is not None and _splits(rollout):
            statuses = {a.release: parts.serving.status(a.release) for a in split.live}
            arms = split_arms(champion, rollout, split, statuses, latest)
        else:
            arms = desired_arms(champion, rollout, challenger, weights, previous, equal)
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

    def _swapped(self, rollout: Rollout, fence: int, now: float) -> ServingStatus:
        """Status of the one that is to answer while one takes the other's place."""
        free = staffing.swap(self.parts, rollout)
        if rollout.returning:
            champion = str(rollout.champion)
            if free:
                return self._healthy(champion, fence, now, BACK)
            return self.parts.serving.status(champion)
        if rollout.promoted_at is not None:
            return self._healthy(rollout.challenger, fence, now)
        return self.parts.serving.status(rollout.challenger)

    def _apply(self, table: RoutingTable, fence: int, now: float) -> None:
        """Give the gateways a table. Where they are ahead, the next tick sees it."""
        try:
            self.parts.router.apply(table)
        except BackendError as error:
            log.warning("no gateway takes it: %s", error, extra={"action": "apply"})
        except Conflict as error:
            log.warning("gateways refuse it: %s", error, extra={"action": "apply"})
            observed = self._observed()
            if observed is not None and _foreign(observed, table):
                self._assert_again(table, observed, fence, now)

    def _assert_again(
        self, table: RoutingTable, observed: Observed, fence: int, now: float
    ) -> RoutingTable:
        """The ledger's table once more, ahead of one that somebody else gave to the gateways, with
        no breaker closed by it. What the emergency brake gave them is left to its note."""
        if emergency.waiting(self.parts.workspace):
            return table
        reason = "asserted again after a table that is not the ledger's"
        ahead = replace(table, epoch=observed.epoch + 1, untrip=(), reason=reason)
        theirs = ", ".join(f"{name} {share:.0%}" for name, share in observed.weights.items())
        text = (
            f"the gateways followed a table that is not the ledger's: epoch {observed.epoch}, "
            f"{theirs or 'no arms'}; the ledger's is asserted again"
        )
        with self.parts.ledger.begin(fence=fence) as tx:
            tx.routing(ahead, now)
            tx.event(now, "routing.foreign", str(ahead.epoch), text, data={"table": ahead})
        log.warning("%s", text, extra={"action": "routing.foreign"})
        return ahead

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
        decision = restarts.decide(stored, baseline.of_its_own(parts, status), now)
        if decision.after != stored:
            with parts.ledger.begin(fence=fence) as tx:
                tx.set(setting, as_json(decision.after))
                if decision.event is not None:
                    kind, text = decision.event
                    tx.event(now, kind, champion, text, data={"error": status.error})
        if decision.start:
            try:
                parts.serving.deploy(parts.releases.get(champion))
            except IntonacoError as error:  # it must not keep anybody from going back
                log.warning("%s: %s", champion[:10], error, extra={"action": "deploy"})
        return status


def _follows(observed: Observed | None, table: RoutingTable | None) -> bool:
    """Whether the gateways follow this very table; one that names none is believed its epoch."""
    if observed is None or table is None:
        return False
    return observed.epoch >= table.epoch and not _foreign(observed, table)


def _foreign(observed: Observed, table: RoutingTable) -> bool:
    """Whether they follow one of the same epoch or a newer that is not it."""
    if observed.epoch > table.epoch:
        return True
    return observed.epoch == table.epoch and observed.table not in ("", table_digest(table))


def _splits(rollout: Rollout) -> bool:
    """Whether its present step is the split."""
    return bool(rollout.history) and rollout.steps[rollout.step].kind is StepKind.SPLIT


def _trips(
    trips: tuple[BreakerTrip, ...], rollout: Rollout, release: str, ours: bool
) -> tuple[BreakerTrip, ...]:
    """A release's, of this rollout. One of an earlier try is gone once the gateways follow a table
    of this one (``ours``), whatever their clock says."""
    return tuple(t for t in trips if t.release == release and (ours or t.at >= rollout.started_at))


def _reason(rollout: Rollout | None) -> str:
    return f"rollout {rollout.rollout_id}, step {rollout.step}" if rollout else "champion alone"


def _describe(table: RoutingTable) -> str:
    several = sum(a.role is ArmRole.CHALLENGER for a in table.arms) > 1
    shares = ", ".join(
        f"{a.name if several else a.name.split(':')[0]} {a.weight:.0%}" for a in table.arms
    )
    return f"routing epoch {table.epoch}: {shares}"
