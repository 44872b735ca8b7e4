"""Values of ``types/`` to JSON and back, checked on the way in."""

from __future__ import annotations

import hashlib
import json
from dataclasses import is_dataclass
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from intonaco.errors import StorageError

T = TypeVar("T")


_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}


def _adapter(cls: Any) -> TypeAdapter[Any]:
    if cls not in _ADAPTERS:
        _ADAPTERS[cls] = TypeAdapter(cls)
    return _ADAPTERS[cls]


def encode(value: Any) -> str:
    """JSON text of a value of ``types/``."""
    return _adapter(type(value)).dump_json(value).decode()


def as_json(value: Any) -> Any:
    """The JSON value (dicts and lists) of a value of ``types/``, or of containers of them."""
    if isinstance(value, (list, tuple)):
        return [as_json(v) for v in value]
    if isinstance(value, dict):
        return {k: as_json(v) for k, v in value.items()}
    if is_dataclass(value):
        return _adapter(type(value)).dump_python(value, mode="json")
    return value


def decode(cls: type[T], text: str | bytes) -> T:
    """The value that ``encode`` wrote. Raises StorageError on anything else."""
    try:
        value: T = _adapter(cls).validate_json(text)
    except ValidationError as error:
        raise StorageError(f"not a {cls.__name__}: {error.errors()[0]['msg']}") from error
    return value


def canonical(value: Any) -> str:
    """The one JSON text of a value: keys sorted, no spaces. What digests are taken of."""
    return json.dumps(as_json(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any) -> str:
    """sha256 (hex) of the canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def lines_of(text: str) -> list[str]:
    """Lines of a jsonl file that hold something. Only a line feed ends one: ``splitlines`` also
    cuts at signs that a caption may hold as they are (U+2028, U+0085; RFC 8259, section 7)."""
    return [line for line in text.split("\n") if line.strip()]


def parse_once(line: str | bytes) -> Any:
    """JSON in which no object gives a name twice: readers differ in which one counts, and one of
    them may be somebody's no. Raises ValueError."""
    return json.loads(line, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is given twice")
    return found
