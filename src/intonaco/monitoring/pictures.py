"""What can be told of a picture without a model: a perceptual hash, and whether it shows anything.

The hash is ours in NumPy (thirty lines): the library for it pulls SciPy and PyWavelets into the
scorer for a transform of 32 x 32 numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 32
LOW = 8  # frequencies a side that the hash keeps
FAINT = 0.5  # grey levels: a wave this faint is rounding
LEVELS = 256.0
EDGE = 4  # levels from black or white that still count as it
BLANK_CONTRAST = 0.01
BLANK_SHARE = 0.995

Grey = NDArray[np.float64]


def grey(image: Image.Image) -> Grey:
    """Luminance [h, w], 0 to 255 (ITU-R BT.601, as PIL's mode L)."""
    return np.asarray(image.convert("L"), dtype=np.float64)


def facts(light: Grey) -> Mapping[str, float]:
    """Of a luminance [h, w]: "contrast", its standard deviation as a share of the range; "black"
    and "white", the shares of pixels that are, to four levels."""
    return {
        "contrast": round(float(light.std()) / (LEVELS - 1), 6),
        "black": round(float((light < EDGE).mean()), 6),
        "white": round(float((light > LEVELS - 1 - EDGE).mean()), 6),
    }


def blank(seen: Mapping[str, float]) -> bool:
    """Whether a picture of these facts shows nothing: one tone, but for a speck."""
    most = max(seen.get("black", 0.0), seen.get("white", 0.0))
    return seen["contrast"] < BLANK_CONTRAST or most >= BLANK_SHARE


def perceptual_hash(image: Image.Image) -> str:
    """64 bits in hex: which of the 63 lowest waves of a 32 x 32 reduction are above their median,
    or above zero if that is higher (the first bit, the mean, is always 0). Hardly changed by size,
    format or a little noise; all zero for a picture of one tone.

    Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", Hagenberg 2010;
    the transform is the DCT-II of Ahmed, Natarajan & Rao, IEEE Trans. Computers 23, 1974.

    >>> perceptual_hash(Image.new("RGB", (64, 64), (9, 9, 9)))
    '0000000000000000'
    """
    small = grey(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    waves = (_DCT[:LOW] @ small @ _DCT[:LOW].T).ravel()[1:]
    waves = np.where(np.abs(waves) < FAINT * SIDE / 2, 0.0, waves)
    bits = np.concatenate([[False], waves > max(float(np.median(waves)), 0.0)])
    if not bits.any() and waves.any():  # dark waves only: still not a picture of one tone
        bits[1:] = waves < 0.0
    return np.packbits(bits).tobytes().hex()


def bits_between(a: str, b: str) -> int:
    """How many bits two hashes differ in, 0 to 64.

    >>> bits_between("00000000000000ff", "0000000000000000")
    8
    """
    return (int(a, 16) ^ int(b, 16)).bit_count()


def _dct(n: int) -> NDArray[np.float64]:
    """Orthonormal DCT-II [n, n]: waves by rows."""
    k, i = np.arange(n)[:, None], np.arange(n)[None, :]
    rows = np.cos(math.pi * (2 * i + 1) * k / (2 * n)) * math.sqrt(2 / n)
    rows[0] /= math.sqrt(2)
    return np.asarray(rows, dtype=np.float64)


_DCT = _dct(SIDE)
