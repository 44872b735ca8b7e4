"""The real pipeline: what decides an image's bits."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests import fixtures_tiny

from intonaco.messages import GenerateRequest
from intonaco.releases import release_id
from intonaco.serving.worker.core import InvalidRequest
from intonaco.serving.worker.engine import Engine, load
from intonaco.workspace import Workspace

# The libraries' own deprecations, e.g. of scheduler settings.
pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning:diffusers"
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    root = tmp_path_factory.mktemp("engine")
    workspace = Workspace(root)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        release = fixtures_tiny.add_release(workspace, fixtures_tiny.save(root / "p"))
        loaded = load(release, workspace.resolve(release.path), device="cpu", threads=1)
        loaded.generate([ask(0)], 1)
    assert loaded.release_id == release.release_id == release_id(loaded.spec)
    return loaded


def ask(seed: int, prompt: str = "a handwritten two") -> GenerateRequest:
    return GenerateRequest(
        request_id="r", prompt=prompt, seed=seed, steps=2, guidance_scale=1.5, width=32, height=32
    )


def test_same_seed_and_size_give_the_same_bits_whatever_the_neighbours(engine: Engine) -> None:
    wanted = ask(7)
    alone = np.asarray(engine.generate([wanted], 4).images[0])
    for place in range(4):
        row = [ask(100 + i, f"a handwritten {w}") for i, w in enumerate(("one", "four", "zero"))]
        row.insert(place, wanted)
        images = engine.generate(row, 4).images
        assert len(images) == 4
        assert np.array_equal(np.asarray(images[place]), alone)
    assert not np.array_equal(np.asarray(engine.generate([ask(8)], 4).images[0]), alone)


def test_padding_is_not_answered(engine: Engine) -> None:
    assert len(engine.generate([ask(1), ask(2), ask(3)], 4).images) == 3


def test_guidance_and_negative_prompt_reach_the_pipeline(engine: Engine) -> None:
    base = ask(5)
    other = [
        replace(base, guidance_scale=7.0),
        replace(base, negative_prompt="a handwritten five"),
        replace(base, steps=4),
        replace(base, width=64),
    ]
    images = [np.asarray(engine.generate([r], 1).images[0]) for r in [base, *other]]
    assert images[4].shape == (32, 64, 3)
    for image in images[1:4]:
        assert not np.array_equal(image, images[0])


def test_what_a_pipeline_cannot_do_is_invalid(engine: Engine) -> None:
    for wrong in (replace(ask(1), width=33), replace(ask(1), height=0), replace(ask(1), steps=0)):
        with pytest.raises(InvalidRequest):
            engine.check(wrong)


def test_one_changed_byte_is_another_release(engine: Engine, tmp_path: Path) -> None:
    folder = fixtures_tiny.save(tmp_path / "p", seed=0)
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace('"flow_shift": 1.0', '"flow_shift": 2.0'))
    other = fixtures_tiny.add_release(Workspace(tmp_path / "w"), folder)
    assert other.release_id != engine.release_id
