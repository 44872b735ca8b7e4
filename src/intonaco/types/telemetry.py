"""What is counted and measured beside the records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from intonaco.types.vocabulary import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What came to one gateway within about a second, counted at its door: also what it refused,
    which makes no record. Key: (gateway, gateway_epoch, seq). No content, no unit.

    ``record_epoch`` and ``record_seq``: key of the next record that this gateway will write, so
    that a log of records that stands still is seen."""

    gateway: str
    gateway_epoch: int
    seq: int
    service_id: str
    at: float  # end of the second
    requests: int  # for images, that ended
    failed: int  # of them, with a server error
    images: int  # of users, that ended in a record
    in_flight: int  # images being made for users at the end of the second
    refused: Mapping[str, int] = field(default_factory=dict)  # code -> requests
    record_epoch: int = 0
    record_seq: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One answer of something that is asked by the clock: a query, a callable, workers' metrics.
    ``value``: in its own unit, None if there was none. ``reason``: why there was none, in words
    that a person on call understands."""

    signal: str
    at: float
    value: float | None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficWindow:
    """Counts and sketches of one stretch of traffic, as ``monitoring.windows`` keeps them.
    ``level``: "minute", "hour" or "day"; ``start``: seconds since the epoch, a multiple of that."""

    level: str
    start: int
    state: Mapping[str, Json]
