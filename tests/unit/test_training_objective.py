import itertools
from typing import Any

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
)
from diffusers.training_utils import compute_snr

from intonaco.config import Recipe
from intonaco.errors import ConfigError
from intonaco.training.loop import rate_at
from intonaco.training.objective import Diffusion, Flow, objective_of


def test_objective_is_read_off_the_scheduler() -> None:
    flow = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, steps_offset=1
    )
    assert objective_of(flow).name == "flow"
    assert objective_of(FlowMatchEulerDiscreteScheduler()).name == "flow"
    assert objective_of(DDPMScheduler()).name == "epsilon"
    assert objective_of(DDIMScheduler(prediction_type="v_prediction")).name == "v_prediction"
    with pytest.raises(ConfigError, match="'sample'"):
        objective_of(DDPMScheduler(prediction_type="sample"))


def test_flow_goes_from_data_to_noise_along_a_line() -> None:
    x, noise = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    t = torch.tensor([0.0, 0.25, 1.0])
    noisy, timestep, target = Flow(1000).noised(x, noise, t)
    assert torch.equal(noisy[0], x[0])
    assert torch.equal(noisy[2], noise[2])
    assert torch.equal(timestep, t * 1000)
    # one Euler step along the target from any time arrives at the data
    assert torch.allclose(noisy - t.view(-1, 1, 1, 1) * target, x, atol=1e-6)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_diffusion_targets_give_the_data_back(kind: str) -> None:
    scheduler = DDIMScheduler(
        prediction_type=kind, beta_schedule="scaled_linear", clip_sample=False
    )
    objective = objective_of(scheduler)
    assert isinstance(objective, Diffusion)
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(8, 4, 2, 2), torch.randn(8, 4, 2, 2)
    t = objective.draw(8, generator).clamp(max=900)
    noisy, timestep, target = objective.noised(x, noise, t)
    scheduler.set_timesteps(1000)
    for i in range(8):
        step = scheduler.step(target[i], int(timestep[i]), noisy[i])
        assert torch.allclose(step.pred_original_sample, x[i], atol=1e-2)


def test_learning_rate_rises_stays_and_falls() -> None:
    recipe = Recipe(steps=100, warm_up_steps=10, decay_share=0.4)
    rates = [rate_at(step, recipe) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:60] == [1.0] * 51
    assert all(a >= b for a, b in itertools.pairwise(rates[60:]))
    assert rates[-1] == pytest.approx(0.025)
    assert rate_at(0, Recipe(steps=10, warm_up_steps=0, decay_share=0.0)) == 1.0


def density(
    recipe: Recipe, shift: float = 1.0, tokens: int = 0, **scheduler: float
) -> torch.Tensor:
    """Shares of the draws in ten equal parts of the times."""
    objective = objective_of(FlowMatchEulerDiscreteScheduler(shift=shift, **scheduler), recipe)
    t = objective.draw(200_000, torch.Generator().manual_seed(0), tokens)
    assert float(t.min()) >= 0
    assert float(t.max()) <= 1
    return torch.histc(t, 10, 0, 1) / len(t)


def test_flow_times_are_drawn_as_published() -> None:
    """Against the densities of Esser et al. 2024, section 3.1, integrated numerically."""
    t = torch.linspace(0, 1, 100_001)[1:-1].double()
    z = torch.logit(t)

    def parts(values: torch.Tensor) -> torch.Tensor:
        return torch.stack([values[(t * 10).long() == i].sum() for i in range(10)]) / values.sum()

    def normal(mean: float, deviation: float) -> torch.Tensor:
        return torch.exp(-((z - mean) ** 2) / (2 * deviation**2)) / (t * (1 - t))

    def flow(**more: object) -> Recipe:
        return Recipe.model_validate({"flow": more})

    cosmap = 2 / (torch.pi - 2 * torch.pi * t + 2 * torch.pi * t**2)
    for recipe, expected in (
        (flow(), normal(0, 1)),
        (flow(mean=0.5, deviation=0.6), normal(0.5, 0.6)),
        (flow(times="uniform"), torch.ones_like(t)),
        (flow(times="cosmap"), cosmap),
    ):
        assert torch.allclose(density(recipe).double(), parts(expected), atol=4e-3), recipe.flow
    # The mode's density has no closed form: it is given by its inverse distribution function.
    u = torch.rand(200_000, generator=torch.Generator().manual_seed(1)).double()
    mode = 1 - u - 1.29 * (torch.cos(torch.pi / 2 * u) ** 2 - 1 + u)
    expected = torch.histc(mode, 10, 0, 1) / len(u)
    assert torch.allclose(density(flow(times="mode")).double(), expected, atol=4e-3)


def test_flow_times_are_shifted_as_the_sampler_shifts_them() -> None:
    uniform = Recipe.model_validate({"flow": {"times": "uniform"}})
    sigmas = FlowMatchEulerDiscreteScheduler(shift=3.0).sigmas
    expected = torch.histc(sigmas, 10, 0, 1) / len(sigmas)
    assert torch.allclose(density(uniform, 3.0), expected, atol=0.01)
    own = Recipe.model_validate({"flow": {"times": "uniform", "shift": 1.0}})
    assert torch.allclose(density(own, 3.0), torch.full((10,), 0.1), atol=4e-3)

    dynamic = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    dynamic.set_timesteps(sigmas=torch.linspace(1, 0.001, 1000).tolist(), mu=1.15)
    expected = torch.histc(dynamic.sigmas, 10, 0, 1) / len(dynamic.sigmas)
    drawn = density(uniform, use_dynamic_shifting=True, tokens=4096)
    assert torch.allclose(drawn, expected, atol=0.01)
    few = density(uniform, use_dynamic_shifting=True, tokens=256)
    assert few[0] > 1.5 * drawn[0], "small pictures are shifted less"


def test_min_snr_counts_the_picture_alike_up_to_gamma() -> None:
    """The squared error of the picture, which both targets stand for, counts min(SNR, gamma)."""
    t = torch.arange(1000)
    for kind in ("epsilon", "v_prediction"):
        objective = objective_of(DDPMScheduler(prediction_type=kind), Recipe(min_snr_gamma=5.0))
        assert isinstance(objective, Diffusion)
        kept = objective.schedule.alphas_cumprod.double()
        snr = kept / (1 - kept)
        # An error e of the target is an error of the picture of e / sqrt(SNR), or e sqrt(1 - kept).
        of_picture = 1 / snr if kind == "epsilon" else 1 - kept
        weights = objective.weights(t)
        assert weights is not None
        # What one unit of squared error of the picture counts:
        counts = weights.double() / of_picture
        assert torch.allclose(counts, snr.clamp(max=5.0), rtol=1e-3)
        assert (
            objective_of(DDPMScheduler(prediction_type=kind), Recipe(min_snr_gamma=None)).weights(t)
            is None
        )


def test_a_schedule_that_ends_in_noise_is_trained_to_its_end() -> None:
    zero = DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    objective = objective_of(zero, Recipe())
    assert isinstance(objective, Diffusion)
    assert float(objective.schedule.alphas_cumprod[-1]) < 1e-6
    x, noise = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2)
    noisy, _, target = objective.noised(x, noise, torch.tensor([999]))
    assert torch.allclose(noisy, noise, atol=1e-3), "nothing of the picture is left"
    assert torch.allclose(target, -x, atol=1e-3)
    weights = objective.weights(torch.arange(1000))
    assert weights is not None
    assert float(weights[-1]) == pytest.approx(1.0, abs=1e-3)
    assert torch.isfinite(weights).all()
    plain = objective_of(DDIMScheduler(prediction_type="v_prediction"), Recipe()).weights(
        torch.tensor([999])
    )
    assert plain is not None
    assert float(plain[0]) < 0.01, "where it does not end in noise, min-SNR as published"
    with pytest.raises(ConfigError, match="rescale_betas_zero_snr"):
        objective_of(DDIMScheduler(prediction_type="epsilon", rescale_betas_zero_snr=True))


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 12"):
        Recipe(batch_size=32, processes=3, accumulation=4)


COPY = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}


@COPY
@pytest.mark.parametrize(
    ("kind", "settings", "problem"),
    [
        (EDMEulerScheduler, {}, "does not noise as DDPM does"),
        (
            CogVideoXDDIMScheduler,
            {"prediction_type": "v_prediction"},
            "does not noise as DDPM does",
        ),
        (EulerDiscreteScheduler, {"timestep_type": "continuous"}, "timestep_type 'continuous'"),
        (HeunDiscreteScheduler, {"beta_schedule": "exp"}, "exp is not implemented"),
        (DPMSolverMultistepScheduler, {**FLOW, "prediction_type": "epsilon"}, "needs both"),
        (DPMSolverMultistepScheduler, {**FLOW, "use_flow_sigmas": False}, "needs both"),
        (FlowMatchEulerDiscreteScheduler, {"invert_sigmas": True}, "invert_sigmas"),
    ],
)
def test_a_sampler_that_would_misread_the_answer_is_refused(
    kind: Any, settings: dict[str, Any], problem: str
) -> None:
    """Each would be trained for another noise, target or time than its sampler takes."""
    with pytest.raises(ConfigError, match=problem):
        objective_of(kind(**settings))


@COPY
@pytest.mark.parametrize("kind", [LCMScheduler, HeunDiscreteScheduler, EulerDiscreteScheduler])
def test_the_noise_is_the_samplers_own_also_where_it_left_it_out(kind: Any) -> None:
    """Their defaults of beta are not DDPM's."""
    scheduler = kind()
    objective = objective_of(scheduler)
    assert isinstance(objective, Diffusion)
    assert torch.allclose(objective.schedule.alphas_cumprod, scheduler.alphas_cumprod)


def test_a_shift_of_zero_is_a_shift() -> None:
    """In the exponent: few tokens are not shifted at all."""
    objective = objective_of(
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.0)
    )
    assert isinstance(objective, Flow)
    assert objective._shift(256) == 1.0


def test_weights_are_those_of_the_example_scripts() -> None:
    """Written as diffusers' ``train_text_to_image.py`` has it, with its ``compute_snr``."""
    t = torch.arange(1000)
    for kind in ("epsilon", "v_prediction"):
        scheduler = DDPMScheduler(
            prediction_type=kind, beta_schedule="scaled_linear", beta_start=8.5e-4, beta_end=0.012
        )
        snr = compute_snr(scheduler, t)
        weights = torch.stack([snr, 5.0 * torch.ones_like(snr)], dim=1).min(dim=1)[0]
        weights = weights / (snr if kind == "epsilon" else snr + 1)
        ours = objective_of(scheduler, Recipe(min_snr_gamma=5.0)).weights(t)
        assert ours is not None
        assert torch.allclose(ours, weights, rtol=1e-4)
