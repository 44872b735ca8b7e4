"""Wire types between processes, versioned.

Gateway and worker speak HTTP with JSON bodies; both sides send ``PROTOCOL_HEADER`` and refuse a
major version that is not theirs, so that a champion and a challenger built from different versions
can serve side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PROTOCOL_VERSION = "1"
PROTOCOL_HEADER = "x-intonaco-protocol"

# Headers of the public API.
REQUEST_ID = "x-request-id"
RELEASE = "x-intonaco-release"
ARM = "x-intonaco-arm"
ASSIGNED_ARM = "x-intonaco-assigned-arm"
USER_ID = "x-user-id"
PROBE = "x-intonaco-probe"  # with the admin token: a probe, answered by the pinned release


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """Gateway to worker, ``POST /generate``: one image."""

    request_id: str
    prompt: str
    negative_prompt: str = ""
    seed: int
    steps: int
    guidance_scale: float
    width: int
    height: int
    deadline: float | None = None  # seconds since the epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateResponse:
    """Worker to gateway. ``png``: base64. Times in seconds."""

    request_id: str
    release: str
    png: str
    queue_seconds: float
    service_seconds: float
    batch_size: int
    padded_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerError:
    """Body of a worker's non-200 answer. ``code``: "full", "draining", "deadline", "invalid",
    "internal", "protocol"."""

    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Attestation:
    """Worker's ``GET /attest``: the release id it works out itself from what it loaded."""

    release_id: str
    protocol: str
    pid: int
    serving: Mapping[str, Any]  # the ServingSpec as JSON
    versions: Mapping[str, str]
    load_seconds: float
    peak_memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiError:
    """The OpenAI API's error object."""

    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None

    def body(self) -> Mapping[str, Any]:
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessInfo:
    """What a running process writes under ``run/`` so that others find it and can adopt it."""

    name: str
    pid: int
    started: float  # the operating system's start time of the pid: guards against a reused pid
    url: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
