"""A release's folder to pipelines, with the options that the release and the worker ask for."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    DiffusionPipeline,
)
from safetensors import SafetensorError

from intonaco.errors import ConfigError
from intonaco.folders import read_index
from intonaco.serving.worker.run import Stage
from intonaco.serving.worker.tasks import Task, ability, denoiser_of, native_tasks, vae_of
from intonaco.types import ServingSpec

log = logging.getLogger(__name__)

OFFLOADS = ("none", "model", "sequential")


def quiet() -> None:
    """Both libraries would write prompts into the log when they truncate one."""
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    # The newer name of the argument is ignored without a word by older versions.
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*torch_dtype.*")


def open_pipeline(folder: Path, spec: ServingSpec) -> Any:
    """The folder's pipeline on the CPU, checked to be what the release says. The folder itself was
    checked before (``folders.check_folder``). Raises ConfigError."""
    dtype = getattr(torch, spec.dtype)
    cls = getattr(diffusers, spec.pipeline_class, None)
    if cls is None:
        raise ConfigError(
            f"{folder}: diffusers {diffusers.__version__} has no class {spec.pipeline_class}",
            hint="the release was made with another version of diffusers, or names its own code",
        )
    native_tasks(cls)  # refused before gigabytes are read
    # A part that the folder leaves out on purpose (Stable Diffusion 3 without T5) has to be said.
    absent = {name: None for name, value in read_index(folder).items() if value == [None, None]}
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, torch_dtype=dtype, **absent
        )
    except (OSError, ValueError, TypeError, ImportError, AttributeError, SafetensorError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ConfigError(f"{folder} cannot be loaded: {first}") from error
    got = denoiser_of(pipeline).dtype
    if got != dtype:
        raise ConfigError(f"{folder} loaded as {got}, the release says {spec.dtype}")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stages_of(pipeline: Any) -> Mapping[Task, Stage]:
    """The pipeline for each task that it can do. A text-to-image pipeline does edits as well where
    diffusers has a pipeline for it: with the same networks and a scheduler of its own, because
    making the second would otherwise change the first one's settings and they would share state.
    """
    cls = type(pipeline)
    native = native_tasks(cls)
    stages = {t: Stage(pipeline=pipeline, can=ability(cls, t, pipeline.config)) for t in native}
    if Task.GENERATE not in native or not stages[Task.GENERATE].can.parameters & {"prompt"}:
        return stages
    for task, auto in (
        (Task.EDIT, AutoPipelineForImage2Image),
        (Task.INPAINT, AutoPipelineForInpainting),
    ):
        if task in stages:
            continue
        scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # on settings of old schedulers
                derived = auto.from_pipe(pipeline, scheduler=scheduler)
        except ValueError as error:  # diffusers has none for this class
            log.info("%s: no %s: %s", cls.__name__, task, error, extra={"action": "engine.tasks"})
            continue
        derived.set_progress_bar_config(disable=True)
        stages[task] = Stage(pipeline=derived, can=ability(type(derived), task, derived.config))
    return stages


# ------------------------------------------------------------------------------------ options


def apply_options(pipeline: Any, spec: ServingSpec) -> None:
    """The release's options that decide bits, ``compile`` apart. Raises ConfigError for one that
    this pipeline cannot do."""
    if "channels_last" in spec.options:
        _channels_last(pipeline)
    for option, method in (("vae_slicing", "enable_slicing"), ("vae_tiling", "enable_tiling")):
        if option in spec.options:
            enable = getattr(vae_of(pipeline), method, None)
            if enable is None:
                raise _cannot(pipeline, f"options: {option}", "its VAE has no such mode")
            enable()
    if spec.attention != "default":
        _attention(pipeline, spec.attention)


def _channels_last(pipeline: Any) -> None:
    changed = 0
    for module in (denoiser_of(pipeline), vae_of(pipeline)):
        if module is not None:
            module.to(memory_format=torch.channels_last)
            # A 1x1 convolution is the same either way.
            changed += sum(
                p.ndim == 4 and max(p.shape[2:]) > 1 and p.is_contiguous(memory_format=_LAST)
                for p in module.parameters()
            )
    if not changed:
        raise _cannot(pipeline, "options: channels_last", "it has no 2-d convolutions")


_LAST = torch.channels_last


def _attention(pipeline: Any, backend: str) -> None:
    denoiser = denoiser_of(pipeline)
    if backend.endswith("_hub"):
        raise _cannot(pipeline, f"attention: {backend!r}", "it downloads code and runs it")
    if not hasattr(denoiser, "set_attention_backend"):
        raise _cannot(pipeline, f"attention: {backend!r}", "its network cannot change it")
    try:
        denoiser.set_attention_backend(backend)
    except (ValueError, RuntimeError, ImportError) as error:
        raise ConfigError(f"attention: {backend!r} cannot be used: {error}") from error
    # diffusers skips processors that cannot be switched, of a UNet all of them.
    processors = list(getattr(denoiser, "attn_processors", {}).values())
    switched = [p for p in processors if getattr(p, "_attention_backend", None) is not None]
    if not processors or len(switched) < len(processors):
        denoiser.reset_attention_backend()
        raise _cannot(
            pipeline,
            f"attention: {backend!r}",
            f"{len(processors) - len(switched)} of its {len(processors)} attention layers would"
            " keep their own",
        )


def compile_denoiser(pipeline: Any) -> None:
    """Compile the blocks that a network repeats, which takes a fraction of compiling it whole."""
    denoiser = denoiser_of(pipeline)
    if getattr(denoiser, "_repeated_blocks", None):
        denoiser.compile_repeated_blocks()
    else:
        denoiser.compile()


def place(pipeline: Any, device: str, offload: str) -> None:
    """Onto the device, or onto it bit by bit as it is needed. Raises ConfigError."""
    if offload == "none":
        pipeline.to(device)
    elif offload not in OFFLOADS:
        raise ConfigError(f"offload: {offload!r} is unknown", hint=f"one of {', '.join(OFFLOADS)}")
    elif device == "cpu":
        raise ConfigError(
            f"offload: {offload!r} keeps weights in main memory until a GPU needs them, and the"
            " device is cpu",
            hint="leave offload at none on a CPU",
        )
    elif offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    else:
        pipeline.enable_sequential_cpu_offload(device=device)


def _cannot(pipeline: Any, option: str, why: str) -> ConfigError:
    return ConfigError(
        f"{option} cannot be had of {type(pipeline).__name__}: {why}", hint="take the option out"
    )
