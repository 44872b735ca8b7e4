"""What a worker holds: a loaded release, and what is its own of readiness and faults. No torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from intonaco.messages import GenerateRequest
from intonaco.serving.faults import Fault
from intonaco.serving.worker.core import Images, StepWatch
from intonaco.serving.worker.gpu import Gpu
from intonaco.types import ServingSpec


class Engine(Protocol):
    """A loaded release."""

    @property
    def spec(self) -> ServingSpec: ...
    @property
    def release_id(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def load_seconds(self) -> float: ...
    def check(self, request: GenerateRequest) -> None:
        """Raises InvalidRequest. From any thread."""
        ...

    def batch_key(self, request: GenerateRequest) -> Hashable:
        """Requests that agree in it can share a batch."""
        ...

    def warm_up_request(self) -> GenerateRequest:
        """One that this release can do, with its generation defaults."""
        ...

    def generate(
        self, requests: Sequence[GenerateRequest], size: int, watch: StepWatch | None = None
    ) -> Images: ...
    def peak_memory_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    engine: Engine
    png: Callable[[Any], bytes]
    gpu: Gpu | None = None
    weights_bytes: int = 0
    idle_bytes: int = 0  # of the process, before it was loaded


@dataclass(frozen=True, slots=True)
class Item:
    """A request and the release that is to answer it, whatever else is loaded by then."""

    request: GenerateRequest
    engine: Engine
    slow: float = 0.0  # injected seconds


def batch_key(engine: Engine, request: GenerateRequest) -> Hashable:
    """Releases are never mixed in a batch."""
    return engine.release_id, engine.batch_key(request)


@dataclass(slots=True)
class Hits:
    """An injected fault, and which requests it hits."""

    fault: Fault | None = None
    _ordinal: Iterator[int] = field(default_factory=itertools.count)

    def next(self) -> Fault | None:
        """The fault if it hits the request that came now."""
        ordinal = next(self._ordinal)
        return self.fault if self.fault is not None and self.fault.hits(ordinal) else None


State = Literal["adding", "ready", "refused"]


@dataclass(slots=True, eq=False, kw_only=True)
class Held:
    """A release in a worker. ``gone``: it was taken out, and nothing new is begun for it."""

    release_id: str
    hits: Hits = field(default_factory=Hits)
    loaded: Loaded | None = None
    state: State = "adding"
    draining: bool = False
    gone: bool = False
    error: str = ""
    refused_at: float = 0.0  # monotonic seconds
