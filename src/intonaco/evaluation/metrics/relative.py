"""Which of two samples is nearer to a reference."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from intonaco.evaluation.metrics.arrays import matrix, same_width, warn_of_constants
from intonaco.evaluation.metrics.kernels import (
    Kernel,
    Named,
    cross_sums,
    finite,
    named_kernel,
    own_sums,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RelativeMmd:
    """``difference`` = MMD^2(candidate, reference) - MMD^2(champion, reference): negative when the
    candidate is nearer. ``n``: pairs; ``groups``: independent units among them."""

    difference: float
    standard_error: float
    champion: float
    candidate: float
    n: int
    groups: int

    @property
    def z(self) -> float:
        if self.standard_error == 0.0:
            return 0.0 if self.difference == 0.0 else float(np.copysign(np.inf, self.difference))
        return self.difference / self.standard_error


def relative_mmd(
    reference: ArrayLike,
    champion: ArrayLike,
    candidate: ArrayLike,
    *,
    groups: Sequence[Hashable] | None = None,
    kernel: Kernel | Named = "gaussian",
) -> RelativeMmd:
    """Which of two paired samples is nearer to a reference (the three-sample test of Bounliphone et
    al. 2016, paired: row i of both arms has the same prompt, seed and initial noise).

    ``reference`` [m, d], ``champion`` and ``candidate`` [n, d]. ``groups`` names the independent
    unit of each row (the prompt): rows of one group count as one in the standard error. The
    Gaussian kernel's bandwidth is the reference's median distance. Raises ValueError. Warns
    (MetricWarning) when all rows of a sample are equal.
    """
    z = matrix(reference, "reference")
    y, x = matrix(champion, "champion"), matrix(candidate, "candidate")
    same_width(reference=z, champion=y, candidate=x)
    if len(x) != len(y):
        raise ValueError(f"pairs needed: champion has {len(y)} rows, candidate {len(x)}")
    warn_of_constants(reference=z, champion=y, candidate=x)
    k = named_kernel(kernel, z)
    n, m = len(x), len(z)
    index = _group_index(groups, n)
    with np.errstate(over="ignore", invalid="ignore"):  # told in words below
        xx, yy = own_sums(k, x).rows / (n - 1), own_sums(k, y).rows / (n - 1)
        xz, yz = cross_sums(k, x, z), cross_sums(k, y, z)
        zz = float(own_sums(k, z).rows.sum()) / (m * (m - 1))
    finite(zz + xx.sum() + yy.sum() + xz.rows.sum() + yz.rows.sum())
    # first-order projections (Hoeffding) of the difference on a pair and on a reference row; the
    # reference's own term is the same for both arms and cancels
    along_pairs = 2.0 * ((xx - yy) - (xz.rows - yz.rows) / m)
    along_reference = 2.0 * (yz.columns - xz.columns) / n
    count = int(index.max()) + 1
    sums = np.bincount(index, weights=along_pairs - along_pairs.mean(), minlength=count)
    if count < 2:
        raise ValueError("all rows are of one group: no standard error")
    variance = (sums**2).sum() / n**2 * count / (count - 1) + along_reference.var(ddof=1) / m
    of_candidate = xx.mean() + zz - 2.0 * xz.rows.mean() / m
    of_champion = yy.mean() + zz - 2.0 * yz.rows.mean() / m
    return RelativeMmd(
        difference=float(of_candidate - of_champion),
        standard_error=float(np.sqrt(variance)),
        champion=float(of_champion),
        candidate=float(of_candidate),
        n=n,
        groups=count,
    )


def _group_index(groups: Sequence[Hashable] | None, n: int) -> NDArray[np.intp]:
    if groups is None:
        return np.arange(n)
    if len(groups) != n:
        raise ValueError(f"{len(groups)} groups for {n} rows")
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(g, len(numbers)) for g in groups], dtype=np.intp)
