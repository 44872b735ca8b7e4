"""Parts that benchmarks share: a quiet environment, releases, ready workers, results in part."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from intonaco.releases import ReleaseStore, read_serving_spec
from intonaco.serving.local import LocalServingBackend
from intonaco.types import Json, Provenance, Release, ServingStatus
from intonaco.workspace import Workspace

T = TypeVar("T")

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DIFFUSERS_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
}


# Code that defines ``build``: Stable Diffusion's classes with random weights, 64x64 pixels.
PIPELINE = """
import sys, torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from intonaco.demo.model import build_pipeline

def build(channels):
    torch.manual_seed(0)
    made = build_pipeline()
    made.register_modules(
        vae=AutoencoderKL(
            block_out_channels=(32, 32, 32, 32), down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, norm_num_groups=8,
            sample_size=64, mid_block_add_attention=False,
        ),
        unet=UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=channels,
            layers_per_block=2, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=64,
            attention_head_dim=8, norm_num_groups=8,
        ),
    )
    return made
"""


class Incomplete(Exception):
    """Raised by a benchmark that has some of its results: the others stay as they were. ``failed``:
    the parts that broke down; none if some were only left out."""

    def __init__(self, values: Mapping[str, Any], failed: Sequence[str] = ()) -> None:
        super().__init__(", ".join(failed))
        self.values = dict(values)
        self.failed = tuple(failed)


def environment() -> dict[str, str]:
    """Of child processes: one compute thread, no hub, few words."""
    return {**os.environ, **ONE_THREAD, **QUIET}


def python(code: str, *arguments: str) -> None:
    """Run a piece of Python in a process of its own, so that what it loads is gone afterwards."""
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, env=environment())


def add_release(workspace: Workspace, folder: Path, generation: Mapping[str, Json]) -> Release:
    """A pipeline folder as a release of the workspace."""
    spec = read_serving_spec(folder, generation=generation)
    return ReleaseStore(workspace, "bench").add(folder, spec, Provenance(created_at=0.0))


def until(look: Callable[[], T], good: Callable[[T], bool], what: str, seconds: float = 120) -> T:
    """What is seen once it is good. Raises RuntimeError if it never is."""
    end = time.monotonic() + seconds
    while not good(seen := look()):
        if time.monotonic() > end:
            raise RuntimeError(f"{what}: still {seen!r} after {seconds:.0f} s")
        time.sleep(0.05)
    return seen


def ready(backend: LocalServingBackend, release: Release) -> ServingStatus:
    """Status of a deployed release once all its workers are ready."""
    status = until(
        lambda: backend.status(release.release_id),
        lambda s: s.ready or bool(s.error),
        f"release {release.short}",
    )
    if not status.ready:
        raise RuntimeError(status.error)
    return status


def free_port() -> int:
    """A port of this machine that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
