"""Training of the autoencoder, for recipes that start from scratch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (its customary name)

from intonaco.config import VaeRecipe


def train_vae(
    vae: Any, images: Tensor, recipe: VaeRecipe, *, seed: int, report: Callable[[int, float], None]
) -> None:
    """Train an AutoencoderKL on images [n, 3, h, w] in -1 to 1, then freeze it.

    Loss: squared error plus ``kl_weight`` times the mean KL divergence per latent (Kingma and
    Welling 2014, arXiv:1312.6114). ``report`` gets (steps done, loss). Ends by setting the
    configuration's ``scaling_factor`` so that latents have unit variance, and ``shift_factor``,
    where it has one, so that their mean is zero.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(
        vae.parameters(), recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps
    )
    vae.train().requires_grad_(True)
    for step in range(recipe.steps):
        rows = torch.randint(0, len(images), (recipe.batch_size,), generator=generator)
        batch = images[rows].to(vae.device)
        posterior = vae.encode(batch).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(vae.device)
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = F.mse_loss(decoded, batch) + recipe.kl_weight * kl
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 10 == 0 or step + 1 == recipe.steps:
            report(step + 1, loss.item())
    vae.eval().requires_grad_(False)
    means = posterior_means(vae, images)
    if vae.config.get("shift_factor") is not None:  # a family that subtracts it
        vae.register_to_config(shift_factor=means.mean().item())
    vae.register_to_config(scaling_factor=1.0 / means.std().item())


@torch.no_grad()
def posterior_means(vae: Any, images: Tensor, batch_size: int = 64) -> Tensor:
    """Unscaled latents [n, c, h', w'] of images [n, 3, h, w] in -1 to 1, on the CPU."""
    parts = [
        vae.encode(images[i : i + batch_size].to(vae.device)).latent_dist.mean.cpu()
        for i in range(0, len(images), batch_size)
    ]
    return torch.cat(parts)
