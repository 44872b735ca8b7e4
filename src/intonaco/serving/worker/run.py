"""One call of a pipeline: a request's fields to its arguments, watched from step to step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from intonaco.messages import GenerateRequest
from intonaco.serving.worker.core import Preview
from intonaco.serving.worker.devices import Stopwatch, Times
from intonaco.serving.worker.pictures import conditioning_image, mask_image, unfinished
from intonaco.serving.worker.tasks import (
    Ability,
    Conditioning,
    Guidance,
    Limits,
    Task,
    vae_of,
)

NOTHING = " "  # Qwen-Image's own stand-in for no negative prompt
Step = Callable[[int, int, Preview], None]  # (steps done, steps of this call, preview)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A pipeline and what it does. Stages of one release share their networks; each has a
    scheduler of its own, since that is where a run keeps its state."""

    pipeline: Any
    can: Ability


def arguments(
    can: Ability, limits: Limits, rows: Sequence[GenerateRequest], *, output_type: str
) -> dict[str, Any]:
    """Of a pipeline's ``__call__`` for requests that agree in ``batch_key``."""
    first = rows[0]
    size = (first.width, first.height)
    made: dict[str, Any] = {
        "num_inference_steps": first.steps,
        "generator": [torch.Generator("cpu").manual_seed(r.seed) for r in rows],
        "output_type": output_type,
    }
    match can.conditioning:
        case Conditioning.PROMPT:
            made["prompt"] = [r.prompt for r in rows]
        case Conditioning.LABEL:
            made["class_labels"] = [limits.label(r.prompt) for r in rows]
        case Conditioning.NONE:
            made["batch_size"] = len(rows)
    if "width" in can.parameters:
        made |= {"width": first.width, "height": first.height}
    made |= _guidance(can, rows)
    if can.task is not Task.GENERATE:
        made["image"] = [conditioning_image(str(r.image), size) for r in rows]
        if first.strength is not None:
            made["strength"] = first.strength
    if can.task is Task.INPAINT:
        made["mask_image"] = [mask_image(str(r.mask), size) for r in rows]
    # Flux Kontext would choose a size of its own.
    if "max_area" in can.parameters:
        made["max_area"] = first.width * first.height
    if "_auto_resize" in can.parameters:
        made["_auto_resize"] = False
    return made


def _guidance(can: Ability, rows: Sequence[GenerateRequest]) -> dict[str, Any]:
    scale = rows[0].guidance_scale
    if can.guidance is Guidance.TRUE:
        if scale <= can.guided_above:
            return {"true_cfg_scale": scale}
        return {
            "true_cfg_scale": scale,
            "negative_prompt": [r.negative_prompt or NOTHING for r in rows],
        }
    made: dict[str, Any] = {}
    if can.guidance is not Guidance.NONE:
        made["guidance_scale"] = scale
    if any(r.negative_prompt for r in rows):
        made["negative_prompt"] = [r.negative_prompt for r in rows]
    return made


def call(
    stage: Stage,
    limits: Limits,
    rows: Sequence[GenerateRequest],
    *,
    live: int,
    device: str,
    step: Step | None,
    output_type: str,
) -> tuple[list[Any], Times]:
    """Images of the first ``live`` rows, and what the call took.

    ``step`` is told after every denoising step: through ``callback_on_step_end``, and where a
    pipeline has none (DiT, DDPM) by its scheduler, which all of them call once a step.
    """
    pipeline, can, first = stage.pipeline, stage.can, rows[0]
    made = arguments(can, limits, rows, output_type=output_type)
    previewing = False

    def report(done: int, total: int, latents: Any) -> None:
        def preview() -> Sequence[Any]:
            nonlocal previewing
            if not torch.is_tensor(latents):
                return []
            previewing = True
            try:
                with torch.inference_mode():
                    shown = latents[:live]
                    return unfinished(pipeline, shown, width=first.width, height=first.height)
            finally:
                previewing = False

        if step is not None:
            step(done, total, preview)

    def on_step_end(pipe: Any, index: int, timestep: Any, tensors: Any) -> dict[str, Any]:
        total = int(getattr(pipe, "num_timesteps", None) or first.steps)
        report(index + 1, total, tensors.get("latents"))
        return {}

    watch = Stopwatch(device)
    with ExitStack() as hooks, torch.inference_mode():
        if can.callback:
            made["callback_on_step_end"] = on_step_end
        elif step is not None:
            hooks.enter_context(_steps_of_scheduler(pipeline.scheduler, report))
        hooks.enter_context(_calls(pipeline, "progress_bar", watch.denoising))
        vae = vae_of(pipeline)
        if vae is not None:
            hooks.enter_context(
                _calls(vae, "decode", lambda: None if previewing else watch.decoding())
            )
        images = pipeline(**made).images
        times = watch.stop()
    return list(images[:live]), times


@contextmanager
def _calls(owner: Any, name: str, tell: Callable[[], None]) -> Iterator[None]:
    """Tell of each call of a method, before it. Set on the one object, so that other pipelines of
    the process are left alone; a compiled module is not entered, unlike by a forward hook."""
    method = getattr(owner, name)

    @functools.wraps(method)
    def told(*args: Any, **kwargs: Any) -> Any:
        tell()
        return method(*args, **kwargs)

    setattr(owner, name, told)
    try:
        yield
    finally:
        delattr(owner, name)


@contextmanager
def _steps_of_scheduler(scheduler: Any, report: Callable[[int, int, Any], None]) -> Iterator[None]:
    method = scheduler.step
    done = 0

    @functools.wraps(method)  # pipelines read its signature
    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal done
        result = method(*args, **kwargs)
        done += 1
        latents = result[0] if isinstance(result, tuple) else result.prev_sample
        report(done, len(scheduler.timesteps), latents)
        return result

    scheduler.step = counted
    try:
        yield
    finally:
        del scheduler.step
