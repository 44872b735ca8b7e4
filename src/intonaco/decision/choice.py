"""What is chosen for a diagnosis, and what has to be passed before training is. Pure.

The guards come in order: no more updates for a cause that they do not help, cooldown, quiet hours,
budget, return, patience. The first that says no decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from intonaco.config import Decision
from intonaco.decision import weighing
from intonaco.decision.budget import DAY
from intonaco.decision.context import DecisionContext
from intonaco.decision.guards import quiet_until
from intonaco.decision.weighing import Stakes, money
from intonaco.types import Action, Cause, Diagnosis, Option, Reckoning


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    action: Action
    reason: str
    rule: str
    recipes: tuple[str, ...] = ()
    cost: float = 0.0
    benefit: float = 0.0
    again_at: float | None = None
    reckoning: Reckoning | None = None


def wait(
    action: Action,
    would: str,
    c: DecisionContext,
    s: Decision,
    now: float,
    *,
    cooldown: bool = True,
) -> Choice | None:
    """Cooldown and quiet hours."""
    ended = c.last_update_ended_at
    if cooldown and ended is not None and now - ended < s.cooldown_s:
        return Choice(
            action=Action.WATCH,
            reason=f"The last update ended {now - ended:.0f} s ago and the cooldown is "
            f"{s.cooldown_s:g} s. {would}".strip(),
            rule="cooldown",
            again_at=ended + s.cooldown_s,
        )
    until = quiet_until(now, s.quiet_hours, s.time_zone)
    if until is not None:
        return Choice(
            action=Action.WATCH,
            reason=f"These are quiet hours ({s.time_zone}), for {(until - now) / 3600:.1f} h more: "
            f"{words(action)} waits. {would}".strip(),
            rule="quiet hours",
            again_at=until,
        )
    return None


def weighed(
    action: Action, recipes: Sequence[str], why: str, at: Stakes, c: DecisionContext, s: Decision
) -> Option:
    if not recipes:
        return weighing.closed(action, "no recipe can be paid for")
    return weighing.weigh(action, recipes, why, at, c, s)


def train(
    action: Action,
    fit: weighing.Affordable,
    what: str,
    at: Stakes,
    options: Sequence[Option],
    c: DecisionContext,
    s: Decision,
    now: float,
    d: Diagnosis,
) -> Choice:
    """Train if it pays and no guard objects."""
    option = next(o for o in options if o.action is action)
    serves = max(at.lasts - option.lead_s, 0.0)
    benefit = at.loss.low * serves
    cost = fit.cost
    name = words(action).capitalize()
    sums = (
        f"{c.request_rate:.3g} requests/s x {s.value_per_request:g} {s.budget.currency} x deficit "
        f"{at.deficit.low:.3f} (lower bound) over {at.lasts / DAY:.3g} days = {money(benefit, s)}, "
        f"against a cost of {money(cost, s)}"
    )
    extra = option.review + option.risk
    if extra > 0:
        sums += f" and {money(extra, s)} for review and risk"
    patience = at.regret if s.patience == "learnt" else s.patience * (cost + extra)
    checks = [("one update at a time", "none is under way")]

    def chosen(kind: Action, reason: str, rule: str, again: float | None) -> Choice:
        sums_kept = weighing.reckon(rule, at, options, checks, c, s)
        return Choice(
            action=kind,
            reason=reason,
            rule=rule,
            recipes=fit.recipes if kind.makes_update else (),
            cost=cost,
            benefit=benefit,
            again_at=again,
            reckoning=replace(sums_kept, regret_needed=patience if s.patience != "learnt" else 0.0),
        )

    if c.unhelpful >= s.give_up_after:
        return chosen(
            Action.TELL,
            f"{c.unhelpful} updates in a row did not help against {words(d.cause)}: training "
            "again would be thrown away. Change the model, not only retrain it: a person has to "
            "decide. Otherwise: " + sums + ".",
            "training does not help",
            None,
        )
    checks.append(("updates that did not help", f"{c.unhelpful} of {s.give_up_after}"))
    held = wait(action, f"{name} would bring {sums}.", c, s, now)
    if held is not None:
        return chosen(held.action, held.reason, held.rule, held.again_at)
    checks.append(("cooldown", _cooldown(c, s, now)))
    checks.append(("quiet hours", "no" if s.quiet_hours else "none configured"))
    later = now + s.look_again_s
    if not fit.recipes:
        return chosen(
            Action.TELL,
            f"{fit.refusal} It would bring {money(benefit, s)}.",
            "budget",
            max(c.budget_frees_at or later, later),
        )
    checks.append(("budget", f"{money(cost, s)} of {money(weighing.money_left(c, s), s)} left"))
    if weighing.best(options) is not option:
        return chosen(Action.WATCH, f"{name} does not pay: {sums}.", "does not pay", later)
    needed = weighing.asked(c, s)
    if not weighing.pays(option, c, s):
        return chosen(
            Action.WATCH,
            f"The budget is short, so an update must bring {needed:.2f} times its cost, and "
            f"{words(action)} does not: {sums}.",
            "budget is short",
            later,
        )
    checks.append(("return asked", f"{needed:.2f} times the cost"))
    if at.regret < patience:
        return chosen(
            Action.WATCH,
            f"{money(at.regret, s)} were lost since the change and {money(patience, s)} are waited "
            f"for, as it may pass by itself. {name} would bring {sums}.",
            "patience",
            min(later, now + max((patience - at.regret) / at.loss.low, 1.0)),
        )
    return chosen(
        action,
        f"{name} on {what} ({', '.join(fit.recipes)}) pays: {sums}; "
        f"{money(weighing.money_left(c, s), s)} of the budget are left.{fit.refusal}",
        "pays",
        None,
    )


def _cooldown(c: DecisionContext, s: Decision, now: float) -> str:
    if c.last_update_ended_at is None:
        return "no update yet"
    ago = now - c.last_update_ended_at
    return f"last update ended {ago / 3600:.1f} h ago, {s.cooldown_s / 3600:.1f} h needed"


def words(value: Action | Cause) -> str:
    return str(value).replace("_", " ")
