"""Composition root: from ``intonaco.yaml`` to objects. The only place that knows every adapter."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from intonaco import config as configuration
from intonaco.clock import Clock, SystemClock
from intonaco.config import Config
from intonaco.controller import Controller
from intonaco.errors import ConfigError
from intonaco.evaluation import prompts as golden
from intonaco.executor import Parts
from intonaco.executor.service import smoke_test
from intonaco.folders import check_adapters, check_folder
from intonaco.ledger import Ledger
from intonaco.notify.channels import channel
from intonaco.notify.delivery import Channel
from intonaco.plugins import OTEL, WANDB, need_extra, resolve
from intonaco.protocols import Matrix, Registry, ServingBackend, Tracker, TrainingBackend
from intonaco.releases import ReleaseStore
from intonaco.rollout.strategies import baseline_workers
from intonaco.rollout.words import span
from intonaco.sources import HUB, check_path, is_remote
from intonaco.types import Release
from intonaco.upstreams import headers_of
from intonaco.workspace import Workspace

# Built-ins of each kind: factories that take (config, workspace, clock). Entry points of the group
# ``intonaco.KIND`` and ``module:attribute`` are called the same way.
SERVING = {"local": "intonaco.app:_local_serving", "http": "intonaco.app:_http_serving"}
TRAINING = {"local": "intonaco.app:_local_training"}
REGISTRIES = {"mlflow": "intonaco.app:_mlflow_registry", "none": "intonaco.app:_no_registry"}
TRACKERS = {
    "mlflow": "intonaco.app:_mlflow_tracker",
    "none": "intonaco.app:_no_tracker",
    "wandb": "intonaco.app:_wandb_tracker",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """A workspace, opened."""

    config: Config
    workspace: Workspace
    ledger: Ledger
    clock: Clock

    def parts(self) -> Parts:
        """Everything the controller works with."""
        from intonaco.datasets.checking import storing
        from intonaco.datasets.store import LocalDatasetStore
        from intonaco.datasets.validation import validate
        from intonaco.monitoring.client import ScorerClient
        from intonaco.serving.client import GatewayRouter

        c, w = self.config, self.workspace
        serving: ServingBackend = self._make("serving", c.serving.type, SERVING)
        training: TrainingBackend = self._make("training", c.training.type, TRAINING)
        registry: Registry = self._make("registry", c.registry.type, REGISTRIES)
        tracker: Tracker = self._make("tracking", c.tracker.type, TRACKERS)
        router = GatewayRouter(w)
        scorer = ScorerClient(w)

        def embed(texts: Sequence[str]) -> Matrix:
            return scorer.embed(texts)

        return Parts(
            config=c,
            workspace=w,
            ledger=self.ledger,
            releases=ReleaseStore(w, c.service),
            datasets=LocalDatasetStore(
                w.datasets,
                self.clock,
                on_invalid=c.data.on_invalid,
                check=partial(validate, rules=storing(c.data)),
            ),
            training=training,
            serving=serving,
            router=router,
            registry=registry,
            tracker=tracker,
            embed=embed,
            probe=router.probe_image,
            smoke=self._smoke(),
            clock=self.clock,
            embed_images=scorer.embed_images if c.extractor is not None else None,
        )

    def _smoke(self) -> Callable[[str, Release], float]:
        if self.config.serving.type != "http":
            return smoke_test
        from intonaco.serving import remote

        upstreams = self.config.serving.upstreams
        return remote.smoke_test(self.workspace, upstreams, os.environ, self.clock)

    def _make(self, kind: str, name: str, builtins: dict[str, str]) -> Any:
        return resolve(kind, name, builtins)(self.config, self.workspace, self.clock)

    def controller(self) -> Controller:
        holder = f"{socket.gethostname()}:{os.getpid()}"
        return Controller(self.parts(), holder=holder, channels=self.channels())

    def channels(self) -> list[Channel]:
        """Who is told. Raises ConfigError."""
        return [channel(n, os.environ, self.clock) for n in self.config.notify]


def open_app(root: Path, *, clock: Clock | None = None) -> App:
    """Open the workspace that a folder (or its intonaco.yaml) names. Raises ConfigError,
    StorageError."""
    folder = root.parent if root.name.endswith((".yaml", ".yml")) else root
    workspace = Workspace(folder)
    config = configuration.load(workspace.config_file)
    return App(
        config=config,
        workspace=workspace,
        ledger=Ledger.open(workspace.ledger, config.service),
        clock=clock or SystemClock(),
    )


def check(config: Config, workspace: Workspace) -> list[str]:
    """What is wrong with a configuration beyond its form: names that resolve to nothing, files that
    are not there. Empty if all is well."""
    from intonaco.datasets.checking import rules_of, storing
    from intonaco.datasets.validation import validate
    from intonaco.monitoring import heads
    from intonaco.monitoring.detectors import check_name
    from intonaco.monitoring.monitor import Monitor
    from intonaco.monitoring.polls import polls_of
    from intonaco.serving.device_check import check_device
    from intonaco.serving.gateway.callers import Keys

    problems = []

    def attempt(action: Any, *arguments: Any) -> None:
        try:
            action(*arguments)
        except ConfigError as error:
            problems.append(str(error))

    def check_data(field: str, path: Path) -> None:
        rules = storing(config.data) if field == "reference" else rules_of(config, workspace)
        validate(path, rules).raise_if_invalid()

    for kind, name, builtins in (
        ("serving", config.serving.type, SERVING),
        ("training", config.training.type, TRAINING),
        ("registry", config.registry.type, REGISTRIES),
        ("tracking", config.tracker.type, TRACKERS),
    ):
        attempt(resolve, kind, name, builtins)
    if config.tracker.type == "wandb":
        attempt(need_extra, "tracker.type wandb", *WANDB)
    attempt(Keys.of, config.serving.gateway.api_keys, os.environ)
    for notifier in config.notify:
        attempt(channel, notifier, os.environ, SystemClock())
    for specs in config.serving.faults.values():
        for spec in specs:
            attempt(_fault, spec)
    if config.serving.type == "local":
        try:
            check_device(config.serving.worker.device)
        except ConfigError as error:
            problems.append(f"serving.worker.{error}")
    if config.serving.tracing is not None:
        attempt(need_extra, "serving.tracing", *OTEL)
    for signal, settings in config.monitoring.signals.items():
        attempt(check_name, settings.detector, f"monitoring.signals.{signal}.detector")
    problems += heads.check(config.monitoring.scoring.heads, workspace.root)
    if not problems:
        attempt(Monitor, config.service, config.monitoring)
        attempt(polls_of, config.monitoring, tuple)
    for name, upstream in config.serving.upstreams.items():
        try:
            headers_of(upstream, os.environ)
        except ConfigError as error:
            problems.append(f"serving.upstreams.{name}.{error}")
    if config.model.path is not None:
        if is_remote(config.model.path):
            attempt(check_path, config.model.path)
        else:
            folder = workspace.resolve(config.model.path)
            attempt(check_folder, folder)
            attempt(check_adapters, folder, config.model.adapters)
    for field in ("train", "pool", "reference"):
        folder = getattr(config.data, field)
        if folder is None:
            continue
        path = workspace.resolve(folder)
        if not path.is_dir():
            problems.append(f"data.{field}: folder {path} does not exist")
            continue
        attempt(check_data, field, path)
    if config.extractor is not None and is_remote(config.extractor.path):
        if HUB.fullmatch(config.extractor.path) is None:
            problems.append("extractor.path: neither a folder nor hf://ORG/NAME@COMMIT")
    elif config.extractor is not None and not workspace.resolve(config.extractor.path).is_dir():
        problems.append(
            f"extractor.path: folder {workspace.resolve(config.extractor.path)} does not exist"
        )
    problems += _unmeasured(config)
    if config.data.curation.enabled:
        for field in ("consents", "labels"):
            file = getattr(config.data.curation, field)
            if file is not None and not workspace.resolve(file).is_file():
                problems.append(
                    f"data.curation.{field}: {workspace.resolve(file)} does not exist (it may be "
                    "empty)"
                )
    prompts = config.evaluation.prompts
    if prompts is not None and not workspace.resolve(prompts).is_file():
        problems.append(f"evaluation.prompts: {workspace.resolve(prompts)} does not exist")
    elif prompts is not None:
        attempt(_prompts, workspace.resolve(prompts))
    return problems


def notes(config: Config, workspace: Workspace) -> list[str]:
    """What is no mistake, but keeps the service from serving or watching yet, or could not be
    checked. Said by ``check`` and ``up`` alike."""
    from intonaco.serving.device_check import can_tell

    found = []
    if config.serving.type == "local":
        found += _until_it_serves(config, workspace)
        if not can_tell(config.serving.worker.device):
            found.append(
                f"serving.worker.device: whether {config.serving.worker.device} is there was not"
                " checked, as PyTorch is not installed here"
            )
    if equal := baseline_workers(config):
        found.append(
            f"rollout.baseline: {equal} more workers run in each rollout while at most half of the"
            " users have the challenger: waits are compared between equal slices only"
        )
    if config.extractor is None:
        found.append("extractor: none given: content is not watched, no rollout can be proven")
    prompts = config.evaluation.prompts
    if prompts is not None:
        found += _of_prompts(workspace.resolve(prompts), config.evaluation.hidden.share)
    return found


def _unmeasured(config: Config) -> list[str]:
    """What the metrics of a rollout need and have not. The default ones without an extractor are a
    note: nothing is rolled out there, but the service can be served."""
    rollout, problems = config.rollout, []
    if "clip_score" in rollout.guardrails and "metrics" in rollout.model_fields_set:
        if config.extractor is None:
            problems.append(
                "rollout.metrics: clip_score needs an extractor, which looks at prompts and "
                "images: give one, or leave clip_score out"
            )
        elif config.serving.gateway.prompts != "keep":
            problems.append(
                f"rollout.metrics: clip_score needs prompts, and serving.gateway.prompts is "
                f"{config.serving.gateway.prompts!r}: keep prompts, or leave clip_score out"
            )
    if "cost" in rollout.guardrails and config.serving.hourly_price is None:
        problems.append(
            "rollout.metrics: cost needs serving.hourly_price, what an hour of a worker costs: "
            "give it, or leave cost out"
        )
    mature = config.monitoring.feedback.mature_after_s
    ends = rollout.max_seconds <= mature and rollout.on_inconclusive != "hold"
    if "feedback" in rollout.guardrails and ends:
        problems.append(
            f"rollout.metrics: feedback counts once an image is {span(mature)} old "
            "(monitoring.feedback.mature_after_s), and rollout.max_seconds ends a rollout after "
            f"{span(rollout.max_seconds)}: give it more than that, or leave feedback out"
        )
    return problems


def _prompts(file: Path) -> None:
    if wrong := golden.problems(golden.read_prompts(file)):
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise ConfigError(f"evaluation.prompts: {file}: {wrong[0]}{more}")


def _of_prompts(file: Path, share: float) -> list[str]:
    try:
        prompts = golden.read_prompts(file)
    except ConfigError:  # said by ``check``
        return []
    return [f"evaluation.prompts: {text}" for text in golden.remarks(prompts, share)]


def _until_it_serves(config: Config, workspace: Workspace) -> list[str]:
    """What a service without any release needs, to have its first."""
    if config.model.path is not None or any(workspace.releases.glob("*/release.json")):
        return []
    if config.data.train is None:
        return [
            "nothing can be served yet: there is no release, model.path names no pipeline to take"
            " into care, and data.train no images to train the first one on"
        ]
    recipes = config.training.recipes
    if all(recipe.init == "champion" for recipe in recipes.values()):
        return [
            "nothing can be served yet: there is no release, and no recipe of training.recipes says"
            " in init what pipeline to train the first one from"
        ]
    return ["nothing is served until `intonaco update start` has trained the first release"]


def _fault(spec: str) -> None:
    from intonaco.serving.faults import parse_fault

    try:
        parse_fault(spec)
    except ConfigError as error:
        raise ConfigError(f"serving.faults: {error}") from None


# ------------------------------------------------------------------------------------ built-ins


def _local_serving(config: Config, workspace: Workspace, clock: Clock) -> ServingBackend:
    from intonaco.serving.local import LocalServingBackend

    return LocalServingBackend(workspace, config.serving, clock)


def _http_serving(config: Config, workspace: Workspace, clock: Clock) -> ServingBackend:
    from intonaco.serving.remote import HttpServingBackend

    return HttpServingBackend(workspace, config.serving, clock)


def _local_training(config: Config, workspace: Workspace, clock: Clock) -> TrainingBackend:
    from intonaco.training.local import LocalTrainingBackend

    return LocalTrainingBackend(workspace, restarts=config.training.restarts)


def _mlflow_registry(config: Config, workspace: Workspace, clock: Clock) -> Registry:
    from intonaco.registry.mlflow import MlflowRegistry

    uri = config.registry.uri or f"sqlite:///{workspace.mlflow.resolve()}"
    return MlflowRegistry(uri, config.model.name, (workspace.root / "mlflow").resolve())


def _no_registry(config: Config, workspace: Workspace, clock: Clock) -> Registry:
    from intonaco.registry.none import NullRegistry

    return NullRegistry()


def _mlflow_tracker(config: Config, workspace: Workspace, clock: Clock) -> Tracker:
    from intonaco.tracking.mlflow import MlflowTracker

    uri = config.tracker.uri or f"sqlite:///{workspace.mlflow.resolve()}"
    return MlflowTracker(uri, config.service, (workspace.root / "mlflow").resolve())


def _no_tracker(config: Config, workspace: Workspace, clock: Clock) -> Tracker:
    from intonaco.tracking.none import NullTracker

    return NullTracker()


def _wandb_tracker(config: Config, workspace: Workspace, clock: Clock) -> Tracker:
    need_extra("tracker.type wandb", *WANDB)
    from intonaco.tracking.wandb import WandbTracker

    project = config.tracker.project or config.service
    return WandbTracker(project, (workspace.root / "wandb").resolve())
