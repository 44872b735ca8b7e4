"""Looking at a run while it trains: pictures of fixed prompts, the loss on held-out items."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from intonaco.config import Recipe, Samples
from intonaco.training.batches import Batch, Draw, gather
from intonaco.training.cache import Cache
from intonaco.training.families import Family
from intonaco.training.loop import squared_errors
from intonaco.training.objective import Objective
from intonaco.training.trouble import storage
from intonaco.workspace import write_atomic


def draw_samples(family: Family, settings: Samples, recipe: Recipe, side: int) -> list[Any]:
    """One picture a prompt, each from a seed of its own, by the pipeline as it is."""
    pipeline, denoiser = family.pipeline, family.denoiser
    generators = [
        torch.Generator().manual_seed(settings.seed + i) for i in range(len(settings.prompts))
    ]
    training, device = denoiser.training, family.device
    denoiser.eval()
    pipeline.to(device)  # encoders may have been set aside
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            return family.sample(
                settings.prompts,
                steps=settings.steps,
                guidance_scale=settings.guidance_scale,
                generators=generators,
                side=side,
            )
    finally:
        denoiser.train(training)
        set_aside(family)


def set_aside(family: Family) -> None:
    """Take what training does not need off a GPU."""
    if family.device.type == "cpu":
        return
    for name, part in family.pipeline.components.items():
        if isinstance(part, torch.nn.Module) and name != family.component:
            part.to("cpu")
    torch.cuda.empty_cache()


def save_samples(pictures: Sequence[Any], file: Path) -> None:
    """The pictures side by side, as a PNG. Raises StorageError."""
    width = sum(p.width for p in pictures)
    row = Image.new("RGB", (width, max(p.height for p in pictures)))
    at = 0
    for picture in pictures:
        row.paste(picture, (at, 0))
        at += picture.width
    out = io.BytesIO()
    row.save(out, format="PNG")
    with storage(f"sample pictures in {file.parent}", "samples.every in the recipe"):
        write_atomic(file, out.getvalue())


@dataclass(frozen=True, slots=True)
class Held:
    """Held-out items, always with the same noise, at times spread evenly from picture to noise."""

    family: Family
    cache: Cache
    objective: Objective
    recipe: Recipe
    draws: tuple[Draw, ...]

    @classmethod
    def of(cls, family: Family, cache: Cache, objective: Objective, recipe: Recipe) -> Held:
        """``cache``: of at most as many items as are looked at."""
        random = torch.Generator().manual_seed(0)
        # In order of the items times would go with their classes.
        shares = (torch.randperm(len(cache), generator=random) + 0.5) / len(cache)
        draws, at = [], 0
        size = max(1, recipe.batch_size // (recipe.processes * recipe.accumulation))
        for bucket in cache.buckets:
            for first in range(0, len(bucket), size):
                items = torch.arange(first, min(first + size, len(bucket)))
                noise = torch.randn(
                    (len(items), *bucket.means.parts[0].shape[1:]), generator=random
                )
                draws.append(
                    Draw(
                        bucket=bucket,
                        items=items,
                        texts=bucket.choices[items, 0],
                        without=torch.zeros(len(items), dtype=torch.bool),
                        inside=None,
                        noise=noise,
                        times=objective.at(shares[at : at + len(items)]),
                    )
                )
                at += len(items)
        return cls(family, cache, objective, recipe, tuple(draws))

    def loss(self) -> float:
        """Mean squared error of the denoiser as it is."""
        denoiser = self.family.denoiser
        training = denoiser.training
        denoiser.eval()
        try:
            total = 0.0
            for draw in self.draws:
                batch: Batch = gather(self.cache, draw, slice(0, len(draw)), self.family.device)
                errors = squared_errors(self.family, self.objective, batch, self.recipe)
                total += float(errors.double().sum())
            return total / sum(len(draw) for draw in self.draws)
        finally:
            denoiser.train(training)
