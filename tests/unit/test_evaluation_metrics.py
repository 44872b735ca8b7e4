"""Metrics against published values, exact cases, and each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from intonaco.errors import ConfigError, StorageError
from intonaco.evaluation.metrics import (
    FeatureStats,
    MetricWarning,
    authenticity,
    cmmd,
    density_coverage,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
    relative_mmd,
    vendi_score,
)
from intonaco.evaluation.metrics.arrays import Float

_rng = np.random.RandomState(2023)
X: Float = _rng.randn(1500, 64)
Y: Float = _rng.randn(1200, 64) * 1.1 + 0.05


class TestGoldenVectors:
    """Values that torch-fidelity, clean-fid, pytorch-fid, torchmetrics, dgm-eval, prdc, vendi-score
    and the published CMMD code give for the same matrices."""

    def test_frechet_distance(self) -> None:
        assert frechet_distance(X, Y) == pytest.approx(2.62183934807, abs=1e-11)

    def test_kernel_distance(self) -> None:
        assert kernel_distance(X[:1000], Y[:1000]).value == pytest.approx(
            0.010122187917549, abs=1e-14
        )
        assert kernel_distance(X, Y).value == pytest.approx(0.009483351588, abs=1e-12)

    def test_inception_score(self) -> None:
        mean, spread = inception_score(3 * X)
        assert mean == pytest.approx(9.627723749, abs=1e-9)
        assert spread == pytest.approx(0.373585542, abs=1e-9)

    def test_precision_recall(self) -> None:
        five, three = precision_recall(X, Y, k=5), precision_recall(X, Y, k=3)
        assert five.precision == pytest.approx(0.3575)
        assert five.recall == pytest.approx(0.934667, abs=1e-6)
        assert three.precision == pytest.approx(0.259167, abs=1e-6)
        assert three.recall == pytest.approx(0.887333, abs=1e-6)

    def test_density_coverage(self) -> None:
        found = density_coverage(X, Y, k=5)
        assert found.density == pytest.approx(0.197833, abs=1e-6)
        assert found.coverage == pytest.approx(0.508)

    def test_vendi_score(self) -> None:
        assert vendi_score(X) == pytest.approx(62.681256617, abs=1e-9)
        assert vendi_score(X, q=2) == pytest.approx(61.447925072, abs=1e-9)

    def test_authenticity(self) -> None:
        assert authenticity(X, Y) == pytest.approx(0.945)

    def test_cmmd(self) -> None:
        assert cmmd(X, Y) == pytest.approx(0.033552084, abs=1e-9)


class TestFrechet:
    def test_of_shifted_rows_is_the_squared_shift(self) -> None:
        assert frechet_distance(X, X + 0.5) == pytest.approx(64 * 0.25, abs=1e-9)

    def test_is_exact_with_fewer_rows_than_columns(self) -> None:
        # both samples in a plane of R^40: the distance is that of the two coordinates
        rng = np.random.default_rng(0)
        a, b = rng.normal(size=(30, 2)), rng.normal(size=(25, 2)) * 2 + 1
        basis = np.linalg.qr(rng.normal(size=(40, 2)))[0].T
        assert frechet_distance(a @ basis, b @ basis) == pytest.approx(
            frechet_distance(a, b), rel=1e-9
        )
        assert frechet_distance(a @ basis, a @ basis) == pytest.approx(0.0, abs=1e-10)

    def test_statistics_give_what_matrices_give(self) -> None:
        left, right = FeatureStats().update(X), FeatureStats().update(Y)
        for x, y in ((left, right), (X, right), (left, Y)):
            assert frechet_distance(x, y) == pytest.approx(2.62183934807, abs=1e-9)

    def test_merging_keeps_digits_far_from_zero(self) -> None:
        far = X + 1e6
        parts = FeatureStats()
        for block in np.array_split(far, 7):
            parts.merge(FeatureStats().update(block[:100]).update(block[100:]))
        assert parts.n == len(X)
        np.testing.assert_allclose(parts.covariance, np.cov(X.T), atol=1e-7)
        assert frechet_distance(parts, FeatureStats().update(Y + 1e6)) == pytest.approx(
            2.62183934807, abs=1e-6
        )

    def test_update_after_a_root_was_taken_is_seen(self) -> None:
        stats = FeatureStats().update(X[:700])
        frechet_distance(stats, Y)
        assert frechet_distance(stats.update(X[700:]), Y) == pytest.approx(2.62183934807, abs=1e-9)

    def test_saved_statistics_come_back(self, tmp_path: Path) -> None:
        FeatureStats(extractor="dino@1").update(X).save(tmp_path / "ref.npz")
        back = FeatureStats.load(tmp_path / "ref.npz")
        assert (back.extractor, back.n) == ("dino@1", 1500)
        assert frechet_distance(back, Y) == pytest.approx(2.62183934807, abs=1e-9)
        (tmp_path / "ref.npz").write_text("no archive")
        with pytest.raises(StorageError):
            FeatureStats.load(tmp_path / "ref.npz")

    def test_refuses_features_of_another_extractor(self) -> None:
        one, two = FeatureStats(extractor="a").update(X), FeatureStats(extractor="b").update(Y)
        with pytest.raises(ConfigError, match="'a' and 'b'"):
            frechet_distance(one, two)
        with pytest.raises(ConfigError, match="'a' and 'b'"):
            one.merge(two)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.full((10, 3), np.nan), "not finite"),
        (np.zeros(10), "shape"),
        (np.zeros((1, 3)), "rows"),
        (np.ones((10, 4)), "widths"),
    ],
)
def test_metrics_refuse_what_they_cannot_measure(bad: Float, message: str) -> None:
    good = np.random.default_rng(0).normal(size=(10, 3))
    for metric in (frechet_distance, kernel_distance, cmmd, precision_recall, authenticity):
        with pytest.raises(ValueError, match=message):
            metric(good, bad)


class TestRelativeMmd:
    def test_difference_is_that_of_the_two_distances(self) -> None:
        from intonaco.evaluation.metrics.kernels import gaussian, median_bandwidth

        z, y, x = X[:300], Y[:200], X[300:500] * 0.7
        kernel = gaussian(median_bandwidth(z))
        found = relative_mmd(z, y, x)
        assert found.candidate == pytest.approx(kernel_distance(x, z, kernel=kernel).value)
        assert found.champion == pytest.approx(kernel_distance(y, z, kernel=kernel).value)
        assert found.difference == pytest.approx(found.candidate - found.champion)

    def test_equal_arms_differ_by_nothing(self) -> None:
        found = relative_mmd(X[:200], Y[:200], Y[:200])
        assert (found.difference, found.standard_error, found.z) == (0.0, 0.0, 0.0)

    def test_needs_pairs_and_more_than_one_group(self) -> None:
        with pytest.raises(ValueError, match="pairs"):
            relative_mmd(X, Y[:100], Y[:101])
        with pytest.raises(ValueError, match="one group"):
            relative_mmd(X, Y[:100], Y[100:200], groups=["p"] * 100)

    def test_size_and_power(self) -> None:
        """At 5 % one-sided: two equally wrong, correlated arms are told apart in at most 9 of 100
        runs (95 % of binomial(100, .05) is below), a clearly farther one in at least 80."""
        rng = np.random.default_rng(3)
        false = found = 0
        for _ in range(100):
            reference = rng.normal(size=(150, 4))
            common = rng.normal(size=(120, 4))

            def arm(shift: float, shared: Float = common) -> Float:
                own: Float = 0.9 * shared + np.sqrt(0.19) * rng.normal(size=(120, 4)) + shift
                return own

            champion = arm(0.3)
            false += relative_mmd(reference, champion, arm(0.3)).z > 1.645
            found += relative_mmd(reference, champion, arm(0.45)).z > 1.645
        assert false <= 9
        assert found >= 80

    def test_groups_count_as_one(self) -> None:
        """Rows repeated four times say no more than rows once."""
        z, y, x = X[:200], Y[:60], Y[60:120]
        once = relative_mmd(z, y, x)
        groups = [str(i) for i in range(60) for _ in range(4)]
        repeated = relative_mmd(z, np.repeat(y, 4, 0), np.repeat(x, 4, 0), groups=groups)
        naive = relative_mmd(z, np.repeat(y, 4, 0), np.repeat(x, 4, 0))
        assert repeated.standard_error == pytest.approx(once.standard_error, rel=0.1)
        assert naive.standard_error < 0.8 * once.standard_error


def test_kernel_distance_error_is_that_of_repetitions() -> None:
    rng = np.random.default_rng(0)
    runs = [
        kernel_distance(rng.normal(size=(120, 8)), 0.4 + rng.normal(size=(100, 8)))
        for _ in range(150)
    ]
    spread = np.std([r.value for r in runs], ddof=1)
    assert np.mean([r.standard_error for r in runs]) == pytest.approx(spread, rel=0.25)


def test_collapse_costs_recall_and_not_precision() -> None:
    rng = np.random.default_rng(0)
    real = rng.normal(size=(400, 8))
    whole = precision_recall(real, rng.normal(size=(300, 8)))
    collapsed = precision_recall(real, 0.3 * rng.normal(size=(300, 8)))
    assert whole.recall > 0.7
    assert collapsed.recall < 0.3
    assert collapsed.precision > 0.9


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (precision_recall(X, Y), density_coverage(X, Y), authenticity(X, Y))
    monkeypatch.setattr("intonaco.evaluation.metrics.arrays.BLOCK", 137)
    assert (precision_recall(X, Y), density_coverage(X, Y), authenticity(X, Y)) == whole


def test_copies_are_not_authentic() -> None:
    assert authenticity(X, X[:100] + 1e-9) == 0.0


def test_equal_rows_count_as_inside() -> None:
    same = np.ones((10, 3))
    with pytest.warns(MetricWarning, match="all 10 rows .* are equal"):
        found = precision_recall(same, same)
    assert (found.precision, found.recall) == (1.0, 1.0)


def test_vendi_score_counts_distinct_rows() -> None:
    assert vendi_score(np.eye(7)) == pytest.approx(7.0)
    assert vendi_score(np.repeat(np.eye(3), 5, 0)) == pytest.approx(3.0)
    assert vendi_score(np.repeat(np.eye(3), 5, 0), q=np.inf) == pytest.approx(3.0)


def test_unbiased_cmmd_of_one_distribution_is_about_nothing() -> None:
    rng = np.random.default_rng(1)
    values = [
        cmmd(rng.normal(size=(50, 16)), rng.normal(size=(50, 16)), unbiased=True) for _ in range(40)
    ]
    biased = cmmd(rng.normal(size=(50, 16)), rng.normal(size=(50, 16)))
    assert abs(np.mean(values)) < 0.2 * biased
