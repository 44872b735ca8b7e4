"""All of ``intonaco.yaml``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from intonaco.config.base import Positive, Section
from intonaco.config.data import Data
from intonaco.config.decision import Decision
from intonaco.config.delivery import (
    Approval,
    Console,
    NotifierConfig,
    RegistryConfig,
    RolloutConfig,
    TrackerConfig,
    resolve_limits,
)
from intonaco.config.evaluation import Evaluation
from intonaco.config.serving import Model, Serving
from intonaco.config.training import Training
from intonaco.config.watching import Extractor, Monitoring


class Config(Section):
    """All of ``intonaco.yaml``."""

    service: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,62}$")]
    model: Model = Model()
    serving: Serving = Serving()
    extractor: Extractor | None = None
    monitoring: Monitoring = Monitoring()
    decision: Decision = Decision()
    data: Data = Data()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    approval: Approval = Approval()
    rollout: RolloutConfig = RolloutConfig()
    registry: RegistryConfig = RegistryConfig()
    tracker: TrackerConfig = TrackerConfig()
    console: Console = Console()
    notify: tuple[NotifierConfig, ...] = (NotifierConfig(type="log"),)
    tick_seconds: Positive = 1.0

    @model_validator(mode="after")
    def _recipes_exist(self) -> Config:
        for field in ("fine_tune", "full_retrain"):
            for name in getattr(self.decision, field):
                if name not in self.training.recipes:
                    known = ", ".join(sorted(self.training.recipes))
                    raise ValueError(
                        f"decision.{field} names the recipe {name!r}; training.recipes has: {known}"
                    )
        return self

    @model_validator(mode="after")
    def _notifiers_are_told_apart(self) -> Config:
        names = [n.name for n in self.notify]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"notify: two are named {name!r}; give each a name of its own")
        return self

    @model_validator(mode="after")
    def _held_out_items_are_there_to_validate_on(self) -> Config:
        for name, recipe in self.training.recipes.items():
            if recipe.validation is not None and self.data.reference is None:
                raise ValueError(
                    f"training.recipes.{name}.validation needs data.reference: name a folder of "
                    "held-out items, or take validation out of the recipe"
                )
        return self

    @model_validator(mode="after")
    def _prompts_are_there_to_watch(self) -> Config:
        if self.serving.gateway.prompts != "keep":
            written = "signals" in self.monitoring.model_fields_set
            how = "leave the signal out" if written else "write monitoring.signals without it"
            for name, signal in self.monitoring.signals.items():
                if signal.of in ("prompt_embedding", "clip_score") or signal.score == "clip":
                    raise ValueError(
                        f"monitoring.signals.{name} needs prompts, and serving.gateway.prompts is "
                        f"{self.serving.gateway.prompts!r}: {how}, or keep prompts"
                    )
        return self

    @model_validator(mode="after")
    def _conditions_are_there_to_watch(self) -> Config:
        gateway = self.serving.gateway
        if gateway.keep_conditions and gateway.prompts != "keep":
            raise ValueError(
                f"serving.gateway.keep_conditions stores what users send, and prompts is "
                f"{gateway.prompts!r}: leave one of them out"
            )
        for name, signal in self.monitoring.signals.items():
            if signal.of == "condition_embedding" and not gateway.keep_conditions:
                raise ValueError(
                    f"monitoring.signals.{name} needs the pictures that users send: set "
                    "serving.gateway.keep_conditions, or leave the signal out"
                )
            if signal.of == "image_embedding" and not self.monitoring.scoring.images:
                raise ValueError(
                    f"monitoring.signals.{name} needs monitoring.scoring.images, which is false"
                )
        return self

    @model_validator(mode="after")
    def _traffic_is_kept_to_learn_from(self) -> Config:
        gateway = self.serving.gateway
        kept = gateway.prompts == "keep" and gateway.keep_images > 0
        if self.data.curation.enabled and not kept and self.data.curation.labels is None:
            raise ValueError(
                "data.curation needs prompts and images, and serving.gateway keeps none: set "
                "prompts: keep and keep_images, or leave curation out"
            )
        return self

    @model_validator(mode="after")
    def _workers_can_be_replaced(self) -> Config:
        strategy, serving = self.rollout.strategy, self.serving
        if strategy not in ("rolling", "in_place"):
            return self
        if serving.type == "http" or serving.share_base:
            why = "serving.type is http" if serving.type == "http" else "serving.share_base is on"
            raise ValueError(
                f"rollout.strategy {strategy} ends and starts workers of one release, and {why}: "
                "take canary or blue_green"
            )
        if strategy == "rolling":
            surge, unavailable = resolve_limits(
                serving.replicas, self.rollout.max_surge, self.rollout.max_unavailable
            )
            if surge + unavailable == 0:
                raise ValueError(
                    "rollout.max_surge and max_unavailable are both 0 workers: nothing could ever "
                    "be replaced; give one of them 1"
                )
            if unavailable >= serving.replicas:
                raise ValueError(
                    f"rollout.max_unavailable is {unavailable} of {serving.replicas} replicas: "
                    "nobody would answer; strategy in_place does that, and says so"
                )
        return self

    @model_validator(mode="after")
    def _equal_workers_can_be_started(self) -> Config:
        serving = self.serving
        if not self.rollout.baseline:
            return self
        if serving.type == "http" or serving.share_base:
            why = "serving.type is http" if serving.type == "http" else "serving.share_base is on"
            raise ValueError(
                f"rollout.baseline starts more workers of the champion's release, and {why}: leave "
                "it out"
            )
        one, device = serving.worker.memory_gb, serving.worker.device_memory_gb
        together = 3 * serving.replicas
        if one is not None and device is not None and together * one > device:
            raise ValueError(
                f"rollout.baseline: champion, challenger and baseline are {together} workers of "
                f"{one:g} GB each, and serving.worker.device_memory_gb is {device:g}: leave it out"
            )
        return self

    @model_validator(mode="after")
    def _upstreams_fit(self) -> Config:
        if self.serving.type != "http":
            return self
        if self.model.path is not None:
            raise ValueError("model.path is for a model that is served here; serving.type is http")
        for name, upstream in self.serving.upstreams.items():
            if self.monitoring.probes and not upstream.seed:
                raise ValueError(
                    f"monitoring.probes need the same image for the same seed, and"
                    f" serving.upstreams.{name}.seed is false: leave the probes out"
                )
        return self
