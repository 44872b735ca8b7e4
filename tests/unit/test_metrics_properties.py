"""What every metric must not care about, and what it must refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intonaco.evaluation.metrics import (
    Estimate,
    FeatureStats,
    MetricWarning,
    authenticity,
    cmmd,
    copies,
    cosines,
    density_coverage,
    frechet_details,
    frechet_distance,
    frechet_infinity,
    gaussian,
    inception_score,
    kernel_distance,
    kernel_distance_subsets,
    polynomial,
    precision_recall,
    relative_mmd,
    vendi_score,
)
from intonaco.evaluation.metrics.arrays import Float, near_zero, squared_distances, unit_rows

# rows of one column have two directions at most, which CMMD tells
ONE_DIRECTION = pytest.mark.filterwarnings("ignore:all [0-9]+ rows of")
FEW = settings(max_examples=15, deadline=None, derandomize=True)
Value = Callable[[Float, Float], float]
KERNEL = gaussian(3.0)

SYMMETRIC: dict[str, Value] = {
    "frechet": frechet_distance,
    "kernel": lambda x, y: kernel_distance(x, y).value,
    "gaussian": lambda x, y: kernel_distance(x, y, kernel=KERNEL).value,
    "error": lambda x, y: kernel_distance(x, y).standard_error,
    "cmmd": cmmd,
    "unbiased": lambda x, y: cmmd(x, y, unbiased=True),
}
ONE_WAY: dict[str, Value] = {
    "precision": lambda x, y: precision_recall(x, y).precision,
    "recall": lambda x, y: precision_recall(x, y).recall,
    "density": lambda x, y: density_coverage(x, y, k=3).density,
    "coverage": lambda x, y: density_coverage(x, y, k=3).coverage,
    "authenticity": authenticity,
}
# of distances alone
RIGID = {k: v for k, v in SYMMETRIC.items() if k in ("frechet", "gaussian")} | ONE_WAY


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Float, Float, np.random.Generator]:
    """Two samples, with fewer rows than columns or more, sometimes with rows or columns twice."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, m, d = (draw(st.integers(least, most)) for least, most in ((6, 40), (6, 40), (1, 30)))
    x, y = rng.normal(size=(n, d)), rng.normal(size=(m, d)) * 1.3 + 0.2
    if draw(st.booleans()):
        x[: n // 3] = x[n // 3 : 2 * (n // 3)]
    if draw(st.booleans()):
        y[: m // 4] = x[: m // 4] if m // 4 <= n else y[: m // 4]
    if d > 1 and draw(st.booleans()):
        x[:, 0], y[:, 0] = x[:, 1], y[:, 1]
    return x, y, rng


def rotation(d: int, rng: np.random.Generator) -> Float:
    out: Float = np.linalg.qr(rng.normal(size=(d, d)))[0]
    return out


def same(found: float, expected: float, scale: float = 1.0) -> None:
    assert found == pytest.approx(expected, rel=1e-8, abs=1e-9 * scale)


@ONE_DIRECTION
@pytest.mark.parametrize("name", sorted(SYMMETRIC | ONE_WAY))
@given(pairs())
@FEW
def test_the_order_of_rows_does_not_matter(name: str, given_pair: Any) -> None:
    x, y, rng = given_pair
    value = (SYMMETRIC | ONE_WAY)[name]
    same(value(rng.permutation(x), rng.permutation(y)), value(x, y))


@ONE_DIRECTION
@pytest.mark.parametrize("name", sorted(SYMMETRIC))
@given(pairs())
@FEW
def test_sides_can_be_exchanged(name: str, given_pair: Any) -> None:
    x, y, _ = given_pair
    same(SYMMETRIC[name](y, x), SYMMETRIC[name](x, y))


@given(pairs())
@FEW
def test_precision_is_the_other_sides_recall(given_pair: Any) -> None:
    x, y, _ = given_pair
    assert precision_recall(x, y).precision == precision_recall(y, x).recall


@ONE_DIRECTION
@pytest.mark.parametrize("name", ["frechet", "gaussian", "kernel", "cmmd"])
@given(pairs())
@FEW
def test_a_rotation_does_not_matter(name: str, given_pair: Any) -> None:
    x, y, rng = given_pair
    turn = rotation(x.shape[1], rng)
    same(SYMMETRIC[name](x @ turn, y @ turn), SYMMETRIC[name](x, y))


@pytest.mark.parametrize("name", sorted(RIGID))
@given(pairs(), st.integers(-(2**20), 2**20))
@FEW
def test_a_shift_does_not_matter(name: str, given_pair: Any, shift: int) -> None:
    x, y, _ = given_pair
    x, y = np.round(x * 2**20) / 2**20, np.round(y * 2**20) / 2**20  # so that sums are exact
    same(RIGID[name](x + shift, y + shift), RIGID[name](x, y))


@pytest.mark.parametrize("name", sorted(ONE_WAY))
@given(pairs(), st.integers(-60, 60))
@FEW
def test_scale_does_not_matter_to_shares(name: str, given_pair: Any, power: int) -> None:
    x, y, _ = given_pair
    assert ONE_WAY[name](x * 2.0**power, y * 2.0**power) == ONE_WAY[name](x, y)


@given(pairs(), st.integers(-60, 60))
@FEW
def test_scale_counts_twice_in_a_frechet_distance(given_pair: Any, power: int) -> None:
    x, y, _ = given_pair
    factor = 2.0**power
    same(frechet_distance(x * factor, y * factor) / factor**2, frechet_distance(x, y))


@ONE_DIRECTION
@given(pairs())
@FEW
def test_nothing_lies_away_from_itself(given_pair: Any) -> None:
    x, _, _ = given_pair
    scale = float((x**2).sum())
    assert 0.0 <= frechet_distance(x, x) <= 1e-10 * scale
    stats = FeatureStats().update(x)
    assert 0.0 <= frechet_distance(stats, FeatureStats().update(x)) <= 1e-7 * scale
    assert abs(cmmd(x, x)) < 1e-9
    found = precision_recall(x, x)
    assert (found.precision, found.recall) == (1.0, 1.0)
    assert authenticity(x, x) == 0.0
    np.testing.assert_array_equal(copies(x, x).distance, 0.0)


@given(pairs())
@FEW
def test_distances_are_exact_to_the_bit_between_equal_rows(given_pair: Any) -> None:
    x, y, _ = given_pair
    d = squared_distances(x, np.concatenate([y, x]))[:, len(y) :]
    assert (np.diagonal(d) == 0.0).all()
    expected = ((x[:, None] - x[None]) ** 2).sum(2)
    np.testing.assert_allclose(d, expected, rtol=1e-9, atol=1e-300)


@given(pairs(), st.sampled_from([0.3, 1.0, 2.0, math.inf]))
@FEW
def test_vendi_score_is_a_number_of_rows(given_pair: Any, q: float) -> None:
    x, _, rng = given_pair
    score = vendi_score(x, q=q)
    assert 1.0 - 1e-9 <= score <= min(len(x), x.shape[1]) + 1e-9
    same(vendi_score(rng.permutation(x), q=q), score)
    same(vendi_score(x * np.exp(rng.normal(size=(len(x), 1))), q=q), score)
    same(vendi_score(x @ rotation(x.shape[1], rng), q=q), score)
    same(vendi_score(np.concatenate([x, x]), q=q), score)


@given(pairs(), st.integers(1, 6))
@FEW
def test_inception_score_is_a_number_of_classes(given_pair: Any, splits: int) -> None:
    x, _, rng = given_pair
    x = np.concatenate([x, -x], axis=1)
    mean, spread = inception_score(x, splits=splits)
    assert 1.0 - 1e-12 <= mean <= x.shape[1] + 1e-9
    assert spread >= 0.0
    # a softmax does not see a number that is added to a row
    shifted = inception_score(x + 100.0 * rng.normal(size=(len(x), 1)), splits=splits)
    assert shifted == pytest.approx((mean, spread), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("q", [0.1, 0.3, 1.0, 2.0])
def test_vendi_score_counts_no_rounding(q: float) -> None:
    """Of 15 rows three differ; eigenvalues that should be 0 would count at small orders."""
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(40, 3)))[0].T
    assert vendi_score(np.repeat(basis, 5, axis=0), q=q) == pytest.approx(3.0, rel=1e-9)


def test_inception_score_of_sure_and_even_classes_is_their_number() -> None:
    logits = np.repeat(np.eye(7), 10, axis=0) * 2000.0  # off the peak p is 0, and 0 log 0 is 0
    assert inception_score(logits, splits=1)[0] == pytest.approx(7.0)
    p = np.repeat(np.eye(7), 10, axis=0)
    assert inception_score(p, splits=1, probabilities=True)[0] == pytest.approx(7.0)


@pytest.mark.parametrize(
    "bad", [np.array([[0.5, 0.6], [0.5, 0.5]]), np.array([[-0.5, 1.5], [0.5, 0.5]])]
)
def test_logits_are_not_taken_for_probabilities(bad: Float) -> None:
    with pytest.raises(ValueError, match="are they logits"):
        inception_score(bad, splits=1, probabilities=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.uint8])
def test_kinds_of_numbers(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    x, y = (rng.integers(0, 9, size=(30, 5)).astype(dtype) for _ in range(2))
    expected = frechet_distance(x.astype(np.float64), y.astype(np.float64))
    assert frechet_distance(x, y) == expected
    assert frechet_distance(x.tolist(), y.tolist()) == expected
    assert frechet_distance(torch.from_numpy(x), torch.from_numpy(y)) == expected
    assert kernel_distance(x.tolist(), y) == kernel_distance(x, y)
    assert vendi_score((x + 1).tolist()) == vendi_score(x + 1)


GOOD = np.random.default_rng(0).normal(size=(12, 4))
ALL: dict[str, Callable[[Any, Any], object]] = {
    "frechet_distance": frechet_distance,
    "frechet_details": frechet_details,
    "frechet_infinity": lambda x, y: frechet_infinity(x, y, sizes=3, smallest=6),
    "kernel_distance": kernel_distance,
    "kernel_distance_subsets": lambda x, y: kernel_distance_subsets(x, y, size=2),
    "cmmd": cmmd,
    "precision_recall": precision_recall,
    "density_coverage": density_coverage,
    "authenticity": authenticity,
    "relative_mmd": lambda x, y: relative_mmd(GOOD, x, y),
    "cosines": cosines,
    "stats": lambda x, y: frechet_distance(FeatureStats().update(x), FeatureStats().update(y)),
    "mixed": lambda x, y: frechet_distance(x, FeatureStats().update(y)),
}
BAD = {
    "not a number": (np.where(np.arange(4) == 2, np.nan, GOOD), "not finite"),
    "infinite": (np.where(np.arange(4) == 2, -np.inf, GOOD), "not finite"),
    "a vector": (GOOD[0], "shape"),
    "a number": (3.0, "shape"),
    "three axes": (GOOD[None], "shape"),
    "complex": (GOOD + 0j, "real numbers"),
    "words": (np.full((12, 4), "a"), "real numbers"),
    "objects": (GOOD.astype(object), "real numbers"),
    "masked": (np.ma.masked_greater(GOOD, 1.0), "masked"),
    "no columns": (GOOD[:, :0], "no columns"),
    "no rows": (GOOD[:0], "rows"),
    "other columns": (np.concatenate([GOOD, GOOD], axis=1), "widths"),
    "huge": (GOOD * 1e200, "too far from 1"),
    "vanishing": (GOOD * 1e-200, "too far from 1"),
}


@pytest.mark.parametrize("metric", sorted(ALL))
@pytest.mark.parametrize("bad", sorted(BAD))
def test_what_cannot_be_measured_is_an_error(metric: str, bad: str) -> None:
    features, message = BAD[bad]
    for x, y in ((features, GOOD), (GOOD, features)):
        with pytest.raises(ValueError, match=message):
            ALL[metric](x, y)


@pytest.mark.parametrize("metric", sorted(set(ALL) - {"cosines"}))
def test_too_few_rows_are_an_error(metric: str) -> None:
    with pytest.raises(ValueError, match="rows"):
        ALL[metric](GOOD, GOOD[:1])


@pytest.mark.parametrize("metric", sorted(set(ALL) - {"cosines"}))
def test_rows_that_are_all_equal_are_told(metric: str) -> None:
    broken = np.repeat(GOOD[:1], 12, axis=0)
    with pytest.warns(MetricWarning, match="is the extractor broken"):
        ALL[metric](GOOD, broken)
    if metric != "relative_mmd":
        with pytest.warns(MetricWarning, match="is the extractor broken"):
            ALL[metric](broken, broken + 0.0)


def test_a_constant_reference_has_no_bandwidth() -> None:
    with (
        pytest.warns(MetricWarning, match="rows of reference"),
        pytest.raises(ValueError, match="tells nothing"),
    ):
        relative_mmd(np.ones((12, 4)), GOOD, GOOD + 1.0)


@pytest.mark.parametrize("metric", [cmmd, cosines, lambda x, y: vendi_score(y)])
def test_a_row_of_zeros_has_no_direction(metric: Callable[[Float, Float], object]) -> None:
    zero = GOOD.copy()
    zero[3] = 0.0
    with pytest.raises(ValueError, match=r"1 rows are zero \(the first is 3\)"):
        metric(GOOD, zero)


def test_kernels_that_leave_the_range_are_an_error() -> None:
    with pytest.raises(ValueError, match="leave float64"):
        kernel_distance(GOOD * 1e49, GOOD * 1e49, kernel=polynomial(degree=9))
    with pytest.raises(ValueError, match="leave float64"):  # of squares, which the error needs
        kernel_distance(GOOD * 1e40, GOOD * 1e40)
    far = GOOD * 1e49
    with pytest.raises(ValueError, match="leave float64"):
        relative_mmd(far, far, far, kernel=polynomial(degree=9))
    with pytest.raises(ValueError, match="bandwidth"):
        gaussian(0.0)
    with pytest.raises(ValueError, match="'gaussian', 'polynomial'"):
        kernel_distance(GOOD, GOOD, kernel="laplace")  # type: ignore[arg-type]


def test_a_difference_that_rounding_drowns_is_told() -> None:
    """A cubic kernel grows with the sixth power of an offset, its differences with the fourth."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(60, 8)), rng.normal(size=(60, 8)) * 1.2
    kernel_distance(x + 1e6, y + 1e6)
    for far in (1e9, 1e12):
        with pytest.warns(MetricWarning, match="rounding drowns"):
            kernel_distance(x + far, y + far)
    assert kernel_distance(x + 1e9, y + 1e9, kernel="gaussian").value == pytest.approx(
        kernel_distance(x, y, kernel="gaussian").value, rel=1e-6
    )


@pytest.mark.parametrize("metric", [precision_recall, density_coverage])
def test_a_border_is_inside_or_outside(metric: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match="'inside' or 'outside', got '<='"):
        metric(GOOD, GOOD, border="<=")


def test_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(150, 6)), rng.normal(size=(110, 6)) + 0.3
    x[:20] = x[20:40]

    def all_of_them() -> list[object]:
        mmd = relative_mmd(x, y, y + 0.01 * rng.permuted(y, axis=0))
        values = [kernel_distance(x, y), kernel_distance(x, y, kernel=KERNEL)]
        return [
            *(v for e in values for v in (e.value, e.standard_error)),
            cmmd(x, y), cmmd(x, y, unbiased=True), frechet_distance(x, y),
            precision_recall(x, y), density_coverage(x, y), authenticity(x, y),
            copies(x, y).nearest.tolist(), mmd.n,
        ]  # fmt: skip

    whole = all_of_them()
    monkeypatch.setattr("intonaco.evaluation.metrics.arrays.CELLS", 1000)
    for left, right in zip(whole, all_of_them(), strict=True):
        if isinstance(left, float):
            assert right == pytest.approx(left, rel=1e-12)
        else:
            assert left == right


def test_moving_to_zero_keeps_a_grid_a_grid() -> None:
    grid = np.random.default_rng(0).integers(0, 5, size=(40, 3)).astype(np.float64) + 1e6
    moved, _ = near_zero(grid, grid, of=grid)
    np.testing.assert_array_equal(moved, np.round(moved))
    assert np.abs(moved).max() < 20.0


def test_the_error_of_a_kernel_distance_holds_for_equal_distributions_too() -> None:
    """Against the spread of 200 repetitions (itself known to 5 %); with the first order alone it
    would be 1.4 times as large for equal ones."""
    rng = np.random.default_rng(5)

    def run(shift: float) -> tuple[float, float]:
        runs: list[Estimate] = [
            kernel_distance(rng.normal(size=(60, 6)), shift + rng.normal(size=(80, 6)))
            for _ in range(200)
        ]
        squares = [r.standard_error**2 for r in runs]
        return float(np.sqrt(np.mean(squares))), float(np.std([r.value for r in runs]))

    for shift in (0.0, 0.4):
        said, seen = run(shift)
        assert 0.85 * seen < said < 1.25 * seen


def test_extrapolation_takes_the_bias_away() -> None:
    """The distance of a distribution to itself, 8 columns: at 1,000 rows it is biased by 0.026; the
    mean of 60 extrapolations, known to 0.0012, lies within a quarter of that of nothing."""
    rng = np.random.default_rng(2)
    reference = FeatureStats().update(rng.normal(size=(100_000, 8)))
    found = [
        frechet_infinity(rng.normal(size=(1000, 8)), reference, seed=i, smallest=200)
        for i in range(60)
    ]
    biased = float(np.mean([f.distances[-1] for f in found]))
    assert biased > 0.02
    assert abs(np.mean([f.value for f in found])) < biased / 4
    assert np.mean([f.slope for f in found]) == pytest.approx(1000 * biased, rel=0.2)


def test_extrapolation_refuses_and_warns() -> None:
    with pytest.warns(MetricWarning, match="not linear"):
        frechet_infinity(GOOD, GOOD)
    for smallest in (1, 12, 13):
        with pytest.raises(ValueError, match="sizes"):
            frechet_infinity(GOOD, GOOD, smallest=smallest)
    with pytest.raises(ValueError, match="sizes"):
        frechet_infinity(GOOD, GOOD, sizes=1)


def test_a_distance_with_its_cautions() -> None:
    rng = np.random.default_rng(0)
    few, some, many = (rng.normal(size=(n, 5)) for n in (4, 40, 60))
    reference = FeatureStats("clip@1", preprocessing="bicubic").update(many)
    found = frechet_details(some, reference)
    assert found.value == frechet_distance(some, reference)
    assert (found.n, found.d) == ((40, 60), 5)
    assert (found.extractor, found.preprocessing) == ("clip@1", "bicubic")
    assert [c.partition(":")[0] for c in found.cautions] == [
        "40 rows for 5 columns",
        "40 rows against 60",
    ]
    assert "singular" in frechet_details(few, many).cautions[0]
    assert frechet_details(many, many + 1.0).cautions == ()


def test_copies_are_named() -> None:
    rng = np.random.default_rng(0)
    training, generated = rng.normal(size=(50, 4)), rng.normal(size=(6, 4)) * 5.0
    generated[2] = training[17] + 1e-9
    found = copies(training, generated)
    assert found.copy.tolist() == [i == 2 for i in range(6)]
    assert found.nearest[2] == 17
    assert found.distance[2] == pytest.approx(2e-9)
    assert found.share == pytest.approx(1 / 6)
    assert authenticity(training, generated) == pytest.approx(5 / 6)


def test_cosines_are_raw() -> None:
    images, texts = np.array([[1.0, 0.0], [3.0, 4.0]]), np.array([[-2.0, 0.0], [4.0, 3.0]])
    np.testing.assert_allclose(cosines(images, texts), [-1.0, 0.96])
    with pytest.raises(ValueError, match="2 images for 1 texts"):
        cosines(images, texts[:1])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_a_collapse_looks_like(seed: int) -> None:
    """Ten clusters of unit vectors, whose spread the candidate shrinks to 0.3 of what it is: nearer
    to the prompts, at no other kernel distance, and covering as much; recall and the Fréchet
    distance see it. The table of docs/concepts/metrics.md."""
    rng = np.random.default_rng(seed)
    clusters, d, n = 10, 32, 600
    texts = np.linalg.qr(rng.normal(size=(d, clusters)))[0].T.repeat(n // clusters, axis=0)

    def drawn(spread: float) -> Float:
        out: Float = texts + spread * rng.normal(size=(n, d)) / np.sqrt(d)
        return unit_rows(out)

    real, champion, again, collapsed = (drawn(s) for s in (0.2, 0.2, 0.2, 0.06))
    kept = frechet_distance(champion, real)
    gain = cosines(collapsed, texts) - cosines(champion, texts)
    assert gain.mean() > 10 * gain.std() / np.sqrt(n)
    kid = relative_mmd(
        real * np.sqrt(d), champion * np.sqrt(d), collapsed * np.sqrt(d), kernel="polynomial"
    )
    assert abs(kid.z) < 1.0
    assert abs(relative_mmd(real, champion, collapsed).z) < 1.0
    assert density_coverage(real, collapsed).coverage > 0.99
    assert precision_recall(real, champion).recall > 0.7
    assert precision_recall(real, collapsed).recall < 0.05
    assert frechet_distance(collapsed, real) - kept > 10 * abs(frechet_distance(again, real) - kept)
    assert frechet_distance(collapsed, real) > 5 * kept


def test_what_cmmd_does_not_see() -> None:
    """Equal means, and variances of 0.1 and 1.9 for 1: less to it than a mean moved by 0.1."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 1000, 16))
    other = y * np.sqrt(np.where(np.arange(16) % 2, 1.9, 0.1))
    assert cmmd(x, other, unbiased=True) < 0.1 * cmmd(x, y + 0.1, unbiased=True)
    assert frechet_distance(x, other) > 10 * frechet_distance(x, y + 0.1)
