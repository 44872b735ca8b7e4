"""Checks and distances that the metrics share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float = NDArray[np.float64]
BLOCK = 2048  # rows held at once in a distance matrix


def matrix(x: ArrayLike, name: str, *, rows: int = 2) -> Float:
    """``x`` as float64 [n, d]. Raises ValueError: not two-dimensional, fewer than ``rows`` rows,
    or a value that is not finite (a metric of a NaN would be a silent pass)."""
    out: Float = np.ascontiguousarray(x, dtype=np.float64)
    if out.ndim != 2:
        raise ValueError(f"{name} must have shape [n, d], got {list(out.shape)}")
    if len(out) < rows:
        raise ValueError(f"{name} has {len(out)} rows, at least {rows} are needed")
    if not np.isfinite(out).all():
        raise ValueError(f"{name} holds values that are not finite")
    return out


def same_width(**named: NDArray[Any]) -> None:
    """Raises ValueError unless all matrices have as many columns."""
    widths = {name: x.shape[1] for name, x in named.items()}
    if len(set(widths.values())) > 1:
        raise ValueError(f"features of different widths: {widths}")


def unit_rows(x: Float) -> Float:
    """Rows scaled to length 1; a row of zeros stays."""
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    out: Float = x / np.where(norms > 0, norms, 1.0)
    return out


def squared_distances(x: Float, y: Float) -> Float:
    """Squared Euclidean distances [n, m]. Never negative."""
    d: Float = (x * x).sum(1)[:, None] + (y * y).sum(1)[None, :] - 2.0 * (x @ y.T)
    return np.maximum(d, 0.0, out=d)


def distance_blocks(x: Float, y: Float) -> Iterator[tuple[slice, Float]]:
    """Squared distances of blocks of rows of ``x`` to all of ``y``."""
    for start in range(0, len(x), BLOCK):
        rows = slice(start, min(start + BLOCK, len(x)))
        yield rows, squared_distances(x[rows], y)
