"""How many prompts a margin needs."""

from __future__ import annotations

import numpy as np
import pytest

from intonaco.config import Margins
from intonaco.evaluation import power
from intonaco.evaluation.power import Noise
from intonaco.testing.evaluations import SLICES, World

MARGINS = Margins(adherence=0.02, latency=0.1)


def known(error: float, n: int, metric: str = "adherence", *, runs: int = 10**6) -> Noise:
    """So many runs that the error is as good as known."""
    return Noise(metric=metric, slice=None, error=error, n=n, runs=runs)


def test_the_textbook_sample_size() -> None:
    """n = (z + z')^2 (sd / margin)^2 = 6.18 (sd / margin)^2 at alpha 0.05 and power 0.8, for one
    guardrail; Student's t adds a little."""
    sd = 0.1
    plan = power.plan([known(sd / 10, 100)], MARGINS, alpha=0.05, power=0.8)
    (need,) = plan.needs
    assert need.needed == pytest.approx(6.18 * (sd / 0.02) ** 2, abs=3)
    assert plan.prompts == need.needed
    assert not need.enough


def test_the_reverse() -> None:
    """The margin that n prompts show needs n prompts."""
    noise = known(0.01, 100)
    (need,) = power.plan([noise], MARGINS, alpha=0.05, power=0.8).needs
    back = power.plan([noise], Margins(adherence=need.shows), alpha=0.05, power=0.8).needs[0]
    assert back.needed == 100
    assert back.power_now == pytest.approx(0.8, abs=0.01)


def test_each_guardrail_of_many_is_planned_at_more_power() -> None:
    noises = [known(0.01, 100), known(0.01, 30, "latency")]
    plan = power.plan(noises, MARGINS, alpha=0.05, power=0.8)
    assert {need.power for need in plan.needs} == {0.9}
    assert plan.rounds == next(need.needed for need in plan.needs if need.by_rounds)
    alone = power.plan(noises[:1], MARGINS, alpha=0.05, power=0.8)
    assert plan.prompts is not None
    assert alone.prompts is not None
    assert plan.prompts > alone.prompts


def test_a_slice_needs_all_its_prompts() -> None:
    noises = [
        known(0.005, 100),
        Noise(metric="adherence", slice="rare", error=0.03, n=10, runs=10**6),
    ]
    plan = power.plan(noises, Margins(slice_adherence=0.05), alpha=0.05, power=0.8)
    of_slice = next(need for need in plan.needs if need.slice == "rare")
    assert of_slice.needed is not None
    assert plan.prompts == of_slice.needed * 10


def test_half_the_alpha_needs_more() -> None:
    at = [
        power.plan([known(0.01, 100)], MARGINS, alpha=a, power=0.8).prompts for a in (0.05, 0.025)
    ]
    assert at[0] is not None
    assert at[1] is not None
    assert at[1] > 1.2 * at[0]


def test_none_seen_needs_the_rule_of_three() -> None:
    noise = known(0.0, 100, "unsafe")
    (need,) = power.plan([noise], Margins(unsafe=0.01), alpha=0.05, power=0.8).needs
    assert need.needed == 299
    assert need.power_now == 0.0


def test_few_runs_know_the_error_less_well() -> None:
    one = Noise(metric="adherence", slice=None, error=0.01, n=12)
    many = Noise(metric="adherence", slice=None, error=0.01, n=12, runs=20)
    # 0.9 limits from chi-squared tables: 11 / 5.578 and 220 / 193.8
    assert one.cautious == pytest.approx(0.01 * np.sqrt(11 / 5.578), rel=0.01)
    assert many.cautious == pytest.approx(0.01 * np.sqrt(220 / 193.8), rel=0.01)


def test_more_seeds_shrink_what_is_measured_of_images() -> None:
    results = World().results(np.random.default_rng(0), same_seeds=False)
    sizes = dict.fromkeys(SLICES, 12)
    one, two = (
        power.noise(results, alpha=0.05, prompts=sizes, rounds=100, seeds=(4, s)) for s in (4, 16)
    )
    for a, b in zip(one, two, strict=True):
        assert b.error == pytest.approx(a.error / (1 if a.by_rounds else 2))
    assert {x.n for x in one if x.slice} == {12}
    assert {x.n for x in one if x.by_rounds} == {100}


def test_runs_are_pooled_by_their_squares() -> None:
    runs = [[known(0.03, 100, runs=1)], [known(0.04, 100, runs=1), known(1.0, 9, "recall")]]
    (found,) = power.pooled(runs)
    assert found.error == pytest.approx(np.sqrt((0.03**2 + 0.04**2) / 2))
    assert found.runs == 2


def test_a_suggested_margin_is_one_that_can_be_shown() -> None:
    noise = known(0.0123, 100)
    margin = power.suggested_margin(noise, alpha=0.05, power=0.8, guardrails=1)
    (need,) = power.plan([noise], Margins(adherence=margin), alpha=0.05, power=0.8).needs
    assert need.enough
    assert margin == pytest.approx(need.shows, rel=0.05)


def test_without_a_margin_there_is_nothing_to_plan() -> None:
    with pytest.raises(ValueError, match="nothing to plan"):
        power.plan([known(0.1, 10, "coverage")], MARGINS, alpha=0.05, power=0.8)
