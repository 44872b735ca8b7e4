"""Every action on one scale: what it costs, what it brings, and whether it is to be had. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from intonaco.config import Decision
from intonaco.decision import economics
from intonaco.decision.budget import DAY, EVALUATE, HOUR, Reservation, required_return, reserve
from intonaco.decision.context import DecisionContext
from intonaco.types import Action, Diagnosis, Estimate, Option, Reckoning


@dataclass(frozen=True, slots=True, kw_only=True)
class Stakes:
    """What is at stake in a diagnosis: how much is lost, since when, and for how much longer."""

    deficit: Estimate
    rate: Estimate
    loss: Estimate  # money a second
    age: float
    lasts: float

    @property
    def regret(self) -> float:
        """Lost since the change began, at the lower end."""
        return self.loss.low * self.age


def stakes(d: Diagnosis, deficit: Estimate, c: DecisionContext, s: Decision, now: float) -> Stakes:
    age = max(now - min((f.since_at for f in d.findings), default=now), 0.0)
    return Stakes(
        deficit=deficit,
        rate=economics.arrival_rate(c.request_rate, c.arrivals),
        loss=economics.loss(c.request_rate, s.value_per_request, deficit),
        age=age,
        lasts=economics.lasts(age, s.horizon_days * DAY, c.lives),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Affordable:
    """The first recipes that fit in what is left, with their estimated cost (that of all if none
    fits), and what to say of those left out."""

    recipes: tuple[str, ...]
    cost: float
    refusal: str


def money_left(c: DecisionContext, s: Decision) -> float:
    return s.budget.amount - c.spent - c.reserved


def affordable(names: Sequence[str], c: DecisionContext, s: Decision) -> Affordable:
    """A recipe whose time nobody knows has no cost estimate and is left out."""
    left, hours_left = money_left(c, s), c.hours_left
    fit: list[str] = []
    out: list[str] = []
    total = wanted = hours = 0.0
    for name in names:
        seconds = c.recipe_seconds.get(name)
        if seconds is None:
            out.append(f"{name} (its time is not known)")
            continue
        takes = (seconds + c.evaluation_seconds) / HOUR
        cost = takes * s.budget.hourly_price
        wanted += cost
        if total + cost > left:
            out.append(f"{name} ({money(cost, s)})")
        elif hours_left is not None and hours + takes > hours_left:
            out.append(f"{name} ({takes:.1f} h of {hours_left:.1f} h left)")
        else:
            fit.append(name)
            total += cost
            hours += takes
    refusal = f" Left out, with {money(left, s)} in the budget: {', '.join(out)}." if out else ""
    if not fit:
        return Affordable(recipes=(), cost=wanted, refusal=refusal.strip())
    return Affordable(recipes=tuple(fit), cost=total, refusal=refusal)


def reservation(recipes: Sequence[str], c: DecisionContext, s: Decision) -> Reservation:
    """What is set aside for training these recipes (none: for the evaluation alone)."""
    jobs = max(len(recipes), 1)
    seconds = {name: c.recipe_seconds[name] for name in recipes}
    most = {name: c.recipe_most[name] for name in recipes if name in c.recipe_most}
    seconds[EVALUATE] = c.evaluation_seconds * jobs
    if c.evaluation_most is not None:
        most[EVALUATE] = c.evaluation_most * jobs
    return reserve(seconds, most, s.budget, money_left(c, s), c.hours_left)


def pressure(c: DecisionContext, s: Decision) -> float:
    if c.pressure is not None:
        return c.pressure
    gone = c.spent + c.reserved
    return gone / s.budget.amount if s.budget.amount > 0 else 0.0


def weigh(
    action: Action, recipes: Sequence[str], why: str, at: Stakes, c: DecisionContext, s: Decision
) -> Option:
    """An allowed action, on the scale. Recipes are those that can be paid for."""
    candidates = max(len(recipes), int(action is not Action.ROLL_BACK))
    lead = sum(c.recipe_seconds[r] for r in recipes) + candidates * c.evaluation_seconds
    most = sum(c.recipe_most.get(r, c.recipe_seconds[r]) for r in recipes)
    most += candidates * (c.evaluation_most or c.evaluation_seconds)
    if action is Action.ROLL_BACK:
        lead = most = 0.0  # it was loaded and proven before
    waits = 0.0 if action is Action.ROLL_BACK else c.rollout_seconds
    price = s.budget.hourly_price / HOUR
    compute = Estimate(low=lead * price, mean=lead * price, high=max(most, lead) * price)
    review = 0.0 if action is Action.ROLL_BACK else review_cost(candidates, s)
    chance = economics.success(c.succeeded, c.failed)
    risk = (1 - chance.mean) * s.failure_cost
    recovery = float(getattr(s.recovery, str(action)))
    serves = max(at.lasts - lead - waits, 0.0)
    saved = economics.gain(at.loss, recovery=recovery, chance=chance.mean, serves=serves)
    return Option(
        action=action,
        allowed=True,
        why=why,
        recipes=tuple(recipes),
        lead_s=lead + waits,
        serves_s=serves,
        recovery=recovery,
        success=chance,
        compute=compute,
        review=review,
        risk=risk,
        gain=saved,
        net=economics.net(saved, compute, review + risk),
    )


def review_cost(candidates: int, s: Decision) -> float:
    return candidates * s.review_minutes / 60 * s.review_hourly_rate


def nothing(why: str) -> Option:
    """Doing nothing costs and brings nothing: what the others are measured against."""
    zero = economics.certain(0.0)
    return Option(action=Action.WATCH, allowed=True, why=why, gain=zero, net=zero)


def closed(action: Action, why: str) -> Option:
    return Option(action=action, allowed=False, why=why)


def pays(option: Option, c: DecisionContext, s: Decision) -> bool:
    """Whether it brings more than it costs, and as much more as a short budget asks."""
    if option.net is None or option.gain is None:
        return False
    cost = total_cost(option)
    return option.net.low > 0 and option.gain.low >= cost * asked(c, s)


def asked(c: DecisionContext, s: Decision) -> float:
    return required_return(pressure(c, s), s.budget.thrift, c.usual_return)


def total_cost(option: Option) -> float:
    return (option.compute.mean if option.compute else 0.0) + option.review + option.risk


def best(options: Sequence[Option]) -> Option:
    """The allowed action with the greatest net return at the lower end; of equals the first."""
    allowed = [o for o in options if o.allowed and o.net is not None]
    return max(allowed, key=lambda o: o.net.low if o.net else 0.0)


def reckon(
    rule: str,
    at: Stakes | None,
    options: Sequence[Option],
    checks: Sequence[tuple[str, str]],
    c: DecisionContext,
    s: Decision,
) -> Reckoning:
    """All that was looked at, for people."""
    sums = Reckoning(
        rule=rule,
        currency=s.budget.currency,
        value=s.value_per_request,
        options=tuple(options),
        checks=tuple(checks),
        budget=_budget(c, s),
    )
    if at is None:
        return sums
    return replace(
        sums,
        rate=at.rate,
        deficit=at.deficit,
        age_s=at.age,
        lasts_s=at.lasts,
        loss_per_day=economics.scale(at.loss, DAY),
        regret=at.regret,
    )


def _budget(c: DecisionContext, s: Decision) -> Mapping[str, float]:
    found = {
        "amount": s.budget.amount,
        "per_days": s.budget.per_days,
        "spent": c.spent,
        "reserved": c.reserved,
        "left": money_left(c, s),
        "pressure": pressure(c, s),
        "required_return": asked(c, s),
    }
    return found if c.hours_left is None else found | {"hours_left": c.hours_left}


def worth(option: Option) -> float | None:
    """Expected benefit for each unit of cost, None if it costs nothing."""
    cost = total_cost(option)
    return option.gain.low / cost if option.gain is not None and cost > 0 else None


def money(amount: float, s: Decision) -> str:
    return f"{amount:.2f} {s.budget.currency}"
