"""The training job: ``python -m intonaco.training.job JOB_FOLDER``.

Payload: ``recipe`` (a config.Recipe as JSON), ``dataset`` (image folder), ``base`` (pipeline
folder, or null to build one with the recipe's ``init``); and where they apply ``adapters`` and
``fused`` (of the base, as in its release), ``seed`` (else the recipe's), ``dataset_version`` (its
id, else its files are digested), ``validation`` (image folder of held-out items), ``cache`` (folder
shared by jobs, else one of the job's own) and ``cache_gb``, ``max_seconds``, ``max_money``,
``hourly_price``; ``by_hand`` is for ``intonaco train`` alone, and not read here.
Result: ``pipeline`` (folder, relative to the job's), ``adapters`` (beside its weights), steps,
steps_asked, kept_step, stopped, seconds, cpu_seconds, images_per_second, loss_first, loss_last,
validation_loss, items.

The folder also gets ``metrics.jsonl`` (one line a report), ``samples/STEP.png`` and
``checkpoints/`` (until the result is there). A job that was killed and is run again in its folder
goes on from there.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from intonaco import lora
from intonaco.config import Recipe
from intonaco.errors import BackendError, ConfigError, IntonacoError
from intonaco.folders import ADAPTERS
from intonaco.jobs import JobFolder, main
from intonaco.training.cache import Cache, cached, locked
from intonaco.training.checkpoints import Checkpoints
from intonaco.training.devices import Devices, end_with_parent, is_member, launch
from intonaco.training.export import load_folder, save_beside, save_whole
from intonaco.training.families import Family, family_of
from intonaco.training.items import Captioned, load_images, read_captioned, square_of
from intonaco.training.looks import Held, draw_samples, save_samples, set_aside
from intonaco.training.loop import Hooks, Trained, facts_of, train_denoiser
from intonaco.training.lora import (
    RELEASED,
    add_lora,
    continue_lora,
    fuse_lora,
    lighten,
    restore,
)
from intonaco.training.objective import Objective, objective_of
from intonaco.training.progress import Ceiling, Progress, add_metrics, cut_metrics
from intonaco.training.trouble import memory, storage
from intonaco.training.vae import train_vae
from intonaco.types import Json
from intonaco.workspace import write_json

log = logging.getLogger(__name__)


def run(job: JobFolder, devices: Devices | None = None) -> Mapping[str, Json]:
    """Train as the payload says. Raises ConfigError for a wrong recipe, dataset or base,
    BackendError when training diverges, memory runs out, too little was trained when the budget
    ended it, or the saved folder is not what was trained; StorageError for a full disk."""
    recipe = Recipe.model_validate(job.payload["recipe"])
    with memory(recipe):
        return _run(job, recipe, devices or Devices())


def _run(job: JobFolder, recipe: Recipe, devices: Devices) -> Mapping[str, Json]:
    started, cpu_started = time.perf_counter(), time.process_time()
    payload = job.payload
    seed = int(payload.get("seed", recipe.seed))
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(seed)
    report = job.progress if devices.main else _silent
    report("prepare", 0, recipe.steps, "loading the model and the data")
    base = payload.get("base")
    pipeline = load_pipeline(base, recipe)
    adapters = [str(a) for a in payload.get("adapters", ())]
    fused = bool(payload.get("fused", False))
    beside = recipe.lora is not None and recipe.method == "lora" and not recipe.lora.fused
    if base is not None and adapters and not beside:  # what is trained is what was served
        lora.load_all(pipeline, Path(base) / ADAPTERS, adapters, fused=True)
    family = family_of(pipeline, recipe)
    pipeline.to(devices.device)
    items = read_captioned(Path(payload["dataset"]))
    side = square_of(family, recipe).width

    objective = objective_of(pipeline.scheduler, recipe)  # refuses before anything takes time
    if recipe.vae is not None:
        _train_vae(job, family, items, recipe, seed, report)
    cache = _cache(job, family, items, recipe, report, payload.get("dataset_version"))
    held = _held(job, family, objective, recipe, report)
    set_aside(family)

    denoiser = family.denoiser
    light: Mapping[str, torch.Tensor] = {}
    if recipe.method == "lora":
        assert recipe.lora is not None  # config fills it in
        if beside and adapters:
            assert base is not None
            layers = continue_lora(family, Path(base), adapters, fused=fused, recipe=recipe.lora)
        else:
            layers = add_lora(family, recipe.lora, seed=seed)
        log.info("%d layers adapted", layers, extra={"action": "lora"})
        if recipe.precision == "bfloat16":
            light = lighten(denoiser)
    else:
        denoiser.requires_grad_(True)

    trained = train_denoiser(
        family,
        cache,
        objective,
        recipe,
        _hooks(job, family, recipe, held, seed, side, report),
        seed=seed,
        devices=devices,
    )
    _check_enough(trained, recipe)
    restore(denoiser, light)
    denoiser.eval()
    pipeline.to("cpu")
    folder = job.out / "pipeline"
    if devices.main:
        if beside:
            assert base is not None  # config refuses a recipe that builds one
            save_beside(family, Path(base), folder)
        else:
            expected = fuse_lora(denoiser) if recipe.method == "lora" else denoiser.state_dict()
            save_whole(family, expected, folder)
    return {
        "pipeline": "out/pipeline",
        "adapters": [RELEASED] if beside else [],
        "steps_asked": recipe.steps,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu_started,
        "items": len(items),
        **facts_of(trained),
    }


def load_pipeline(base: str | None, recipe: Recipe) -> Any:
    """The pipeline to start from. Raises ConfigError if it is none that this loop can train."""
    if base is not None:
        pipeline = load_folder(Path(base))
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
    pipeline.set_progress_bar_config(disable=True)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)
    return pipeline


def _train_vae(
    job: JobFolder,
    family: Family,
    items: list[Captioned],
    recipe: Recipe,
    seed: int,
    report: Callable[..., None],
) -> None:
    """Train the autoencoder, or take it from the job's checkpoint of it. One process trains it, the
    others wait."""
    assert recipe.vae is not None
    vae, total = family.pipeline.vae, recipe.vae.steps
    folder = job.root / "checkpoints" / "vae"
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(folder, _run_id(job, seed), kept=1)
    with locked(folder / "lock"):
        done = checkpoints.newest()
        if done is not None:
            vae.load_state_dict(done.tensors)
            vae.register_to_config(**done.facts)
            vae.eval().requires_grad_(False)
            return
        images, _ = load_images([item.file for item in items], square_of(family, recipe))
        train_vae(
            vae,
            images,
            recipe.vae,
            seed=seed,
            report=lambda step, loss: report(
                "vae", step, total, f"autoencoder, step {step} of {total}", loss=loss
            ),
        )
        told = {name: vae.config.get(name) for name in ("scaling_factor", "shift_factor")}
        tensors = {n: v.detach().cpu().contiguous() for n, v in vae.state_dict().items()}
        checkpoints.save(total, tensors, {n: v for n, v in told.items() if v is not None})


def _cache(
    job: JobFolder,
    family: Family,
    items: list[Captioned],
    recipe: Recipe,
    report: Callable[..., None],
    dataset: str | None,
) -> Cache:
    payload = job.payload
    return cached(
        Path(payload.get("cache") or job.root / "cache"),
        family,
        items,
        recipe,
        dataset=dataset,
        limit_bytes=float(payload.get("cache_gb", float("inf"))) * 1e9,
        report=lambda done, total: report(
            "encode", done, total, f"{done} of {total} pictures encoded"
        ),
    )


def _held(
    job: JobFolder,
    family: Family,
    objective: Objective,
    recipe: Recipe,
    report: Callable[..., None],
) -> Held | None:
    folder = job.payload.get("validation")
    if recipe.validation is None:
        return None
    if folder is None:
        raise ConfigError(
            "validation: the recipe asks for the loss on held-out items, and there are none",
            hint="give data.reference, or take validation out of the recipe",
        )
    everything = read_captioned(Path(folder))
    some = everything[:: max(1, len(everything) // recipe.validation.items)]
    some = some[: recipe.validation.items]
    return Held.of(family, _cache(job, family, some, recipe, report, None), objective, recipe)


def _hooks(
    job: JobFolder,
    family: Family,
    recipe: Recipe,
    held: Held | None,
    seed: int,
    side: int,
    report: Callable[..., None],
) -> Hooks:
    """The loop's ties to the job's folder, budget and clock."""
    payload = job.payload
    checkpoints = Checkpoints(
        job.root / "checkpoints", _run_id(job, seed), kept=recipe.checkpoints_kept
    )
    # Earlier attempts at this job count: they were paid for, and the backend counts from there.
    began = float(job.read("started").get("at", time.time()))

    def begin(step: int) -> None:
        with storage(f"metrics in {job.root}", "report_every in the recipe"):
            cut_metrics(job.root, step)

    def tell(p: Progress) -> None:
        report(
            "train",
            p.step,
            p.total,
            f"step {p.step} of {p.total}, loss {p.loss:.3f}, {p.images_per_second:.0f} images/s",
            **{k: v for k, v in p.as_json().items() if k != "step"},
        )
        with storage(f"metrics in {job.root}", "report_every in the recipe"):
            add_metrics(job.root, p.as_json())

    def sample(step: int) -> None:
        assert recipe.samples is not None
        pictures = draw_samples(family, recipe.samples, recipe, side)
        save_samples(pictures, job.root / "samples" / f"{step:08}.png")

    limit, money = payload.get("max_seconds"), payload.get("max_money")
    price = float(payload.get("hourly_price", 0.0))
    return Hooks(
        clock=lambda: time.time() - began,
        begin=begin,
        report=tell,
        should_stop=Ceiling(
            max_seconds=None if limit is None else float(limit),
            max_money=None if money is None else float(money),
            hourly_price=price,
        ),
        sample=sample if recipe.samples is not None else None,
        validate=held.loss if held is not None else None,
        checkpoints=checkpoints,
        hourly_price=price,
    )


def _run_id(job: JobFolder, seed: int) -> str:
    """Digest of what decides a run's weights."""
    told = {k: job.payload.get(k) for k in ("recipe", "dataset", "base", "adapters", "fused")}
    return hashlib.sha256(json.dumps([told, seed], sort_keys=True).encode()).hexdigest()[:32]


def _check_enough(trained: Trained, recipe: Recipe) -> None:
    """Raises BackendError if a run was stopped too early to make a candidate."""
    if trained.stopped is None or trained.steps >= recipe.min_share * recipe.steps:
        return
    raise BackendError(
        f"stopped after {trained.steps} of {recipe.steps} steps: {trained.stopped}; "
        f"min_share asks for {recipe.min_share:.0%} of them",
        backend="training",
        retriable=False,
        hint="raise decision.budget, lower the recipe's steps, or lower its min_share",
    )


def _silent(*args: Any, **more: Any) -> None:
    """Of all processes but the first."""


def _quiet() -> None:
    """Keep the libraries' progress bars out of the log: an error quotes its end."""
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()


def _start() -> None:
    """Run the job here, or in as many processes as its recipe says. Where one of those is killed
    nothing is written down, as with a process alone: the backend starts the job again."""
    job = JobFolder(Path(sys.argv[1]))
    processes = int(job.payload["recipe"].get("processes", 1))
    if processes == 1 or is_member():
        if is_member():
            end_with_parent()
        devices = Devices()
        if devices.main:
            main(lambda job: run(job, devices))
            # The result is written: nothing will go on from them, and they are large.
            shutil.rmtree(job.root / "checkpoints", ignore_errors=True)
        else:
            _help(job, devices)
        return
    status = launch(
        "intonaco.training.job", [str(job.root)], processes, keep=job.root / "alive.lock"
    )
    sys.exit(4 if status else 0)


def _help(job: JobFolder, devices: Devices) -> None:
    """Compute this process's share. Of its result only an error is told: all others end with it."""
    try:
        run(job, devices)
    except IntonacoError as error:
        write_json(job.root / "error.json", {"message": str(error), "hint": error.hint})
        sys.exit(4)
    except Exception as error:
        write_json(job.root / "error.json", {"message": f"{type(error).__name__}: {error}"})
        raise


if __name__ == "__main__":
    _quiet()
    _start()
