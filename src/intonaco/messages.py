"""Wire types between processes, versioned.

Gateway and worker speak HTTP: JSON out, the PNG's bytes back with ``GENERATED_HEADER`` (or a
stream of ``StreamEvent`` lines). Both sides send ``PROTOCOL_HEADER`` and refuse a major version
that is not theirs, so that a champion and a challenger built from different versions can serve
side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from intonaco.codec import digest
from intonaco.types import RoutingTable

PROTOCOL_VERSION = "2"
PROTOCOL_HEADER = "x-intonaco-protocol"
GENERATED_HEADER = "x-intonaco-generated"  # JSON of Generated, beside a PNG as the body
STREAM_TYPE = "application/x-ndjson"

# Headers of the public API.
REQUEST_ID = "x-request-id"
RELEASE = "x-intonaco-release"
ARM = "x-intonaco-arm"
ASSIGNED_ARM = "x-intonaco-assigned-arm"
USER_ID = "x-user-id"
PROBE = "x-intonaco-probe"  # with the admin token: a probe, answered by the pinned release

# Who asks, where nobody waits: their jobs come last in a worker's queue.
BACKGROUND_UNIT = "background"
NO_ROOM_FOR_PROBES = "busy"  # code of the gateway's refusal of a probe while many users wait


def table_digest(table: RoutingTable) -> str:
    """What tells one routing table from another of the same epoch. Its parts are fixed, so that a
    gateway and a controller of different versions agree on it."""
    arms = [[a.name, a.release, list(a.urls), a.weight] for a in table.arms]
    return digest([table.epoch, table.salt, arms])


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """Gateway to worker, ``POST /generate``: one image.

    ``image`` and ``mask`` are base64 PNGs (checked by the gateway, EXIF rotation applied, at most
    RGBA): a picture to start from, and where in it to paint (white) or keep (black). ``unit`` is
    an opaque digest of who asks, for a queue that is fair between users. ``release``: who is to
    answer; none means the worker's only one.
    """

    request_id: str
    prompt: str
    negative_prompt: str = ""
    seed: int
    steps: int
    guidance_scale: float
    width: int
    height: int
    deadline: float | None = None  # seconds since the epoch
    unit: str = ""
    image: str | None = None
    mask: str | None = None
    strength: float | None = None  # share of the noise put on ``image``; None: the pipeline's own
    stream: bool = False  # answer with StreamEvents
    partial_images: int = 0  # how many unfinished pictures the stream shows
    release: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """What a worker says of an image it made. Times in seconds, those of the batch it was in:
    ``service_seconds`` is about ``encode`` + ``denoise`` + ``decode``. ``gpu_seconds``: this
    image's share of the device's time (0 on a CPU), ``cpu_seconds`` of the process's."""

    request_id: str
    release: str
    queue_seconds: float
    service_seconds: float
    encode_seconds: float = 0.0
    denoise_seconds: float = 0.0
    decode_seconds: float = 0.0
    batch_size: int
    padded_size: int
    gpu_seconds: float = 0.0
    peak_memory_bytes: int = 0
    cpu_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamEvent:
    """One line of a streamed answer (``application/x-ndjson``). ``png``: base64.

    "progress": ``step`` of ``steps`` is done. "partial": ``png`` is an unfinished picture, number
    ``index`` (from 0). "completed": ``png`` and ``generated``; the last line. "error": ``error``
    and the ``status`` that an answer without a stream would have had; the last line.
    """

    kind: Literal["progress", "partial", "completed", "error"]
    step: int = 0
    steps: int = 0
    index: int = 0
    png: str | None = None
    generated: Generated | None = None
    error: WorkerError | None = None
    status: int = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerError:
    """Body of a worker's non-200 answer. ``code``: "full" (429), "draining" and
    "deadline_unmeetable" (503: another worker may do it, or this one later), "deadline" (504: it
    passed in the queue), "invalid" (400), "internal" (500), "protocol" (409), "release" (409: it
    does not hold the release that was asked for)."""

    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldRelease:
    """To a worker that shares a base, ``POST /releases``: serve this release of the workspace too.
    ``fault``: injected for a drill, as of ``serving.faults``."""

    release_id: str
    fault: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldRelease:
    """What became of it, ``GET /releases/ID``. ``error``: why it was refused."""

    release_id: str
    state: Literal["adding", "ready", "refused"]
    draining: bool = False
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attestation:
    """Worker's ``GET /attest?release=ID``: the release id it works out itself from what it
    loaded. Without ``release``: of its only one. ``device``: the machine's kind, in words.
    ``weights_bytes``: parameters and buffers; ``idle_bytes``: what the process held before it
    loaded them; ``device_bytes``: the memory of its device, of the machine where that is a
    processor (0: not told)."""

    release_id: str
    protocol: str
    pid: int
    serving: Mapping[str, Any]  # the ServingSpec as JSON
    versions: Mapping[str, str]
    load_seconds: float
    peak_memory_bytes: int
    device: str = ""
    weights_bytes: int = 0
    idle_bytes: int = 0
    device_bytes: int = 0


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
