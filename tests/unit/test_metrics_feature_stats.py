"""Statistics of features: exact merges, files, identity, the cached root."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intonaco.errors import ConfigError, StorageError
from intonaco.evaluation.metrics import FeatureStats, MetricWarning, frechet_distance
from intonaco.evaluation.metrics.arrays import Float

RNG = np.random.default_rng(0)
X: Float = RNG.normal(size=(90, 7)) @ RNG.normal(size=(7, 7)) + 3.0


@given(st.lists(st.integers(0, 90), max_size=6), st.sampled_from([0.0, 1e3, 1e8]), st.randoms())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_parts_give_the_whole_in_any_order(cuts: list[int], shift: float, random: Any) -> None:
    """Within the rounding that comes in with a mean far from zero, and no more."""
    x = X + shift
    parts = [p for p in np.split(x, sorted(cuts)) if len(p)]
    random.shuffle(parts)
    merged, updated = FeatureStats(), FeatureStats()
    for part in parts:
        merged.merge(FeatureStats().update(part))
        updated.update(part)
    centred = x - [math.fsum(column) / len(x) for column in x.T]
    expected = centred.T @ centred / (len(x) - 1)
    for found in (merged, updated, FeatureStats().merge(merged).merge(FeatureStats())):
        assert found.n == len(x)
        np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-14)
        size = float(np.trace(expected)) * (1e-13 + 1e-15 * shift)
        np.testing.assert_allclose(found.covariance, expected, rtol=0, atol=size)


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = FeatureStats().update(X)
    monkeypatch.setattr("intonaco.evaluation.metrics.arrays.CELLS", 60)
    parts = FeatureStats().update(X)
    np.testing.assert_array_equal(parts.mean, whole.mean)
    np.testing.assert_allclose(parts.scatter, whole.scatter, rtol=1e-13)


@pytest.mark.parametrize("rooted", [False, True])
def test_a_file_gives_back_the_same_bits(tmp_path: Path, rooted: bool) -> None:
    stats = FeatureStats("clip@1", preprocessing="bicubic").update(X)
    if rooted:
        assert stats.root.shape == (7, 7)
    stats.save(tmp_path / "ref.npz")
    back = FeatureStats.load(tmp_path / "ref.npz")
    assert (back.extractor, back.preprocessing, back.n) == ("clip@1", "bicubic", 90)
    assert back.has_root == rooted
    for name in ("mean", "scatter", "covariance", "root"):
        assert getattr(back, name).tobytes() == getattr(stats, name).tobytes()
    assert [p.name for p in tmp_path.iterdir()] == ["ref.npz"]


def test_empty_statistics_have_a_file_too(tmp_path: Path) -> None:
    FeatureStats("a").save(tmp_path / "ref.npz")
    assert FeatureStats.load(tmp_path / "ref.npz").update(X).n == 90


def test_a_file_of_an_older_version_has_no_preprocessing(tmp_path: Path) -> None:
    stats = FeatureStats("a").update(X)
    with (tmp_path / "ref.npz").open("wb") as file:
        np.savez(file, extractor=np.array("a"), n=90, mean=stats.mean, scatter=stats.scatter)
    assert FeatureStats.load(tmp_path / "ref.npz").preprocessing == ""


def _save(path: Path, **changed: Any) -> None:
    stats = FeatureStats("a").update(X)
    arrays = {
        "extractor": np.array("a"),
        "n": np.array(90),
        "mean": stats.mean,
        "scatter": stats.scatter,
        "root": stats.root,
    } | changed
    with path.open("wb") as file:
        np.savez(file, **{k: v for k, v in arrays.items() if v is not None})


@pytest.mark.parametrize(
    "changed",
    [
        {"scatter": None},
        {"scatter": np.eye(6)},
        {"scatter": np.triu(np.ones((7, 7)))},
        {"mean": np.full(7, np.nan)},
        {"mean": np.zeros(7, dtype=np.float32)},
        {"mean": np.array([object()] * 7)},
        {"n": np.array(-1)},
        {"n": np.array(0)},
        {"root": np.eye(7)},
        {"root": np.eye(3)},
    ],
)
def test_a_file_that_can_be_no_statistics_is_refused(tmp_path: Path, changed: Any) -> None:
    _save(tmp_path / "ref.npz", **changed)
    with pytest.raises(StorageError, match="holds no feature statistics"):
        FeatureStats.load(tmp_path / "ref.npz")


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ref.npz"
    with pytest.raises(StorageError):
        FeatureStats.load(path)
    _save(path)
    raw = path.read_bytes()
    for broken in (b"", b"PK", raw[: len(raw) // 2], raw[:200] + b"\0" * 50 + raw[250:]):
        path.write_bytes(broken)
        with pytest.raises(StorageError):
            FeatureStats.load(path)


def test_a_save_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stats = FeatureStats("a").update(X)
    stats.save(tmp_path / "ref.npz")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy.savez", full)
    with pytest.raises(OSError, match="No space"):
        stats.update(X).save(tmp_path / "ref.npz")
    assert FeatureStats.load(tmp_path / "ref.npz").n == 90
    assert [p.name for p in tmp_path.iterdir()] == ["ref.npz"]


def test_other_preprocessing_is_refused_as_another_extractor_is() -> None:
    one = FeatureStats("a", preprocessing="bilinear").update(X)
    two = FeatureStats("a", preprocessing="bicubic").update(X)
    for refused in (lambda: one.merge(two), lambda: frechet_distance(one, two)):
        with pytest.raises(ConfigError, match="'bilinear' and 'bicubic'"):
            refused()
    assert one.n == 90


def test_published_moments() -> None:
    stats = FeatureStats.from_moments(X.mean(0), np.cov(X.T), n=90, extractor="fid")
    assert frechet_distance(stats, FeatureStats("fid").update(X + 1.0)) == pytest.approx(7.0)
    assert stats.merge(FeatureStats("fid").update(X)).n == 180
    np.testing.assert_allclose(stats.covariance * 179, FeatureStats().update(X).scatter * 2)


@pytest.mark.parametrize(
    ("mean", "covariance", "n", "message"),
    [
        (np.zeros(3), np.eye(4), 5, "do not fit"),
        (np.zeros((2, 3)), np.eye(3), 5, "do not fit"),
        (np.zeros(3), np.eye(3), 1, "2 rows"),
        (np.zeros(3), np.triu(np.ones((3, 3))), 5, "not symmetric"),
        (np.zeros(3), -np.eye(3), 5, "not symmetric"),
        (np.zeros(3), np.full((3, 3), np.nan), 5, "not finite"),
        (np.zeros(3), np.eye(3), 2.5, "whole number"),
        (np.zeros(2), np.array([[1.0, 2.0], [2.0, 1.0]]), 5, "negative eigenvalue"),
    ],
)
def test_moments_that_are_none(mean: Float, covariance: Float, n: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureStats.from_moments(mean, covariance, n=n)  # type: ignore[arg-type]


def test_a_root_of_a_singular_covariance_has_its_rank() -> None:
    """So that what is nothing but rounding adds nothing to a distance."""
    flat = X[:, :3] @ np.random.default_rng(1).normal(size=(3, 7))
    stats = FeatureStats().update(flat)
    assert int((np.abs(stats.root).max(0) > 0).sum()) == 3
    np.testing.assert_allclose(stats.root @ stats.root.T, stats.covariance, atol=1e-12)


def test_the_reference_is_factored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = FeatureStats().update(X)
    calls: list[int] = []
    cholesky = np.linalg.cholesky

    def counted(a: Float) -> Float:
        calls.append(1)
        out: Float = np.asarray(cholesky(a), dtype=np.float64)
        return out

    monkeypatch.setattr(np.linalg, "cholesky", counted)
    for shift in (0.0, 1.0, 2.0):
        frechet_distance(X + shift, reference)
        frechet_distance(reference, FeatureStats().update(X + shift))
    assert len(calls) == 1


def test_statistics_without_spread_are_told() -> None:
    constant = FeatureStats().update(np.full((50, 7), 0.1))
    with pytest.warns(MetricWarning, match="have no spread"):
        frechet_distance(constant, FeatureStats().update(X))
