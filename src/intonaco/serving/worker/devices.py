"""Devices: which one, waiting for it, its memory and its clock."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from intonaco.errors import ConfigError

# What PyTorch says when a CPU or Apple's GPU is out of memory; CUDA has an exception of its own.
_NO_MEMORY = ("can't allocate memory", "MPS backend out of memory")


def resolve_device(name: str) -> str:
    """``auto``: cuda, else mps, else cpu. Raises ConfigError for one that is not there."""
    kind = name.partition(":")[0]
    there = ["cpu"]
    there += ["cuda"] if torch.cuda.is_available() else []
    there += ["mps"] if torch.backends.mps.is_available() else []
    if kind == "auto":
        return next(d for d in ("cuda", "mps", "cpu") if d in there)
    if kind not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"device: {name!r} is unknown", hint="auto, cpu, cuda, cuda:N or mps")
    if kind not in there:
        raise ConfigError(f"device: {name} is not available here", hint="auto takes what there is")
    number = name.partition(":")[2]
    if number and not (number.isdigit() and int(number) < _count(kind)):
        raise ConfigError(
            f"device: {name} is not available here; of {kind} there are {_count(kind)}, from 0",
            hint="auto takes what there is",
        )
    return name


def _count(kind: str) -> int:
    return int(torch.cuda.device_count()) if kind == "cuda" else 1


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device == "mps":
        torch.mps.synchronize()


def empty_cache(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    elif device == "mps":
        torch.mps.empty_cache()


def peak_memory_bytes(device: str) -> int:
    """Highest so far: of the GPU's allocations since ``forget_peak``, or of the process."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    if device == "mps":
        return int(torch.mps.driver_allocated_memory())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident_bytes() -> int:
    """What the process holds now, shared libraries included; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * resource.getpagesize()


def tensor_bytes(pipeline: Any) -> int:
    """Bytes of all parameters and buffers of a pipeline: exact, unlike resident memory."""
    modules = [m for m in pipeline.components.values() if isinstance(m, torch.nn.Module)]
    tensors = {t for m in modules for t in (*m.parameters(), *m.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors)


def forget_peak(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Of one run, in seconds. ``gpu``: between its first and last CUDA event, 0 elsewhere. ``cpu``:
    of the whole process."""

    encode: float = 0.0
    denoise: float = 0.0
    decode: float = 0.0
    gpu: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: Times) -> Times:
        return Times(
            encode=self.encode + other.encode,
            denoise=self.denoise + other.denoise,
            decode=self.decode + other.decode,
            gpu=self.gpu + other.gpu,
            cpu=self.cpu + other.cpu,
        )


@dataclass(slots=True)
class Stopwatch:
    """Parts a run into encode, denoise and decode. A GPU is waited for at these boundaries only, so
    that steps are queued ahead as they would be without it."""

    device: str
    now: Callable[[], float] = time.monotonic
    cpu_now: Callable[[], float] = time.process_time
    _cpu_started: float = field(init=False)
    _started: float = field(init=False)
    _denoise_at: float | None = field(init=False, default=None)
    _decode_at: float | None = field(init=False, default=None)
    _events: list[Any] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self._event()
        self._cpu_started = self.cpu_now()
        self._started = self._mark()

    def denoising(self) -> None:
        """The first step begins. Later calls are of pipelines in several stages, and not counted
        apart."""
        if self._denoise_at is None:
            self._denoise_at = self._mark()

    def decoding(self) -> None:
        if self._denoise_at is not None and self._decode_at is None:
            self._decode_at = self._mark()

    def stop(self) -> Times:
        self._event()
        end = self._mark()
        decode_at = end if self._decode_at is None else self._decode_at
        denoise_at = self._started if self._denoise_at is None else self._denoise_at
        return Times(
            encode=denoise_at - self._started,
            denoise=decode_at - denoise_at,
            decode=end - decode_at,
            gpu=self._events[0].elapsed_time(self._events[1]) / 1000 if self._events else 0.0,
            cpu=self.cpu_now() - self._cpu_started,
        )

    def _mark(self) -> float:
        synchronize(self.device)
        return self.now()

    def _event(self) -> None:
        if self.device.startswith("cuda"):
            # torch has no types there.
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self.device))
            self._events.append(event)
