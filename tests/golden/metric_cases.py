"""Feature matrices for which published packages were asked; by NumPy's frozen legacy generator, so
that they are the same numbers everywhere."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Pair = tuple[Float, Float]


def cases() -> dict[str, Pair]:
    """Name -> (x [n, d], y [m, d]). Where it matters x is real and y generated."""
    return {
        "page": _page(),
        "plain": _normal(1, 300, 240, 12),
        "wide": _normal(2, 40, 30, 64),
        "wide_one_side": _normal(3, 300, 20, 48),
        "square": _normal(4, 33, 32, 32),
        "one_column": _normal(5, 60, 50, 1),
        "two_rows": _normal(6, 2, 2, 5),
        "large": _times(_normal(7, 120, 100, 8), 1e3),
        "tiny_variance": _plus(_times(_normal(8, 150, 120, 10), 1e-6), 1.0),
        "tiny": _times(_normal(9, 90, 90, 6), 1e-20),
        "far": _plus(_normal(10, 200, 150, 10), 1e3),
        "graded": _graded(11),
        "sparse": _sparse(12),
        "heavy": _heavy(13),
        "repeated_rows": _repeated(14),
        "copied_rows": _copied(15),
        "equal_columns": _equal_columns(16),
        "grid": _grid(17),
        "single": _single(18),
        "unit": _unit(19),
        "collapsed": _collapsed(20),
        "steep": _steep(21),
        "flat_one_side": _flat_one_side(22),
    }


def _page() -> Pair:
    r = np.random.RandomState(2023)
    x = r.randn(1500, 64)
    return x, r.randn(1200, 64) * 1.1 + 0.05


def _normal(seed: int, n: int, m: int, d: int) -> Pair:
    r = np.random.RandomState(seed)
    return r.randn(n, d), r.randn(m, d) * 1.2 + 0.1


def _times(pair: Pair, factor: float) -> Pair:
    return pair[0] * factor, pair[1] * factor


def _plus(pair: Pair, shift: float) -> Pair:
    return pair[0] + shift, pair[1] + shift


def _graded(seed: int) -> Pair:
    """Deviations from 1 to 1e-4."""
    x, y = _normal(seed, 250, 200, 24)
    scale = 10.0 ** -np.linspace(0.0, 4.0, 24)
    return x * scale, y * scale


def _sparse(seed: int) -> Pair:
    """Like features after a ReLU; the last column is dead on both sides."""
    x, y = _normal(seed, 200, 180, 20)
    x, y = np.maximum(x - 0.5, 0.0), np.maximum(y - 0.5, 0.0)
    x[:, -1] = y[:, -1] = 0.0
    return x, y


def _heavy(seed: int) -> Pair:
    r = np.random.RandomState(seed)
    return r.standard_t(3, size=(220, 9)), r.standard_t(4, size=(160, 9))


def _repeated(seed: int) -> Pair:
    """Each side holds rows seven times, of a grid, so that every package sees them equal."""
    x, y = _grid(seed)
    return np.concatenate([x, np.repeat(x[:5], 6, axis=0)]), np.concatenate([y, y[:1].repeat(6, 0)])


def _copied(seed: int) -> Pair:
    """A third of y are rows of x."""
    x, y = _grid(seed)
    y[:40] = x[10:50]
    return x, y


def _equal_columns(seed: int) -> Pair:
    x, y = _normal(seed, 120, 110, 16)
    x[:, 8:], y[:, 8:] = x[:, :8], y[:, :8]
    return x, y


def _grid(seed: int) -> Pair:
    """Whole numbers: many distances are exactly equal."""
    r = np.random.RandomState(seed)
    return (
        r.randint(-2, 3, size=(130, 7)).astype(np.float64),
        r.randint(-3, 3, size=(120, 7)).astype(np.float64),
    )


def _single(seed: int) -> Pair:
    """Numbers that float32 holds."""
    x, y = _normal(seed, 140, 130, 11)
    return x.astype(np.float32).astype(np.float64), y.astype(np.float32).astype(np.float64)


def _unit(seed: int) -> Pair:
    x, y = _normal(seed, 180, 150, 32)
    return (
        x / np.sqrt((x * x).sum(1, keepdims=True)),
        y / np.sqrt((y * y).sum(1, keepdims=True)),
    )


def _collapsed(seed: int) -> Pair:
    r = np.random.RandomState(seed)
    return r.randn(200, 8), 0.3 * r.randn(200, 8)


def _steep(seed: int) -> Pair:
    """Deviations from 1 to 1e-9, in directions that are no column's."""
    x, y = _normal(seed, 200, 180, 24)
    scale = 10.0 ** -np.linspace(0.0, 9.0, 24)
    mirror = np.eye(24) - 2.0 / 24  # of Householder; its own inverse
    return (x * scale) @ mirror, (y * scale) @ mirror


def _flat_one_side(seed: int) -> Pair:
    """Half of the columns of x repeat the others, those of y do not."""
    x, y = _normal(seed, 150, 140, 20)
    x[:, 10:] = x[:, :10]
    return x, y
