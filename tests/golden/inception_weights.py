"""Weights and pictures made by NumPy's frozen legacy generator, the same everywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


def weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, NDArray[np.float32]]:
    """Tensors by name for an Inception-v3, scaled so that nothing vanishes on the way."""
    out = {}
    for i, (name, shape) in enumerate(sorted(shapes.items())):
        r = np.random.RandomState(i)
        if name.endswith("running_var"):
            value = 1.0 + 0.2 * r.rand(*shape)
        elif name.endswith(("bn.weight",)):
            value = 1.0 + 0.1 * r.randn(*shape)
        elif len(shape) == 1:
            value = 0.1 * r.randn(*shape)
        elif len(shape) == 0:
            continue
        else:
            value = r.randn(*shape) * np.sqrt(2.0 / np.prod(shape[1:]))
        out[name] = np.ascontiguousarray(value, dtype=np.float32)
    return out


def pictures() -> list[NDArray[np.uint8]]:
    """A small one to enlarge and a large one to make smaller, uint8 [h, w, 3]."""
    r = np.random.RandomState(0)
    return [r.randint(0, 256, size=(h, w, 3)).astype(np.uint8) for h, w in ((40, 56), (420, 350))]
