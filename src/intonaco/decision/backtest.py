"""A policy over simulated years: what it cost, against what hindsight and simple rules cost. Pure.

The policy under test is ``decide`` itself, with the shipped budget, guards and economics
(``policies``); the rest is only the world around it (``worlds``, ``simulated``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from intonaco.decision.oracle import least_cost
from intonaco.decision.policies import FIXED, learnt, ours
from intonaco.decision.simulated import Outcome, simulate
from intonaco.decision.worlds import draw


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Over all years: mean total cost of each policy, of hindsight, and how often ours went over
    its budget."""

    years: int
    quiet_years: int
    costs: Mapping[str, float]
    oracle: float
    overspent: int
    outcomes: Mapping[str, Sequence[Outcome]] = field(repr=False, default_factory=dict)
    best: Sequence[float] = field(repr=False, default=())

    @property
    def over_oracle(self) -> float:
        return self.costs["ours"] / self.oracle


def run(years: int, seed: int) -> Result:
    """Ours, the fixed rules and hindsight over as many years."""
    policies = {"ours": ours, "ours, patience learnt": learnt, **FIXED}
    outcomes: dict[str, list[Outcome]] = {name: [] for name in policies}
    best: list[float] = []
    quiet = 0
    for child in np.random.SeedSequence(seed).spawn(years):
        year = draw(np.random.default_rng(child))
        quiet += int(not year.levels.any())
        best.append(least_cost(year))
        for name, policy in policies.items():
            outcomes[name].append(simulate(year, policy))
    return Result(
        years=years,
        quiet_years=quiet,
        costs={name: float(np.mean([o.total for o in found])) for name, found in outcomes.items()},
        oracle=float(np.mean(best)),
        overspent=sum(o.most_spent > o.budget + 1e-6 for o in outcomes["ours"]),
        outcomes=outcomes,
        best=best,
    )
