"""What the training loop asks of a family, and what most families answer alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from intonaco.errors import ConfigError

Tensors = Mapping[str, Tensor]


class Family(ABC):
    """One pipeline, seen as the training loop needs it.

    A *condition* is what the denoiser is told of the text: named tensors with one row a text. A
    *frame* is where a picture was cut from: height and width before, top and left edge of the cut,
    height and width after, in pixels.
    """

    pipelines: ClassVar[tuple[str, ...]] = ()  # class names, the usual one first
    component: ClassVar[str] = "unet"  # the pipeline's name of its denoiser
    squares: ClassVar[bool] = False  # the denoiser takes no other shape
    lora: ClassVar[bool] = True  # diffusers loads adapters for it
    shifted: ClassVar[bool] = False  # the pipeline heeds the autoencoder's ``shift_factor``

    def __init__(
        self, pipeline: Any, *, guidance: float = 1.0, max_text_tokens: int | None = None
    ) -> None:
        """Raises ConfigError for a denoiser that is given more than latents and text."""
        self.pipeline = pipeline
        self.guidance = guidance
        self.max_text_tokens = max_text_tokens
        if self.denoiser.config.get("time_cond_proj_dim") is not None:
            raise ConfigError(
                f"{type(pipeline).__name__} cannot be trained here: its denoiser was distilled to "
                "few steps (latent consistency) and is told the guidance",
                hint="train the model that it was distilled from",
            )
        takes, latents = self.in_channels, int(pipeline.vae.config.latent_channels)
        if takes != latents:
            raise ConfigError(
                f"{type(pipeline).__name__} cannot be trained here: its denoiser takes {takes} "
                f"channels and its autoencoder makes {latents}",
                hint="inpainting, depth and control models need pictures beside the captions",
            )

    @property
    def denoiser(self) -> Any:
        return getattr(self.pipeline, self.component)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.denoiser.device
        return device

    @property
    def in_channels(self) -> int:
        """Channels of the latents that the denoiser takes."""
        return int(self.denoiser.config.in_channels)

    @property
    def factor(self) -> int:
        """Pixels a side that one latent stands for."""
        return int(2 ** (len(self.pipeline.vae.config.block_out_channels) - 1))

    @property
    def multiple(self) -> int:
        """What sides of pictures must be a multiple of, in pixels."""
        return self.factor * self.granularity

    @property
    def granularity(self) -> int:
        """What sides of latents must be a multiple of."""
        return int(self.denoiser.config.patch_size)

    @property
    def side(self) -> int:
        """Pixels a side of the squares that the denoiser was made for."""
        sample: Any = self.denoiser.config.sample_size
        return int(sample if isinstance(sample, int) else max(sample)) * self.factor

    @property
    def longest(self) -> int | None:
        """Pixels that a side may have at most; None if there is no limit."""
        return None

    @property
    def text_options(self) -> Mapping[str, int]:
        """What the pipeline is told of the length of texts, in encoding and in drawing."""
        return {}

    def scaled(self, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior of the autoencoder [n, c, h, w], in the unit that the denoiser works in."""
        config = self.pipeline.vae.config
        if self.shifted and (shift := config.get("shift_factor")):
            mean = mean - shift
        return mean * config.scaling_factor, deviation * config.scaling_factor

    def tokens(self, height: int, width: int) -> int:
        """Image tokens of latents of that size: what a dynamic shift of times goes by."""
        return (height // self.granularity) * (width // self.granularity)

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> Tensors:
        """The conditions of texts, by the pipeline's own ``encode_prompt``, as in service."""

    def empty(self) -> Tensors:
        """The condition (one row) that stands for no text: what classifier-free guidance of the
        pipeline is guided away from."""
        return self.encode([""])

    @abstractmethod
    def predict(
        self, denoiser: Any, noisy: Tensor, timestep: Tensor, condition: Tensors, frames: Tensor
    ) -> Tensor:
        """What the denoiser says [b, c, h, w] of noisy latents [b, c, h, w] at timesteps [b], with
        conditions and frames [b, 6]. ``denoiser``: the family's own, or a wrapper of it."""

    def sample(
        self,
        prompts: Sequence[str],
        *,
        steps: int,
        guidance_scale: float,
        generators: Sequence[torch.Generator],
        side: int,
    ) -> list[Any]:
        """Pictures, one a prompt, drawn by the pipeline itself."""
        out = self.pipeline(
            prompt=list(prompts),
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=list(generators),
            height=side,
            width=side,
            **self.text_options,
        )
        return list(out.images)
