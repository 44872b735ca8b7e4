"""NumPy arrays inside JSON, bit for bit."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intonaco.errors import StorageError
from intonaco.types import Json


def pack(array: NDArray[Any]) -> Json:
    """JSON of an array: dtype, shape and the base64 of its little-endian bytes."""
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return {
        "dtype": little.dtype.str,
        "shape": list(little.shape),
        "data": base64.b64encode(little.tobytes()).decode("ascii"),
    }


def unpack(value: Json) -> NDArray[Any]:
    """The array that ``pack`` wrote, writable. Raises StorageError on anything else."""
    try:
        raw = base64.b64decode(value["data"], validate=True)
        flat = np.frombuffer(raw, dtype=np.dtype(value["dtype"]))
        return flat.reshape(value["shape"]).copy()
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(f"not a packed array: {error}") from error
