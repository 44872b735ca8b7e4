"""How two arms' images lie to a reference, with errors that hold for images paired by prompt.

The difference of two arms of the same prompts has one thing that a single arm's figure lacks: what
it would have been if, for some prompts, the arms had changed places. Recall and coverage are counts
of nearest neighbours, which a bootstrap (that draws rows twice), half-samples (of other density)
and the jackknife (which such counts are too rough for) all overrate, up to twice. Places changed
leave the number and the density of images as they are. Pure, NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from intonaco.evaluation.intervals import Index, strata_of
from intonaco.evaluation.metrics.arrays import Float, distance_blocks, squared_distances
from intonaco.evaluation.metrics.kernels import median_bandwidth
from intonaco.evaluation.metrics.neighbours import kth_neighbour

NEIGHBOURS = 5  # of recall and coverage: a third less noise than 3, and collapse costs as much
DRAWS = 100  # of places changed: a standard error to 7 %
LISTED = 8 * NEIGHBOURS  # neighbours kept of each row in each arm: about half change places
COMPONENTS = 64  # of the reference at most, for the Fréchet distance
ROWS_PER_COMPONENT = 4
RISING = (
    1.2  # of the distance's error towards a rise; docs/concepts/gate.md says what it was held to
)

Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure of both arms, and the standard error of candidate minus champion. ``rising``: the
    one to take for the upper end where that must reach farther. ``moved``: of a share, how many
    reference rows are reached by the candidate alone and by the champion alone."""

    champion: float
    candidate: float
    error: float
    rising: float | None = None
    moved: tuple[int, int] = (0, 0)

    @property
    def difference(self) -> float:
        return self.candidate - self.champion


class Distribution:
    """Images of two arms, champion first, and the reference.

    ``champion`` and ``candidate`` [n, d], row i of both from the same prompt and seed; ``prompts``
    and ``slices`` of each row; ``reference`` [m, d] with ``topics`` of each row (or none). ``rng``
    draws which prompts change places, so many times.
    """

    def __init__(
        self,
        champion: Float,
        candidate: Float,
        reference: Float,
        *,
        prompts: Sequence[str],
        slices: Sequence[str],
        topics: Sequence[str],
        rng: np.random.Generator,
        draws: int = DRAWS,
    ) -> None:
        numbers: dict[str, int] = {}
        of = np.array([numbers.setdefault(p, len(numbers)) for p in prompts], dtype=np.intp)
        order = np.argsort(of, kind="stable")
        self.prompt: Index = of[order]
        self.arms = (champion[order], candidate[order])
        self.reference = reference
        self.prompts = len(numbers)
        self.starts: Index = np.searchsorted(self.prompt, np.arange(self.prompts))
        firsts = [slices[order[i]] for i in self.starts]
        self.strata = strata_of(firsts, least=3)
        self.topics = strata_of(list(topics) or [""] * len(reference))
        self.swapped: Bools = rng.random((draws, self.prompts)) < 0.5
        self._to_real: tuple[Float, Float] | None = None

    @property
    def to_real(self) -> tuple[Float, Float]:
        """Squared distances of each arm's rows to the reference [n, m]."""
        if self._to_real is None:
            a, b = (squared_distances(x, self.reference) for x in self.arms)
            self._to_real = (a, b)
        return self._to_real

    # ------------------------------------------------------------------ shares of the reference

    def recall(self) -> Estimate:
        """Share of reference rows within reach of a generated one, as far as that one's k-th
        neighbour (Kynkäänniemi et al. 2019)."""
        n = len(self.prompt)
        lists = [self._neighbours(arm) for arm in (0, 1)]
        near = np.concatenate([index for index, _ in lists])
        distances = np.concatenate([d for _, d in lists])
        rank = np.empty((2 * n, len(self.reference)), dtype=np.uint8)
        for i, to_real in enumerate(np.concatenate(self.to_real)):
            rank[i] = np.searchsorted(distances[i], to_real, side="left")
        home = np.repeat([False, True], n)

        def reached(swapped: Bools) -> tuple[Bools, Bools]:
            now = home ^ np.tile(swapped[self.prompt], 2)
            same = now[near] == now[:, None]
            radius = (same.cumsum(1, dtype=np.uint8) == NEIGHBOURS).argmax(1).astype(np.uint8)
            covers = rank <= radius[:, None]
            return covers[~now].any(0), covers[now].any(0)

        return self._share(reached)

    def _neighbours(self, arm: int) -> tuple[Index, Float]:
        """Of each row of an arm the nearest rows in both, nearest first: their numbers (champion's
        first) and squared distances. Its own arm's k-th is among them whoever changed places."""
        x, n = self.arms[arm], len(self.prompt)
        most = min(LISTED, n - 1)
        found_index = np.empty((n, 2 * most), dtype=np.intp)
        found_distance = np.empty((n, 2 * most))
        for other in (0, 1):
            to = slice(other * most, (other + 1) * most)
            for rows, d in distance_blocks(x, self.arms[other]):
                if other == arm:
                    d[np.arange(len(d)), np.arange(rows.start, rows.stop)] = np.inf
                index = np.argpartition(d, most - 1, axis=1)[:, :most]
                found_index[rows, to] = index + other * n
                found_distance[rows, to] = np.take_along_axis(d, index, 1)
        order = np.argsort(found_distance, axis=1, kind="stable")
        return (
            np.take_along_axis(found_index, order, 1),
            np.take_along_axis(found_distance, order, 1),
        )

    def coverage(self) -> Estimate:
        """Share of reference rows with a generated one nearer than their own k-th neighbour (Naeem
        et al. 2020)."""
        radius = kth_neighbour(self.reference, NEIGHBOURS)
        a, b = (
            np.logical_or.reduceat(d <= radius[None, :], self.starts, axis=0) for d in self.to_real
        )

        def covered(swapped: Bools) -> tuple[Bools, Bools]:
            out = swapped[:, None]
            before, after = np.where(out, b, a), np.where(out, a, b)
            return np.asarray(before.any(0)), np.asarray(after.any(0))

        return self._share(covered)

    def _share(self, of: _Shares) -> Estimate:
        """What moves if prompts change places; and what another reference would have moved, as far
        as the rows differ more than places changed make them."""
        before, after = of(np.zeros(self.prompts, dtype=bool))
        rows = np.empty((len(self.swapped), len(self.reference)))
        for row, swapped in zip(rows, self.swapped, strict=True):
            a, b = of(swapped)
            np.subtract(b, a, out=row, dtype=np.float64)
        return Estimate(
            champion=float(before.mean()),
            candidate=float(after.mean()),
            error=math.sqrt(self._changed(rows, after.astype(np.float64) - before)),
            moved=(int((after & ~before).sum()), int((before & ~after).sum())),
        )

    def _changed(self, rows: Float, nobody: Float) -> float:
        """Variance of the mean over the reference [m], from that mean where prompts changed places
        [draws, m] and what it was where nobody did [m]: for what the reference's rows differ in it
        by more than chance."""
        spreads = _stratified(rows, self.topics)
        beyond = _stratified(nobody[None], self.topics)[0] - spreads.mean() - spreads.std()
        return float((rows.mean(1) ** 2).mean() + max(0.0, beyond))

    # ------------------------------------------------------------------ distances

    def mmd(self) -> Estimate:
        """Squared maximum mean discrepancy to the reference with a Gaussian kernel of the
        reference's median distance, over pairs of different prompts (after the three-sample test of
        Bounliphone et al. 2016).

        Two errors, each right where the other fails, and the larger counts: from places changed,
        for arms that are alike (where the U-statistic is degenerate); from its projections on
        prompts and reference rows less what is counted twice (Hoeffding 1948), for arms that
        differ.

        A sample that happens to show little of a harm shows little of its spread, too: for the end
        towards a rise the projections count whole, as published tests take them, and the error is
        ``RISING`` times as large at least.
        """
        scale = -0.5 / median_bandwidth(self.reference) ** 2
        weights = np.zeros((self.prompts, len(self.prompt)))
        weights[self.prompt, np.arange(len(self.prompt))] = 1.0
        weights /= weights.sum(1, keepdims=True)
        both = np.concatenate(self.arms)
        two = np.zeros((2 * self.prompts, len(both)))
        two[: self.prompts, : len(self.prompt)] = two[self.prompts :, len(self.prompt) :] = weights
        among = np.zeros((2 * self.prompts, 2 * self.prompts))
        for rows, d in distance_blocks(both, both):
            among += two[:, rows] @ (np.exp(d * scale) @ two.T)
        real = [weights @ np.exp(d * scale) for d in self.to_real]
        p = self.prompts
        numbers = np.arange(p)

        def within(picked: Index) -> float:
            block = among[np.ix_(picked, picked)]
            return float((block.sum() - np.trace(block)) / (p * (p - 1)))

        def row(swapped: Bools) -> Float:
            a, b = numbers + p * swapped, numbers + p * ~swapped
            moved: Float = np.where(swapped[:, None], real[0] - real[1], real[1] - real[0])
            out: Float = within(b) - within(a) - 2.0 * moved.mean(0)
            return out

        drawn = np.stack([row(swapped) for swapped in self.swapped])
        changed = self._changed(drawn, row(np.zeros(p, dtype=bool)))
        whole, twice = self._projected(among[p:, p:] - among[:p, :p], real[1] - real[0])
        z = self.reference
        own = (np.exp(squared_distances(z, z) * scale).sum() - len(z)) / (len(z) * (len(z) - 1))
        first, second = (
            within(numbers + offset) + float(own) - 2.0 * float(k.mean())
            for offset, k in zip((0, p), real, strict=True)
        )
        error = math.sqrt(max(changed, whole - twice, 0.0))
        rising = max(RISING * error, math.sqrt(whole))
        return Estimate(champion=first, candidate=second, error=error, rising=rising)

    def _projected(self, pairs: Float, real: Float) -> tuple[float, float]:
        """Variance of the projections of ``mean_{p != q} pairs - 2 mean real`` [p, p] and [p, m],
        within strata; and how much of it is too much: what is left of a pair beside both prompts'
        own parts enters it twice as often as the variance of the statistic."""
        p, m = real.shape
        clean = pairs.copy()
        np.fill_diagonal(clean, 0.0)
        along = 2.0 * (clean.sum(1) / (p - 1) - real.mean(1))
        total = _stratified(along[None], self.strata)[0]
        total += _stratified(2.0 * real.mean(0)[None], self.topics)[0]
        rest_pairs = rest_real = 0.0
        for i, r in enumerate(self.strata):
            for c in self.strata[i:]:
                block = pairs[np.ix_(r, c)]
                if c is r:
                    rest_pairs += _symmetric_rest(block)
                else:
                    rest_pairs += 2.0 * _rest(block)
            for t in self.topics:
                rest_real += _rest(real[np.ix_(r, t)])
        twice = 2.0 * rest_pairs / (p * (p - 1)) ** 2 + 4.0 * rest_real / (p * m) ** 2
        return float(total), twice

    def frechet(self) -> tuple[Estimate, int]:
        """Fréchet distance to the reference on its leading principal components, as many as there
        is data for, and how many those are. The error is a jackknife over prompts (Efron & Stein
        1981), with the influence of the reference's rows by the derivative of the distance
        (Mallasto & Feragen 2017: the optimal map from the reference to an arm)."""
        n, m = len(self.prompt), len(self.reference)
        width = self.reference.shape[1]
        most = max(1, min(width, COMPONENTS, n // ROWS_PER_COMPONENT, m // ROWS_PER_COMPONENT))
        mean = self.reference.mean(0)
        if most < width:
            _, _, axes = np.linalg.svd(self.reference - mean, full_matrices=False)
            turned = [(x - mean) @ axes[:most].T for x in (self.reference, *self.arms)]
        else:
            turned = [x - mean for x in (self.reference, *self.arms)]
        values, vectors = np.linalg.eigh(np.cov(turned[0].T).reshape(most, most))
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        size = float(values.sum())
        sums = [x.sum(0) for x in turned[1:]]
        squares = [x.T @ x for x in turned[1:]]

        def distance(arm: int, gone: slice | None) -> float:
            total, square, count = sums[arm], squares[arm], n
            if gone is not None:
                part = turned[1 + arm][gone]
                total, square, count = total - part.sum(0), square - part.T @ part, n - len(part)
            centre = total / count
            covariance = (square - count * np.outer(centre, centre)) / (count - 1)
            roots = np.linalg.eigvalsh(root.T @ covariance @ root)
            cross = float(np.sqrt(np.maximum(roots, 0.0)).sum())
            return float(centre @ centre) + float(np.trace(covariance)) + size - 2.0 * cross

        ends = np.append(self.starts[1:], n)
        left_out = [slice(int(a), int(b)) for a, b in zip(self.starts, ends, strict=True)]
        without = np.array([distance(1, s) - distance(0, s) for s in left_out])
        variance = 0.0
        for rows in self.strata:
            k = len(rows)
            variance += (k - 1) / k * float(((without[rows] - without[rows].mean()) ** 2).sum())
        influence = self._pull(turned[0], root, turned[2]) - self._pull(turned[0], root, turned[1])
        variance += float(_stratified(influence[None], self.topics)[0])
        estimate = Estimate(
            champion=distance(0, None), candidate=distance(1, None), error=math.sqrt(variance)
        )
        return estimate, most

    @staticmethod
    def _pull(real: Float, root: Float, generated: Float) -> Float:
        """Influence of each reference row [m] on the Fréchet distance of ``generated`` to it.
        ``root`` is of the reference's covariance, by its principal axes."""
        width = real.shape[1]
        covariance = np.cov(generated.T).reshape(width, width)
        values, vectors = np.linalg.eigh(root.T @ covariance @ root)
        middle = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
        back = np.linalg.pinv(root)
        bend = np.eye(width) - back.T @ middle @ back
        centred = real - real.mean(0)
        gap = generated.mean(0) - real.mean(0)
        out: Float = ((centred @ bend) * centred).sum(1) - 2.0 * (centred @ gap)
        return out


class _Shares(Protocol):
    """Which reference rows champion and candidate reach if these prompts changed places."""

    def __call__(self, swapped: Bools) -> tuple[Bools, Bools]: ...


def _stratified(x: Float, strata: Sequence[Index]) -> Float:
    """Variance of the mean of independent values of fixed strata [n], in each row of [rows, n]."""
    total = np.zeros(len(x))
    for of in strata:
        if len(of) > 1:
            total += x[:, of].var(axis=1, ddof=1) * len(of)
    out: Float = total / x.shape[1] ** 2
    return out


def _rest(block: Float) -> float:
    """Sum of squares of what rows and columns do not explain, as if over all cells."""
    r, c = block.shape
    if min(r, c) < 2:
        return 0.0
    left = block - block.mean(1, keepdims=True) - block.mean(0, keepdims=True) + block.mean()
    return float((left**2).sum() * r * c / ((r - 1) * (c - 1)))


def _symmetric_rest(block: Float) -> float:
    """The same of a symmetric block without its diagonal."""
    k = len(block)
    if k < 4:
        return 0.0
    off = ~np.eye(k, dtype=bool)
    rows = np.where(off, block, 0.0).sum(1) / (k - 1)
    mean = rows.mean()
    own = (rows - mean) * (k - 1) / (k - 2)
    left = (block - mean - own[:, None] - own[None, :])[off]
    return float((left**2).sum() * (k - 1) / (k - 3))
