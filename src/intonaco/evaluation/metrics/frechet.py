"""Fréchet distance between two Gaussians fitted to features (Dowson & Landau 1982; as a metric of
generators: Heusel et al. 2017).

Biased upwards at small n, and by an amount that depends on the model (Chong & Forsyth 2020):
compare only at equal n.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from intonaco.errors import ConfigError, StorageError
from intonaco.evaluation.metrics.arrays import Float, matrix, same_width


@dataclass(slots=True)
class FeatureStats:
    """Number, mean [d] and scatter [d, d] (sum of outer products about the mean) of features.

    Filled batch by batch and merged across processes by Chan's update, which does not lose digits
    when the mean is large. ``extractor`` says whose features they are, ideally with a digest.
    """

    extractor: str = ""
    n: int = 0
    mean: Float = field(default_factory=lambda: np.zeros(0))
    scatter: Float = field(default_factory=lambda: np.zeros((0, 0)))
    _root: Float | None = field(default=None, repr=False)

    def update(self, features: ArrayLike) -> Self:
        """Add rows. Returns itself. Raises ValueError."""
        x = matrix(features, "features", rows=1)
        mean = x.mean(0)
        centred = x - mean
        return self._add(len(x), mean, centred.T @ centred)

    def merge(self, other: FeatureStats) -> Self:
        """Add what ``other`` saw. Returns itself. Raises ConfigError: another extractor."""
        _same_extractor(self, other)
        return self._add(other.n, other.mean, other.scatter) if other.n else self

    def _add(self, n: int, mean: Float, scatter: Float) -> Self:
        self._root = None
        if self.n == 0:
            self.n, self.mean, self.scatter = n, mean.copy(), scatter.copy()
            return self
        same_width(stats=self.scatter, features=scatter)
        total = self.n + n
        delta = mean - self.mean
        self.scatter = self.scatter + scatter + np.outer(delta, delta) * (self.n * n / total)
        self.mean = self.mean + delta * (n / total)
        self.n = total
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
        """``R`` with ``R @ R.T`` the covariance. Kept, so that a reference is factored once."""
        if self._root is None:
            values, vectors = np.linalg.eigh(self.covariance)
            self._root = vectors * np.sqrt(np.maximum(values, 0.0))
        return self._root

    def save(self, path: Path | str) -> None:
        """Write an ``.npz`` file."""
        with Path(path).open("wb") as file:
            np.savez(
                file,
                extractor=np.array(self.extractor),
                n=np.array(self.n),
                mean=self.mean,
                scatter=self.scatter,
            )

    @classmethod
    def load(cls, path: Path | str) -> FeatureStats:
        """Read what ``save`` wrote. Raises StorageError."""
        try:
            with np.load(Path(path), allow_pickle=False) as file:
                return cls(
                    extractor=str(file["extractor"]),
                    n=int(file["n"]),
                    mean=file["mean"],
                    scatter=file["scatter"],
                )
        except (OSError, KeyError, ValueError) as error:
            raise StorageError(f"{path} holds no feature statistics: {error}") from error


def frechet_distance(x: ArrayLike | FeatureStats, y: ArrayLike | FeatureStats) -> float:
    """``|mu_x - mu_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^1/2)``, of matrices [n, d] or statistics.

    The trace of the root is the nuclear norm of ``R_x.T @ R_y`` for any ``R R.T = S``. With more
    rows than columns on both sides it comes from the eigenvalues of ``R_x.T S_y R_x``. Where a
    covariance is singular (n <= d), eigenvalues near 0 would cost four digits; singular values of
    the triangular factors of the centred rows are exact there.

    Raises ValueError (fewer than 2 rows, widths that differ, values that are not finite) and
    ConfigError (statistics of different extractors).
    """
    if isinstance(x, FeatureStats) and isinstance(y, FeatureStats):
        _same_extractor(x, y)
        return _of_stats(x, y)
    if isinstance(x, FeatureStats) or isinstance(y, FeatureStats):
        return _of_stats(_stats(x), _stats(y))
    a, b = matrix(x, "x"), matrix(y, "y")
    same_width(x=a, y=b)
    if min(len(a), len(b)) > a.shape[1]:
        return _of_stats(FeatureStats().update(a), FeatureStats().update(b))
    mean_a, mean_b = a.mean(0), b.mean(0)
    factor_a = np.linalg.qr(a - mean_a, mode="r") / np.sqrt(len(a) - 1)
    factor_b = np.linalg.qr(b - mean_b, mode="r") / np.sqrt(len(b) - 1)
    cross = np.linalg.svd(factor_a @ factor_b.T, compute_uv=False).sum()
    spread = (factor_a**2).sum() + (factor_b**2).sum()
    return float(((mean_a - mean_b) ** 2).sum() + spread - 2.0 * cross)


def _stats(x: ArrayLike | FeatureStats) -> FeatureStats:
    return x if isinstance(x, FeatureStats) else FeatureStats().update(matrix(x, "features"))


def _of_stats(x: FeatureStats, y: FeatureStats) -> float:
    if x._root is None and y._root is not None:
        x, y = y, x  # use the root that is there
    covariance = y.covariance
    same_width(x=x.scatter, y=y.scatter)
    root = x.root
    values = np.linalg.eigvalsh(root.T @ covariance @ root)
    cross = np.sqrt(np.maximum(values, 0.0)).sum()
    shift = ((x.mean - y.mean) ** 2).sum()
    return float(shift + np.trace(x.covariance) + np.trace(covariance) - 2.0 * cross)


def _same_extractor(x: FeatureStats, y: FeatureStats) -> None:
    if x.extractor != y.extractor:
        raise ConfigError(
            f"features of different extractors: {x.extractor!r} and {y.extractor!r}",
            hint="extract both with the same model and preprocessing",
        )
