"""Openly injected faults, for drills.

A fault lives beside a release, never in it: the release's identity stays what it was. Specs::

    errors:after=20             every request after the first 20 is answered 500
    errors:after=20,count=3     the next 3 only
    errors:after=20,every=4     of those after the first 20 one in four, never two in a row
    slow:after=20,seconds=1.5   every batch with such a request takes 1.5 s longer
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

from intonaco.errors import ConfigError

Kind = Literal["errors", "slow"]
N = TypeVar("N", int, float)
_FIELDS: dict[Kind, tuple[str, ...]] = {
    "errors": ("after", "count", "every"),
    "slow": ("after", "count", "every", "seconds"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """``after``: requests left alone first; ``every``: then each so manieth is hit; ``count``: how
    many are (None: no end)."""

    kind: Kind
    after: int = 0
    count: int | None = None
    every: int = 1
    seconds: float = 0.0

    def hits(self, ordinal: int) -> bool:
        """Whether it hits the request that came as number ``ordinal`` (from 0)."""
        turn, rest = divmod(ordinal - self.after, self.every)
        return turn >= 0 and rest == 0 and (self.count is None or turn < self.count)


def parse_fault(spec: str) -> Fault | None:
    """Fault of a spec string, None for the empty one. Raises ConfigError."""
    if not spec:
        return None
    name, _, rest = spec.partition(":")
    kind = next((k for k in _FIELDS if k == name), None)
    if kind is None:
        raise ConfigError(
            f"fault {spec!r}: unknown kind {name!r}; known: {', '.join(_FIELDS)}",
            hint="for example errors:after=20 or slow:after=20,seconds=1.5",
        )
    given: dict[str, str] = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key not in _FIELDS[kind]:
            raise ConfigError(
                f"fault {spec!r}: unknown field {key!r}; allowed: {', '.join(_FIELDS[kind])}"
            )
        given[key] = value
    after = _number(spec, given, "after", int, 0)
    count = _number(spec, given, "count", int, 0) if "count" in given else None
    every = _number(spec, given, "every", int, 1)
    seconds = _number(spec, given, "seconds", float, 0.0)
    if every == 0:
        raise ConfigError(f"fault {spec!r}: every must be 1 or more")
    if kind == "slow" and seconds <= 0:
        raise ConfigError(f"fault {spec!r}: seconds must be given and above 0")
    return Fault(kind=kind, after=after, count=count, every=every, seconds=seconds)


def _number(spec: str, given: dict[str, str], key: str, kind: type[N], default: N) -> N:
    try:
        value = kind(given.get(key, default))
    except ValueError:
        raise ConfigError(
            f"fault {spec!r}: {key} must be {kind.__name__}, got {given[key]!r}"
        ) from None
    if not 0 <= value < float("inf"):
        raise ConfigError(f"fault {spec!r}: {key} must be finite and not negative")
    return value
