"""The benchmark of training: both sides train the same model, and it gives its figures."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks" / "training"

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_training", FOLDER / "bench.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_it_gives_its_figures(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ROUNDS": 2, "STEPS": 1, "PICTURES": 2}.items():
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr(bench, "SHAPES", {"sd15": (64, 2), "demo": (32, 2)})
    found = bench.run()
    names = ("images_per_s", "example_images_per_s", "images_per_s_over_example")
    assert set(found) == {
        f"training.{shape}.{name}"
        for shape in ("sd15", "demo")
        for name in (*names, "encode_s_per_image")
    } | {"training.images_per_s_over_example"}
    assert all(math.isfinite(v) and v > 0 for v in found.values())


def test_the_examples_step_learns(bench: ModuleType, tmp_path: Path) -> None:
    """It is a training step, not its cost alone."""
    torch.manual_seed(0)
    pipeline = bench.build("demo", 32)
    folder = bench.write_pictures(tmp_path / "data", 32)
    items = [(folder / f"{n}.png", "a handwritten two") for n in range(8)]
    losses = bench.example(pipeline, items, 32, 8, 30)
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
