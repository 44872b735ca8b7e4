"""The training loop.

One denoiser of any family, on cached latents and texts, on one device or several. What is random
comes from ``batches``, what is learnt from ``objective``, how the denoiser is called from
``families``; the rest is here.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (its customary name)
from torch.optim.swa_utils import get_ema_multi_avg_fn

from intonaco.config import Recipe, Samples, Validation
from intonaco.errors import BackendError, ConfigError
from intonaco.training.batches import Batch, draw_batch, gather, parts_of
from intonaco.training.cache import Cache
from intonaco.training.checkpoints import Checkpoint, Checkpoints
from intonaco.training.devices import Devices
from intonaco.training.families import Family
from intonaco.training.objective import Objective
from intonaco.training.progress import TIME_BUCKETS, Progress, by_time
from intonaco.training.trouble import memory
from intonaco.types import Json

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """``loss_first``, ``loss_last``: means over the first and last tenth of the steps. ``stopped``:
    why it ended before its last step, if it did. ``kept_step``: whose weights they are."""

    steps: int
    kept_step: int
    stopped: str | None
    seconds: float
    images_per_second: float
    loss_first: float
    loss_last: float
    validation_loss: float | None


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What happens beside the steps. ``clock``: seconds since the job began. ``begin``: told the
    step that the run begins at. ``should_stop``: asked after each step, with those seconds, why to
    end there. ``sample``: draw pictures of a step; ``validate``: the held-out
    loss; both with the averaged weights in place."""

    clock: Callable[[], float]
    begin: Callable[[int], None] = lambda step: None
    report: Callable[[Progress], None] = lambda progress: None
    should_stop: Callable[[float], str | None] = lambda seconds: None
    sample: Callable[[int], None] | None = None
    validate: Callable[[], float] | None = None
    checkpoints: Checkpoints | None = None
    hourly_price: float = 0.0


def train_denoiser(
    family: Family,
    cache: Cache,
    objective: Objective,
    recipe: Recipe,
    hooks: Hooks,
    *,
    seed: int,
    devices: Devices | None = None,
) -> Trained:
    """Train the denoiser's parameters that require gradients; leaves their moving average in it, or
    the average that was best on held-out items.

    AdamW; linear warm-up, constant, linear decay; gradients clipped by norm. Goes on from the
    newest whole checkpoint: on a CPU with the same bits as if it had never stopped. Raises
    BackendError when the loss or a weight is not finite or memory runs out, StorageError when a
    checkpoint cannot be written.
    """
    devices = devices or Devices()
    denoiser = family.denoiser
    run = _Run.begin(denoiser, recipe, seed)
    if hooks.checkpoints and (checkpoint := hooks.checkpoints.newest()):
        run.restore(checkpoint)
        log.info("goes on from step %d", run.step, extra={"action": "training.resume"})
    if devices.main:
        hooks.begin(run.step)
    denoiser.train()
    if recipe.gradient_checkpointing:
        denoiser.enable_gradient_checkpointing()
    if recipe.compile:
        denoiser.compile()
    wrapped = devices.wrap(denoiser)
    parts = parts_of(recipe.batch_size, devices.rank, devices.count, recipe.accumulation)
    tokens = [family.tokens(*bucket.means.parts[0].shape[-2:]) for bucket in cache.buckets]
    meter = _Meter(recipe, hooks, devices, begun=hooks.clock() - run.seconds)
    stopped: str | None = None

    with memory(recipe):
        while run.step < recipe.steps and stopped is None:
            rate = recipe.learning_rate * rate_at(run.step, recipe)
            for group in run.optimizer.param_groups:
                group["lr"] = rate
            draw = draw_batch(cache, objective, recipe, tokens, run.random)
            torch.manual_seed(_step_seed(seed, run.step, devices.rank))  # of dropout in the model
            run.optimizer.zero_grad()
            for part in parts:
                batch = gather(cache, draw, part, devices.device)
                with devices.averaging(wrapped, last=part is parts[-1]):
                    errors, losses = _losses(family, wrapped, objective, batch, recipe)
                    loss = losses.mean() / len(parts)
                    loss.backward()  # type: ignore[no-untyped-call]  # torch has no types there
                meter.add(errors, losses)
            torch.nn.utils.clip_grad_norm_(run.parameters, recipe.gradient_clip)
            run.optimizer.step()
            run.follow()
            meter.end_step(objective.shares(draw.times))
            run.step += 1

            done = run.step
            validates = hooks.validate is not None and due(done, recipe, recipe.validation)
            saves = hooks.checkpoints is not None and due(done, recipe, recipe.checkpoint_every)
            samples = hooks.sample is not None and due(done, recipe, recipe.samples)
            reports = due(done, recipe, recipe.report_every)
            if done < recipe.steps:  # each step: of a large model a few take minutes
                stopped = devices.agreed(hooks.should_stop(hooks.clock()))
            # A checkpoint holds no half window, so that a run that goes on from it has the same.
            if not (validates or saves or samples or reports or stopped is not None):
                continue
            progress = meter.read(run, rate)  # a wait for the device: of one process the only one
            if validates:
                progress = run.validate(progress, hooks, devices)
            if devices.main:
                hooks.report(progress)
            if samples and hooks.sample and devices.main:
                with run.averaged():
                    hooks.sample(done)
            if hooks.checkpoints and devices.main and (saves or stopped is not None):
                hooks.checkpoints.save(done, *run.state())

    kept = run.finish(keep_best=recipe.validation is not None and recipe.validation.keep_best)
    if not all(bool(torch.isfinite(p).all()) for p in run.parameters):
        raise BackendError(
            f"the weights are not finite after {run.step} steps",
            backend="training",
            retriable=False,
            hint="lower the recipe's learning_rate",
        )
    if recipe.gradient_checkpointing:
        denoiser.disable_gradient_checkpointing()
    return meter.result(run, kept, stopped)


def _losses(
    family: Family, denoiser: Any, objective: Objective, batch: Batch, recipe: Recipe
) -> tuple[Tensor, Tensor]:
    """Of each item [b]: the squared error, and what it counts in the loss."""
    noisy, timestep, target = objective.noised(batch.latents, batch.noise, batch.times)
    low = recipe.precision == "bfloat16"
    with torch.autocast(noisy.device.type, torch.bfloat16, enabled=low):
        said = family.predict(denoiser, noisy, timestep, batch.condition, batch.frames)
    errors = F.mse_loss(said.float(), target, reduction="none").flatten(1).mean(1)
    weights = objective.weights(batch.times)
    return errors, errors if weights is None else errors * weights


def squared_errors(family: Family, objective: Objective, batch: Batch, recipe: Recipe) -> Tensor:
    """Of each item [b], without gradients."""
    with torch.no_grad():
        return _losses(family, family.denoiser, objective, batch, recipe)[0]


def due(done: int, recipe: Recipe, every: int | Samples | Validation | None) -> bool:
    """Whether something that happens every so many steps, and at the last, happens now."""
    if every is None:
        return False
    steps = every if isinstance(every, int) else every.every
    return done == recipe.steps or done % steps == 0


def rate_at(step: int, recipe: Recipe) -> float:
    """Share of the learning rate at a step: up, flat, then down to 2 % over ``decay_share``."""
    up = (step + 1) / recipe.warm_up_steps if recipe.warm_up_steps else 1.0
    decay_steps = recipe.decay_share * recipe.steps
    left = recipe.steps - step
    down = max(0.02, left / decay_steps) if left < decay_steps else 1.0
    return min(1.0, up) * down


def optimizer_of(recipe: Recipe, parameters: list[Tensor]) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), or with its moments in eight bits
    (Dettmers et al. 2022, arXiv:2110.02861). Raises ConfigError if that is not installed."""
    settings: dict[str, Any] = {"betas": (0.9, 0.99), "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parameters, recipe.learning_rate, fused=True, **settings)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ConfigError(
            f"optimizer: adamw_8bit needs bitsandbytes, which cannot be imported: {error}",
            hint="pip install bitsandbytes, or set optimizer: adamw",
        ) from error
    made: torch.optim.Optimizer = AdamW8bit(parameters, recipe.learning_rate, **settings)
    return made


def _step_seed(seed: int, step: int, rank: int) -> int:
    return ((seed * 1_000_003 + step) * 4096 + rank) % 2**63


@dataclass(slots=True, kw_only=True)
class _Run:
    """All that changes from step to step, and so all that a checkpoint holds."""

    names: list[str]
    parameters: list[Any]
    optimizer: torch.optim.Optimizer
    average: Any  # EMAModel of the parameters
    random: torch.Generator
    step: int = 0
    seconds: float = 0.0  # that the steps took, of earlier attempts too
    losses: list[float] = field(default_factory=list)  # of each step
    best: list[Tensor] = field(default_factory=list)  # the average when the held-out loss was least
    best_loss: float = math.inf
    best_step: int = 0

    @classmethod
    def begin(cls, denoiser: Any, recipe: Recipe, seed: int) -> _Run:
        trained = [(n, p) for n, p in denoiser.named_parameters() if p.requires_grad]
        parameters = [p for _, p in trained]
        return cls(
            names=[n for n, _ in trained],
            parameters=parameters,
            optimizer=optimizer_of(recipe, parameters),
            average=EMAModel(parameters, decay=recipe.ema_decay, foreach=True),
            random=torch.Generator().manual_seed(seed),
        )

    def follow(self) -> None:
        """A step of the average. What ``EMAModel.step`` does, in one pass over the weights."""
        self.average.optimization_step += 1
        decay = self.average.get_decay(self.average.optimization_step)
        follow = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]  # torch has none there
        follow(self.average.shadow_params, self.parameters, None)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Json]]:
        """Tensors on the CPU, and what is no tensor."""
        tensors = {f"weights.{n}": p for n, p in zip(self.names, self.parameters, strict=True)}
        tensors |= _named("average", self.names, self.average.shadow_params)
        tensors |= _named("best", self.names, self.best) if self.best else {}
        plain: dict[str, Json] = {}
        for number, moments in self.optimizer.state_dict()["state"].items():
            for key, value in moments.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{number}.{key}"] = value
                else:
                    plain[f"{number}.{key}"] = value
        tensors["random"] = self.random.get_state()
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        facts: dict[str, Json] = {
            "optimizer": plain,
            "averaged": self.average.optimization_step,
            "best_loss": self.best_loss if self.best else None,
            "best_step": self.best_step,
            "seconds": self.seconds,
        }
        return {n: t.detach().cpu().contiguous() for n, t in tensors.items()}, facts

    def restore(self, checkpoint: Checkpoint) -> None:
        tensors, facts = checkpoint.tensors, checkpoint.facts
        state: dict[int, dict[str, Any]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, number, key = name.split(".", 2)
                state.setdefault(int(number), {})[key] = value
        for name, plain in facts["optimizer"].items():
            number, _, key = name.partition(".")
            state.setdefault(int(number), {})[key] = plain
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        with torch.no_grad():
            pairs = zip(self.names, self.parameters, self.average.shadow_params, strict=True)
            for name, parameter, averaged in pairs:
                parameter.copy_(tensors[f"weights.{name}"])
                averaged.copy_(tensors[f"average.{name}"])
        self.average.optimization_step = int(facts["averaged"])
        if facts["best_loss"] is not None:
            self.best_loss, self.best_step = float(facts["best_loss"]), int(facts["best_step"])
            self.best = [tensors[f"best.{n}"] for n in self.names]
        self.random.set_state(tensors["random"])
        self.losses = tensors["losses"].tolist()
        self.step = checkpoint.step
        self.seconds = float(facts["seconds"])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights in the place of the trained ones, for a while."""
        kept = [p.detach().clone() for p in self.parameters]
        self.average.copy_to(self.parameters)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(self.parameters, kept, strict=True):
                    parameter.copy_(value)

    def validate(self, progress: Progress, hooks: Hooks, devices: Devices) -> Progress:
        loss = math.nan
        if devices.main:
            assert hooks.validate is not None
            with self.averaged():
                loss = hooks.validate()
        loss = devices.agreed(loss)
        if loss < self.best_loss:
            self.best_loss, self.best_step = loss, self.step
            self.best = [p.detach().cpu().clone() for p in self.average.shadow_params]
        values = {name: getattr(progress, name) for name in Progress.__slots__}
        return Progress(**{**values, "validation_loss": loss})

    def finish(self, *, keep_best: bool) -> int:
        """Leave the result in the parameters; returns the step it is of."""
        if not (keep_best and self.best):
            self.average.copy_to(self.parameters)
            return self.step
        with torch.no_grad():
            for parameter, value in zip(self.parameters, self.best, strict=True):
                parameter.copy_(value)
        return self.best_step


def _named(prefix: str, names: list[str], values: list[Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{n}": v for n, v in zip(names, values, strict=True)}


@dataclass(slots=True)
class _Meter:
    """Losses since the last report, kept on the device until then."""

    recipe: Recipe
    hooks: Hooks
    devices: Devices
    begun: float  # when the first step would have, had this process done them all
    _errors: list[Tensor] = field(default_factory=list)
    _losses: list[Tensor] = field(default_factory=list)
    _shares: list[Tensor] = field(default_factory=list)

    def add(self, errors: Tensor, losses: Tensor) -> None:
        self._errors.append(errors.detach())
        self._losses.append(losses.detach())

    def end_step(self, shares: Tensor) -> None:
        self._shares.append(shares)

    def read(self, run: _Run, rate: float) -> Progress:
        """The window's progress; begins the next. Raises BackendError if the loss is not
        finite."""
        steps = len(self._shares)
        both = torch.stack([torch.cat(self._errors), torch.cat(self._losses)])
        both = self.devices.together(both.view(2 * steps, -1)).cpu()
        errors, losses = both[:steps], both[steps:]
        shares = torch.stack(self._shares)
        self._errors, self._losses, self._shares = [], [], []
        run.losses += losses.mean(1).tolist()
        loss = sum(run.losses[-steps:]) / steps
        if not math.isfinite(loss):
            raise BackendError(
                f"the loss is {loss} after {run.step} steps",
                backend="training",
                retriable=False,
                hint="lower the recipe's learning_rate",
            )
        tenths = (shares * TIME_BUCKETS).long().clamp(0, TIME_BUCKETS - 1).flatten()
        sums = torch.zeros(TIME_BUCKETS).index_add_(0, tenths, errors.flatten())
        seconds = self.hooks.clock()
        run.seconds = max(seconds - self.begun, 1e-9)
        pace = run.seconds / run.step
        return Progress(
            step=run.step,
            total=self.recipe.steps,
            loss=loss,
            loss_by_time=by_time(
                sums.tolist(), torch.bincount(tenths, minlength=TIME_BUCKETS).tolist()
            ),
            learning_rate=rate,
            seconds=seconds,
            images_per_second=self.recipe.batch_size / pace,
            eta_s=pace * (self.recipe.steps - run.step),
            device_seconds=seconds * self.devices.count,
            money=seconds / 3600.0 * self.hooks.hourly_price,
        )

    def result(self, run: _Run, kept: int, stopped: str | None) -> Trained:
        tenth = max(1, self.recipe.steps // 10)
        return Trained(
            steps=run.step,
            kept_step=kept,
            stopped=stopped,
            seconds=run.seconds,
            images_per_second=run.step * self.recipe.batch_size / run.seconds,
            loss_first=sum(run.losses[:tenth]) / len(run.losses[:tenth]),
            loss_last=sum(run.losses[-tenth:]) / len(run.losses[-tenth:]),
            validation_loss=run.best_loss if run.best else None,
        )


def facts_of(trained: Trained) -> Mapping[str, Json]:
    """What a job's result tells of the training."""
    return {name: getattr(trained, name) for name in Trained.__slots__ if name != "seconds"}
