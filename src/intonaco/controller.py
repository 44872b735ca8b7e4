"""The controller's tick: look at everything once, decide, write, act.

One controller acts for a service at a time: it holds a lease, and its writes carry the lease's
fencing token. Kill it anywhere and start it again: state, offsets and effects are in the ledger.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from threading import Event as Stop

from sqlalchemy.exc import OperationalError, SQLAlchemyError

from intonaco import accounts, beginning, commands, deciding, emergency, loop, probing
from intonaco.aliases import Aliases
from intonaco.errors import BackendError, Conflict
from intonaco.evaluation import attempts
from intonaco.executor import Done, Executor, Failed, Outcome, Parts
from intonaco.ledger import EffectStatus, Transaction
from intonaco.notify.delivery import Channel, Delivery
from intonaco.protocols import Notifier
from intonaco.rollout.controller import RolloutController
from intonaco.rollout.quarantine import quarantined
from intonaco.triggering import Triggers
from intonaco.types import Diagnosis, Phase, Rollout, Update, Verdict
from intonaco.watching import Watch

log = logging.getLogger(__name__)

LEASE_SECONDS = 10.0
MAX_ATTEMPTS = 5
RETRY_SECONDS = 2.0


class Controller:
    """Runs one service. ``tick`` may be called as often as one likes."""

    def __init__(
        self,
        parts: Parts,
        *,
        holder: str,
        notifier: Notifier | None = None,
        channels: Sequence[Channel] = (),
    ) -> None:
        """``notifier``: one that is told everything. Notifications go out while ``run`` runs, or
        when ``delivery.look`` is called."""
        self.parts = parts
        self.holder = holder
        everything = (Channel(name="all", notifier=notifier),) if notifier is not None else ()
        self.delivery = Delivery(parts.ledger, (*everything, *channels), parts.clock)
        self.executor = Executor(parts)
        self.watch = Watch(parts)
        self.triggers = Triggers(parts)
        self.rollouts = RolloutController(parts, self.watch)
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="effect")
        self._running: dict[str, Future[Outcome]] = {}
        self._not_before: dict[str, float] = {}
        self.aliases = Aliases(parts, self._threads)

    # ------------------------------------------------------------------ one look

    def tick(self) -> bool:
        """False if another controller holds the lease."""
        now = self.parts.clock.now()
        with self.parts.ledger.begin() as tx:
            fence = tx.lease(self.holder, now, LEASE_SECONDS)
        self.delivery.lead(fence)
        if fence is None:
            return False
        emergency.take(self.parts, fence, now)
        commands.take(self.parts, fence, now)
        try:
            self._look(fence, now)
        except (Conflict, SQLAlchemyError):
            raise
        except Exception:
            # Whatever broke, who is harmed must be sent back.
            self.rollouts.tick(fence, now, blind="a look at the traffic, which failed")
            self.delivery.wake()
            raise
        self.rollouts.tick(fence, now)
        self.aliases.look(fence, now)
        self.delivery.wake()
        with suppress(OSError):  # then its age says that something is wrong
            self.parts.workspace.ticked(now)
        return True

    def _look(self, fence: int, now: float) -> None:
        """All but the rollout: what the traffic says, and how far the updates are."""
        self.watch.look(fence, now)
        probing.look(self.parts, self.watch, fence, now)
        self.triggers.look(fence, now)
        deciding.look(self.parts, self.watch, fence, now)
        self._take_over(fence, now)
        for update in self.parts.ledger.active_updates():
            self._advance(update, fence, now)
        self._effects(fence, now)

    def _take_over(self, fence: int, now: float) -> None:
        """A new service whose configuration names a model begins with that model."""
        ledger = self.parts.ledger
        if beginning.given(self.parts) is None or ledger.champion() or ledger.all(Update):
            return
        with ledger.begin(fence=fence) as tx:
            update = beginning.take_over(self.parts, "configuration", now)
            beginning.begin_update(self.parts, tx, update, now)

    def _advance(self, update: Update, fence: int, now: float) -> None:
        """Move an update as far as what is known carries it."""
        ledger = self.parts.ledger
        while True:
            effects = ledger.effects(update.update_id)
            facts = loop.Facts(
                config=self.parts.config,
                effects=effects,
                rollout=ledger.find(Rollout, update.rollout_id) if update.rollout_id else None,
                approval=commands.approval_of(ledger, update.update_id),
                earlier=self._earlier(update, effects),
                quarantined=self._quarantined(update),
                passed=self._passed(),
            )
            step = loop.advance(update, facts, now)
            news = [e for e in step.effects if e.key not in facts.effects]
            if step.update == update and not news:
                return
            with ledger.begin(fence=fence) as tx:
                tx.update(step.update)
                for effect in news:
                    tx.want(effect, now)
                if step.rollout is not None:
                    tx.rollout(step.rollout)
                    tx.event(
                        now,
                        "rollout.started",
                        step.rollout.rollout_id,
                        f"rollout of {step.rollout.challenger[:10]} begins",
                        data={"update_id": update.update_id, "attempt": step.rollout.attempt},
                    )
                if step.update.phase is not update.phase:
                    self._phase_event(tx, update, step, now)
            if step.update.phase is update.phase:
                return
            update = step.update

    def _quarantined(self, update: Update) -> Mapping[str, str]:
        if update.phase is not Phase.GATE:
            return {}  # of interest only there
        return quarantined(self.parts.ledger.all(Rollout))

    def _earlier(self, update: Update, effects: Mapping[str, EffectStatus]) -> int:
        """Candidates that the gate judged for the same trigger before this update."""
        asked = any(status.effect.kind == "evaluate" for status in effects.values())
        if asked or update.phase not in (Phase.DATASET, Phase.EVALUATE):
            return 0  # of interest only until the evaluation is asked for
        ledger = self.parts.ledger
        diagnoses = {d.diagnosis_id: d for d in ledger.all(Diagnosis)}
        return attempts.earlier(update, ledger.all(Update), diagnoses)

    def _phase_event(self, tx: Transaction, before: Update, step: loop.Step, now: float) -> None:
        after = step.update
        tx.event(
            now,
            "update.phase",
            after.update_id,
            f"{before.phase} → {after.phase}" + (f": {step.note}" if step.note else ""),
            data={
                "from": before.phase,
                "to": after.phase,
                "seconds": now - before.phase_since,
                "candidates": list(after.candidates) if before.phase is Phase.GATE else [],
            },
        )
        asks = self.parts.config.approval.mode == "ask"
        if (
            after.phase is Phase.APPROVE
            and asks
            and not loop.taken_over(after.plan, after.champion)
        ):
            within = self.parts.config.approval.timeout_s / 3600
            text = f"a person's approval within {within:.3g} h: `intonaco update approve"
            tx.event(
                now, "update.asked", after.update_id, f"{text} {after.update_id}`, or `reject`"
            )
        if after.phase.final:
            effects = self.parts.ledger.effects(after.update_id)
            accounts.settle_up(self.parts.config, tx, after, effects, now)

    # ------------------------------------------------------------------ effects

    def _effects(self, fence: int, now: float) -> None:
        for status in self.parts.ledger.wanted_effects():
            key = status.effect.key
            future = self._running.get(key)
            if future is None:
                # A clock that was set back delays nothing.
                if not 0.0 < self._not_before.get(key, 0.0) - now <= RETRY_SECONDS:
                    self._running[key] = self._threads.submit(self.executor.run, status.effect)
            elif future.done():
                del self._running[key]
                self._settle(status, future, fence, now)

    def _settle(
        self, status: EffectStatus, future: Future[Outcome], fence: int, now: float
    ) -> None:
        key = status.effect.key
        ledger = self.parts.ledger
        error = future.exception()
        if error is not None:
            log.warning("effect %s: %s", key, error, extra={"action": "effect"}, exc_info=error)
            passing = isinstance(error, BackendError) and error.retriable
            text = str(error) or type(error).__name__
            with ledger.begin(fence=fence) as tx:
                if passing and status.attempts + 1 < MAX_ATTEMPTS:
                    tx.retry_effect(key, now, text)
                else:
                    tx.finish_effect(key, now, error=text)
            self._not_before[key] = now + RETRY_SECONDS
            return
        outcome = future.result()
        if isinstance(outcome, Done):
            with ledger.begin(fence=fence) as tx:
                tx.finish_effect(key, now, result=outcome.result)
        elif isinstance(outcome, Failed):
            with ledger.begin(fence=fence) as tx:
                tx.finish_effect(key, now, error=outcome.error)

    def _passed(self) -> frozenset[str]:
        """Releases that the gate ever let through, where a split may name them."""
        if not self.parts.config.rollout.ab.arms:
            return frozenset()
        candidates = (c for u in self.parts.ledger.all(Update) for c in u.candidates)
        return frozenset(
            c.release_id for c in candidates if c.release_id and c.verdict is Verdict.PASS
        )

    # ------------------------------------------------------------------ life

    def run(self, stop: Stop, *, seconds: float) -> None:
        """Tick until told to stop. A tick that fails is logged and tried again."""
        unwritable: float | None = None  # since when the ledger cannot be written
        self.delivery.start()
        while not stop.is_set():
            began = time.monotonic()
            try:
                if not self.tick():
                    stop.wait(1.0)
                elif unwritable is not None:
                    self._writable_again(began - unwritable)
                    unwritable = None
            except Conflict as error:
                log.warning("%s", error, extra={"action": "lease"})
            except (OperationalError, OSError) as error:
                if not _storage(error):
                    log.exception("a tick failed", extra={"action": "tick"})
                elif unwritable is None:  # locked, or a full disk: said once
                    unwritable = began
                    log.error(
                        "nothing can be decided, gateways serve on: %s",
                        error.orig if isinstance(error, OperationalError) else error,
                        extra={"action": "ledger"},
                    )
                stop.wait(1.0)
            except Exception:
                log.exception("a tick failed", extra={"action": "tick"})
                stop.wait(1.0)
            stop.wait(max(0.0, seconds - (time.monotonic() - began)))
        self.close()

    def _writable_again(self, seconds: float) -> None:
        text = f"the workspace could not be written for {seconds:.0f} s; nothing was decided then"
        log.warning("%s", text, extra={"action": "ledger"})
        with self.parts.ledger.begin() as tx:
            tx.event(self.parts.clock.now(), "controller.storage", self.holder, text)

    def close(self) -> None:
        """Let go of the lease; jobs and workers go on."""
        self.delivery.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)
        try:
            with self.parts.ledger.begin() as tx:
                tx.release_lease(self.holder)
        except OperationalError as error:  # it ends by itself
            log.warning("the lease is not let go: %s", error.orig, extra={"action": "lease"})


def _storage(error: OperationalError | OSError) -> bool:
    """Whether the disk or a lock is the trouble: what people see to, and what passes."""
    if isinstance(error, OperationalError):
        return True
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
