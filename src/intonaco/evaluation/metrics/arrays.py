"""Checks and distances that the metrics share."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float = NDArray[np.float64]
BLOCK = 2048  # rows of a distance matrix that are held at once, at most
CELLS = 2**24  # numbers of it that are held at once: 128 MiB
LARGEST, SMALLEST = 1e50, 1e-140  # within these no square, and no cube of one, leaves float64
TIE = 1e-12  # of the squared norms: so near, a distance by expansion tells nothing


class MetricWarning(UserWarning):
    """The value is what the formula gives, but it may not mean what it seems to."""


def matrix(x: ArrayLike, name: str, *, rows: int = 2) -> Float:
    """``x`` as float64 [n, d]. Raises ValueError: not two-dimensional, no columns, fewer than
    ``rows`` rows, masked, or a value that is not a real finite number (a metric of a NaN would be a
    silent pass) or whose square is none."""
    if isinstance(x, np.ma.MaskedArray):
        raise ValueError(f"{name} is a masked array: leave rows out that do not count")
    given = np.asarray(x)
    if given.dtype.kind not in "fiub":
        raise ValueError(f"{name} must hold real numbers, got {given.dtype}")
    out: Float = np.ascontiguousarray(given, dtype=np.float64)
    if out.ndim != 2 or given.ndim != 2:
        raise ValueError(f"{name} must have shape [n, d], got {list(given.shape)}")
    if len(out) < rows:
        raise ValueError(f"{name} has {len(out)} rows, at least {rows} are needed")
    if out.shape[1] == 0:
        raise ValueError(f"{name} has no columns")
    largest = max(float(out.max()), -float(out.min()))  # NaN stays NaN, and takes no memory
    if not np.isfinite(largest):
        raise ValueError(f"{name} holds values that are not finite")
    if largest > LARGEST or 0.0 < largest < SMALLEST:
        raise ValueError(
            f"{name} has {largest:.3g} as its largest value, too far from 1 for squares in float64:"
            " scale all features by one number"
        )
    return out


def same_width(**named: NDArray[Any]) -> None:
    """Raises ValueError unless all matrices have as many columns."""
    widths = {name: x.shape[1] for name, x in named.items()}
    if len(set(widths.values())) > 1:
        raise ValueError(f"features of different widths: {widths}")


def warn_of_constants(**named: Float) -> None:
    """A MetricWarning for each matrix whose rows are all equal: a collapsed generator or a broken
    extractor, and two broken ones would look perfect."""
    for name, x in named.items():
        if len(x) > 1 and (x == x[0]).all():
            warnings.warn(
                f"all {len(x)} rows of {name} are equal: is the extractor broken?",
                MetricWarning,
                stacklevel=3,
            )


def unit_rows(x: Float) -> Float:
    """Rows scaled to length 1; a row of zeros stays."""
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    out: Float = x / np.where(norms > 0, norms, 1.0)
    return out


def directions(x: ArrayLike, name: str, *, rows: int = 2) -> Float:
    """``matrix`` with rows scaled to length 1. Raises ValueError for a row of zeros, too, which
    has no direction."""
    out = matrix(x, name, rows=rows)
    zero = np.flatnonzero(~out.any(axis=1))
    if len(zero):
        raise ValueError(f"{name}: {len(zero)} rows are zero (the first is {zero[0]})")
    return unit_rows(out)


def squared_distances(x: Float, y: Float) -> Float:
    """Squared Euclidean distances [n, m]. Never negative; 0 between equal rows, exactly.

    By ``|x|^2 + |y|^2 - 2 <x, y>``, about a point near the rows of ``y`` when they lie far from
    zero. What cancels to nearly nothing is computed again from the difference of the rows.
    """
    x, y = near_zero(x, y, of=y)
    return _expanded(x, y, squared_norms(x), squared_norms(y))


def _expanded(x: Float, y: Float, norms_x: Float, norms_y: Float) -> Float:
    d: Float = x @ y.T
    d *= -2.0
    d += norms_x[:, None]
    d += norms_y[None, :]
    rows, columns = np.nonzero(d <= TIE * (norms_x[:, None] + norms_y.max(initial=0.0)))
    lost = d[rows, columns] <= TIE * (norms_x[rows] + norms_y[columns])
    rows, columns = rows[lost], columns[lost]
    d[rows, columns] = paired_distances(x, y, rows, columns)
    return d


def squared_norms(x: Float) -> Float:
    """Of each row [n], without a copy of the matrix."""
    return np.asarray(np.einsum("nd,nd->n", x, x), dtype=np.float64)


def paired_distances(
    x: Float, y: Float, rows: NDArray[np.intp], columns: NDArray[np.intp]
) -> Float:
    """Squared distances [p] of ``x[rows]`` and ``y[columns]``, from differences: the same two rows
    always give the same bits, in whichever order and wherever they stand."""
    out = np.empty(len(rows))
    step = max(1, CELLS // 4 // max(1, x.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        out[part] = np.square(x[rows[part]] - y[columns[part]]).sum(1)
    return out


def row_blocks(n: int, m: int) -> Iterator[slice]:
    """``n`` rows in parts, of which each with ``m`` columns fits into ``CELLS``."""
    step = max(1, min(BLOCK, CELLS // max(1, m)))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def distance_blocks(x: Float, y: Float) -> Iterator[tuple[slice, Float]]:
    """Squared distances of blocks of rows of ``x`` to all of ``y``, which lie ``near_zero``."""
    norms_x, norms_y = squared_norms(x), squared_norms(y)
    for rows in row_blocks(len(x), len(y)):
        yield rows, _expanded(x[rows], y, norms_x[rows], norms_y)


def near_zero(x: Float, y: Float, *, of: Float) -> tuple[Float, Float]:
    """Both minus a point near the mean of ``of``, if that is far from zero for their spread. The
    point is rounded to a power of two below the spread, so that grids stay grids."""
    centre = of.mean(0)
    size = float(np.square(centre).mean())
    spread = float(squared_norms(of).mean()) / of.shape[1] - size  # no copy, and good enough
    if size == 0.0 or size <= 100.0 * spread:
        return x, y
    unit = 2.0 ** np.floor(np.log2(np.sqrt(max(spread, size * 2.0**-50))))
    point = np.round(centre / unit) * unit
    return x - point, y - point
