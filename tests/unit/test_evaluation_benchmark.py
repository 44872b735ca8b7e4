"""Timing in turns, its figures, and how far they can be trusted."""

from __future__ import annotations

import math

import numpy as np
import pytest

from intonaco.evaluation import benchmark
from intonaco.evaluation.benchmark import Drawn, Memory, Timed, least_for, quantile

MEMORY = (Memory(weights=100, peak=700, idle=500), Memory(weights=300, peak=700, idle=500))


def drawn(seconds: float) -> Drawn:
    return Drawn(answer=seconds + 0.01, service=seconds, cpu=seconds / 2)


def timed(rounds: int, ratio: float, *, drift: float = 0.0, waves: int = 0) -> Timed:
    """A machine that slows down by ``drift`` a request."""
    clock, out = 1.0, Timed(concurrency=4)
    for _ in range(rounds):
        row = []
        for factor in (1.0, ratio, ratio, 1.0):
            clock += drift
            row.append(drawn(clock * factor))
        out.rounds.append((row[0], row[1], row[2], row[3]))
    out.waves = [(4.0, 4.0 * ratio, 4.0 * ratio, 4.0)] * waves
    return out


def summary(of: Timed, price: float | None = None) -> dict[str, object]:
    return benchmark.summary(of, MEMORY, cpu=True, alpha=0.05, hourly_price=price, currency="EUR")


def test_a_machine_that_slows_down_favours_nobody() -> None:
    steady, slowing = timed(8, 1.2), timed(8, 1.2, drift=0.05)
    for run in (steady, slowing):
        ratios = benchmark.log_ratios(benchmark.compared(run, cpu=True))
        # the order A B B A cancels a steady drift, whatever its size
        assert ratios == pytest.approx([math.log(1.2)] * 8, abs=1e-12)


def test_the_first_of_a_round_favours_nobody() -> None:
    """The first drawing of each round costs a tenth more, whoever it is."""
    rounds = []
    for number in range(8):
        costs = iter([1.1, 1.0, 1.0, 1.0])
        rounds.append(benchmark.in_turns(number, costs.__next__, costs.__next__))
    ratios = benchmark.log_ratios(rounds)
    assert sum(ratios) == pytest.approx(0.0, abs=1e-12)
    assert max(ratios) > 0 > min(ratios)


@pytest.mark.parametrize(("q", "n"), [(0.5, 25), (0.95, 80), (0.95, 200)])
def test_a_quantiles_bounds_hold_at_their_level(q: float, n: int) -> None:
    rng = np.random.default_rng(3)
    runs, truth = 2000, -math.log(1 - q)  # of the exponential law
    above = below = 0
    for _ in range(runs):
        found = quantile(rng.exponential(size=n).tolist(), q, 0.05)
        assert found.high is not None
        above += truth > found.high
        below += found.low is not None and truth < found.low
    # each end errs at most at 5 %; three standard errors of a simulation of this size
    assert above / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
    assert below / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


def test_a_95th_percentile_needs_59_images() -> None:
    assert least_for(0.95, 0.05) == 59
    assert quantile([float(i) for i in range(58)], 0.95, 0.05).high is None
    assert quantile([float(i) for i in range(59)], 0.95, 0.05).high == 58.0
    few, enough = summary(timed(10, 1.0)), summary(timed(30, 1.0))
    assert "59 are needed (evaluation.latency_rounds: 30)" in str(few["p95_text"])
    assert enough["p95_text"] == ""
    with pytest.raises(ValueError, match="nothing"):
        quantile([], 0.5, 0.05)


def test_a_quantile_of_many_values() -> None:
    found = quantile(np.linspace(0, 1, 5001).tolist(), 0.95, 0.05)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.95 < found.high
    assert found.high - found.low < 0.02


def test_figures_of_a_pair() -> None:
    found = summary(timed(6, 1.5, waves=5), price=3600.0)
    arms = found["arms"]
    assert isinstance(arms, dict)
    throughput = found["throughput"]
    assert isinstance(throughput, dict)
    # four images at once in four seconds, and in six
    assert arms["champion"]["images_per_second"] == pytest.approx(1.0)
    assert arms["candidate"]["images_per_second"] == pytest.approx(1 / 1.5)
    assert throughput["log_ratio"]["value"] == pytest.approx(-math.log(1.5))
    assert throughput["log_ratio"]["interval"] is not None
    assert arms["champion"]["p50"]["value"] == pytest.approx(1.01)  # as the caller saw it
    # one unit of money a second
    assert arms["champion"]["cost_per_image"] == pytest.approx(1.0)
    assert arms["candidate"]["memory"] == {"weights": 300, "peak": 700, "idle": 500, "own": 300}
    assert arms["champion"]["memory"]["own"] == 200  # beyond what any worker holds


def test_without_a_price_nothing_costs_and_without_waves_nothing_is_said_of_throughput() -> None:
    found = summary(timed(5, 1.0))
    arms = found["arms"]
    assert isinstance(arms, dict)
    assert arms["champion"]["cost_per_image"] is None
    assert found["throughput"] is None


def test_what_a_comparison_gets_of_it() -> None:
    run = timed(5, 2.0, waves=5)
    costs = benchmark.costs(run, MEMORY, summary(run, price=1.0), cpu=False)
    assert costs.log_ratios == pytest.approx([math.log(2)] * 5)
    assert costs.champion_seconds == 1.0
    assert costs.candidate_seconds == 2.0
    assert costs.memory == (100, 300)
    assert costs.peak_memory == (200, 300)
    assert costs.rounds == (0, 0, 1, 1, 2, 2, 3, 3, 4, 4)
    assert len(costs.champion_times) == len(costs.candidate_times) == 10
    assert costs.throughput_log_ratios == pytest.approx([-math.log(2)] * 5)
    assert costs.cost_per_image is not None
    assert costs.cost_per_image[1] == pytest.approx(2 * costs.cost_per_image[0])
