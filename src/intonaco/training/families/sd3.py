"""Stable Diffusion 3: a multimodal transformer (MMDiT), two CLIP text encoders and T5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from intonaco.training.families.base import Family, Tensors


class StableDiffusion3(Family):
    """Esser et al. 2024, arXiv:2403.03206."""

    pipelines = ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline")
    component = "transformer"
    shifted = True

    @property
    def longest(self) -> int | None:
        # Its table of positions is that many patches a side; smaller pictures take the middle.
        return int(self.denoiser.config.pos_embed_max_size) * self.multiple

    @property
    def text_options(self) -> Mapping[str, int]:
        most = self.max_text_tokens  # of T5
        return {} if most is None else {"max_sequence_length": most}

    def encode(self, texts: Sequence[str]) -> Tensors:
        said = self._encode(list(texts), guided=False)
        return {"text": said[0], "pooled": said[2]}

    def empty(self) -> Tensors:
        said = self._encode([""], guided=True)
        return {"text": said[1], "pooled": said[3]}

    def _encode(self, texts: list[str], *, guided: bool) -> Any:
        return self.pipeline.encode_prompt(
            prompt=texts,
            prompt_2=None,
            prompt_3=None,
            device=self.device,
            do_classifier_free_guidance=guided,
            **self.text_options,
        )

    def predict(
        self, denoiser: Any, noisy: Tensor, timestep: Tensor, condition: Tensors, frames: Tensor
    ) -> Tensor:
        said: Tensor = denoiser(
            hidden_states=noisy,
            timestep=timestep,
            encoder_hidden_states=condition["text"],
            pooled_projections=condition["pooled"],
            return_dict=False,
        )[0]
        return said
