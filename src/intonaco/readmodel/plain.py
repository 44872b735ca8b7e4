"""JSON values of facts."""

from __future__ import annotations

import math
from dataclasses import is_dataclass
from typing import Any

from intonaco.codec import as_json

Facts = dict[str, Any]


def plain(value: Any) -> Any:
    """The JSON value of facts: dataclasses become dicts, numbers that are not finite null."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if is_dataclass(value):
        return plain(as_json(value))
    raise TypeError(f"{type(value).__name__} is no fact")
