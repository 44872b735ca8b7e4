"""Stable Diffusion XL: a UNet, two CLIP text encoders, and the picture's size and crop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from intonaco.errors import ConfigError
from intonaco.training.families.base import Tensors
from intonaco.training.families.sd import StableDiffusion


class StableDiffusionXL(StableDiffusion):
    """Podell et al. 2023, arXiv:2307.01952. The frame is its micro-conditioning (section 2.2)."""

    pipelines = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline")

    def __init__(
        self, pipeline: Any, *, guidance: float = 1.0, max_text_tokens: int | None = None
    ) -> None:
        super().__init__(pipeline, guidance=guidance, max_text_tokens=max_text_tokens)
        if pipeline.config.get("requires_aesthetics_score"):
            raise ConfigError(
                f"{type(pipeline).__name__} cannot be trained here: it is a refiner, whose denoiser"
                " is told an aesthetic score",
                hint="train the base model",
            )

    def scaled(self, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
        config = self.pipeline.vae.config
        means, deviations = config.get("latents_mean"), config.get("latents_std")
        if means is None or deviations is None:
            return super().scaled(mean, deviation)
        shift = mean.new_tensor(means).view(1, -1, 1, 1)
        scale = config.scaling_factor / mean.new_tensor(deviations).view(1, -1, 1, 1)
        return (mean - shift) * scale, deviation * scale

    def encode(self, texts: Sequence[str]) -> Tensors:
        said = self.pipeline.encode_prompt(
            prompt=list(texts), device=self.device, do_classifier_free_guidance=False
        )
        return {"text": said[0], "pooled": said[2]}

    def empty(self) -> Tensors:
        # As published: zeros, not the embedding of "" (force_zeros_for_empty_prompt).
        said = self.pipeline.encode_prompt(
            prompt=[""], device=self.device, do_classifier_free_guidance=True
        )
        return {"text": said[1], "pooled": said[3]}

    def predict(
        self, denoiser: Any, noisy: Tensor, timestep: Tensor, condition: Tensors, frames: Tensor
    ) -> Tensor:
        added = {"text_embeds": condition["pooled"], "time_ids": frames.to(torch.float32)}
        said: Tensor = denoiser(
            noisy, timestep, condition["text"], added_cond_kwargs=added, return_dict=False
        )[0]
        return said
