"""What the denoiser learns to predict, read off the pipeline's own scheduler.

Training for another target than the sampler expects gives noise without an error, so a recipe does
not choose it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from intonaco.errors import ConfigError


class Objective(Protocol):
    @property
    def name(self) -> str: ...

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n random times [n], in the unit that ``noised`` takes."""
        ...

    def noised(self, x: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(input of the denoiser [n, c, h, w], its timestep [n], its target [n, c, h, w])."""
        ...


@dataclass(frozen=True, slots=True)
class Flow:
    """Rectified flow with logit-normal times (Esser et al. 2024, arXiv:2403.03206).

    x_t = (1 - t) x + t noise; the target is the velocity noise - x.
    """

    train_timesteps: int
    name: str = "flow"

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.sigmoid(torch.randn(n, generator=generator))

    def noised(self, x: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        s = t.view(-1, 1, 1, 1)
        return (1 - s) * x + s * noise, t * self.train_timesteps, noise - x


@dataclass(frozen=True, slots=True)
class Diffusion:
    """Discrete diffusion (Ho et al. 2020, arXiv:2006.11239); target noise, or velocity (Salimans
    and Ho 2022, arXiv:2202.00512)."""

    schedule: Any  # DDPMScheduler with the pipeline's betas
    name: str  # "epsilon" or "v_prediction"

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randint(0, self.schedule.config.num_train_timesteps, (n,), generator=generator)

    def noised(self, x: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        noisy = self.schedule.add_noise(x, noise, t)
        target = noise if self.name == "epsilon" else self.schedule.get_velocity(x, noise, t)
        return noisy, t, target


def objective_of(scheduler: Any) -> Objective:
    """The objective that matches a scheduler. Raises ConfigError if none does."""
    config: Mapping[str, Any] = scheduler.config
    kind = config.get("prediction_type")
    name = type(scheduler).__name__
    if name.startswith("FlowMatch") or kind == "flow_prediction" or config.get("use_flow_sigmas"):
        return Flow(int(config["num_train_timesteps"]))
    if kind in ("epsilon", "v_prediction"):
        return Diffusion(DDPMScheduler.from_config(config), kind)
    raise ConfigError(
        f"cannot train for {name} with prediction_type {kind!r}; known: flow matching, epsilon, "
        "v_prediction"
    )
