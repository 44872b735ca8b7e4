"""Families of pipelines: how each encodes text and calls its denoiser."""

from __future__ import annotations

from typing import Any

from intonaco.config import Recipe
from intonaco.errors import ConfigError
from intonaco.training.families.base import Family, Tensors
from intonaco.training.families.dit import Dit
from intonaco.training.families.flux import Flux
from intonaco.training.families.sd import StableDiffusion
from intonaco.training.families.sd3 import StableDiffusion3
from intonaco.training.families.sdxl import StableDiffusionXL

__all__ = ["FAMILIES", "Family", "Tensors", "family_of"]

FAMILIES: tuple[type[Family], ...] = (
    StableDiffusion,
    StableDiffusionXL,
    StableDiffusion3,
    Flux,
    Dit,
)


def family_of(pipeline: Any, recipe: Recipe) -> Family:
    """The adapter for a pipeline. Raises ConfigError if no family takes it."""
    name = type(pipeline).__name__
    for kind in FAMILIES:
        if name in kind.pipelines:
            return kind(pipeline, guidance=recipe.guidance, max_text_tokens=recipe.max_text_tokens)
    known = ", ".join(kind.pipelines[0] for kind in FAMILIES)
    raise ConfigError(f"{name} cannot be trained here", hint=f"known pipelines: {known}")
