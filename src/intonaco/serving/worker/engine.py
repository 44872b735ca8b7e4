"""Loads a release's pipeline and runs it. The only part of serving that imports torch."""

from __future__ import annotations

import inspect
import io
import logging
import resource
import time
import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline

from intonaco.errors import ConfigError
from intonaco.messages import GenerateRequest
from intonaco.releases import check_folder, read_serving_spec, release_id
from intonaco.serving.worker.core import Images, InvalidRequest, OutOfMemory, StepWatch
from intonaco.types import Release, ServingSpec

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Engine:
    """A loaded pipeline. ``generate`` must be called from one thread only: pipelines keep state in
    their scheduler."""

    pipeline: Any
    spec: ServingSpec
    release_id: str
    device: str
    load_seconds: float
    _negative: bool

    def check(self, request: GenerateRequest) -> None:
        """Raises InvalidRequest."""
        if request.width % 8 or request.height % 8:
            raise InvalidRequest("width and height must be multiples of 8")
        if min(request.width, request.height, request.steps) < 1:
            raise InvalidRequest("width, height and steps must be positive")
        if request.negative_prompt and not self._negative:
            raise InvalidRequest(f"{self.spec.pipeline_class} takes no negative_prompt")

    def batch_key(self, request: GenerateRequest) -> Hashable:
        """As the function of this name."""
        return batch_key(request)

    def warm_up_request(self) -> GenerateRequest:
        """One with the release's generation defaults."""
        given = self.spec.generation
        return GenerateRequest(
            request_id="warm-up",
            prompt="warm-up",
            seed=0,
            steps=int(given["steps"]),
            guidance_scale=float(given["guidance_scale"]),
            width=int(given["width"]),
            height=int(given["height"]),
        )

    def generate(
        self, requests: Sequence[GenerateRequest], size: int, watch: StepWatch | None = None
    ) -> Images:
        """PIL images of requests that agree in ``batch_key``, run as a batch of ``size``.

        Each image has a CPU generator of its own, so its noise depends on its seed alone; the
        batch size is the only other thing that can move its last bits.
        """
        first = requests[0]
        padding = [requests[-1]] * (size - len(requests))
        rows = [*requests, *padding]
        arguments: dict[str, Any] = {
            "prompt": [r.prompt for r in rows],
            "width": first.width,
            "height": first.height,
            "num_inference_steps": first.steps,
            "guidance_scale": first.guidance_scale,
            "generator": [torch.Generator("cpu").manual_seed(r.seed) for r in rows],
            "output_type": "pil",
        }
        if first.negative_prompt:
            arguments["negative_prompt"] = [r.negative_prompt for r in rows]
        start = time.monotonic()
        denoised = start

        def step_ended(pipeline: Any, index: int, _: Any, given: dict[str, Any]) -> dict[str, Any]:
            nonlocal denoised
            denoised = time.monotonic()
            if watch is not None:
                latents = given["latents"]
                watch(index + 1, pipeline.num_timesteps, lambda: self._preview(latents))
            return {}

        try:
            with torch.inference_mode():
                images = self.pipeline(**arguments, callback_on_step_end=step_ended).images
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            raise OutOfMemory from None
        return Images(
            images=list(images[: len(requests)]),
            encode_seconds=0.0,
            denoise_seconds=denoised - start,
            decode_seconds=time.monotonic() - denoised,
            gpu_seconds=0.0,
            peak_memory_bytes=self.peak_memory_bytes(),
        )

    def _preview(self, latents: Any) -> list[Any]:
        vae = self.pipeline.vae
        decoded = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
        return list(self.pipeline.image_processor.postprocess(decoded, output_type="pil"))

    def peak_memory_bytes(self) -> int:
        """Of the GPU, or of the process on a CPU."""
        if self.device.startswith("cuda"):
            return int(torch.cuda.max_memory_allocated())
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def batch_key(request: GenerateRequest) -> tuple[int, int, int, float, bool]:
    """Requests that agree in it can share a batch."""
    return (
        request.width,
        request.height,
        request.steps,
        request.guidance_scale,
        bool(request.negative_prompt),
    )


def load(release: Release, folder: Path, *, device: str, threads: int) -> Engine:
    """Load a pipeline folder as the release's serving section says, and work out the id of what
    was loaded. Raises ConfigError for a folder that must not be loaded."""
    start = time.monotonic()
    # Both libraries would write prompts into the log when they truncate one.
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    # The newer name of the argument is ignored without a word by older versions.
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*torch_dtype.*")
    torch.set_num_threads(threads)
    check_folder(folder)
    serving = release.serving
    spec = read_serving_spec(
        folder,
        generation=serving.generation,
        dtype=serving.dtype,
        compile=serving.compile,
        fused=serving.fused,
    )
    pipeline = DiffusionPipeline.from_pretrained(
        folder,
        use_safetensors=True,
        local_files_only=True,
        torch_dtype=getattr(torch, serving.dtype),
    ).to(device)
    if pipeline.dtype != getattr(torch, serving.dtype):
        raise ConfigError(f"{folder} loaded as {pipeline.dtype}, the release says {serving.dtype}")
    pipeline.set_progress_bar_config(disable=True)
    if serving.compile:
        denoiser = getattr(pipeline, "transformer", None) or pipeline.unet
        denoiser.compile()
    return Engine(
        pipeline=pipeline,
        spec=spec,
        release_id=release_id(spec),
        device=device,
        load_seconds=time.monotonic() - start,
        _negative="negative_prompt" in inspect.signature(pipeline.__call__).parameters,
    )


def png(image: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format="PNG", compress_level=1)
    return out.getvalue()
