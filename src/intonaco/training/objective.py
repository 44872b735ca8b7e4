"""What the denoiser learns to predict, read off the pipeline's own scheduler.

Training for another target than the sampler expects gives noise without an error, so a recipe does
not choose it. A recipe chooses how much each time counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from intonaco.config import FlowRecipe, Recipe
from intonaco.errors import ConfigError

# Fields of a scheduler that say how it noises and what it is told.
_NOISE = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
)


class Objective(Protocol):
    @property
    def name(self) -> str: ...

    def draw(self, n: int, generator: torch.Generator, tokens: int) -> Tensor:
        """n random times [n], in the unit that ``noised`` takes. ``tokens``: of an image."""
        ...

    def at(self, shares: Tensor) -> Tensor:
        """The times [n] that lie at shares [n] of the way from picture (0) to noise (1)."""
        ...

    def shares(self, t: Tensor) -> Tensor:
        """Where times [n] lie on that way, 0 to 1."""
        ...

    def noised(self, x: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(input of the denoiser [n, c, h, w], its timestep [n], its target [n, c, h, w])."""
        ...

    def weights(self, t: Tensor) -> Tensor | None:
        """How much the squared error at times [n] counts; None if all times count 1."""
        ...


@dataclass(frozen=True, slots=True)
class Flow:
    """Rectified flow (Esser et al. 2024, arXiv:2403.03206).

    x_t = (1 - t) x + t noise; the target is the velocity noise - x. Times are drawn as often as
    they are to count (section 3.1), then shifted as the sampler shifts them (section 5.3.2):
    t -> a t / (1 + (a - 1) t). ``dynamic``: a goes by the number of image tokens.
    """

    train_timesteps: int
    settings: FlowRecipe = field(default_factory=FlowRecipe)
    shift: float = 1.0
    dynamic: Mapping[str, float] | None = None
    name: str = "flow"

    def draw(self, n: int, generator: torch.Generator, tokens: int = 0) -> Tensor:
        s = self.settings
        if s.times == "logit_normal":
            z = torch.randn(n, generator=generator)
            if (s.mean, s.deviation) != (0.0, 1.0):
                z = s.mean + s.deviation * z
            t = torch.sigmoid(z)
        else:
            u = torch.rand(n, generator=generator)
            if s.times == "mode":  # equation 20
                t = 1 - u - s.scale * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u)
            elif s.times == "cosmap":  # equation 21
                t = 1 - 1 / (torch.tan(math.pi / 2 * u) + 1)
            else:
                t = u
        a = self._shift(tokens)
        return t if a == 1.0 else a * t / (1 + (a - 1) * t)

    def _shift(self, tokens: int) -> float:
        if self.settings.shift is not None:
            return self.settings.shift
        if self.dynamic is None:
            return self.shift
        # The line through two points that diffusers' pipelines take, in the exponent.
        d = self.dynamic
        slope = (d["max_shift"] - d["base_shift"]) / (d["max_tokens"] - d["base_tokens"])
        return math.exp(d["base_shift"] + slope * (tokens - d["base_tokens"]))

    def at(self, shares: Tensor) -> Tensor:
        return shares

    def shares(self, t: Tensor) -> Tensor:
        return t

    def noised(self, x: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        s = t.view(-1, 1, 1, 1)
        return (1 - s) * x + s * noise, t * self.train_timesteps, noise - x

    def weights(self, t: Tensor) -> Tensor | None:
        return None  # times are drawn as often as they count


@dataclass(frozen=True, slots=True)
class Diffusion:
    """Discrete diffusion (Ho et al. 2020, arXiv:2006.11239); target noise, or velocity (Salimans
    and Ho 2022, arXiv:2202.00512). Weights: min-SNR (Hang et al. 2023, arXiv:2303.09556): the
    squared error of the picture counts min(SNR, gamma).

    Where the scheduler's last step is pure noise (``rescale_betas_zero_snr``; Lin et al. 2023,
    arXiv:2305.08891), min-SNR would leave that step untrained, although every picture begins there:
    velocity then counts max(min(SNR, gamma), 1) / (SNR + 1), which is 1 at the last step (with
    Salimans and Ho's truncated SNR below 1).
    """

    schedule: Any  # DDPMScheduler with the pipeline's betas
    name: str  # "epsilon" or "v_prediction"
    gamma: float | None = None

    @property
    def steps(self) -> int:
        return int(self.schedule.config.num_train_timesteps)

    @property
    def zero_terminal(self) -> bool:
        return bool(self.schedule.config.rescale_betas_zero_snr)

    def draw(self, n: int, generator: torch.Generator, tokens: int = 0) -> Tensor:
        return torch.randint(0, self.steps, (n,), generator=generator)

    def at(self, shares: Tensor) -> Tensor:
        return (shares * self.steps).long().clamp(max=self.steps - 1)

    def shares(self, t: Tensor) -> Tensor:
        return (t + 0.5) / self.steps

    def noised(self, x: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        noisy = self.schedule.add_noise(x, noise, t)
        target = noise if self.name == "epsilon" else self.schedule.get_velocity(x, noise, t)
        return noisy, t, target

    def weights(self, t: Tensor) -> Tensor | None:
        if self.gamma is None:
            return None
        kept: Tensor = self.schedule.alphas_cumprod.to(t.device)[t].float()
        snr = kept / (1 - kept)
        counts = snr.clamp(max=self.gamma)
        if self.name == "epsilon":
            return counts / snr  # snr > 0: objective_of refuses the schedule where it is not
        return (counts.clamp(min=1.0) if self.zero_terminal else counts) / (snr + 1)


def objective_of(scheduler: Any, recipe: Recipe | None = None) -> Objective:
    """The objective that matches a scheduler, with a recipe's weights. Raises ConfigError if none
    does."""
    recipe = recipe or Recipe()
    config: Mapping[str, Any] = scheduler.config
    kind = config.get("prediction_type")
    name = type(scheduler).__name__
    if _is_flow(name, config):
        shift = config.get("shift", config.get("flow_shift"))
        return Flow(
            int(config["num_train_timesteps"]),
            recipe.flow,
            1.0 if shift is None else float(shift),
            _dynamic(config) if config.get("use_dynamic_shifting") else None,
        )
    if kind in ("epsilon", "v_prediction"):
        if kind == "epsilon" and config.get("rescale_betas_zero_snr"):
            raise ConfigError(
                f"cannot train for {name} with prediction_type 'epsilon' and "
                "rescale_betas_zero_snr: at its last step the noise says nothing of the picture",
                hint="a schedule that ends in pure noise needs prediction_type v_prediction",
            )
        return Diffusion(_schedule(scheduler), kind, recipe.min_snr_gamma)
    raise ConfigError(
        f"cannot train for {name} with prediction_type {kind!r}; known: flow matching, epsilon, "
        "v_prediction"
    )


def _is_flow(name: str, config: Mapping[str, Any]) -> bool:
    """Raises ConfigError where a sampler mixes flow matching with something else: it would read the
    denoiser's answer for another thing than it was trained to say."""
    if name.startswith("FlowMatch"):
        if config.get("invert_sigmas"):
            raise ConfigError(f"cannot train for {name} with invert_sigmas")
        return True
    said = config.get("prediction_type") == "flow_prediction"
    stepped = bool(config.get("use_flow_sigmas"))
    if said != stepped:
        raise ConfigError(
            f"cannot train for {name} with prediction_type {config.get('prediction_type')!r} and "
            f"use_flow_sigmas {stepped}: flow matching needs both",
            hint="set prediction_type flow_prediction and use_flow_sigmas true, or neither",
        )
    return said


def _schedule(scheduler: Any) -> Any:
    """A DDPMScheduler with a sampler's own noise. Raises ConfigError if the sampler adds it in
    another way, or tells the denoiser other times than the numbers of the training's steps."""
    config, name = scheduler.config, type(scheduler).__name__
    if config.get("timestep_type", "discrete") != "discrete":
        raise ConfigError(f"cannot train for {name} with timestep_type {config['timestep_type']!r}")
    # Field by field: `from_config` takes a field that was left out to be DDPM's default.
    settings = {field: config[field] for field in _NOISE if field in config}
    try:
        schedule = DDPMScheduler(**settings)
    except NotImplementedError as error:
        raise ConfigError(f"cannot train for {name}: {error}") from error
    kept = getattr(scheduler, "alphas_cumprod", None)
    # Samplers put 2^-24 for zero at the end of a schedule of zero terminal SNR.
    if not (
        isinstance(kept, Tensor)
        and kept.shape == schedule.alphas_cumprod.shape
        and torch.allclose(kept.cpu().float(), schedule.alphas_cumprod, rtol=1e-4, atol=1e-6)
    ):
        raise ConfigError(
            f"cannot train for {name}: it does not noise as DDPM does",
            hint="known samplers: DDPM, DDIM, PNDM, Euler, Heun, DPM-Solver, UniPC and their like",
        )
    return schedule


def _dynamic(config: Mapping[str, Any]) -> Mapping[str, float]:
    if (kind := config.get("time_shift_type", "exponential")) != "exponential":
        raise ConfigError(f"cannot train for a scheduler with time_shift_type {kind!r}")
    # As the pipelines read them, with the same defaults.
    return {
        "base_shift": float(config.get("base_shift", 0.5)),
        "max_shift": float(config.get("max_shift", 1.15)),
        "base_tokens": float(config.get("base_image_seq_len", 256)),
        "max_tokens": float(config.get("max_image_seq_len", 4096)),
    }
