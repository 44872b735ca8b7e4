"""An update's money: set aside when it begins, settled when it ends."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from intonaco.config import Config
from intonaco.decision.budget import DAY, EVALUATE, JobUse, Standing, settle, standing
from intonaco.ledger import EffectStatus, Ledger, Transaction
from intonaco.types import Action, Plan, Update

USED_UP = "budget:used_up"  # setting: what was told, {"at", "until", "budget"}


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


def held_by_budget(plan: Plan) -> bool:
    """Whether it is the budget that keeps a plan from being carried out."""
    return plan.reckoning is not None and plan.reckoning.rule == "budget"


def tell_used_up(config: Config, ledger: Ledger, tx: Transaction, plan: Plan, now: float) -> None:
    """The event that what is left of the budget holds an update back, with the figures. Once, until
    some of what was spent has left the period, or the budget is another."""
    budget = config.decision.budget
    now_is = [budget.amount, budget.gpu_hours, budget.per_days]
    told = ledger.setting(USED_UP)
    if told and told["budget"] == now_is and told["at"] <= now < told["until"]:
        return
    kinds = {"money": (money(ledger, config, now), budget.currency)}
    if (machine := hours(ledger, config, now)) is not None:
        kinds["hours"] = (machine, "h of the machine")
    frees = [stands.frees_at for stands, _ in kinds.values() if stands.frees_at is not None]
    until = min(frees, default=now + budget.per_days * DAY)
    text = (
        f"the budget is used up: an update because of {plan.cause.replace('_', ' ')} is estimated "
        f"at {plan.estimated_cost:.2f} {budget.currency} and waits. In any {budget.per_days:g} days"
    )
    for stands, unit in kinds.values():
        text += (
            f", {stands.settled:.2f} of {stands.amount:.2f} {unit} are spent, "
            f"{stands.reserved:.2f} reserved and {stands.left:.2f} left"
        )
    when = datetime.fromtimestamp(min(frees), UTC).strftime("%Y-%m-%d %H:%M UTC") if frees else ""
    text += f"; some comes back on {when}" if when else "; nothing of it comes back by itself"
    data = {
        name: {"amount": s.amount, "spent": s.settled, "reserved": s.reserved, "left": s.left}
        for name, (s, _) in kinds.items()
    }
    more = {"plan": plan.plan_id, "estimated_cost": plan.estimated_cost, "until": until}
    tx.set(USED_UP, {"at": now, "until": until, "budget": now_is})
    tx.event(now, "budget.used_up", plan.plan_id, text, data=data | more)


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
