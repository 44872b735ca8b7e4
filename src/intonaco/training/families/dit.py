"""DiT: a transformer that is told a class. A caption is a class's number, or its name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.embeddings import LabelEmbedding
from torch import Tensor

from intonaco.errors import ConfigError
from intonaco.training.families.base import Family, Tensors


class Dit(Family):
    """Peebles and Xie 2023, arXiv:2212.09748. Where the denoiser also predicts variances, they are
    left as they are: only the mean is trained."""

    pipelines = ("DiTPipeline",)
    component = "transformer"
    squares = True  # it unpatches to a square
    lora = False

    def __init__(
        self, pipeline: Any, *, guidance: float = 1.0, max_text_tokens: int | None = None
    ) -> None:
        super().__init__(pipeline, guidance=guidance, max_text_tokens=max_text_tokens)
        # Its blocks would each drop labels by themselves, and not the same; the loop drops them.
        for module in self.denoiser.modules():
            if isinstance(module, LabelEmbedding):
                module.dropout_prob = 0.0

    @property
    def classes(self) -> int:
        """How many classes there are; that number itself stands for none."""
        return int(self.denoiser.config.num_embeds_ada_norm)

    def encode(self, texts: Sequence[str]) -> Tensors:
        return {"label": torch.tensor([self._label(text) for text in texts], device=self.device)}

    def empty(self) -> Tensors:
        return {"label": torch.tensor([self.classes], device=self.device)}

    def _label(self, text: str) -> int:
        label = self.pipeline.labels.get(text)
        if label is None and text.isdecimal():
            label = int(text)
        if label is None or not 0 <= label < self.classes:
            raise ConfigError(
                f"caption {text!r} is no class of this model",
                hint=f"captions are names of its id2label, or numbers below {self.classes}",
            )
        return int(label)

    def predict(
        self, denoiser: Any, noisy: Tensor, timestep: Tensor, condition: Tensors, frames: Tensor
    ) -> Tensor:
        said: Tensor = denoiser(
            noisy, timestep=timestep, class_labels=condition["label"], return_dict=False
        )[0]
        return said[:, : noisy.shape[1]]

    def sample(
        self,
        prompts: Sequence[str],
        *,
        steps: int,
        guidance_scale: float,
        generators: Sequence[torch.Generator],
        side: int,
    ) -> list[Any]:
        out = self.pipeline(
            class_labels=[self._label(prompt) for prompt in prompts],
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=list(generators),
        )
        return list(out.images)
