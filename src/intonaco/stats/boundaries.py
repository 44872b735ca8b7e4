"""Mixture boundaries in closed form: curves that a sum of bets crosses with probability alpha.

A process ``S_t`` with intrinsic time ``V_t`` is sub-psi if ``exp(c S_t - psi(c) V_t)`` is a
supermartingale that starts at 1 or below, for every ``c`` in the range of ``psi``. Its mixture over
``c`` is one too, so by Ville's inequality ``P(some t: S_t >= bound(V_t)) <= alpha``, where the
mixture at ``(bound(V_t), V_t)`` is ``1/alpha``. Howard, Ramdas, McAuliffe and Sekhon,
"Time-uniform, nonparametric, nonasymptotic confidence sequences", Annals of Statistics 2021 (arXiv
1810.08240), section 3.2: Propositions 5 (normal), 7 and 8 (beta-binomial), 9
(gamma-exponential).

``v_opt``: the intrinsic time at which the curve is to be tight, for error ``alpha_opt``. A choice
of it must be made beforehand; every choice is valid.

Checked against the reference values of the authors' library confseq
(tests/unit/test_stats_boundaries.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from intonaco.stats.special import log_gamma_p, log_incomplete_beta

_STEPS = 200


def normal_rho(v_opt: float, alpha_opt: float = 0.05) -> float:
    """The two-sided normal mixture's precision that is tight near ``v_opt``."""
    odds = 2 * math.log(1 / alpha_opt)
    return v_opt / (odds + math.log(1 + odds))


def normal_bound(v: float, alpha: float, *, v_opt: float, alpha_opt: float = 0.05) -> float:
    """Two-sided, for sub-Gaussian sums: ``P(some t: abs(S_t) >= bound) <= alpha``. Proposition
    5."""
    rho = normal_rho(v_opt, alpha_opt)
    return math.sqrt((v + rho) * (math.log(1 + v / rho) + 2 * math.log(1 / alpha)))


def gamma_exponential_log_mixture(
    s: float, v: float, *, v_opt: float, c: float, alpha_opt: float = 0.05
) -> float:
    """Log mixture for sub-exponential sums of scale ``c`` (Proposition 9): a log e-value."""
    rho = normal_rho(v_opt, 2 * alpha_opt)
    shape, start = (v + rho) / c**2, rho / c**2
    at = (c * s + v) / c**2
    if at + start <= 0:  # beyond the mixture's reach: the sum is far below 0
        return -math.inf
    return (
        start * math.log(start)
        - math.lgamma(start)
        - log_gamma_p(start, start)
        + math.lgamma(shape)
        + log_gamma_p(shape, at + start)
        - shape * math.log(at + start)
        + at
    )


def gamma_exponential_bound(
    v: float, alpha: float, *, v_opt: float, c: float, alpha_opt: float = 0.05
) -> float:
    """One-sided, for sub-exponential sums of scale ``c``."""
    return _solve(
        lambda s: gamma_exponential_log_mixture(s, v, v_opt=v_opt, c=c, alpha_opt=alpha_opt),
        math.log(1 / alpha),
        max(v, 1.0),
        math.inf,
    )


def beta_binomial_log_mixture(
    s: float,
    v: float,
    *,
    v_opt: float,
    g: float,
    h: float,
    alpha_opt: float = 0.05,
    one_sided: bool = False,
) -> float:
    """Log mixture for sub-Bernoulli sums (Propositions 7, 8): of increments in [-g, h] with mean 0,
    ``v`` being ``g h`` times their number."""
    rho = normal_rho(v_opt, 2 * alpha_opt if one_sided else alpha_opt)
    r = max(rho - g * h, 1e-3 * g * h)
    x = h / (g + h) if one_sided else 1.0
    a, b = (r + v - g * s) / (g * (g + h)), (r + v + h * s) / (h * (g + h))
    if a <= 0 or b <= 0:
        return math.inf if a <= 0 else -math.inf
    return (
        v / (g * h) * math.log(g + h)
        - (v + h * s) / (h * (g + h)) * math.log(g)
        - (v - g * s) / (g * (g + h)) * math.log(h)
        + log_incomplete_beta(a, b, x)
        - log_incomplete_beta(r / (g * (g + h)), r / (h * (g + h)), x)
    )


def beta_binomial_bound(
    v: float,
    alpha: float,
    *,
    v_opt: float,
    g: float,
    h: float,
    alpha_opt: float = 0.05,
    one_sided: bool = False,
) -> float:
    """The sum at which the mixture is ``1/alpha``; ``inf`` where even the largest possible sum,
    ``v / g``, does not reach it."""
    return _solve(
        lambda s: beta_binomial_log_mixture(
            s, v, v_opt=v_opt, g=g, h=h, alpha_opt=alpha_opt, one_sided=one_sided
        ),
        math.log(1 / alpha),
        v,
        v / g,
    )


def proportion_interval(
    successes: float, trials: int, alpha: float, *, t_opt: float = 100.0, alpha_opt: float = 0.05
) -> tuple[float, float]:
    """Confidence sequence of level ``1 - alpha`` for a constant chance of 0-1 outcomes, the chance
    of each given its past: those at which the beta-binomial mixture is below ``1/alpha``."""
    if trials <= 0:
        return (0.0, 1.0)
    threshold, share = math.log(1 / alpha), successes / trials

    def evidence(p: float) -> float:
        return beta_binomial_log_mixture(
            (share - p) * trials,
            p * (1 - p) * trials,
            v_opt=p * (1 - p) * t_opt,
            g=p,
            h=1 - p,
            alpha_opt=alpha_opt,
        )

    low = 0.0 if share <= 0 else _root(evidence, threshold, share, 0.0)
    high = 1.0 if share >= 1 else _root(evidence, threshold, share, 1.0)
    return (low, high)


def empirical_band(t: int, alpha: float, *, since: int = 1) -> float:
    """How far an empirical distribution function of ``t`` values strays from the true one, at any
    point and at any ``t >= since``, with probability at least ``1 - alpha``; ``inf`` before.

    For values that are independent with one distribution. Howard and Ramdas, "Sequential estimation
    of quantiles with applications to A/B testing and best-arm identification", Bernoulli 2022
    (arXiv 1906.09712), the closed form (A = 0.85) of their bound for the empirical process.
    """
    if t < since:
        return math.inf
    grown = math.log(math.log(math.e * t / since)) + 0.8 * math.log(1612 / alpha)
    return 0.85 * math.sqrt(grown / t)


def _solve(
    function: Callable[[float], float], threshold: float, start: float, most: float
) -> float:
    """Where an increasing function of s >= 0 reaches the threshold; ``inf`` if nowhere up to
    ``most``."""
    high = min(start, most)
    while high < most and function(high) < threshold:
        high = min(2 * high, most)
    if function(high) < threshold:
        return math.inf
    return _root(function, threshold, 0.0, high)


def _root(
    function: Callable[[float], float], threshold: float, inside: float, outside: float
) -> float:
    """Between a point where the function is below the threshold and one where it is not (or the
    edge of what is defined). The end that is outside is returned: an interval is never too
    short."""
    for _ in range(_STEPS):
        middle = (inside + outside) / 2
        if middle in (inside, outside):
            break
        if function(middle) < threshold:
            inside = middle
        else:
            outside = middle
    return outside
