"""``training``: recipes and where they run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from intonaco.config.base import Count, Positive, Section, Share


class VaeRecipe(Section):
    steps: Count
    batch_size: Count = 32
    learning_rate: Positive = 4e-3
    kl_weight: Annotated[float, Field(ge=0)] = 1e-3


class LoraRecipe(Section):
    """``fused``: added to the weights, which serves fastest. Else the release is the base's own
    files and an adapter beside them, which a worker with ``serving.share_base`` needs no second
    base for; a champion with such an adapter has it trained further."""

    rank: Count = 16
    alpha: Positive = 32.0
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    fused: bool = True


class Recipe(Section):
    """One way to train. ``init``: "champion", a folder, or ``module:callable`` that builds an
    untrained pipeline."""

    method: Literal["full", "lora"] = "lora"
    init: str = "champion"
    steps: Count = 1000
    batch_size: Count = 32
    learning_rate: Positive = 1e-4
    warm_up_steps: Annotated[int, Field(ge=0)] = 30
    decay_share: Share = 0.4  # the last part of the steps, learning rate falling linearly
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    gradient_clip: Positive = 1.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.995
    caption_dropout: Share = 0.1
    replay: Annotated[float, Field(ge=0, lt=1)] = 0.3  # share of real old data mixed in
    replay_sampling: Literal["uniform", "topic"] = "uniform"  # every item alike, or every topic
    vae: VaeRecipe | None = None  # train the VAE too (from scratch)
    lora: LoraRecipe | None = None
    seed: int = 0
    threads: Count = 1
    estimated_seconds: Positive = 3600.0  # for the cost estimate until a run of it was measured

    @model_validator(mode="after")
    def _lora_has_settings(self) -> Recipe:
        if self.method == "lora" and self.lora is None:
            object.__setattr__(self, "lora", LoraRecipe())
        return self

    @model_validator(mode="after")
    def _an_adapter_has_a_base(self) -> Recipe:
        if self.method == "lora" and self.lora is not None and not self.lora.fused:
            if self.vae is not None:
                raise ValueError("lora.fused: false leaves the base as it is, so it trains no vae")
            if ":" in self.init:
                raise ValueError(
                    f"lora.fused: false needs a base on disk, and init is {self.init!r}: "
                    "give champion or a folder"
                )
        return self


DEFAULT_RECIPES = {"fine_tune": Recipe(), "full": Recipe(method="full")}


class Training(Section):
    type: str = "local"  # a built-in, an entry point of `intonaco.training`, or module:attribute
    recipes: dict[str, Recipe] = DEFAULT_RECIPES
    max_seconds: Positive = 86_400.0
    parallel: Count = 1  # candidates trained at the same time
