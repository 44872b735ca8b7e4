"""The policy over simulated years, and that hindsight is a lower bound of every policy."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from intonaco.decision import backtest, policies, worlds
from intonaco.decision.oracle import least_cost
from intonaco.decision.simulated import Policy, Service, View, simulate
from intonaco.decision.worlds import YEAR, Year
from intonaco.types import Action


def year(seed: int, **changes: object) -> Year:
    drawn = worlds.draw(np.random.default_rng(seed))
    return replace(drawn, **changes)  # type: ignore[arg-type]


def one_topic(begin: int = 100, deficit: float = 0.2) -> Year:
    """A service that is worth an update, with one change that stays, and no bad luck."""
    base = year(3)
    levels = np.zeros((1, YEAR + base.horizon_steps))
    levels[0, begin:] = deficit
    return replace(
        base,
        rate=2.0,
        value=0.002,
        budget=10 * base.price(base.recipes[0]),
        levels=levels,
        slow=np.ones(1),
        seeds=np.zeros(1),
        lucky=np.ones_like(base.lucky),
        guess=1.0,
        label_lag=2,
        false_at=(),
    )


def at_steps(*starts: int) -> Policy:
    """A policy that was told when."""

    def policy(service: Service, view: View) -> Action | None:
        return Action.FINE_TUNE if view.at in starts else None

    return policy


def test_a_quiet_year_costs_nothing() -> None:
    quiet = year(3, levels=np.zeros((0, YEAR + 60)), slow=np.zeros(0), seeds=np.zeros(0))
    quiet = replace(quiet, horizon_steps=60)
    assert least_cost(quiet) == 0.0
    assert simulate(quiet, policies.ours).total == 0.0


def test_hindsight_is_what_trying_every_start_finds() -> None:
    """One change: no start, alone, is cheaper, and one is as cheap."""
    world = one_topic()
    costs = [simulate(world, at_steps(start)).total for start in range(100, 105)]
    bound = least_cost(world)
    assert min(costs) == pytest.approx(bound)
    assert simulate(world, policies.never).total > bound


def test_hindsight_is_what_trying_every_pair_finds() -> None:
    """Two changes, the second while the first update may run: every pair of starts on a grid."""
    world = one_topic(100, 0.1)
    second = np.zeros_like(world.levels)
    second[0, 112:] = 0.15
    world = replace(
        world,
        levels=np.concatenate([world.levels, second]),
        slow=np.ones(2),
        seeds=np.zeros(2),
        rollout_steps=3,
        cooldown_steps=2,
    )
    grid = (101, 102, 103, 108, 113, 114, 115)
    best = min(
        min(simulate(world, at_steps(*pair)).total for pair in combinations(grid, 2)),
        min(simulate(world, at_steps(start)).total for start in grid),
    )
    assert least_cost(world) <= best + 1e-9
    assert least_cost(world) == pytest.approx(best)


def test_our_policy_acts_once_on_a_lasting_change() -> None:
    outcome = simulate(one_topic(), policies.ours)
    assert outcome.updates == 1
    assert outcome.total < 1.3 * least_cost(one_topic())


def test_it_leaves_a_change_alone_that_is_not_worth_its_price() -> None:
    world = replace(one_topic(), value=1e-7)
    assert simulate(world, policies.ours).updates == 0


@pytest.mark.parametrize("seed", range(4))
def test_no_policy_is_cheaper_than_hindsight_and_none_overspends(seed: int) -> None:
    world = year(seed)
    bound = least_cost(world)
    for policy in (policies.ours, *policies.FIXED.values()):
        outcome = simulate(world, policy)
        assert outcome.total >= bound - 1e-6
        assert outcome.most_spent <= world.budget + 1e-6


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_acceptance_over_two_hundred_years() -> None:
    """Mean total cost at most 1.3 times hindsight's, below every fixed policy's, no year over its
    budget, some years without drift. The seed is none that anything was chosen with."""
    result = backtest.run(200, 2026)
    assert result.quiet_years >= 10
    assert result.overspent == 0
    assert result.over_oracle <= 1.3
    for name in policies.FIXED:
        assert result.costs["ours"] < result.costs[name]
