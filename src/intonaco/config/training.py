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
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = ("to_q", "to_k", "to_v", "to_out.0")
    fused: bool = True


class FlowRecipe(Section):
    """How often each time between picture (0) and noise (1) is trained, for flow matching (Esser et
    al. 2024, arXiv:2403.03206, section 3.1). ``mean``, ``deviation``: of ``logit_normal``;
    ``scale``: of ``mode``. ``shift``: towards noise; the scheduler's own if not given."""

    times: Literal["logit_normal", "uniform", "mode", "cosmap"] = "logit_normal"
    mean: float = 0.0
    deviation: Positive = 1.0
    scale: Annotated[float, Field(ge=-1, le=1.75)] = 1.29  # beyond, times would not be in order
    shift: Positive | None = None


class Samples(Section):
    """Pictures of fixed prompts from fixed seeds, drawn while it trains."""

    prompts: Annotated[tuple[str, ...], Field(min_length=1)]
    every: Count = 500  # steps
    steps: Count = 20  # of the sampler
    guidance_scale: Annotated[float, Field(ge=0)] = 4.0
    seed: int = 0


class Validation(Section):
    """The loss on held-out items (``data.reference``), always with the same noise. ``keep_best``:
    the result is what had the lowest, not what came last."""

    every: Count = 200  # steps
    items: Count = 64
    keep_best: bool = False


class Recipe(Section):
    """One way to train. ``init``: "champion", a folder, or ``module:callable`` that builds an
    untrained pipeline. See docs/concepts/training.md."""

    method: Literal["full", "lora"] = "lora"
    init: str = "champion"
    steps: Count = 1000
    batch_size: Count = 32  # images a step, over all devices
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

    # What is learnt
    min_snr_gamma: Positive | None = 5.0  # for epsilon and v prediction; null: all times alike
    flow: FlowRecipe = FlowRecipe()
    guidance: Positive = 1.0  # told to a denoiser that was distilled for guidance (FLUX.1-dev)
    max_text_tokens: Count | None = None  # of T5; the pipeline's own number if not given

    # What it is learnt from
    resolution: Count | None = None  # pixels a side of a square; the pipeline's own if not given
    max_aspect: Annotated[float, Field(ge=1)] = 2.0  # of aspect-ratio buckets; 1: squares only
    latents: Literal["sample", "mean"] = "sample"  # of the autoencoder's posterior, anew each step

    # How it fits the machine
    precision: Literal["float32", "bfloat16"] = "float32"  # of the arithmetic; weights stay float32
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    gradient_checkpointing: bool = False
    accumulation: Count = 1  # parts that a device computes its share of a batch in
    compile: bool = False
    processes: Count = 1  # devices; the batch is shared among them

    # What is kept of it on the way
    report_every: Count = 10  # steps
    checkpoint_every: Count = 500  # steps
    checkpoints_kept: Count = 2
    samples: Samples | None = None
    validation: Validation | None = None
    min_share: Share = 0.5  # of the steps; a run stopped earlier by its budget makes no candidate

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

    @model_validator(mode="after")
    def _a_batch_can_be_shared(self) -> Recipe:
        parts = self.processes * self.accumulation
        if self.batch_size % parts:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be shared evenly among {self.processes} "
                f"processes x accumulation {self.accumulation}: give a multiple of {parts}"
            )
        return self


DEFAULT_RECIPES = {"fine_tune": Recipe(), "full": Recipe(method="full")}


class Training(Section):
    """``restarts``: how often a job that died (killed, the machine restarted) goes on from its last
    checkpoint. ``cache_gb``: latents and text embeddings kept on disk for the next job; the least
    recently used go first."""

    type: str = "local"  # a built-in, an entry point of `intonaco.training`, or module:attribute
    recipes: dict[str, Recipe] = DEFAULT_RECIPES
    max_seconds: Positive = 86_400.0
    parallel: Count = 1  # candidates trained at the same time
    restarts: Annotated[int, Field(ge=0)] = 1
    cache_gb: Annotated[float, Field(ge=0)] = 50.0
