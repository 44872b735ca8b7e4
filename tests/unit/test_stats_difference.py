"""The bets on a difference: what was proved, checked exactly and by seeded simulation."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from intonaco.errors import StorageError
from intonaco.stats import BettingMean, PairedDifference, RandomizedDifference, difference_grid
from intonaco.stats.betting import FRACTIONS, Array, log_growth, mix
from intonaco.stats.difference import randomised_bet

unit_interval = st.floats(0.0, 1.0)
weights = st.floats(0.001, 0.999)


@given(w=weights, c=unit_interval, p1=unit_interval, p0=unit_interval)
def test_expected_bet_is_exactly_the_scaled_difference(
    w: float, c: float, p1: float, p0: float
) -> None:
    mean = 0.0
    for challenger, share, p in ((True, w, p1), (False, 1 - w, p0)):
        for outcome, chance in ((1.0, p), (0.0, 1 - p)):
            h, scale, low, high = randomised_bet(outcome, challenger, w, c)
            assert low - 1e-12 <= h <= high + 1e-12
            assert scale == pytest.approx(w * (1 - w))
            mean += share * chance * h
    assert mean == pytest.approx(w * (1 - w) * (p1 - p0), abs=1e-12)


@given(w=weights, c=unit_interval, p1=unit_interval, p0=unit_interval, d=st.floats(-0.99, 0.99))
@settings(max_examples=300)
def test_each_factor_is_fair_or_worse_under_its_hypothesis(
    w: float, c: float, p1: float, p0: float, d: float
) -> None:
    """Exact enumeration: E[factor] <= 1 above d if the difference is at most d, and mirrored."""
    expected = np.zeros((2, len(FRACTIONS)))
    for challenger, share, p in ((True, w, p1), (False, 1 - w, p0)):
        for outcome, chance in ((1.0, p), (0.0, 1 - p)):
            bet = randomised_bet(outcome, challenger, w, c)
            above, below = log_growth(*bet, np.array([d]), np.array(FRACTIONS))
            expected += share * chance * np.exp(np.stack([above[0], below[0]]))
    if p1 - p0 <= d:
        assert (expected[0] <= 1 + 1e-9).all()
    if p1 - p0 >= d:
        assert (expected[1] <= 1 + 1e-9).all()


def test_evidence_is_the_mixture_of_products() -> None:
    """Recomputed by hand for pairs: scale 1, bounds -1 and 1."""
    differences = [0.2, -0.1, 0.4, 0.0, -0.3]
    paired = PairedDifference((0.1,))
    for x in differences:
        paired.pair(x)
    d = 0.1
    above = np.mean([math.prod(1 + f / (d + 1) * (x - d) for x in differences) for f in FRACTIONS])
    below = np.mean([math.prod(1 + f / (1 - d) * (d - x) for x in differences) for f in FRACTIONS])
    assert paired.log_evidence_above(d) == pytest.approx(math.log(above))
    assert paired.log_evidence_below(d) == pytest.approx(math.log(below))
    assert paired.estimate == pytest.approx(np.mean(differences))


def test_all_or_no_traffic_says_nothing() -> None:
    difference = RandomizedDifference((0.05,))
    assert not difference.assign(1.0, challenger=True, weight=1.0)
    assert not difference.assign(1.0, challenger=False, weight=0.0)
    assert difference.observations == 0
    assert difference.estimate is None
    assert difference.interval(0.05) == (-1.0, 1.0)
    assert difference.log_evidence_above(0.0) == difference.log_evidence_below(0.05) == 0.0


def test_refuses_what_breaks_its_bounds() -> None:
    difference = RandomizedDifference()
    with pytest.raises(ValueError, match="outside"):
        difference.assign(1.5, challenger=True, weight=0.5)
    with pytest.raises(ValueError, match="outside"):
        difference.assign(float("nan"), challenger=True, weight=0.5)
    with pytest.raises(ValueError, match="outside"):
        difference.pair(1.2)
    with pytest.raises(ValueError, match="not on the grid"):
        difference.log_evidence_above(0.01234)
    with pytest.raises(ValueError, match="fractions"):
        BettingMean((0.0,), fractions=(1.0,))


def test_state_restores_bit_for_bit() -> None:
    rng = np.random.default_rng(1)
    one = RandomizedDifference((0.013,), centre=0.1)
    two = RandomizedDifference((0.013,), centre=0.1)
    for i in range(200):
        outcome, challenger = float(rng.random()), bool(rng.random() < 0.3)
        one.assign(outcome, challenger=challenger, weight=0.3, topic=f"t{i % 7}")
        two.assign(outcome, challenger=challenger, weight=0.3, topic=f"t{i % 7}")
        if i % 50 == 0:
            stored = json.loads(json.dumps(two.state()))
            two = RandomizedDifference((0.013,), centre=0.1)
            two.restore(stored)
    assert one.state() == two.state()
    with pytest.raises(StorageError):
        RandomizedDifference((0.02,), centre=0.1).restore(one.state())
    with pytest.raises(StorageError):
        RandomizedDifference((0.013,), centre=0.2).restore(one.state())


# ------------------------------------------------------------------------------------ simulations


class Runs:
    """Many runs at once, with the arithmetic of ``RandomizedDifference`` (compared below)."""

    def __init__(self, runs: int, grid: Array, *, centre: float, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.grid, self.fractions = grid, np.asarray(FRACTIONS)
        self.wealth = np.zeros((2, runs, grid.size, self.fractions.size))
        self.peak = np.zeros((2, runs, grid.size))
        self.sum, self.n = np.full(runs, centre * 2.0), 2.0
        self.runs = runs

    def unit(self, w: float, challenger: Array, champion: Array) -> tuple[NDArray[np.bool_], Array]:
        """One unit in each run, given both potential outcomes. Returns (assignment, outcome)."""
        z = self.rng.random(self.runs) < w
        y = np.where(z, challenger, champion)
        c = self.sum / self.n
        h = np.where(z, (1 - w) * (y - c), -w * (y - c))
        low = -np.maximum((1 - w) * c, w * (1 - c))
        high = np.maximum((1 - w) * (1 - c), w * c)
        scale = np.full(self.runs, w * (1 - w))
        above, below = log_growth(h, scale, low, high, self.grid, self.fractions)
        self.wealth[0] += above
        self.wealth[1] += below
        np.maximum(self.peak, mix(self.wealth), out=self.peak)
        self.sum += y
        self.n += 1
        return z, y

    def rejected(self, side: int, d: float, alpha: float) -> float:
        column = int(np.searchsorted(self.grid, d))
        return float(np.mean(self.peak[side, :, column] >= math.log(1 / alpha)))


def test_simulated_runs_are_the_class() -> None:
    runs = Runs(3, np.array([0.0, 0.05]), centre=0.02, seed=5)
    singles = [RandomizedDifference((0.05,), centre=0.02) for _ in range(3)]
    for i in range(120):
        w = 0.1 if i < 60 else 0.4
        z, y = runs.unit(w, runs.rng.random(3), runs.rng.random(3))
        for single, challenger, outcome in zip(singles, z, y, strict=True):
            single.assign(float(outcome), challenger=bool(challenger), weight=w)
    for i, single in enumerate(singles):
        assert single.peak_above(0.0) == pytest.approx(runs.peak[0, i, 0])
        assert single.peak_below(0.05) == pytest.approx(runs.peak[1, i, 1])


def _weights(n: int) -> list[float]:
    return [0.05 if i < n // 4 else 0.25 if i < n // 2 else 0.5 for i in range(n)]


def _null(runs: int, units: int, alpha: float, seed: int, kind: str) -> float:
    """Share of runs in which harm was ever claimed of an equal challenger."""
    at = Runs(runs, np.array([0.0]), centre=0.02, seed=seed)
    for i, w in enumerate(_weights(units)):
        if kind == "incident":  # the base rate leaps for a while
            base = 0.4 if units // 3 < i < units // 3 + 60 else 0.01
        else:  # a slow wave
            base = 0.1 + 0.09 * math.sin(i / 40)
        both = (at.rng.random(runs) < base).astype(float)
        other = (at.rng.random(runs) < base).astype(float)
        at.unit(w, both, other)
    return at.rejected(0, 0.0, alpha)


@pytest.mark.parametrize("kind", ["incident", "wave"])
def test_harm_is_seldom_claimed_of_an_equal_challenger(kind: str) -> None:
    """Budget: 600 runs of 500 units, a look after each, alpha 0.05; the limit is alpha and
    three standard errors."""
    assert _null(600, 500, 0.05, seed=11, kind=kind) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["incident", "wave"])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_harm_is_seldom_claimed_full(kind: str, alpha: float) -> None:
    """Budget: 4000 runs of 2000 units."""
    rate = _null(4000, 2000, alpha, seed=12, kind=kind)
    assert rate <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / 4000)


def test_non_inferiority_is_seldom_claimed_of_a_challenger_at_the_margin() -> None:
    """Budget: 600 runs of 500 units; challenger 6 %, champion 1 %, margin 5 %, alpha 0.05."""
    at = Runs(600, np.array([0.05]), centre=0.01, seed=13)
    for w in _weights(500):
        at.unit(
            w,
            (at.rng.random(600) < 0.06).astype(float),
            (at.rng.random(600) < 0.01).astype(float),
        )
    assert at.rejected(1, 0.05, 0.05) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)


def test_confidence_sequence_covers_at_all_looks_together() -> None:
    """Budget: 300 runs of 400 units, continuous losses, true difference 0.03, level 0.9. A run
    counts as a miss if the interval ever left the truth out."""
    truth, level, runs = 0.03, 0.9, 300
    at = Runs(runs, np.asarray(difference_grid((truth,))), centre=0.5, seed=14)
    for w in _weights(400):
        noise = at.rng.normal(0, 0.1, (2, runs))
        at.unit(w, np.clip(0.33 + noise[0], 0, 1), np.clip(0.30 + noise[1], 0, 1))
    column = int(np.searchsorted(at.grid, truth))
    limit = math.log(2 / (1 - level))
    missed = (at.peak[0, :, column] >= limit) | (at.peak[1, :, column] >= limit)
    assert missed.mean() <= (1 - level) + 3 * math.sqrt(level * (1 - level) / runs)


def test_interval_narrows_around_the_truth() -> None:
    rng = np.random.default_rng(15)
    difference = RandomizedDifference(centre=0.3)
    for _ in range(3000):
        challenger = bool(rng.random() < 0.5)
        loss = float(np.clip(rng.normal(0.35 if challenger else 0.3, 0.1), 0, 1))
        difference.assign(loss, challenger=challenger, weight=0.5)
    low, high = difference.interval(0.05)
    assert low < 0.05 < high
    assert high - low <= 0.05
    assert difference.estimate == pytest.approx(0.05, abs=0.02)


@pytest.mark.parametrize(
    ("challenger", "champion", "median_units"),
    [(0.05, 0.005, 800), (0.2, 0.005, 220), (1, 0.01, 60)],
)
def test_power_against_failing_challengers(
    challenger: float, champion: float, median_units: int
) -> None:
    """Budget: 200 runs; 5 % for 100 units, 25 % for 200, then 50 %; alpha 0.05 / 4. Half of the
    runs claim harm within ``median_units`` of all units."""
    runs = 200
    at = Runs(runs, np.array([0.0]), centre=0.01, seed=16)
    for i in range(median_units):
        at.unit(
            0.05 if i < 100 else 0.25 if i < 300 else 0.5,
            (at.rng.random(runs) < challenger).astype(float),
            (at.rng.random(runs) < champion).astype(float),
        )
    assert at.rejected(0, 0.0, 0.05 / 4) >= 0.5


def test_zero_failures_prove_a_margin_with_few_units() -> None:
    """No failure in either arm, margin 0.05: log 20 needs about 3 / 0.05 = 60 challenger units and
    the mixture's price."""
    rng = np.random.default_rng(17)
    difference = RandomizedDifference((0.05,), centre=0.01)
    while difference.log_evidence_below(0.05) < math.log(20):
        difference.assign(0.0, challenger=bool(rng.random() < 0.5), weight=0.5)
        assert sum(difference.units) < 400
    assert 55 <= difference.units[1] <= 110


def test_topics_sharpen_the_centre() -> None:
    """Two topics of very different scores: a centre of its own for each takes that variance out."""
    rng = np.random.default_rng(18)
    plain, topical = RandomizedDifference((0.05,)), RandomizedDifference((0.05,))
    for _ in range(400):
        topic = str(rng.integers(2))
        loss = float(np.clip((0.2 if topic == "0" else 0.6) + rng.normal(0, 0.03), 0, 1))
        challenger = bool(rng.random() < 0.5)
        plain.assign(loss, challenger=challenger, weight=0.5)
        topical.assign(loss, challenger=challenger, weight=0.5, topic=topic)
    assert topical.log_evidence_below(0.05) > plain.log_evidence_below(0.05) + 3
