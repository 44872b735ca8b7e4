"""What an extractor may not see of a picture: how much fine detail it has."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_LUMINANCE = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
_FLOOR = (2.0 / 255) ** 2  # two grey levels: a tile of one tone has no detail, not minus any
_TILE = 8  # pixels a side


def log_detail(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Fine detail of pictures [n, h, w, 3] of at least 3 x 3 pixels: natural log of the mean
    squared Laplacian of the luminance in tiles of about 8 x 8 pixels, averaged over the tiles [n].

    Blur takes it away where there are edges; noise adds it where there are none, which the energy
    of a whole picture (a common measure of focus: Pertuz, Puig & Garcia 2013) drowns in its edges.
    Comparable between pictures of one size only. Raises ValueError for another shape.
    """
    if images.ndim != 4 or images.shape[3] != 3 or min(images.shape[1:3]) < 3:
        raise ValueError(f"pictures must have shape [n, h, w, 3], got {list(images.shape)}")
    height, width = (size - 2 for size in images.shape[1:3])
    rows, columns = _starts(height), _starts(width)
    sizes = np.outer(np.diff(rows, append=height), np.diff(columns, append=width))
    out = np.empty(len(images))
    for i, image in enumerate(images):
        grey = image @ (_LUMINANCE / 255.0)
        laplacian = (
            grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
        ) - 4.0 * grey[1:-1, 1:-1]
        sums = np.add.reduceat(np.add.reduceat(laplacian**2, rows, axis=0), columns, axis=1)
        out[i] = np.log(sums / sizes + _FLOOR).mean()
    return out


def _starts(size: int) -> NDArray[np.intp]:
    """Where tiles of about 8 begin."""
    count = max(1, round(size / _TILE))
    return (np.arange(count) * size // count).astype(np.intp)
