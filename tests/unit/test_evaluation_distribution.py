"""Recall, coverage and distances of two arms, against the published metrics and against chance."""

from __future__ import annotations

import numpy as np
import pytest

from intonaco.evaluation.distribution import COMPONENTS, NEIGHBOURS, RISING, Distribution
from intonaco.evaluation.intervals import Index, student_quantile
from intonaco.evaluation.metrics import density_coverage, frechet_distance, precision_recall
from intonaco.evaluation.metrics.arrays import Float

PROMPTS, SEEDS, WIDTH = 20, 3, 5


def draw(
    rng: np.random.Generator, *, spread: float = 1.0, reference: int = 90
) -> tuple[Float, Float, Float]:
    n = PROMPTS * SEEDS
    champion, own = rng.normal(size=(n, WIDTH)), rng.normal(size=(n, WIDTH))
    candidate = spread * (0.6 * champion + 0.8 * own)
    return champion, candidate, rng.normal(size=(reference, WIDTH))


def lies(arms: tuple[Float, Float, Float], *, order: Index | None = None) -> Distribution:
    champion, candidate, reference = arms
    at = np.arange(len(champion)) if order is None else order
    prompts = np.repeat(np.arange(PROMPTS), SEEDS)[at]
    return Distribution(
        champion[at],
        candidate[at],
        reference,
        prompts=[str(p) for p in prompts],
        slices=["even" if p % 2 else "odd" for p in prompts],
        topics=[],
        rng=np.random.default_rng(3),
    )


def test_figures_are_those_of_the_metrics() -> None:
    arms = draw(np.random.default_rng(0), spread=0.7)
    made = lies(arms)
    real = arms[2]
    recall, coverage, (frechet, components) = made.recall(), made.coverage(), made.frechet()
    assert components == WIDTH
    for arm, recalled, covered, distance in zip(
        arms,
        (recall.champion, recall.candidate),
        (coverage.champion, coverage.candidate),
        (frechet.champion, frechet.candidate),
        strict=False,
    ):
        assert recalled == precision_recall(real, arm, k=NEIGHBOURS).recall
        assert covered == density_coverage(real, arm, k=NEIGHBOURS).coverage
        assert distance == pytest.approx(frechet_distance(arm, real), rel=1e-9)


def test_rows_may_come_in_any_order() -> None:
    arms = draw(np.random.default_rng(1))
    order = np.random.default_rng(2).permutation(PROMPTS * SEEDS)
    straight, mixed = lies(arms), lies(arms, order=order)
    assert mixed.recall().difference == straight.recall().difference
    assert mixed.mmd().difference == pytest.approx(straight.mmd().difference)
    assert mixed.frechet()[0].error == pytest.approx(straight.frechet()[0].error)


def test_an_arm_against_itself_differs_in_nothing() -> None:
    champion, _, reference = draw(np.random.default_rng(4))
    made = lies((champion, champion, reference))
    for found in (made.recall(), made.coverage(), made.mmd(), made.frechet()[0]):
        assert found.difference == pytest.approx(0.0, abs=1e-12)
        assert found.error == pytest.approx(0.0, abs=1e-9)


def test_wide_features_are_compared_on_leading_components() -> None:
    rng = np.random.default_rng(5)
    arms = tuple(rng.normal(size=(PROMPTS * SEEDS, 200)) for _ in range(3))
    found, components = lies((arms[0], arms[1], arms[2])).frechet()
    assert components == PROMPTS * SEEDS // 4 <= COMPONENTS
    assert np.isfinite([found.champion, found.candidate, found.error]).all()


@pytest.mark.parametrize("spread", [1.0, 0.7])
def test_errors_are_those_of_repetition(spread: float) -> None:
    """The standard error of recall and of the distance, against the spread over 60 repetitions: the
    ratio has an error of 9 % itself, and both err upwards."""
    rng = np.random.default_rng(6)
    recalls, distances = [], []
    for _ in range(60):
        made = lies(draw(rng, spread=spread))
        recalls.append(made.recall())
        distances.append(made.mmd())
    for found, most in ((recalls, 1.45), (distances, 1.7)):
        spread_found = np.std([x.difference for x in found], ddof=1)
        claimed = np.sqrt(np.mean([x.error**2 for x in found]))
        assert 0.77 < claimed / spread_found < most


def test_a_rise_that_chance_shows_little_of_is_held_open() -> None:
    """15 % of the prompts are ruined: a sample with few of them shows a small rise and a small
    spread. With an error of the same length both ways 13 % of 400 such candidates passed at a
    margin of what they truly do. At most 5 % plus chance (99 %) of 200."""
    rng = np.random.default_rng(6)
    ends = []
    for _ in range(200):
        champion, candidate, reference = draw(rng)
        ruined = np.repeat(rng.random(PROMPTS) < 0.15, SEEDS)
        candidate[ruined] += 2.0 / np.sqrt(WIDTH)
        found = lies((champion, candidate, reference)).mmd()
        assert found.rising is not None
        assert found.rising >= RISING * found.error
        t = student_quantile(0.95, PROMPTS - 1)
        ends.append((found.difference, found.difference + t * found.rising))
    truth, upper = np.mean([d for d, _ in ends]), np.array([end for _, end in ends])
    assert (upper < truth).sum() <= 18
