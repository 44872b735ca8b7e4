"""What an extractor may not see of a picture: how much fine detail it has."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_LUMINANCE = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
_FLOOR = (0.5 / 255) ** 2  # half a grey level: a picture of one tone has no detail, not minus any


def log_detail(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Natural log of the mean squared Laplacian of the luminance [n], of pictures [n, h, w, 3] of
    at least 3 x 3 pixels.

    The energy of the finest waves: blur takes it away, noise adds it. The Laplacian's energy is a
    common measure of focus (Pertuz, Puig & Garcia 2013, LAPE). Comparable between pictures of one
    size only. Raises ValueError for another shape.
    """
    if images.ndim != 4 or images.shape[3] != 3 or min(images.shape[1:3]) < 3:
        raise ValueError(f"pictures must have shape [n, h, w, 3], got {list(images.shape)}")
    out = np.empty(len(images))
    for i, image in enumerate(images):
        grey = image @ (_LUMINANCE / 255.0)
        laplacian = (
            grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
        ) - 4.0 * grey[1:-1, 1:-1]
        out[i] = np.log(np.mean(laplacian**2) + _FLOOR)
    return out
