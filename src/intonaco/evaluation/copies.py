"""Which generated images are copies of training images. Pure, NumPy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from intonaco.evaluation.metrics.arrays import Float, squared_distances

HELD_OUT_SHARE = (
    0.01  # of real images that nobody trained on and that are called copies all the same
)
_ROWS = 512  # held at once in a distance matrix


class Copies:
    """Tells copies from new images: features of ``training`` [t, d] and of ``held_out`` [m, d],
    real images that were not trained on. Raises ValueError with fewer than 3 rows of either.

    As authenticity (Alaa et al. 2022) does, the distance of an image to its nearest training image
    is measured by that one's distance to its own nearest neighbour. Where authenticity calls half
    of all honest images copies, here an image is one if it is nearer than all but 1 % of held-out
    real images are.
    """

    def __init__(self, training: Float, held_out: Float) -> None:
        if min(len(training), len(held_out)) < 3:
            raise ValueError(
                f"{len(training)} training and {len(held_out)} held-out images: at least 3 of each "
                "are needed to tell a copy"
            )
        self.training = training
        self.own = _nearest(training, training, itself=True)[0]
        at = max(0, int(HELD_OUT_SHARE * len(held_out)) - 1)
        self.limit = float(np.partition(self.ratios(held_out), at)[at])

    def ratios(self, images: Float) -> Float:
        """Of features [n, d]: squared distance to the nearest training image, over that one's."""
        distance, index = _nearest(images, self.training)
        out: Float = distance / self.own[index]
        return out

    def __call__(self, images: Float) -> NDArray[np.bool_]:
        """Whether each image [n, d] is a copy. One of another training image twice over is one."""
        ratios = self.ratios(images)
        out: NDArray[np.bool_] = (ratios < self.limit) | (ratios == 0.0)
        return out


def _nearest(x: Float, y: Float, *, itself: bool = False) -> tuple[Float, NDArray[np.intp]]:
    """Squared distance [n] of each row of ``x`` to the nearest of ``y``, and its number. With
    ``itself``, to the nearest that is another image: not the row, nor one of the same features."""
    distance, number = np.empty(len(x)), np.empty(len(x), dtype=np.intp)
    # rounding of equal rows: of how far rows lie apart, not of how far they all lie from zero
    tiny = 1e-9 * float(((y - y.mean(0)) ** 2).sum(1).mean() or 1.0)
    for start in range(0, len(x), _ROWS):
        rows = slice(start, start + _ROWS)
        d = squared_distances(x[rows], y)
        d[d <= tiny] = np.inf if itself else 0.0
        number[rows] = d.argmin(1)
        distance[rows] = np.take_along_axis(d, number[rows, None], 1)[:, 0]
    if itself:
        distance[~np.isfinite(distance)] = tiny
    return distance, number
