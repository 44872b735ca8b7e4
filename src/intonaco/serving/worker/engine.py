"""The engine: a release's pipelines, run batch by batch. The worker's way into torch.

``docs/concepts/determinism.md`` says what gives the same bits and what does not.
"""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from intonaco.errors import ConfigError
from intonaco.folders import ADAPTERS, Adapter, parse_adapter
from intonaco.lora import load_all
from intonaco.messages import GenerateRequest
from intonaco.releases import base_spec, read_serving_spec, release_id
from intonaco.serving.worker.adapters import Adapters
from intonaco.serving.worker.core import Images, InvalidRequest, OutOfMemory, Preview, StepWatch
from intonaco.serving.worker.devices import (
    Times,
    empty_cache,
    forget_peak,
    is_out_of_memory,
    peak_memory_bytes,
    resident_bytes,
    resolve_device,
    tensor_bytes,
)
from intonaco.serving.worker.loading import (
    apply_options,
    compile_denoiser,
    open_pipeline,
    place,
    quiet,
    stages_of,
)
from intonaco.serving.worker.pictures import conditioning_image, mask_image, png
from intonaco.serving.worker.run import Stage, Step, call
from intonaco.serving.worker.tasks import Conditioning, Limits, Task, limits_of, shape_key, task_of
from intonaco.types import Json, Release, ServingSpec

__all__ = ["Engine", "InvalidRequest", "batch_key", "load", "png"]

log = logging.getLogger(__name__)

WARM_UP = "warm-up"
WARM_UP_STEPS = 4  # where the release has no default


@dataclass(slots=True)
class Engine:
    """A loaded release. All but ``check`` and ``batch_key`` must be called from one thread only:
    pipelines keep state in their scheduler."""

    spec: ServingSpec
    release_id: str
    device: str
    load_seconds: float
    limits: Limits
    _stages: Mapping[Task, Stage]
    _adapters: Adapters
    weights_bytes: int = 0  # parameters and buffers
    idle_bytes: int = 0  # of the process, before the pipeline was opened
    _offload: str = "none"
    _placed: Any = None  # the pipeline whose offloading is in force
    _peak: int = field(init=False, default=0)

    @property
    def tasks(self) -> frozenset[Task]:
        return frozenset(self._stages)

    @property
    def adapters(self) -> frozenset[str]:
        """Names that ``generate`` takes as ``adapter``."""
        return frozenset(self._adapters.shared)

    def check(self, request: GenerateRequest) -> None:
        """Raises InvalidRequest: what the pipeline cannot do. Pictures are looked at, so that none
        spoils the batch that it would be in."""
        self.limits.check(request)
        size = (request.width, request.height)
        if request.image is not None:
            conditioning_image(request.image, size)
        if request.mask is not None:
            mask_image(request.mask, size)

    def batch_key(self, request: GenerateRequest) -> Hashable:
        """As the function of this name, and larger where this pipeline allows it."""
        return self.limits.batch_key(request)

    # ------------------------------------------------------------------ generation

    def generate(
        self,
        requests: Sequence[GenerateRequest],
        size: int,
        watch: StepWatch | None = None,
        *,
        adapter: str | None = None,
    ) -> Images:
        """Images of requests that agree in ``batch_key``, run as a batch of ``size``.

        Each image has a CPU generator of its own, so its noise depends on its seed alone; the
        batch size is the only other thing that can move its last bits. ``watch`` is called after
        each denoising step and may raise Aborted, which leaves the engine as it was. ``adapter``:
        one of ``adapters``, for the whole batch. Raises OutOfMemory, NotFound.
        """
        return self._generate(requests, size, watch, adapter, "pil")

    def pixels(self, requests: Sequence[GenerateRequest], size: int) -> NDArray[np.float32]:
        """As ``generate``: float32 array [n, height, width, channels] within 0 and 1, before it is
        rounded to 8 bits. For measuring what a change moves."""
        images = self._generate(requests, size, None, None, "np").images
        return np.stack(images).astype(np.float32)

    def _generate(
        self,
        requests: Sequence[GenerateRequest],
        size: int,
        watch: StepWatch | None,
        adapter: str | None,
        output_type: str,
    ) -> Images:
        if len({self.batch_key(r) for r in requests}) != 1 or len(requests) > size:
            raise ValueError(f"{len(requests)} requests are no batch of {size}")
        stage = self._stages[task_of(requests[0])]
        self._adapters.use(adapter)
        self._take_turns(stage.pipeline)
        forget_peak(self.device)
        no_memory = ""
        try:
            images, times = self._run(stage, requests, size, watch, output_type)
        except BaseException as error:
            # Offloaded networks are where the failure left them.
            stage.pipeline.maybe_free_model_hooks()
            if not is_out_of_memory(error):
                raise
            no_memory = str(error).strip().partition("\n")[0] or type(error).__name__
        finally:
            peak = peak_memory_bytes(self.device)
            self._peak = max(self._peak, peak)
        if no_memory:
            # Out of the handler: its traceback holds the tensors that are to be freed.
            empty_cache(self.device)
            raise OutOfMemory(f"a batch of {size}: {no_memory}")
        return Images(
            images=images,
            encode_seconds=times.encode,
            denoise_seconds=times.denoise,
            decode_seconds=times.decode,
            gpu_seconds=times.gpu,
            peak_memory_bytes=peak,
            cpu_seconds=times.cpu,
        )

    def _run(
        self,
        stage: Stage,
        requests: Sequence[GenerateRequest],
        size: int,
        watch: StepWatch | None,
        output_type: str,
    ) -> tuple[list[Any], Times]:
        if stage.can.references:
            batches = [[r] for r in requests]
        else:
            batches = [[*requests, *[requests[-1]] * (size - len(requests))]]
        images: list[Any] = []
        times = Times()
        for number, rows in enumerate(batches):
            made, took = call(
                stage,
                self.limits,
                rows,
                live=min(len(requests), len(rows)),
                device=self.device,
                step=_part_of(watch, number, len(batches)),
                output_type=output_type,
            )
            images += made
            times = times + took
        return images, times

    def _take_turns(self, pipeline: Any) -> None:
        """Offloading is a chain through one pipeline's networks; another pipeline of the same
        networks has to lay its own."""
        if self._offload != "none" and pipeline is not self._placed:
            place(pipeline, self.device, self._offload)
            self._placed = pipeline

    # ------------------------------------------------------------------ adapters

    def add_adapter(self, name: str, folder: Path, scale: float = 1.0) -> None:
        """Load a LoRA to be chosen batch by batch over the same base, verified tensor by tensor.
        Without it the base's bits stay what they were. Raises ConfigError, with nothing changed."""
        self.add_adapters(name, [(parse_adapter(f"{name}:{scale}"), folder)])

    def add_adapters(self, name: str, adapters: Sequence[tuple[Adapter, Path]]) -> None:
        """As ``add_adapter``, several that are on together under one name."""
        if self.spec.compile:
            raise ConfigError(
                f"adapter {name!r}: the release is compiled, and every switch would compile again",
                hint="share a base that is not compiled",
            )
        self._adapters.add_all(name, adapters)
        log.info("adapter added", extra={"action": "engine.adapter", "adapter": name})

    def remove_adapter(self, name: str) -> None:
        """Take it out of memory. Raises NotFound."""
        self._adapters.remove(name)

    # ------------------------------------------------------------------ facts

    def warm_up_request(self, generation: Mapping[str, Json] | None = None) -> GenerateRequest:
        """One that this pipeline can do, with the release's generation defaults or others: with a
        grey picture and a white mask where it needs them."""
        given = self.spec.generation if generation is None else generation
        width, height = self.limits.native_size or (
            int(given.get("width", self.limits.size_factor * 8)),
            int(given.get("height", self.limits.size_factor * 8)),
        )
        task = next(t for t in Task if t in self._stages)
        prompt = {Conditioning.PROMPT: WARM_UP, Conditioning.LABEL: "0", Conditioning.NONE: ""}
        return GenerateRequest(
            request_id=WARM_UP,
            prompt=prompt[self._stages[task].can.conditioning],
            seed=0,
            steps=int(given.get("steps", WARM_UP_STEPS)),
            guidance_scale=float(given.get("guidance_scale", 1.0)),
            width=width,
            height=height,
            image=None if task is Task.GENERATE else _plain("RGB", width, height, 128),
            mask=_plain("L", width, height, 255) if task is Task.INPAINT else None,
        )

    def check_defaults(self, generation: Mapping[str, Json]) -> None:
        """Raises ConfigError for generation defaults that every request would be refused with."""
        size = self.limits.native_size
        if size is not None and size != (
            generation.get("width", size[0]),
            generation.get("height", size[1]),
        ):
            raise ConfigError(
                f"generation: {self.limits.name} makes {size[0]}x{size[1]} only",
                hint="set width and height of model.generation to that",
            )
        try:
            self.check(self.warm_up_request(generation))
        except InvalidRequest as error:
            raise ConfigError(f"generation: {error}") from error

    def peak_memory_bytes(self) -> int:
        """Of the GPU, or of the process on a CPU."""
        return max(self._peak, peak_memory_bytes(self.device))


def batch_key(request: GenerateRequest) -> Hashable:
    """Requests that agree in it can share a batch of any pipeline."""
    return (*shape_key(request), bool(request.negative_prompt))


def load(
    release: Release,
    folder: Path,
    *,
    device: str = "auto",
    threads: int = 1,
    offload: str = "none",
    base_only: bool = False,
) -> Engine:
    """Load a pipeline folder as the release's serving section says, and work out the id of what
    was loaded. ``offload``: "model" or "sequential" keep weights in main memory between uses.
    ``base_only``: without the release's adapters, which makes it another release. Raises
    ConfigError for a folder that must not be loaded and for an option that cannot be had."""
    start = time.monotonic()
    quiet()
    device = resolve_device(device)
    torch.set_num_threads(threads)
    spec = read_spec(release, folder)
    if base_only:
        spec = base_spec(spec)
    idle = resident_bytes()
    pipeline = open_pipeline(folder, spec)
    apply_options(pipeline, spec)
    own = load_all(pipeline, folder / ADAPTERS, spec.adapters, fused=spec.fused)
    if spec.compile:
        compile_denoiser(pipeline)
    place(pipeline, device, offload)
    stages = stages_of(pipeline)
    engine = Engine(
        spec=spec,
        release_id=release_id(spec),
        device=device,
        load_seconds=time.monotonic() - start,
        limits=limits_of(pipeline, {task: stage.can for task, stage in stages.items()}),
        _stages=stages,
        _adapters=Adapters(pipeline, own),
        weights_bytes=tensor_bytes(pipeline),
        idle_bytes=idle,
        _offload=offload,
        _placed=pipeline,
    )
    engine.check_defaults(spec.generation)
    return engine


def read_spec(release: Release, folder: Path) -> ServingSpec:
    """The serving section of what would be loaded: the release's options, the folder's bytes, the
    environment here. Raises ConfigError."""
    serving = release.serving
    return read_serving_spec(
        folder,
        generation=serving.generation,
        dtype=serving.dtype,
        attention=serving.attention,
        compile=serving.compile,
        options=serving.options,
        adapters=serving.adapters,
        fused=serving.fused,
        safety_filter=serving.safety_filter,
    )


def _part_of(watch: StepWatch | None, number: int, batches: int) -> Step | None:
    """The watch of one of several calls that make up a batch. Their previews are of one image and
    not of the batch, so there are none."""
    if watch is None or batches == 1:
        return watch

    def step(done: int, steps: int, preview: Preview) -> None:
        watch(number * steps + done, batches * steps, lambda: [])

    return step


def _plain(mode: str, width: int, height: int, level: int) -> str:
    colour = (level,) * 3 if mode == "RGB" else level
    return base64.b64encode(png(Image.new(mode, (width, height), colour))).decode()
