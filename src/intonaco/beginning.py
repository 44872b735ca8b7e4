"""How updates begin: their first rows, and the plans that no policy makes."""

from __future__ import annotations

from intonaco import accounts, loop
from intonaco.codec import digest
from intonaco.executor import Parts
from intonaco.ledger import Transaction
from intonaco.types import Action, Candidate, Cause, Plan, Update, Verdict


def begin_update(
    parts: Parts, tx: Transaction, update: Update, now: float, *, actor: str = "controller"
) -> None:
    """Write a new update with its plan, its reservation and its event. Raises Conflict if the
    budget has no room for it."""
    plan = update.plan
    accounts.set_aside(parts.config, tx, update, now)
    tx.put(plan, id=plan.plan_id, at=now)
    tx.update(update)
    tx.event(
        now,
        "update.started",
        update.update_id,
        f"update {update.update_id} begins: {plan.action} because of {plan.cause}",
        actor=actor,
        data={"plan": plan, "phase": update.phase},
    )


def plan_event(tx: Transaction, plan: Plan, now: float) -> None:
    """Tell of a plan."""
    tx.event(
        now,
        "plan",
        plan.plan_id,
        f"{plan.action}: {plan.reason}",
        data={
            "action": plan.action,
            "estimated_cost": plan.estimated_cost,
            "expected_benefit": plan.expected_benefit,
            "budget_left": plan.budget_left,
            "recipes": list(plan.recipes),
        },
    )


def given(parts: Parts) -> str | None:
    """The model that the configuration says exists already, in words; None if it names none."""
    if parts.config.serving.type == "http":
        name, upstream = next(iter(parts.config.serving.upstreams.items()))
        return f"{name} ({upstream.url})"
    return parts.config.model.path


def take_over(parts: Parts, actor: str, now: float) -> Update:
    """The first update of a service whose model exists already: in the folder ``model.path``, or
    at the first of ``serving.upstreams``."""
    first = next(iter(parts.config.serving.upstreams), None)
    plan = Plan(
        plan_id=digest(["take over", parts.config.service, given(parts)])[:12],
        service_id=parts.config.service,
        at=now,
        action=Action.ASSEMBLE,
        cause=Cause.FIRST_RELEASE,
        reason=f"take the model of {given(parts)} into care",
        assemble={"name": first, "upstream": first} if first else {"name": "given"},
        requested_by=actor,
    )
    return loop.start(plan, None, now)


def back_to(parts: Parts, release_id: str, reason: str, actor: str, now: float) -> Update:
    """An update that puts an earlier release back into service at once."""
    champion = parts.ledger.champion()
    plan = Plan(
        plan_id=digest(["back", release_id, champion, now])[:12],
        service_id=parts.config.service,
        at=now,
        action=Action.ROLL_BACK,
        cause=Cause.REQUESTED,
        reason=reason,
        requested_by=actor,
    )
    candidate = Candidate(
        name="rollback",
        release_id=release_id,
        verdict=Verdict.PASS,
        reasons=("was champion before",),
    )
    return loop.restage(plan, candidate, champion, 1, now)
