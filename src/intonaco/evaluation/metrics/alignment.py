"""How well pictures fit their prompts."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from intonaco.evaluation.metrics.arrays import Float, directions, same_width


def cosines(images: ArrayLike, texts: ArrayLike) -> Float:
    """Raw cosine [n], -1 to 1, of row i of ``images`` [n, d] and of ``texts`` [n, d], of a model
    such as CLIP that embeds both in one space.

    No factor, no clamping, no prefix: CLIPScore as published (Hessel et al. 2021) is
    ``2.5 * max(cosine, 0)`` with "A photo depicts " before the caption, torchmetrics' is
    ``100 * cosine`` with the mean clamped. Raises ValueError, also for a row of zeros.
    """
    a, b = directions(images, "images", rows=1), directions(texts, "texts", rows=1)
    same_width(images=a, texts=b)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} images for {len(b)} texts")
    out: Float = (a * b).sum(1)
    return np.clip(out, -1.0, 1.0)
