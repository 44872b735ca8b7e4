"""An update's money: set aside when it begins, settled when it ends."""

from __future__ import annotations

from collections.abc import Mapping

from intonaco.config import Config
from intonaco.decision.budget import DAY, EVALUATE, JobUse, Standing, settle, standing
from intonaco.ledger import EffectStatus, Ledger, Transaction
from intonaco.types import Action, Update


def money(ledger: Ledger, config: Config, now: float) -> Standing:
    """How the budget stands."""
    budget = config.decision.budget
    return standing(ledger.spending(), budget.amount, budget.per_days * DAY, now)


def hours(ledger: Ledger, config: Config, now: float) -> Standing | None:
    """How the budget of machine hours stands; None if they are not counted."""
    budget = config.decision.budget
    if budget.gpu_hours is None:
        return None
    return standing(ledger.spending(hours=True), budget.gpu_hours, budget.per_days * DAY, now)


def set_aside(config: Config, tx: Transaction, update: Update, now: float) -> None:
    """The reservation of an update that begins. Raises Conflict if the budget has no room for it,
    also if another took the last of it this moment."""
    budget, plan = config.decision.budget, update.plan
    period = budget.per_days * DAY
    amount = plan.reserve or plan.estimated_cost
    if amount > 0:
        tx.reserve(now, update.update_id, amount, limit=budget.amount, period=period)
    if budget.gpu_hours is not None and plan.reserve_hours > 0:
        tx.reserve(
            now,
            update.update_id,
            plan.reserve_hours,
            limit=budget.gpu_hours,
            period=period,
            hours=True,
        )


def settle_up(
    config: Config,
    tx: Transaction,
    update: Update,
    effects: Mapping[str, EffectStatus],
    now: float,
) -> None:
    """What an update that ended really used. Only once: in the transaction that ends it."""
    if update.plan.action is Action.ROLL_BACK:
        return
    used, used_hours = settle(
        jobs_of(effects), update.plan.limits, config.decision.budget.hourly_price
    )
    tx.money(now, update.update_id, "settle", used)
    if config.decision.budget.gpu_hours is not None:
        tx.money(now, update.update_id, "settle_hours", used_hours)


def jobs_of(effects: Mapping[str, EffectStatus]) -> list[JobUse]:
    """The jobs on the training machine that were asked for, and what they say they took."""
    found = []
    for status in effects.values():
        kind = status.effect.kind
        if kind not in ("train", EVALUATE):
            continue
        seconds = status.result.get("seconds") if status.status == "done" else None
        name = EVALUATE if kind == EVALUATE else str(status.effect.payload.get("name", ""))
        found.append(JobUse(name=name, seconds=None if seconds is None else float(seconds)))
    return found
