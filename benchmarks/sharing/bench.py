"""What does another release over one base cost?

A pipeline with random weights (Stable Diffusion's classes, 64x64 pixels, 10 steps; the denoiser
has 90 M parameters, 340 MiB) and two LoRAs of rank 16 over its attention: three releases. They are
served by three workers of their own, then by one with `share_base`. `memory_mib` is what the
processes hold that no other does (USS; on Linux, after a picture of each release).

`add_s`: from the request to hold a release until it is ready, without a warm-up. Pictures are then
asked for one at a time in four ways, in turns, median milliseconds of the whole request: the base's
and an adapter's by a worker of their own, and by the shared worker the same release again and
another release each time. The last over the one before it is what switching costs.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import parts
import psutil

from intonaco.codec import encode
from intonaco.config import Serving
from intonaco.config import Worker as WorkerConfig
from intonaco.folders import ADAPTERS
from intonaco.messages import PROTOCOL_HEADER, PROTOCOL_VERSION, GenerateRequest
from intonaco.releases import ReleaseStore, read_serving_spec
from intonaco.serving.local import LocalServingBackend
from intonaco.types import Provenance, Release
from intonaco.workspace import Workspace

STEPS = 10
SIDE = 64
ROUNDS = 9
GENERATION = {"steps": STEPS, "guidance_scale": 2.0, "width": SIDE, "height": SIDE}
MIB = 2**20

BUILD = f"""{parts.PIPELINE}
from pathlib import Path
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

for name in ("base", "a", "b"):
    pipeline, folder = build((256, 512)), Path(sys.argv[1]) / name
    pipeline.save_pretrained(folder)
    if name != "base":
        torch.manual_seed(ord(name))
        config = LoraConfig(
            r=16, lora_alpha=16, target_modules=["to_q", "to_k", "to_v", "to_out.0"],
            init_lora_weights=False,
        )
        pipeline.unet.add_adapter(config, "new")
        pipeline.save_lora_weights(
            folder / "adapters" / "new",
            unet_lora_layers=get_peft_model_state_dict(pipeline.unet, adapter_name="new"),
            unet_lora_adapter_metadata=pipeline.unet.peft_config["new"].to_dict(),
        )
print(sum(p.numel() for p in pipeline.unet.parameters()))
"""


def run() -> dict[str, float]:
    """MiB, seconds, milliseconds, ratios."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        parts.python(BUILD, folder)
        own = _Deployed(Path(folder), share=False)
        shared = _Deployed(Path(folder), share=True)
        with own as (backend, releases):
            urls = [_up(backend, r)[0] for r in releases]
            for url, release in zip(urls, releases, strict=True):
                _picture(url, release)
            figures["own.memory_mib"] = _memory(backend, releases)
            base_ms, adapter_ms = _alternate(
                lambda: _picture(urls[0], releases[0]), lambda: _picture(urls[1], releases[1])
            )
            figures["own.base_ms"], figures["own.adapter_ms"] = base_ms, adapter_ms
        with shared as (backend, releases):
            for count, release in enumerate(releases, start=1):
                url, seconds = _up(backend, release)
                _picture(url, release)
                figures[f"shared.memory_{count}_mib"] = _memory(backend, releases[:count])
                if count > 1:
                    figures[f"shared.add_{count}_s"] = seconds
            turn = itertools.cycle(releases[1:])
            same_ms, other_ms = _alternate(
                lambda: _pair(url, releases[1], releases[1]),
                lambda: _pair(url, next(turn), next(turn)),
            )
            figures["shared.same_ms"], figures["shared.switched_ms"] = same_ms / 2, other_ms / 2
    figures["memory_shared_over_own"] = figures["shared.memory_3_mib"] / figures["own.memory_mib"]
    return figures


class _Deployed:
    """Three releases of the folders, none of them up yet; retired at the end."""

    def __init__(self, folder: Path, *, share: bool) -> None:
        workspace = Workspace(folder / ("shared" if share else "own"))
        store = ReleaseStore(workspace, "bench")
        self.releases: list[Release] = []
        for name in ("base", "a", "b"):
            pipeline = folder / name
            adapters = ("new",) if (pipeline / ADAPTERS).is_dir() else ()
            spec = read_serving_spec(pipeline, generation=GENERATION, adapters=adapters)
            self.releases.append(store.add(pipeline, spec, Provenance(created_at=0.0)))
        worker = WorkerConfig(device="cpu", batch_sizes=(1,), batch_wait_ms=0, warm_up=False)
        self.backend = LocalServingBackend(workspace, Serving(worker=worker, share_base=share))

    def __enter__(self) -> tuple[LocalServingBackend, list[Release]]:
        return self.backend, self.releases

    def __exit__(self, *_: object) -> None:
        for release in self.releases:
            self.backend.retire(release.release_id)
        self.backend.close()


def _up(backend: LocalServingBackend, release: Release) -> tuple[str, float]:
    """Its URL once it is ready, and how long that took."""
    start = time.perf_counter()
    backend.deploy(release)
    (url,) = parts.ready(backend, release).urls
    return url, time.perf_counter() - start


def _memory(backend: LocalServingBackend, releases: list[Release]) -> float:
    pids = {int(str(backend.status(r.release_id).facts["pid"])) for r in releases}
    return sum(psutil.Process(pid).memory_full_info().uss for pid in pids) / MIB


_numbers: Iterator[int] = itertools.count()


def _picture(url: str, release: Release) -> None:
    request = GenerateRequest(
        request_id="bench",
        prompt="a handwritten three",
        seed=next(_numbers),
        steps=STEPS,
        guidance_scale=2.0,
        width=SIDE,
        height=SIDE,
        release=release.release_id,
    )
    headers = {PROTOCOL_HEADER: PROTOCOL_VERSION}
    httpx.post(
        f"{url}/generate", content=encode(request), headers=headers, timeout=60.0
    ).raise_for_status()


def _pair(url: str, one: Release, other: Release) -> None:
    _picture(url, one)
    _picture(url, other)


def _alternate(one: Callable[[], None], other: Callable[[], None]) -> tuple[float, float]:
    """Median milliseconds of each, in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for call, kept in zip((one, other), times, strict=True):
            start = time.perf_counter()
            call()
            kept.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[0]), statistics.median(times[1])
