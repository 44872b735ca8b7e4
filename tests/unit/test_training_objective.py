import itertools

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
)

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
