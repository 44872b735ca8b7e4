"""Intervals and plans for shares of preferences. NumPy only.

A vote scores 1 for the candidate, 0 against it, one half for a tie. The unit is the **prompt**:
votes of several reviewers on one prompt are alike, so their mean is one observation in [0, 1].

- ``preference`` judges that mean over prompts with bets (``intonaco.stats.betting``), valid however
  often one looks. Only this may be shown while votes come in and end a review.
- ``wilson`` is the usual interval of a share of independent votes, ties left out: a description.
- ``two_way`` is an interval for other prompts *and* other reviewers, for one look at the end.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from intonaco.evaluation.intervals import student_quantile
from intonaco.stats.betting import FRACTIONS, log_growth, mix

Array = NDArray[np.float64]
Interval = tuple[float, float]
GRID: Array = np.round(np.arange(0.0, 1.0001, 0.005), 3)  # shares that are tested


def wilson(successes: int, n: int, *, alpha: float = 0.05) -> Interval | None:
    """Interval of level ``1 - 2 alpha`` for a share of ``n`` independent votes (E. B. Wilson, JASA
    22 (1927) 209). None without votes. Ties belong to neither number: leave them out of both."""
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} votes")
    if n == 0:
        return None
    z = NormalDist().inv_cdf(1 - alpha)
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return (max(0.0, middle - half), min(1.0, middle + half))


def votes_to_see(share: float, *, alpha: float = 0.05, power: float = 0.8) -> int:
    """Independent votes without ties that show a preference of ``share`` to be above one half, one
    look, one-sided ``alpha``: ``(z_alpha + z_power)^2 / 4 (share - 1/2)^2``, to the nearest vote.

    >>> votes_to_see(0.55), votes_to_see(0.6)
    (618, 155)
    """
    if not 0 < share < 1 or share == 0.5:
        raise ValueError(f"no number of votes tells a share of {share} from one half")
    z = NormalDist().inv_cdf(1 - alpha) + NormalDist().inv_cdf(power)
    return round(z * z / 4 / (share - 0.5) ** 2)


def two_way(
    scores: ArrayLike,
    prompts: Sequence[Hashable],
    reviewers: Sequence[Hashable],
    *,
    alpha: float,
    draws: int,
    rng: np.random.Generator,
) -> Interval | None:
    """Interval of level ``1 - 2 alpha`` for the mean of ``scores`` [votes], for other prompts and
    other reviewers. The variance is that of a bootstrap over prompts plus that of one over
    reviewers less that over single votes, which is in both (Cameron, Gelbach and Miller, Journal of
    Business & Economic Statistics 29 (2011) 238), each corrected for its number of groups, and at
    least the last; it goes with Student's t of one less than the smaller number of prompts or
    reviewers. (A bootstrap that draws both at once counts the noise of single votes three times:
    A. B. Owen, Annals of Applied Statistics 1 (2007) 386.)

    None with fewer than two prompts or two reviewers: one person says nothing about others; nor do
    votes that are all the same, whose variance is not 0 because it was not seen. Ends are cut at 0
    and 1.
    """
    values = np.asarray(scores, dtype=np.float64)
    p, n_prompts = _codes(prompts)
    r, n_reviewers = _codes(reviewers)
    if n_prompts < 2 or n_reviewers < 2 or np.ptp(values) == 0:
        return None
    of_prompts = _bootstrap_variance(values, p, n_prompts, draws, rng)
    of_reviewers = _bootstrap_variance(values, r, n_reviewers, draws, rng)
    of_votes = float(values.var(ddof=1)) / len(values)
    variance = max(of_prompts + of_reviewers - of_votes, of_votes)
    half = student_quantile(1 - alpha, min(n_prompts, n_reviewers) - 1) * math.sqrt(variance)
    mean = float(values.mean())
    return (max(0.0, mean - half), min(1.0, mean + half))


def _bootstrap_variance(
    values: Array, group: NDArray[np.intp], groups: int, draws: int, rng: np.random.Generator
) -> float:
    """Of the mean of values, whole groups drawn with replacement."""
    weights = rng.multinomial(groups, np.full(groups, 1 / groups), size=draws)  # [draws, groups]
    sums = weights @ np.bincount(group, weights=values, minlength=groups)
    counts = weights @ np.bincount(group, minlength=groups)
    return float((sums / counts).var(ddof=1)) * groups / (groups - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """What is known of a mean in [0, 1] after some prompts, valid at every look. ``above``,
    ``below``: log evidence (the highest so far) that it is above, or below, the threshold; either
    is shown once it reaches ``log(1 / alpha)``. ``needed``: prompts until it should be shown if
    those to come are like those seen, 0 once it is, None if they would not show it."""

    prompts: int
    mean: float | None
    interval: Interval
    above: float
    below: float
    threshold: float
    alpha: float
    needed: int | None

    @property
    def shown_above(self) -> bool:
        return self.above >= math.log(1 / self.alpha)

    @property
    def shown_below(self) -> bool:
        return self.below >= math.log(1 / self.alpha)


def preference(
    means: ArrayLike, threshold: float, *, alpha: float, from_prompt: int = 1
) -> Preference:
    """Judge per-prompt means [prompts], in the order in which prompts were complete, against a
    ``threshold`` in (0, 1) and, for the interval (level ``1 - 2 alpha``, a confidence sequence),
    against every share of ``GRID``. A chance of ``alpha`` of showing what is not so on either side,
    over all looks together. Evidence counts from the ``from_prompt``-th prompt on only, which can
    but lower that chance. Raises ValueError for values outside [0, 1] or another threshold."""
    x = np.asarray(means, dtype=np.float64)
    if x.ndim != 1 or ((x < 0) | (x > 1)).any() or not 0 < threshold < 1:
        raise ValueError("means and the threshold are shares")
    grid = np.unique(np.append(GRID, threshold))
    n = len(x)
    if n == 0:
        return Preference(
            prompts=0, mean=None, interval=(0.0, 1.0), above=0.0, below=0.0,
            threshold=threshold, alpha=alpha, needed=None,
        )  # fmt: skip
    fractions = np.asarray(FRACTIONS)
    up, down = log_growth(x, np.ones(n), np.zeros(n), np.ones(n), grid, fractions)
    at = int(np.searchsorted(grid, threshold))
    above, below = np.cumsum(up[:, at], axis=0), np.cumsum(down[:, at], axis=0)  # [n, fractions]
    counted = slice(min(from_prompt, n) - 1, None) if n >= from_prompt else slice(0, 0)
    best_above = float(mix(above)[counted].max(initial=0.0))
    best_below = float(mix(below)[counted].max(initial=0.0))
    limit = math.log(1 / alpha)
    if max(best_above, best_below) >= limit:
        needed: int | None = 0
    else:
        wanted = [_needed(up[:, at], limit), _needed(down[:, at], limit)]
        known = [w for w in wanted if w is not None]
        needed = max(min(known), from_prompt - n) if known else None
    return Preference(
        prompts=n,
        mean=float(x.mean()),
        interval=_interval(up.sum(axis=0), down.sum(axis=0), grid, limit),
        above=best_above,
        below=best_below,
        threshold=threshold,
        alpha=alpha,
        needed=needed,
    )


def _interval(up: Array, down: Array, grid: Array, limit: float) -> Interval:
    """Shares that are not rejected, from the outside inwards (as ``BettingMean.interval``)."""
    rejected_low, rejected_high = mix(up) >= limit, mix(down) >= limit
    last = len(grid) - 1
    low = 0 if not rejected_low[0] else _run(rejected_low) - 1
    high = last if not rejected_high[last] else last - (_run(rejected_high[::-1]) - 1)
    return (float(grid[min(low, high)]), float(grid[max(low, high)]))


def _run(flags: NDArray[np.bool_]) -> int:
    return int(flags.size if flags.all() else np.argmin(flags))


def _needed(growth: Array, limit: float) -> int | None:
    """More prompts until a mixture of the bets [prompts, fractions] reaches ``limit``, at the mean
    growth so far, drawn towards none by two prompts that say nothing."""
    rate = growth.sum(axis=0) / (len(growth) + 2)
    missing = limit + math.log(growth.shape[1]) - growth.sum(axis=0)
    waits = [m / r for m, r in zip(missing, rate, strict=True) if r > 1e-6]
    return max(1, math.ceil(min(waits))) if waits else None


def _codes(names: Sequence[Hashable]) -> tuple[NDArray[np.intp], int]:
    index = {name: k for k, name in enumerate(dict.fromkeys(names))}
    return np.array([index[n] for n in names], dtype=np.intp), len(index)
