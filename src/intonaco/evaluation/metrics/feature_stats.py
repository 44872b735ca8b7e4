"""Number, mean and scatter of features: filled as they come, merged across processes, kept."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from uuid import uuid4

import numpy as np
from numpy.typing import ArrayLike

from intonaco.errors import ConfigError, StorageError
from intonaco.evaluation.metrics.arrays import Float, matrix, row_blocks, same_width

ROUNDING = float(np.finfo(np.float64).eps)
SOUND = 1e-6  # smallest pivot over the largest: below, the covariance may be singular


@dataclass(slots=True, eq=False)
class FeatureStats:
    """Number, mean [d] and scatter [d, d] (sum of outer products about the mean) of features.

    Filled batch by batch and merged across processes by the update of Chan, Golub & LeVeque (1983),
    which does not lose digits when the mean is large. ``extractor`` says whose features they are,
    ideally with a digest, and ``preprocessing`` what was done to the pictures before: statistics
    that differ in one of them are neither merged nor compared.
    """

    extractor: str = ""
    n: int = 0
    mean: Float = field(default_factory=lambda: np.zeros(0))
    scatter: Float = field(default_factory=lambda: np.zeros((0, 0)))
    preprocessing: str = ""
    _root: Float | None = field(default=None, repr=False)

    @classmethod
    def from_moments(
        cls,
        mean: ArrayLike,
        covariance: ArrayLike,
        *,
        n: int,
        extractor: str = "",
        preprocessing: str = "",
    ) -> FeatureStats:
        """Of a published ``mean`` [d] and unbiased ``covariance`` [d, d] of ``n`` rows, such as the
        ``mu`` and ``sigma`` of pytorch-fid's files. Raises ValueError."""
        mu = matrix(np.atleast_2d(mean), "mean", rows=1)
        sigma = matrix(covariance, "covariance", rows=1)
        if n < 2 or n != int(n):
            raise ValueError(f"a covariance needs 2 rows or more, a whole number, got n={n}")
        if len(mu) != 1 or sigma.shape != (mu.shape[1], mu.shape[1]):
            raise ValueError(
                f"mean {list(np.shape(mean))} and covariance {list(sigma.shape)} do not fit: "
                "[d] and [d, d] are needed"
            )
        size = np.abs(sigma).max()
        if np.abs(sigma - sigma.T).max() > 1e-6 * size or sigma.diagonal().min() < -1e-6 * size:
            raise ValueError("covariance is not symmetric with a diagonal of 0 or more")
        if np.linalg.eigvalsh(sigma)[0] < -1e-6 * size:
            raise ValueError("covariance has a negative eigenvalue: it is none of any rows")
        scatter = (sigma + sigma.T) * ((n - 1) / 2)
        return cls(extractor, int(n), mu[0].copy(), scatter, preprocessing)

    def update(self, features: ArrayLike) -> Self:
        """Add rows [n, d]. Returns itself. Raises ValueError."""
        x = matrix(features, "features", rows=1)
        mean = x.mean(0)
        scatter = np.zeros((x.shape[1], x.shape[1]))
        for rows in row_blocks(len(x), x.shape[1]):
            centred = x[rows] - mean
            scatter += centred.T @ centred
        return self._add(len(x), mean, scatter)

    def merge(self, other: FeatureStats) -> Self:
        """Add what ``other`` saw. Returns itself. Raises ConfigError: another extractor or other
        preprocessing."""
        check_same_features(self, other)
        return self._add(other.n, other.mean, other.scatter) if other.n else self

    def _add(self, n: int, mean: Float, scatter: Float) -> Self:
        if self.n == 0:
            self.n, self.mean, self.scatter = n, mean.copy(), scatter.copy()
        else:
            same_width(stats=self.scatter, features=scatter)
            total = self.n + n
            delta = mean - self.mean
            self.scatter = self.scatter + scatter + np.outer(delta, delta) * (self.n * n / total)
            self.mean = self.mean + delta * (n / total)
            self.n = total
        self._root = None
        return self

    @property
    def covariance(self) -> Float:
        """Unbiased covariance [d, d]. Raises ValueError with fewer than 2 rows."""
        if self.n < 2:
            raise ValueError(f"a covariance needs 2 rows, got {self.n}")
        out: Float = self.scatter / (self.n - 1)
        return out

    @property
    def root(self) -> Float:
        """``R`` with ``R @ R.T`` the covariance. Kept, and saved with the statistics, so that a
        reference is factored once. Raises ValueError with fewer than 2 rows.

        Cholesky's factor where that is sound; of a covariance that is singular or nearly so, from
        its eigenvalues, of which those below rounding are 0."""
        if self._root is None:
            self._root = _root(self.covariance)
        return self._root

    @property
    def has_root(self) -> bool:
        """Whether the root is there already."""
        return self._root is not None

    def save(self, path: Path | str) -> None:
        """Write an ``.npz`` file, whole or not at all; the root too if it is there. ``load`` gives
        back the same bits."""
        arrays = {
            "extractor": np.array(self.extractor),
            "preprocessing": np.array(self.preprocessing),
            "n": np.array(self.n),
            "mean": self.mean,
            "scatter": self.scatter,
        }
        if self._root is not None:
            arrays["root"] = self._root
        target = Path(path)
        part = target.with_name(f".{target.name}.{uuid4().hex}")
        try:
            with part.open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path | str) -> FeatureStats:
        """Read what ``save`` wrote. Raises StorageError, also for numbers that can be no
        statistics."""
        try:
            with Path(path).open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                found = cls(
                    extractor=str(file["extractor"]),
                    n=int(file["n"]),
                    mean=file["mean"],
                    scatter=file["scatter"],
                    preprocessing=str(file["preprocessing"]) if "preprocessing" in file else "",
                )
                root = file.get("root")
            found._check(root)
            found._root = root
        except Exception as error:  # zipfile and NumPy raise a dozen kinds for a broken file
            raise StorageError(f"{path} holds no feature statistics: {error}") from error
        return found

    def _check(self, root: Float | None) -> None:
        d = len(self.mean)
        for name, x, shape in (
            ("mean", self.mean, (d,)),
            ("scatter", self.scatter, (d, d)),
            ("root", self.scatter if root is None else root, (d, d)),
        ):
            if x.dtype != np.float64 or x.shape != shape or not np.isfinite(x).all():
                raise ValueError(f"{name} is not float64 {list(shape)} of finite numbers")
        if (
            self.n < 0
            or (self.n == 0) != (d == 0)
            or not np.array_equal(self.scatter, self.scatter.T)
        ):
            raise ValueError("number, mean and scatter contradict each other")
        if root is not None:
            probe = np.random.default_rng(0).normal(size=d)
            apart = np.abs(root @ (root.T @ probe) - self.covariance @ probe).max()
            if apart > 1e-8 * max(float(np.trace(self.covariance)), np.finfo(np.float64).tiny):
                raise ValueError("the root is not of this covariance")


def _root(covariance: Float) -> Float:
    try:
        factor = np.asarray(np.linalg.cholesky(covariance), dtype=np.float64)
        pivots = np.diagonal(factor)
        if pivots.min() > SOUND * pivots.max():
            return factor
    except np.linalg.LinAlgError:
        pass  # not positive definite
    values, vectors = np.linalg.eigh(covariance)
    least = values[-1] * len(values) * ROUNDING
    root: Float = np.multiply(vectors, np.sqrt(np.where(values > least, values, 0.0)))
    return root


def check_same_features(x: FeatureStats, y: FeatureStats) -> None:
    """Raises ConfigError unless both are of the same extractor after the same preprocessing."""
    if x.extractor != y.extractor:
        raise ConfigError(
            f"features of different extractors: {x.extractor!r} and {y.extractor!r}",
            hint="extract both with the same model and preprocessing",
        )
    if x.preprocessing != y.preprocessing:
        raise ConfigError(
            f"features after different preprocessing: {x.preprocessing!r} and {y.preprocessing!r}",
            hint="how pictures are resized moves a distance as much as the model that drew them",
        )
