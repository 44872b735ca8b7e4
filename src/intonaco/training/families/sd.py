"""Stable Diffusion 1 and 2: a UNet, one CLIP text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from intonaco.training.families.base import Family, Tensors


class StableDiffusion(Family):
    """Rombach et al. 2022, arXiv:2112.10752."""

    pipelines = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")

    @property
    def granularity(self) -> int:
        return int(2 ** (len(self.denoiser.config.block_out_channels) - 1))

    def tokens(self, height: int, width: int) -> int:
        return height * width

    def encode(self, texts: Sequence[str]) -> Tensors:
        return {"text": self.pipeline.encode_prompt(list(texts), self.device, 1, False)[0]}

    def predict(
        self, denoiser: Any, noisy: Tensor, timestep: Tensor, condition: Tensors, frames: Tensor
    ) -> Tensor:
        said: Tensor = denoiser(noisy, timestep, condition["text"], return_dict=False)[0]
        return said
