"""The training job: ``python -m intonaco.training.job JOB_FOLDER``.

Payload: ``recipe`` (a config.Recipe as JSON), ``dataset`` (image folder), ``base`` (pipeline
folder, or null to build one with the recipe's ``init``), ``adapters`` and ``fused`` (optional: of
the base, as in its release), ``seed`` (optional, else the recipe's).
Result: ``pipeline`` (folder, relative to the job's), ``adapters`` (beside its weights), steps,
seconds, cpu_seconds, images_per_second, loss_first, loss_last, items.
"""

from __future__ import annotations

import importlib
import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from torch import Tensor

from intonaco import lora
from intonaco.config import Recipe
from intonaco.errors import BackendError, ConfigError
from intonaco.folders import ADAPTERS
from intonaco.jobs import JobFolder, main
from intonaco.releases import check_folder, link_base
from intonaco.training.cache import build_cache, image_size, load_images, read_captioned
from intonaco.training.loop import Progress, train_denoiser
from intonaco.training.lora import (
    ADAPTER,
    RELEASED,
    adapter_state,
    add_lora,
    continue_lora,
    fuse_lora,
    save_adapter,
)
from intonaco.training.objective import objective_of
from intonaco.training.vae import train_vae
from intonaco.types import Json

log = logging.getLogger(__name__)


def run(job: JobFolder) -> Mapping[str, Json]:
    """Train as the payload says. Raises ConfigError for a wrong recipe, dataset or base,
    BackendError when training diverges or the saved folder is not what was trained."""
    started, cpu_started = time.perf_counter(), time.process_time()
    payload = job.payload
    recipe = Recipe.model_validate(payload["recipe"])
    seed = int(payload.get("seed", recipe.seed))
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(seed)
    job.progress("prepare", 0, recipe.steps, "loading the model and the data")
    base = payload.get("base")
    pipeline = load_pipeline(base, recipe)
    adapters = [str(a) for a in payload.get("adapters", ())]
    fused = bool(payload.get("fused", False))
    beside = recipe.lora is not None and recipe.method == "lora" and not recipe.lora.fused
    if base is not None and adapters and not beside:  # what is trained is what was served
        lora.load_all(pipeline, Path(base) / ADAPTERS, adapters, fused=True)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    items = read_captioned(Path(payload["dataset"]))
    images = load_images([item.file for item in items], image_size(pipeline))

    if recipe.vae is not None:
        total = recipe.vae.steps
        train_vae(
            pipeline.vae,
            images,
            recipe.vae,
            seed=seed,
            report=lambda step, loss: job.progress(
                "vae", step, total, f"autoencoder, step {step} of {total}", loss=loss
            ),
        )
    cache = build_cache(pipeline, items, images)

    def report(p: Progress) -> None:
        job.progress(
            "train",
            p.step,
            p.total,
            f"step {p.step} of {p.total}, loss {p.loss:.3f}, {p.images_per_second:.0f} images/s",
            images_per_second=p.images_per_second,
            eta_s=p.eta_s,
            loss=p.loss,
            seconds=p.seconds,
        )

    unet = pipeline.unet
    if recipe.method == "lora":
        assert recipe.lora is not None  # config fills it in
        if beside and adapters:
            assert base is not None
            layers = continue_lora(pipeline, Path(base), adapters, fused=fused, recipe=recipe.lora)
        else:
            layers = add_lora(unet, recipe.lora, seed=seed)
        log.info("%d layers adapted", layers, extra={"action": "lora"})
    else:
        unet.requires_grad_(True)
    trained = train_denoiser(
        unet, cache, objective_of(pipeline.scheduler), recipe, seed=seed, report=report
    )
    folder = job.out / "pipeline"
    if beside:
        assert base is not None  # config refuses a recipe that builds one
        save_beside(pipeline, Path(base), folder)
    else:
        expected = fuse_lora(unet) if recipe.method == "lora" else unet.state_dict()
        pipeline.save_pretrained(folder, safe_serialization=True)
        verify_saved(folder, {"unet": expected, "vae": pipeline.vae.state_dict()})
    return {
        "pipeline": "out/pipeline",
        "adapters": [RELEASED] if beside else [],
        "steps": trained.steps,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu_started,
        "images_per_second": trained.images_per_second,
        "loss_first": trained.loss_first,
        "loss_last": trained.loss_last,
        "items": len(items),
    }


def load_pipeline(base: str | None, recipe: Recipe) -> Any:
    """The pipeline to start from. Raises ConfigError if it is none that this loop can train."""
    if base is not None:
        check_folder(Path(base))
        pipeline = DiffusionPipeline.from_pretrained(base, local_files_only=True)
    else:
        module, _, attribute = recipe.init.partition(":")
        if not attribute:
            raise ConfigError(
                f"init {recipe.init!r} needs a base to start from, and the job was given none",
                hint="a first release starts from a folder or from module:callable",
            )
        try:
            pipeline = getattr(importlib.import_module(module), attribute)()
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"init: {recipe.init!r} cannot be imported: {error}") from error
    parts = set(pipeline.components)
    if not {"unet", "vae", "text_encoder", "tokenizer"} <= parts or "text_encoder_2" in parts:
        raise ConfigError(
            f"{type(pipeline).__name__} cannot be trained here; known: pipelines of one UNet, one "
            "text encoder and a KL autoencoder (Stable Diffusion 1 and 2)"
        )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.vae.requires_grad_(False)
    pipeline.text_encoder.requires_grad_(False)
    return pipeline


def save_beside(pipeline: Any, base: Path, folder: Path) -> None:
    """The base's own files, and the trained adapter beside them. Loaded again and compared: the
    adapter bit by bit, and the weights that it was trained over. Raises BackendError, ConfigError.
    """
    shutil.rmtree(folder, ignore_errors=True)
    link_base(base, folder)
    save_adapter(pipeline, folder / ADAPTERS / RELEASED)
    check_folder(folder)
    reloaded = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    lora.load(reloaded, ADAPTER, folder / ADAPTERS / RELEASED)
    trained, saved = adapter_state(pipeline.unet), adapter_state(reloaded.unet)
    ours, theirs = pipeline.unet.state_dict(), reloaded.unet.state_dict()
    frozen = [name for name in ours if ".lora_" not in name]
    lost = [n for n in trained if n not in saved or not torch.equal(trained[n], saved[n])]
    lost += [n for n in frozen if n not in theirs or not _same(ours[n], theirs[n])]
    if lost or set(saved) != set(trained):
        raise BackendError(
            f"the saved adapter is not the trained one: {len(lost)} tensors differ"
            + (f", {lost[0]} for one" if lost else ""),
            backend="training",
            retriable=False,
        )


def verify_saved(folder: Path, expected: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Load the folder again and compare its parts with what was trained (part, then tensor name).

    Raises BackendError that names what got lost: a tensor that is missing, of another shape, or
    further off than fusing an adapter rounds.
    """
    check_folder(folder)
    reloaded = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    lost = []
    for part, tensors in expected.items():
        saved = getattr(reloaded, part).state_dict()
        for name in sorted(set(tensors) | set(saved)):
            a, b = tensors.get(name), saved.get(name)
            if a is None or b is None or a.shape != b.shape or not _same(a, b):
                lost.append(f"{part}.{name}")
    if lost:
        raise BackendError(
            f"the saved model is not the trained one: {lost[0]} differs"
            + (f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""),
            backend="training",
            retriable=False,
        )


def _same(trained: Tensor, saved: Tensor) -> bool:
    return torch.allclose(saved, trained.cpu(), rtol=1e-4, atol=1e-5)


def _quiet() -> None:
    """Keep the libraries' progress bars out of the log: an error quotes its end."""
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()


if __name__ == "__main__":
    _quiet()
    main(run)
