"""What hindsight would have paid in a simulated year: a lower bound of every policy. Pure.

A dynamic programme over the successful updates of the year. What the model misses depends only on
the recipe and the start of the last one that succeeded, so with ``V_j(s)`` the least cost from
completion of an update begun at s, with the luck of attempt j next::

    V_j(s) = min( bill of s to the end,
                  min over u of  bill of s up to completion of u + cost of the attempts + V_j'(u) )

Every policy has the same luck with its k-th attempt, so the failures before the next success have
to be gone through: at the least price that anybody could pay for them, within the time that they
take. (Attempts differ in nothing else, so it never helps to waste one that would succeed.) The
constraints are those of the policies: one update at a time, its duration, the cooldown,
labelled data that comes late, and the budget for a single update and for two in a row within a
period. Budgets that bind only over three or more updates in one period are not held against it, nor
are reservations: it spends exactly what is used. Both can only make it cheaper, so what is compared
with it is never flattered.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from intonaco.decision.worlds import ATTEMPTS, STEP, YEAR, Recipe, Vector, Year

PERIOD = int(30 * 86_400 / STEP)
Steps = NDArray[np.intp]


def least_cost(year: Year) -> float:
    """Money of the year and its tail at best."""
    return _Programme(year).solve()


class _Programme:
    def __init__(self, year: Year) -> None:
        self.year = year
        self.starts: Steps = np.arange(YEAR)
        self.idle: Vector = np.concatenate(([0.0], np.cumsum(year.levels.sum(axis=0))))
        self.idle = self.idle * year.worth  # [steps + 1]: the bill up to a step without any update
        self._bills = [self._bill(recipe) for recipe in year.recipes]
        self._between: dict[tuple[int, int], Vector] = {}
        self._known: dict[tuple[int, int], Vector] = {}
        # More attempts than would cost all that there is to save are never begun.
        cheapest = min(year.price(r) for r in year.recipes) * min(year.guess, 1.0)
        self._most = min(ATTEMPTS, int(self.idle[-1] / cheapest) + 1)

    def _bill(self, recipe: Recipe) -> Vector:
        """[starts, steps + 1]: the bill up to a step under the model of an update begun at a
        start."""
        year = self.year
        missing = np.repeat(year.levels.sum(axis=0)[np.newaxis, :], YEAR, axis=0)
        if year.levels.size:
            learnt = np.stack([year.learnt(int(u)) for u in self.starts], axis=1)
            for level, known in zip(year.levels, learnt, strict=True):
                mended = np.minimum(level[np.newaxis, :], known[:, np.newaxis])
                missing -= recipe.recovery * mended
        bill = np.zeros((YEAR, year.steps + 1))
        np.cumsum(missing * year.worth, axis=1, out=bill[:, 1:])
        return bill

    def solve(self) -> float:
        best = float(self.idle[-1])
        following = self._next_success(0)
        if following is None:
            return best
        for index, recipe in enumerate(self.year.recipes):
            if self.year.price(recipe) > self.year.budget:
                continue
            done = self._ends(recipe)
            cost = self.idle[done] + self._value(following, index)
            cost += self._price(recipe) + self._burnt(0, following)
            cost[self.starts < self._burning(0, following)] = np.inf
            best = min(best, float(cost.min()))
        return best

    def _value(self, last: int, index: int) -> Vector:
        """[starts]: least cost from the completion of attempt ``last``, which succeeded with the
        recipe of that index, to the end; for every step at which it may have begun."""
        if (last, index) in self._known:
            return self._known[last, index]
        year, recipe, bill = self.year, self.year.recipes[index], self._bills[index]
        done = self._ends(recipe)
        paid = bill[self.starts, done]
        best: Vector = bill[:, -1] - paid
        following = self._next_success(last + 1)
        if following is not None:
            free = done + year.cooldown_steps + self._burning(last + 1, following)
            for other, later in enumerate(year.recipes):
                if year.price(later) > year.budget:
                    continue
                price = self._price(later) + self._burnt(last + 1, following)
                least = free
                if year.price(recipe) + year.price(later) > year.budget:
                    least = np.maximum(free, done + PERIOD)  # settled at its end
                cost = self._upto(index, year.duration(later))
                cost = cost + (self._value(following, other) + price)[np.newaxis, :]
                cost[self.starts[np.newaxis, :] < least[:, np.newaxis]] = np.inf
                best = np.minimum(best, cost.min(axis=1) - paid)
        self._known[last, index] = best
        return best

    def _upto(self, index: int, duration: int) -> Vector:
        """[starts, next starts]: the bill up to the completion of the next."""
        if (index, duration) not in self._between:
            ends = np.minimum(self.starts + duration, self.year.steps)
            self._between[index, duration] = self._bills[index][:, ends]
        return self._between[index, duration]

    def _next_success(self, attempt: int) -> int | None:
        lucky = np.flatnonzero(self.year.lucky[attempt : self._most])
        return attempt + int(lucky[0]) if lucky.size else None

    def _burning(self, attempt: int, following: int) -> int:
        """Steps that the failures in between take at least: a job may have been stopped where it
        was estimated to end."""
        year = self.year
        hours = min(r.hours for r in year.recipes) * min(year.guess, 1.0)
        return (following - attempt) * (year.trains(hours) + year.cooldown_steps)

    def _burnt(self, attempt: int, following: int) -> float:
        """Least price of the failures in between."""
        year = self.year
        machine = min(year.price(r) for r in year.recipes) * min(year.guess, 1.0)
        return (following - attempt) * (machine + year.review + year.failure_cost)

    def _price(self, recipe: Recipe) -> float:
        return self.year.price(recipe) + self.year.review

    def _ends(self, recipe: Recipe) -> Steps:
        return np.minimum(self.starts + self.year.duration(recipe), self.year.steps)
