"""The sum behind a plan, kept with it so that a person can follow it later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from intonaco.types.vocabulary import Action


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number that is not known exactly. ``low`` and ``high`` are the ends of a 90 % interval."""

    low: float
    mean: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One action as it was weighed. Money, in the service's currency.

    ``gain`` is what it is expected to save: loss a second x recovery x chance of success x the time
    it serves. ``net`` is gain less compute, review and risk; its ``low`` takes the lower end of the
    deficit, and that is what decides."""

    action: Action
    allowed: bool
    why: str  # it is allowed, or is not
    recipes: tuple[str, ...] = ()
    lead_s: float = 0.0  # until it serves
    serves_s: float = 0.0  # for how long then
    recovery: float = 0.0  # share of the deficit that it mends if it succeeds
    success: Estimate | None = None
    compute: Estimate | None = None
    review: float = 0.0
    risk: float = 0.0
    gain: Estimate | None = None
    net: Estimate | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reckoning:
    """What a plan was decided on. ``rule``: the rule that decided. ``checks``: what else was looked
    at, in the order in which it was, each as name and what was found."""

    rule: str
    currency: str = "EUR"
    rate: Estimate | None = None  # requests a second
    value: float = 0.0  # of one good image
    deficit: Estimate | None = None  # share of an image's worth lost in a request
    age_s: float = 0.0  # since the change began
    lasts_s: float = 0.0  # how much longer it is expected to last
    loss_per_day: Estimate | None = None
    regret: float = 0.0  # lost since the change began, lower bound
    regret_needed: float = 0.0
    options: tuple[Option, ...] = ()
    checks: tuple[tuple[str, str], ...] = ()
    budget: Mapping[str, float] = field(default_factory=dict)

    def option(self, action: Action) -> Option | None:
        return next((o for o in self.options if o.action is action), None)
