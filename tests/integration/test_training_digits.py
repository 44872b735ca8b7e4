"""A Stable Diffusion 3 trained end to end on the digits, and judged. (The demo trains a UNet.)"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from tests.fixtures_digits import TEXT_TOKENS
from tests.fixtures_training import run_job

from intonaco.demo.data import write_demo_data
from intonaco.demo.judge import Judge

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning",
    "ignore::DeprecationWarning:diffusers",
    "ignore:__array__ implementation:DeprecationWarning",
)

MMDIT: dict[str, Any] = {
    "method": "full",
    "init": "tests.fixtures_digits:build_mmdit",
    "max_text_tokens": TEXT_TOKENS,
    "learning_rate": 2e-3,
    "latents": "mean",
}
DIGITS = ("zero", "one", "two", "three", "four")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def draw(folder: Path, each: int) -> tuple[np.ndarray[Any, Any], list[int]]:
    """Pictures uint8 [n, 32, 32, 3] of each digit, and which it is."""
    pipeline = DiffusionPipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
    pipeline.set_progress_bar_config(disable=True)
    labels = [d for d in range(len(DIGITS)) for _ in range(each)]
    images = pipeline(
        prompt=[f"a handwritten {DIGITS[d]}" for d in labels],
        num_inference_steps=12,
        guidance_scale=1.5,
        generator=[torch.Generator().manual_seed(i) for i in range(len(labels))],
        height=32,
        width=32,
        max_sequence_length=TEXT_TOKENS,
        output_type="np",
    ).images
    return (images * 255).round().astype(np.uint8), labels


def test_it_learns_a_little(tmp_path: Path) -> None:
    sizes = {"generator": 60, "extractor": 10, "judge": 10, "reference": 10}
    data = write_demo_data(tmp_path / "data", seed=0, sizes=sizes)
    recipe = {**MMDIT, "steps": 30, "batch_size": 16, "vae": {"steps": 20, "batch_size": 8}}
    folder, result = run_job(tmp_path / "job", data.train, None, recipe)
    assert result["loss_last"] < 0.9 * result["loss_first"]
    vae = json.loads((folder / "vae/config.json").read_text())
    assert vae["scaling_factor"] != 1.0
    assert vae["shift_factor"] != 0.0
    images, _ = draw(folder, 1)
    assert images.shape == (5, 32, 32, 3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_its_digits_are_what_was_asked_for(tmp_path: Path) -> None:
    """About 90 s of one core."""
    data = write_demo_data(tmp_path / "data", seed=0)
    recipe = {**MMDIT, "steps": 500, "batch_size": 48, "vae": {"steps": 150, "batch_size": 32}}
    folder, result = run_job(tmp_path / "job", data.train, None, recipe)
    images, labels = draw(folder, 30)
    judge = Judge.fit(data.judge)
    accuracy = judge.accuracy(images, labels)
    print(f"MMDiT on digits 0-4: {dict(accuracy)}, {result['cpu_seconds']:.0f} CPU-s")
    assert np.mean(list(accuracy.values())) > 0.9
    assert judge.accuracy(images, labels[::-1])[0] < 0.3, "the judge tells digits apart"
