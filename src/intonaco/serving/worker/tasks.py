"""What a pipeline can do, read off its class and the signature of its ``__call__``.

diffusers has no common interface for that: names of arguments and the three maps behind
``AutoPipelineForText2Image``, ``…Image2Image`` and ``…Inpainting`` are what its pipelines agree on.
Nothing here touches weights, so that ``check`` may run on any thread beside a running batch.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from diffusers.pipelines import auto_pipeline

from intonaco.errors import ConfigError
from intonaco.messages import GenerateRequest
from intonaco.serving.worker.core import InvalidRequest


class Task(StrEnum):
    GENERATE = "generate"
    EDIT = "edit"  # with an image to start from
    INPAINT = "inpaint"  # with an image and a mask


class Conditioning(StrEnum):
    PROMPT = "prompt"
    LABEL = "label"
    NONE = "none"


class Guidance(StrEnum):
    """Which argument ``guidance_scale`` of a request becomes."""

    SCALE = "guidance_scale"
    TRUE = "true_cfg_scale"  # Qwen-Image: guided only beside a negative prompt, " " by default
    DISTILLED = "distilled"  # Flux: an input of the model, which takes no negative prompt with it
    NONE = "none"


# What `arguments` gives to a pipeline; one that requires anything else is not served.
_GIVEN = frozenset({"prompt", "class_labels", "image", "mask_image", "batch_size"})
# Pipelines of one prompt whose answer is no image, or that need an input no request carries.
_FOREIGN = ("num_frames", "audio_length_in_s", "audio_end_in_s", "control_image", "video")
# diffusers guides these at any scale above 0, all others above 1.
LONGEST_NUMBER = 9  # digits of a class; int() raises for texts of thousands
_GUIDED_ABOVE_ZERO = ("ZImage", "Krea2")


def task_of(request: GenerateRequest) -> Task:
    if request.mask is not None:
        return Task.INPAINT
    return Task.GENERATE if request.image is None else Task.EDIT


@dataclass(frozen=True, slots=True, kw_only=True)
class Ability:
    """What one pipeline class does for one task.

    ``references``: its image is shown to the model rather than noised (no ``strength``). Several
    images are then references for one picture, so such requests are run one by one.
    """

    name: str
    task: Task
    conditioning: Conditioning
    parameters: frozenset[str]
    guidance: Guidance
    negative: bool
    callback: bool
    default_strength: float | None
    empty_is_none: bool  # negative_prompt "" gives the same bits as none at all
    guided_above: float

    @property
    def references(self) -> bool:
        return self.task is not Task.GENERATE and self.default_strength is None

    @property
    def sized(self) -> bool:
        """Whether requests choose the size. An edit's is that of its image, scaled by us."""
        return self.task is not Task.GENERATE or "width" in self.parameters


def ability(cls: type, task: Task, config: Mapping[str, Any] | None = None) -> Ability:
    """``config``: of the pipeline, for what its class alone does not say."""
    parameters = inspect.signature(cls.__call__).parameters
    if "prompt" in parameters:
        conditioning = Conditioning.PROMPT
    elif "class_labels" in parameters:
        conditioning = Conditioning.LABEL
    else:
        conditioning = Conditioning.NONE
    guidance = _guidance(parameters)
    strength = parameters.get("strength")
    return Ability(
        name=cls.__name__,
        task=task,
        conditioning=conditioning,
        parameters=frozenset(parameters),
        guidance=guidance,
        negative="negative_prompt" in parameters and guidance is not Guidance.DISTILLED,
        callback="callback_on_step_end" in parameters,
        default_strength=float(strength.default) if strength is not None else None,
        empty_is_none=_empty_is_none(cls.__name__, parameters, guidance, config or {}),
        guided_above=0.0 if cls.__name__.startswith(_GUIDED_ABOVE_ZERO) else 1.0,
    )


def _guidance(parameters: Mapping[str, inspect.Parameter]) -> Guidance:
    true = parameters.get("true_cfg_scale")
    if true is not None:
        return Guidance.TRUE if true.default > 1 else Guidance.DISTILLED
    return Guidance.SCALE if "guidance_scale" in parameters else Guidance.NONE


def _empty_is_none(
    name: str,
    parameters: Mapping[str, inspect.Parameter],
    guidance: Guidance,
    config: Mapping[str, Any],
) -> bool:
    """Only where it was looked up: SDXL as published puts zeros in the place of no negative prompt,
    Kandinsky an embedding of its own."""
    if config.get("force_zeros_for_empty_prompt"):
        return False
    negative = parameters.get("negative_prompt")
    if negative is None or guidance is Guidance.TRUE:  # the latter is always given one
        return True
    return negative.default == "" or name.startswith("StableDiffusion")


def native_tasks(cls: type) -> frozenset[Task]:
    """What a class does by itself. Raises ConfigError: it makes no images of what a request
    carries."""
    parameters = inspect.signature(cls.__call__).parameters
    foreign = [p for p in _FOREIGN if p in parameters]
    required = [
        name
        for name, p in list(parameters.items())[1:]
        if p.default is p.empty
        and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and name not in _GIVEN
    ]
    # A subclass may have another one, and this very class is asked.
    components = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
    foreign += [c for c in ("controlnet", "adapter") if c in components]
    if foreign or required:
        raise ConfigError(
            f"{cls.__name__} is not served: it works with {(foreign + required)[0]!r}, which"
            " requests do not carry",
            hint="text-to-image, image-to-image, inpainting, class-conditional and unconditional"
            " pipelines are served",
        )
    if "prompt" not in parameters:
        if "class_labels" in parameters or (
            "batch_size" in parameters and "image" not in parameters
        ):
            return frozenset({Task.GENERATE})
        raise ConfigError(f"{cls.__name__} is not served: it takes neither prompt nor label")
    if "image" not in parameters:
        return frozenset({Task.GENERATE})
    if "mask_image" in parameters:
        return frozenset({Task.INPAINT})
    both = cls in auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values()
    return frozenset({Task.EDIT, Task.GENERATE} if both else {Task.EDIT})


# ------------------------------------------------------------------------------- one pipeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a loaded pipeline can do, over all its tasks. Sizes in pixels."""

    name: str
    abilities: Mapping[Task, Ability]
    size_factor: int
    native_size: tuple[int, int] | None  # (width, height), of one that makes no other
    max_steps: int | None
    labels: Mapping[str, int]
    classes: int  # 0: not class-conditional

    def check(self, request: GenerateRequest) -> None:
        """Raises InvalidRequest: the field and why."""
        if request.mask is not None and request.image is None:
            raise InvalidRequest("mask: there is no image that it could belong to")
        task = task_of(request)
        can = self.abilities.get(task)
        if can is None:
            raise InvalidRequest(self._refusal(task))
        self._check_size(request, can)
        if request.steps < 1:
            raise InvalidRequest("steps must be positive")
        if not 0 <= request.seed < 2**63:
            raise InvalidRequest("seed must be between 0 and 2**63 - 1")
        if not math.isfinite(request.guidance_scale):
            raise InvalidRequest("guidance_scale must be a finite number")
        if self.max_steps is not None and request.steps > self.max_steps:
            raise InvalidRequest(f"steps: {self.name} was trained with {self.max_steps} steps")
        self._check_strength(request, can)
        if request.negative_prompt:
            if not can.negative:
                raise InvalidRequest(f"negative_prompt: {can.name} takes none")
            if request.guidance_scale <= can.guided_above:
                raise InvalidRequest(
                    "negative_prompt: it has an effect only at a guidance_scale above"
                    f" {can.guided_above:g}"
                )
        if can.conditioning is Conditioning.LABEL:
            self.label(request.prompt)
        elif can.conditioning is Conditioning.NONE and request.prompt.strip() not in ("", "*"):
            raise InvalidRequest(
                f"prompt: {self.name} takes none and draws what it was trained on; send a blank"
                " or '*'"
            )

    def _refusal(self, task: Task) -> str:
        if task is Task.GENERATE:
            needs = "an image and a mask" if Task.EDIT not in self.abilities else "an image"
            return f"image: {self.name} needs {needs} to start from"
        if task is Task.EDIT and Task.INPAINT in self.abilities:
            return f"mask: {self.name} paints within a mask and needs one"
        given = "image" if task is Task.EDIT else "mask"
        return f"{given}: {self.name} takes none"

    def _check_size(self, request: GenerateRequest, can: Ability) -> None:
        size = (request.width, request.height)
        if min(size) < 1:
            raise InvalidRequest("width and height must be positive")
        if not can.sized and size != self.native_size:
            width, height = self.native_size or (0, 0)
            raise InvalidRequest(f"width, height: {self.name} makes {width}x{height} only")
        if can.sized and any(side % self.size_factor for side in size):
            raise InvalidRequest(f"width and height must be multiples of {self.size_factor}")

    def _check_strength(self, request: GenerateRequest, can: Ability) -> None:
        if request.strength is None:
            strength = can.default_strength
        elif can.default_strength is None:
            raise InvalidRequest(f"strength: {can.name} takes none for this task")
        elif not 0 < request.strength <= 1:
            raise InvalidRequest("strength must be above 0 and at most 1")
        else:
            strength = request.strength
        if strength is not None and int(request.steps * strength) < 1:
            raise InvalidRequest(
                f"strength: {strength:g} of {request.steps} steps leaves none to run"
            )

    def label(self, prompt: str) -> int:
        """The class that a prompt names: a label's name or the number of a class. Raises
        InvalidRequest."""
        text = prompt.strip()
        known = {name.casefold(): number for name, number in self.labels.items()}
        number = known.get(text.casefold())
        if number is None and text.isdecimal() and len(text) <= LONGEST_NUMBER:
            number = int(text)
        if number is None or not 0 <= number < self.classes:
            some = ", ".join(list(self.labels)[:5])
            names = f"a label's name ({some}, …) or " if some else ""
            raise InvalidRequest(
                f"prompt: {self.name} draws classes; send {names}a number below {self.classes}"
            )
        return number

    def batch_key(self, request: GenerateRequest) -> Hashable:
        """As ``engine.batch_key``, and requests with and without a negative prompt share a batch
        where the pipeline makes the same bits of "" and of none."""
        can = self.abilities[task_of(request)]
        negative = bool(request.negative_prompt) and not can.empty_is_none
        return (*shape_key(request), negative)


def shape_key(request: GenerateRequest) -> tuple[Hashable, ...]:
    """All that one call of a pipeline has only once. Whether there is guidance follows from its
    scale."""
    return (
        task_of(request),
        request.width,
        request.height,
        request.steps,
        request.guidance_scale,
        request.strength,
    )


def limits_of(pipeline: Any, abilities: Mapping[Task, Ability]) -> Limits:
    """Of a loaded pipeline. Raises ConfigError: neither requests nor the model say a size."""
    denoiser = denoiser_of(pipeline)
    can = abilities.get(Task.GENERATE)
    native = None
    if can is not None and not can.sized:
        native = _native_size(pipeline, denoiser)
    scheduler = getattr(getattr(pipeline, "scheduler", None), "config", {})
    labelled = any(a.conditioning is Conditioning.LABEL for a in abilities.values())
    return Limits(
        name=type(pipeline).__name__,
        abilities=abilities,
        size_factor=_size_factor(pipeline, denoiser),
        native_size=native,
        max_steps=scheduler.get("num_train_timesteps"),
        labels=dict(getattr(pipeline, "labels", None) or {}),
        classes=int(denoiser.config.get("num_embeds_ada_norm") or 0) if labelled else 0,
    )


def denoiser_of(pipeline: Any) -> Any:
    """The network that is called at every step. Raises ConfigError."""
    for name in ("transformer", "unet", "decoder", "prior_prior"):
        found = getattr(pipeline, name, None)
        if found is not None and hasattr(found, "config"):
            return found
    raise ConfigError(f"{type(pipeline).__name__} is not served: it has no unet or transformer")


def vae_of(pipeline: Any) -> Any | None:
    """The part that turns latents into pixels; None in a pipeline that has no latents."""
    parts = (getattr(pipeline, name, None) for name in ("vae", "movq", "vqvae"))
    return next((part for part in parts if part is not None), None)


def _native_size(pipeline: Any, denoiser: Any) -> tuple[int, int]:
    size = denoiser.config.get("sample_size")
    if size is None:
        raise ConfigError(f"{type(pipeline).__name__}: its configuration has no sample_size")
    height, width = (size, size) if isinstance(size, int) else size
    vae = vae_of(pipeline)
    scale = 2 ** (len(vae.config.block_out_channels) - 1) if vae is not None else 1
    return int(width) * scale, int(height) * scale


def _size_factor(pipeline: Any, denoiser: Any) -> int:
    """Sides are multiples of what one latent, or one patch of them, covers; of 8 at least, which
    most pipelines ask for whatever their VAE."""
    if getattr(pipeline, "movq", None) is not None:
        return 64  # Kandinsky rounds other sizes up
    scale = int(getattr(pipeline, "vae_scale_factor", 1) or 1)
    if hasattr(pipeline, "_pack_latents"):
        patch = 2
    else:
        config = denoiser.config
        sizes = config.get("all_patch_size") or config.get("patch_size") or 1
        patch = max(s for s in (sizes if isinstance(sizes, list | tuple) else [sizes]))
    return math.lcm(8, scale * int(patch))
