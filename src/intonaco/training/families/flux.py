"""FLUX.1: a transformer over packed latents with rotary positions, CLIP and T5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from intonaco.training.families.base import Family, Tensors

_PACKED = 2  # latents a side that one token holds
_TIMES = 1000.0  # its timesteps go from 0 to 1, the scheduler's to 1000


class Flux(Family):
    """Black Forest Labs 2024, as diffusers' ``FluxPipeline`` runs it. A denoiser with
    ``guidance_embeds`` (FLUX.1-dev) is told ``guidance``."""

    pipelines = ("FluxPipeline", "FluxImg2ImgPipeline")
    component = "transformer"
    shifted = True

    @property
    def in_channels(self) -> int:
        return int(self.denoiser.config.in_channels) // _PACKED**2

    @property
    def granularity(self) -> int:
        return _PACKED

    @property
    def side(self) -> int:
        return int(self.pipeline.default_sample_size) * self.factor

    @property
    def text_options(self) -> Mapping[str, int]:
        most = self.max_text_tokens  # of T5
        return {} if most is None else {"max_sequence_length": most}

    def encode(self, texts: Sequence[str]) -> Tensors:
        said = self.pipeline.encode_prompt(
            prompt=list(texts), prompt_2=None, device=self.device, **self.text_options
        )
        return {"text": said[0], "pooled": said[1]}

    def predict(
        self, denoiser: Any, noisy: Tensor, timestep: Tensor, condition: Tensors, frames: Tensor
    ) -> Tensor:
        n, channels, height, width = noisy.shape
        text = condition["text"]
        pipeline = self.pipeline
        guided = self.denoiser.config.guidance_embeds
        said = denoiser(
            hidden_states=pipeline._pack_latents(noisy, n, channels, height, width),
            timestep=timestep / _TIMES,
            guidance=noisy.new_full((n,), self.guidance) if guided else None,
            pooled_projections=condition["pooled"],
            encoder_hidden_states=text,
            txt_ids=torch.zeros(text.shape[1], 3, device=noisy.device, dtype=noisy.dtype),
            img_ids=pipeline._prepare_latent_image_ids(
                n, height // _PACKED, width // _PACKED, noisy.device, noisy.dtype
            ),
            return_dict=False,
        )[0]
        unpacked: Tensor = pipeline._unpack_latents(
            said, height * self.factor, width * self.factor, self.factor
        )
        return unpacked
