"""Generating the images of an evaluation, and what that costs (torch, diffusers)."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from diffusers import DiffusionPipeline
from numpy.typing import NDArray

from intonaco.codec import decode
from intonaco.errors import BackendError
from intonaco.evaluation.benchmark import in_turns
from intonaco.evaluation.prompts import Shot
from intonaco.folders import ADAPTERS, check_folder
from intonaco.lora import load_all
from intonaco.types import Json, Release

log = logging.getLogger(__name__)
Images = NDArray[np.uint8]
_ARGUMENTS = {"steps": "num_inference_steps"}  # generation setting -> argument of a pipeline


class Drawer(Protocol):
    """Draws an arm's images, here or in another process."""

    @property
    def tensor_bytes(self) -> int: ...

    def __call__(self, shots: Sequence[Shot]) -> Images: ...

    def seconds(self, shots: Sequence[Shot]) -> float: ...


@dataclass(slots=True, kw_only=True)
class Sampler:
    """A loaded pipeline with its generation settings (steps, guidance_scale, width, height)."""

    pipeline: Any
    generation: Mapping[str, Json]
    device: str

    @classmethod
    def load(cls, folder: Path, generation: Mapping[str, Json], *, dtype: str, device: str) -> Self:
        """Raises ConfigError: no folder of a pipeline in safetensors, or adapters that cannot be
        loaded whole. A release's adapters are in its manifest, beside the folder."""
        check_folder(folder)
        with warnings.catch_warnings():
            # newer releases of diffusers want `dtype`, older ones do not know it
            warnings.filterwarnings("ignore", category=FutureWarning, message=".*torch_dtype.*")
            pipeline = DiffusionPipeline.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                torch_dtype=getattr(torch, dtype),
            )
        manifest = folder.parent / "release.json"
        if manifest.is_file():
            serving = decode(Release, manifest.read_bytes()).serving
            load_all(pipeline, folder / ADAPTERS, serving.adapters, fused=serving.fused)
        pipeline.to(device)
        pipeline.set_progress_bar_config(disable=True)
        return cls(pipeline=pipeline, generation=generation, device=device)

    @torch.inference_mode()
    def __call__(self, shots: Sequence[Shot]) -> Images:
        """Images uint8 [n, height, width, 3] of one batch. Each has its own CPU generator, so that
        it does not depend on its neighbours. Raises BackendError if a pixel is not finite."""
        generators = [torch.Generator("cpu").manual_seed(s.seed) for s in shots]
        out = self.pipeline(
            prompt=[s.prompt.prompt for s in shots],
            generator=generators,
            output_type="np",
            **{_ARGUMENTS.get(k, k): v for k, v in self.generation.items()},
        ).images
        pixels = np.asarray(out)
        if not np.isfinite(pixels).all():
            raise BackendError(
                "the model generates values that are not finite", backend="model", retriable=False
            )
        levels: Images = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
        return levels

    def seconds(self, shots: Sequence[Shot]) -> float:
        """Time to draw one batch: CPU seconds of the process, on CUDA wall seconds."""
        cuda = self.device.startswith("cuda")
        clock = time.perf_counter if cuda else time.process_time
        if cuda:
            torch.cuda.synchronize()
        started = clock()
        self(shots)
        if cuda:
            torch.cuda.synchronize()
        return max(clock() - started, 1e-9)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all parameters and buffers: exact, unlike the resident memory of a process that
        holds two models."""
        modules = [m for m in self.pipeline.components.values() if isinstance(m, torch.nn.Module)]
        tensors = {t for m in modules for t in (*m.parameters(), *m.buffers())}
        return sum(t.numel() * t.element_size() for t in tensors)


def generate(
    sampler: Drawer,
    shots: Sequence[Shot],
    batch_size: int,
    report: Callable[[int], None],
) -> Images:
    """Images uint8 [n, h, w, 3] of all shots, in batches. ``report`` is told how many there are."""
    parts = []
    for start in range(0, len(shots), batch_size):
        parts.append(sampler(shots[start : start + batch_size]))
        report(min(start + batch_size, len(shots)))
    return np.concatenate(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """``log_ratios``: one a round, candidate over champion. Medians of seconds per image."""

    log_ratios: tuple[float, ...]
    champion_seconds: float
    candidate_seconds: float


def latency_kind(device: str) -> str:
    """What ``time_pair`` measures on a device."""
    return "wall seconds" if device.startswith("cuda") else "CPU seconds of the process"


def time_pair(
    champion: Drawer,
    candidate: Drawer,
    shots: Sequence[Shot],
    rounds: int,
    report: Callable[[int], None],
) -> Timing:
    """Time of one image, in ``rounds`` of one shot in turns (``benchmark.in_turns``), so that a
    drift of the machine's speed falls on both alike. A first image of each is thrown away.

    On a CPU the process's CPU seconds count, since other processes' load would be noise; on CUDA
    wall seconds, the device waited for.
    """
    for sampler in (champion, candidate):
        sampler(shots[:1])
    ratios, of_champion, of_candidate = [], [], []
    for number in range(rounds):
        shot = [shots[number % len(shots)]]
        first, second, third, fourth = in_turns(
            number, partial(champion.seconds, shot), partial(candidate.seconds, shot)
        )
        ratios.append(math.log((second + third) / (first + fourth)))
        of_champion += [first, fourth]
        of_candidate += [second, third]
        report(number + 1)
    return Timing(
        log_ratios=tuple(ratios),
        champion_seconds=float(np.median(of_champion)),
        candidate_seconds=float(np.median(of_candidate)),
    )
