"""The training loop: one denoiser, cached latents and texts, on one device in float32."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (its customary name)

from intonaco.config import Recipe
from intonaco.errors import BackendError
from intonaco.training.cache import Cache
from intonaco.training.objective import Objective

_REPORT_EVERY = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where the loop is. ``loss``: mean over the steps since the last report."""

    step: int
    total: int
    loss: float
    seconds: float
    images_per_second: float
    eta_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """``loss_first``, ``loss_last``: means over the first and last tenth of the steps."""

    steps: int
    seconds: float
    images_per_second: float
    loss_first: float
    loss_last: float


def train_denoiser(
    denoiser: Any,
    cache: Cache,
    objective: Objective,
    recipe: Recipe,
    *,
    seed: int,
    report: Callable[[Progress], None],
) -> Trained:
    """Train the denoiser's parameters that require gradients; leaves their moving average in it.

    Each step draws items with replacement, one of each item's texts, and no text with probability
    ``caption_dropout`` (classifier-free guidance, Ho and Salimans 2022, arXiv:2207.12598). AdamW,
    linear warm-up, constant, linear decay; gradients clipped by norm. Random numbers come from one
    CPU generator, so that a seed means the same on every device. Raises BackendError when the loss
    is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = [p for p in denoiser.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters,
        recipe.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    average = EMAModel(parameters, decay=recipe.ema_decay, foreach=True)
    denoiser.train()
    losses: list[float] = []
    recent: list[Tensor] = []
    started = time.perf_counter()
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * rate_at(step, recipe)
        latents, texts = draw_batch(cache, recipe, generator)
        noise = torch.randn(latents.shape, generator=generator).to(latents.device)
        times = objective.draw(len(latents), generator).to(latents.device)
        noisy, timestep, target = objective.noised(latents, noise, times)
        loss = F.mse_loss(denoiser(noisy, timestep, texts, return_dict=False)[0], target)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types there
        torch.nn.utils.clip_grad_norm_(parameters, recipe.gradient_clip)
        optimizer.step()
        average.step(parameters)
        recent.append(loss.detach())
        done = step + 1
        if done % _REPORT_EVERY == 0 or done == recipe.steps:
            losses += torch.stack(recent).tolist()  # the only wait for the device
            loss_now, recent = sum(losses[-len(recent) :]) / len(recent), []
            if not math.isfinite(loss_now):
                raise BackendError(
                    f"the loss is {loss_now} after {done} steps",
                    backend="training",
                    retriable=False,
                    hint="lower the recipe's learning_rate",
                )
            seconds = time.perf_counter() - started
            report(
                Progress(
                    step=done,
                    total=recipe.steps,
                    loss=loss_now,
                    seconds=seconds,
                    images_per_second=done * recipe.batch_size / seconds,
                    eta_s=seconds / done * (recipe.steps - done),
                )
            )
    average.copy_to(parameters)
    denoiser.eval()
    seconds = time.perf_counter() - started
    tenth = max(1, recipe.steps // 10)
    return Trained(
        steps=recipe.steps,
        seconds=seconds,
        images_per_second=recipe.steps * recipe.batch_size / seconds,
        loss_first=sum(losses[:tenth]) / tenth,
        loss_last=sum(losses[-tenth:]) / tenth,
    )


def rate_at(step: int, recipe: Recipe) -> float:
    """Share of the learning rate at a step: up, flat, then down to 2 % over ``decay_share``."""
    up = (step + 1) / recipe.warm_up_steps if recipe.warm_up_steps else 1.0
    decay_steps = recipe.decay_share * recipe.steps
    left = recipe.steps - step
    down = max(0.02, left / decay_steps) if left < decay_steps else 1.0
    return min(1.0, up) * down


def draw_batch(cache: Cache, recipe: Recipe, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random latents [b, c, h, w] and text embeddings [b, tokens, width]."""
    n = recipe.batch_size
    items = torch.randint(0, len(cache), (n,), generator=generator)
    which = (torch.rand(n, generator=generator) * cache.counts[items]).long()
    texts = cache.texts[cache.choices[items, which].to(cache.texts.device)]
    without = torch.rand(n, generator=generator) < recipe.caption_dropout
    without = without.to(texts.device)[:, None, None]
    return cache.latents[items.to(cache.latents.device)], torch.where(without, cache.empty, texts)
