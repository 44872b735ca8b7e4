"""Intervals, agreement and strengths of reviews: published numbers, and the truth by simulation."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from intonaco.review.agreement import Level, krippendorff_alpha
from intonaco.review.preferences import Duel, bradley_terry
from intonaco.review.statistics import preference, two_way, votes_to_see, wilson
from intonaco.stats import BettingMean

NAN = math.nan
# Krippendorff 2011, example C: four observers, twelve units.
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
]
# The example of https://en.wikipedia.org/wiki/Krippendorff%27s_alpha: three coders, fifteen units.
CODERS = [
    [NAN, NAN, NAN, NAN, NAN, 3, 4, 1, 2, 1, 1, 3, 3, NAN, 3],
    [1, NAN, 2, 1, 3, 3, 4, 3, NAN, NAN, NAN, NAN, NAN, NAN, NAN],
    [NAN, NAN, 2, 1, 3, 4, 4, NAN, 2, 1, 1, 3, 3, NAN, 4],
]


# ------------------------------------------------------------------ Krippendorff's alpha


@pytest.mark.parametrize(
    ("ratings", "level", "alpha"),
    [
        (OBSERVERS, "nominal", 0.743),
        (OBSERVERS, "ordinal", 0.815),
        (OBSERVERS, "interval", 0.849),
        (OBSERVERS, "ratio", 0.797),
        (CODERS, "nominal", 0.691),
        (CODERS, "interval", 0.811),
    ],
)
def test_alpha_is_the_published_one(ratings: list[list[float]], level: Level, alpha: float) -> None:
    assert krippendorff_alpha(ratings, level=level) == pytest.approx(alpha, abs=5e-4)


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval", "ratio"])
def test_alpha_is_that_of_its_definition(level: Level) -> None:
    """Against the sums over all pairs of ratings, written out."""
    rng = np.random.default_rng(5)
    ratings = rng.integers(1, 5, size=(4, 9)).astype(float)
    ratings[rng.random(ratings.shape) < 0.3] = NAN
    units = [[v for v in column if not math.isnan(v)] for column in ratings.T]
    units = [u for u in units if len(u) > 1]
    every = sorted(v for u in units for v in u)

    def apart(a: float, b: float) -> float:
        if level == "nominal":
            return float(a != b)
        if level == "interval":
            return (a - b) ** 2
        if level == "ratio":
            return ((a - b) / (a + b)) ** 2
        low, high = min(a, b), max(a, b)
        between = sum(low <= v <= high for v in every)
        return (between - (every.count(low) + every.count(high)) / 2) ** 2 if a != b else 0.0

    observed = sum(
        apart(a, b) / (len(u) - 1)
        for u in units
        for i, a in enumerate(u)
        for j, b in enumerate(u)
        if i != j
    ) / len(every)
    n = len(every)
    expected = sum(
        apart(a, b) for i, a in enumerate(every) for j, b in enumerate(every) if i != j
    ) / (n * (n - 1))
    assert krippendorff_alpha(ratings, level=level) == pytest.approx(1 - observed / expected)


def test_alpha_of_agreement_chance_and_nothing() -> None:
    assert krippendorff_alpha([[1, 2, 3], [1, 2, 3]]) == 1.0
    rng = np.random.default_rng(0)
    assert krippendorff_alpha(rng.integers(0, 3, (5, 4000))) == pytest.approx(0, abs=0.02)
    assert krippendorff_alpha([[1, NAN], [NAN, 2]]) is None  # nothing can be paired
    assert krippendorff_alpha([[1, 1], [1, 1]]) is None  # no variation
    assert krippendorff_alpha(np.empty((2, 0))) is None
    assert krippendorff_alpha([[0, 0, 1], [0, 1, 1]], level="ratio") is not None
    for wrong in ([1.0, 2.0], [[math.inf, 1.0], [1.0, 1.0]]):
        with pytest.raises(ValueError, match="ratings"):
            krippendorff_alpha(wrong)
    with pytest.raises(ValueError, match="negative"):
        krippendorff_alpha([[-1, 1], [1, 1]], level="ratio")


# ------------------------------------------------------------------ single intervals and plans


def test_planned_votes_are_the_known_ones() -> None:
    assert (votes_to_see(0.55), votes_to_see(0.60), votes_to_see(0.525)) == (618, 155, 2473)
    assert votes_to_see(0.45) == votes_to_see(0.55)
    with pytest.raises(ValueError, match=r"0\.5"):
        votes_to_see(0.5)


def test_planned_votes_have_the_power() -> None:
    rng = np.random.default_rng(1)
    n = votes_to_see(0.6)
    wins = rng.binomial(n, 0.6, size=20_000)
    shown = (wins / n - 0.5) / math.sqrt(0.25 / n) > 1.6449
    assert shown.mean() == pytest.approx(0.8, abs=0.03)


def test_wilson() -> None:
    # Newcombe, Statistics in Medicine 17 (1998) 857, table I: 81/263, 15/148, 0/20.
    for wins, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)):
        assert wilson(wins, n, alpha=0.025) == pytest.approx((low, high), abs=5e-5)
    assert wilson(0, 20, alpha=0.025) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(0, 0) is None
    with pytest.raises(ValueError, match="3 of 2"):
        wilson(3, 2)


def test_wilson_covers() -> None:
    rng = np.random.default_rng(2)
    for share in (0.5, 0.6, 0.8):
        hits = [
            low <= share <= high
            for wins in rng.binomial(120, share, size=4000)
            if (found := wilson(int(wins), 120, alpha=0.05)) is not None
            for low, high in [found]
        ]
        assert np.mean(hits) == pytest.approx(0.9, abs=0.02)


# ------------------------------------------------------------------ at every look


def draw(rng: np.random.Generator, share: float, prompts: int) -> NDArray[np.float64]:
    """Means of two votes a prompt; prompts differ, so that their votes are alike."""
    for_it = np.clip(share + rng.choice([-0.3, 0.3], size=prompts), 0, 1)
    ties = rng.random((2, prompts)) < 0.2
    votes = np.where(ties, 0.5, rng.random((2, prompts)) < for_it)
    means: NDArray[np.float64] = votes.mean(axis=0)
    return means


def true_share(share: float) -> float:
    return float(np.mean([0.2 * 0.5 + 0.8 * np.clip(share + d, 0, 1) for d in (-0.3, 0.3)]))


def test_a_share_at_the_threshold_is_shown_at_no_look() -> None:
    """Looked at after every prompt, each side errs with at most alpha."""
    rng = np.random.default_rng(3)
    threshold = true_share(0.45)
    runs = [preference(draw(rng, 0.45, 150), threshold, alpha=0.05) for _ in range(600)]
    bound = 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / len(runs))
    assert np.mean([r.shown_above for r in runs]) <= bound
    assert np.mean([r.shown_below for r in runs]) <= bound


def test_the_interval_covers_at_every_look_together() -> None:
    rng = np.random.default_rng(4)
    truth = true_share(0.6)
    missed = 0
    for _ in range(120):
        means = draw(rng, 0.6, 120)
        looks = [preference(means[:n], 0.4, alpha=0.05).interval for n in range(1, 121, 4)]
        missed += any(not low <= truth <= high for low, high in looks)
    assert missed / 120 <= 0.10 + 2.6 * math.sqrt(0.1 * 0.9 / 120)


def test_what_is_so_is_shown() -> None:
    rng = np.random.default_rng(6)
    good = [preference(draw(rng, 0.6, 200), 0.4, alpha=0.05) for _ in range(100)]
    bad = [preference(draw(rng, 0.25, 200), 0.5, alpha=0.05) for _ in range(100)]
    assert np.mean([r.shown_above for r in good]) > 0.95
    assert np.mean([r.shown_below for r in bad]) > 0.95
    assert not any(r.shown_below for r in good)


def test_it_is_the_confidence_sequence_of_stats() -> None:
    rng = np.random.default_rng(7)
    means = draw(rng, 0.6, 60)
    grid = np.round(np.arange(0.0, 1.0001, 0.005), 3)
    theirs = BettingMean([*grid, 0.4])
    for x in means:
        theirs.update(float(x), scale=1.0, low=0.0, high=1.0)
    ours = preference(means, 0.4, alpha=0.05)
    assert ours.interval == pytest.approx(theirs.interval(0.1))
    assert ours.above == pytest.approx(theirs.peak_above(0.4))
    assert ours.below == pytest.approx(theirs.peak_below(0.4))


def test_nothing_counts_before_the_first_prompts() -> None:
    won = np.ones(40)
    assert not preference(won[:19], 0.4, alpha=0.05, from_prompt=20).shown_above
    assert preference(won[:20], 0.4, alpha=0.05, from_prompt=20).shown_above
    nothing = preference([], 0.4, alpha=0.05)
    assert (nothing.prompts, nothing.mean, nothing.interval) == (0, None, (0.0, 1.0))
    for wrong in ([1.2], [-0.1]):
        with pytest.raises(ValueError, match="shares"):
            preference(wrong, 0.4, alpha=0.05)


def test_the_number_still_needed_is_about_right() -> None:
    rng = np.random.default_rng(8)
    told, took = [], []
    for _ in range(60):
        means = draw(rng, 0.6, 400)
        known = preference(means[:30], 0.4, alpha=0.05)
        if known.needed:
            told.append(known.needed)
            took.append(
                next(
                    (
                        n
                        for n in range(31, 401)
                        if preference(means[:n], 0.4, alpha=0.05).above >= 3
                    ),
                    400,
                )
                - 30
            )
    assert len(told) > 20
    assert 0.5 < np.median(told) / np.median(took) < 2.0
    even = preference(np.tile([0.0, 1.0], 50), 0.5, alpha=0.05)
    assert even.needed is None  # it would go on like that for ever
    assert preference(np.ones(30), 0.4, alpha=0.05).needed == 0


# ------------------------------------------------------------------ other prompts and reviewers


def votes_of(
    rng: np.random.Generator, prompts: int, reviewers: int, per_prompt: int
) -> tuple[list[float], list[int], list[int]]:
    """Both prompts and reviewers lean to one side or the other; the mean over all is 0.5."""
    of_prompt = rng.normal(0, 0.12, prompts)
    of_reviewer = rng.normal(0, 0.08, reviewers)
    scores, rows, people = [], [], []
    for p in range(prompts):
        for r in rng.choice(reviewers, per_prompt, replace=False):
            chance = np.clip(0.5 + of_prompt[p] + of_reviewer[r], 0, 1)
            scores.append(float(rng.random() < chance))
            rows.append(p)
            people.append(int(r))
    return scores, rows, people


def coverage(make: Callable[[np.random.Generator], bool], runs: int, seed: int) -> float:
    rng = np.random.default_rng(seed)
    return float(np.mean([make(rng) for _ in range(runs)]))


def covers(rng: np.random.Generator, prompts: int = 60, reviewers: int = 8) -> bool:
    scores, rows, people = votes_of(rng, prompts, reviewers, 3)
    found = two_way(scores, rows, people, alpha=0.05, draws=300, rng=rng)
    assert found is not None
    return found[0] <= 0.5 <= found[1]


def test_the_two_way_interval_covers_and_one_way_would_not() -> None:
    """Nominal 0.9; with few people it errs on the wide side."""
    assert 0.86 <= coverage(covers, 250, 9) <= 0.97

    def as_if_independent(rng: np.random.Generator) -> bool:
        scores, _, _ = votes_of(rng, 60, 4, 3)
        found = wilson(int(sum(scores)), len(scores), alpha=0.05)
        assert found is not None
        return found[0] <= 0.5 <= found[1]

    assert coverage(as_if_independent, 400, 10) < 0.86


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prompts", "reviewers", "off"), [(100, 4, 0.05), (60, 8, 0.03), (200, 12, 0.02)]
)
def test_the_two_way_interval_covers_in_full(prompts: int, reviewers: int, off: float) -> None:
    """The fewer people, the wider it errs."""
    found = coverage(lambda rng: covers(rng, prompts, reviewers), 1000, 11)
    assert found == pytest.approx(0.9, abs=off)
    assert found >= 0.88


def test_the_two_way_interval_of_votes_that_are_all_the_same_is_none() -> None:
    """Not from 100 % to 100 %: that would be told as certainty."""
    votes = ([1.0] * 40, [n // 2 for n in range(40)], ["ann", "bob"] * 20)
    assert two_way(*votes, alpha=0.05, draws=200, rng=np.random.default_rng(0)) is None


def test_the_two_way_interval_of_one_person_is_none() -> None:
    rng = np.random.default_rng(0)
    assert two_way([1, 0, 1], [1, 2, 3], ["a"] * 3, alpha=0.05, draws=50, rng=rng) is None
    assert two_way([1, 0], [1, 1], ["a", "b"], alpha=0.05, draws=50, rng=rng) is None
    wide = two_way([1, 0, 1, 1], [1, 1, 2, 2], [1, 2, 1, 2], alpha=0.05, draws=200, rng=rng)
    assert wide is not None
    assert 0.0 <= wide[0] < wide[1] <= 1.0


# ------------------------------------------------------------------ Bradley–Terry with ties


def duels(
    rng: np.random.Generator, strengths: dict[str, float], prompts: int, tie: float, lean: float
) -> list[Duel]:
    """Davidson's model; ``lean``: how much the votes on one prompt are alike."""
    found = []
    names = list(strengths)
    for prompt in range(prompts):
        shift = {n: rng.normal(0, lean) for n in names}
        for a in range(len(names)):
            for b in range(a + 1, len(names)):
                i, j = names[a], names[b]
                pi, pj = (math.exp(strengths[n] + shift[n]) for n in (i, j))
                weights = np.array([pi, tie * math.sqrt(pi * pj), pj])
                score = rng.choice([1.0, 0.5, 0.0], p=weights / weights.sum())
                found.append(Duel(first=i, second=j, score=float(score), cluster=prompt))
    return found


def test_strengths_are_found_with_their_intervals() -> None:
    rng = np.random.default_rng(12)
    truth = {"a": 0.0, "b": 0.6, "c": -0.4}
    inside = {"b": 0, "c": 0}
    values = []
    for _ in range(150):
        found = bradley_terry(list(truth), duels(rng, truth, 80, 0.8, 0.0), alpha=0.05)
        assert found is not None
        assert found[0].log_odds == 0
        values.append([s.log_odds for s in found])
        for s in found[1:]:
            assert s.interval is not None
            inside[s.name] += s.interval[0] <= truth[s.name] <= s.interval[1]
    assert np.mean(values, axis=0) == pytest.approx([0.0, 0.6, -0.4], abs=0.06)
    for hits in inside.values():
        assert hits / 150 == pytest.approx(0.9, abs=0.07)


@pytest.mark.slow
@pytest.mark.parametrize("lean", [0.0, 0.5])
def test_the_intervals_of_strengths_cover_in_full(lean: float) -> None:
    """Of the strength that all votes together have, also where votes on a prompt are alike."""
    rng = np.random.default_rng(99)
    strengths = {"a": 0.0, "b": 0.6, "c": -0.4}
    many = bradley_terry(list(strengths), duels(rng, strengths, 40_000, 0.8, lean))
    assert many is not None
    truth = {s.name: s.log_odds for s in many}
    inside = []
    for _ in range(1000):
        found = bradley_terry(list(strengths), duels(rng, strengths, 80, 0.8, lean), alpha=0.05)
        assert found is not None
        for s in found[1:]:
            assert s.interval is not None
            inside.append(s.interval[0] <= truth[s.name] <= s.interval[1])
    assert np.mean(inside) == pytest.approx(0.9, abs=0.02)


def test_the_maximum_is_one() -> None:
    """No step in any direction raises the likelihood; two releases give the log odds themselves."""
    rng = np.random.default_rng(13)
    won = [Duel(first="a", second="b", score=1.0, cluster=k) for k in range(30)]
    lost = [Duel(first="b", second="a", score=1.0, cluster=30 + k) for k in range(60)]
    found = bradley_terry(["a", "b"], won + lost)
    assert found is not None
    assert found[1].log_odds == pytest.approx(math.log(2))
    told = duels(rng, {"a": 0.0, "b": 0.5, "c": 1.0}, 50, 0.5, 0.5)
    one = bradley_terry(["a", "b", "c"], told)
    turned = bradley_terry(
        ["a", "b", "c"],
        [Duel(first=d.second, second=d.first, score=1 - d.score, cluster=d.cluster) for d in told],
    )
    assert one is not None
    assert turned is not None
    assert [s.log_odds for s in one] == pytest.approx([s.log_odds for s in turned])


def test_votes_that_rank_nothing_give_none() -> None:
    always = [Duel(first="a", second="b", score=1.0, cluster=k) for k in range(9)]
    assert bradley_terry(["a", "b"], always) is None  # the maximum is at infinity
    tied = [*always, Duel(first="a", second="b", score=0.5, cluster=9)]
    assert bradley_terry(["a", "b"], tied) is None  # still
    both = [*tied, Duel(first="a", second="b", score=0.0, cluster=10)]
    assert bradley_terry(["a", "b"], both) is not None
    assert bradley_terry(["a", "b", "c"], both) is None  # nobody compared c
    assert bradley_terry(["a", "b"], []) is None
    few = bradley_terry(["a", "b"], [both[0], both[-1]])
    assert few is not None
    assert few[1].interval is None
    with pytest.raises(ValueError, match="duel"):
        bradley_terry(["a", "b"], [Duel(first="a", second="x", score=1.0, cluster=0)])
    with pytest.raises(ValueError, match="score"):
        bradley_terry(["a", "b"], [Duel(first="a", second="b", score=0.3, cluster=0)])
