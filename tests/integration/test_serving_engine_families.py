"""Every kind of pipeline behind one engine: what each can do, does, and refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from tests import fixtures_tiny
from tests.fixtures_tiny import picture

from intonaco.errors import ConfigError
from intonaco.messages import GenerateRequest
from intonaco.serving.worker.core import Aborted, InvalidRequest, Preview
from intonaco.serving.worker.engine import Engine, batch_key, load
from intonaco.serving.worker.run import arguments
from intonaco.serving.worker.tasks import Guidance, Limits, Task, ability, native_tasks
from intonaco.workspace import Workspace

# The libraries' own deprecations, e.g. of scheduler settings.
pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning:diffusers"
)

ALL = {"generate", "edit", "inpaint"}
SMALL = {"steps": 2, "guidance_scale": 1.5, "width": 16, "height": 16}


@dataclass(frozen=True)
class Family:
    build: Callable[[], Any]
    tasks: set[str]
    generation: Mapping[str, Any]
    previews: bool = True


FAMILIES = {
    "sd": Family(fixtures_tiny.build, ALL, fixtures_tiny.GENERATION),
    "sdxl": Family(fixtures_tiny.build_sdxl, ALL, {**fixtures_tiny.GENERATION, "steps": 4}),
    "sd3": Family(fixtures_tiny.build_sd3, ALL, fixtures_tiny.GENERATION),
    "flux": Family(fixtures_tiny.build_flux, ALL, fixtures_tiny.GENERATION),
    "kontext": Family(fixtures_tiny.build_kontext, {"generate", "edit"}, fixtures_tiny.GENERATION),
    "inpaint": Family(fixtures_tiny.build_inpaint, {"inpaint"}, fixtures_tiny.GENERATION),
    "dit": Family(fixtures_tiny.build_dit, {"generate"}, SMALL),
    "ddpm": Family(fixtures_tiny.build_ddpm, {"generate"}, SMALL),
}


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Engine]:
    made: dict[str, Engine] = {}

    def get(name: str) -> Engine:
        if name not in made:
            family = FAMILIES[name]
            made[name] = fixtures_tiny.engine(
                tmp_path_factory.mktemp(name), family.build(), generation=family.generation
            )
        return made[name]

    return get


def bits(engine: Engine, *requests: GenerateRequest, size: int = 2, **more: Any) -> list[bytes]:
    return [np.asarray(i).tobytes() for i in engine.generate(requests, size, **more).images]


def of_task(request: GenerateRequest, task: str) -> GenerateRequest:
    return replace(
        request,
        image=None if task == "generate" else picture(seed=1),
        mask=picture("L", half=True) if task == "inpaint" else None,
    )


def prompts(name: str) -> tuple[str, str]:
    return {"dit": ("3", "7"), "ddpm": ("", "*")}.get(name, ("a two", "a handwritten one"))


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_each_family_does_what_it_can(name: str, engines: Callable[[str], Engine]) -> None:
    engine, family = engines(name), FAMILIES[name]
    assert {str(t) for t in engine.tasks} == family.tasks
    warm = engine.warm_up_request()
    engine.check(warm)
    first, second = prompts(name)
    for task in sorted(family.tasks):
        one = of_task(replace(warm, seed=1, prompt=first), task)
        two = of_task(replace(warm, seed=2, prompt=second), task)
        engine.check(one)
        alone = bits(engine, one)
        assert bits(engine, one) == alone
        assert bits(engine, two, one)[1] == alone[0]
        assert bits(engine, two) != alone
        size = engine.generate([one], 1).images[0].size
        assert size == (warm.width, warm.height)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_each_family_is_watched_and_can_be_stopped(
    name: str, engines: Callable[[str], Engine]
) -> None:
    engine = engines(name)
    warm = replace(engine.warm_up_request(), steps=4, strength=None)
    before = bits(engine, warm)
    seen: list[tuple[int, int]] = []
    shown: list[int] = []

    def look(done: int, steps: int, preview: Preview) -> None:
        seen.append((done, steps))
        shown.append(len(preview()))

    assert bits(engine, warm, watch=look) == before
    assert seen == [(done, 4) for done in range(1, 5)]
    assert shown == [1] * 4

    def stop(done: int, steps: int, preview: Preview) -> None:
        raise Aborted

    with pytest.raises(Aborted):
        engine.generate([warm], 2, stop)
    assert bits(engine, warm) == before


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_what_a_family_does_not_do_is_refused(name: str, engines: Callable[[str], Engine]) -> None:
    engine = engines(name)
    for task in ALL - FAMILIES[name].tasks:
        with pytest.raises(InvalidRequest, match=r"image|mask"):
            engine.check(of_task(engine.warm_up_request(), task))


# ---------------------------------------------------------------------------- prompts and labels


def test_a_class_is_drawn_by_its_label_or_its_number(tmp_path: Path) -> None:
    folder = fixtures_tiny.save_pipeline(fixtures_tiny.build_dit(), tmp_path / "p")
    index = json.loads((folder / "model_index.json").read_text())
    index["id2label"] = {"0": "zero, nought", "3": "Three"}
    (folder / "model_index.json").write_text(json.dumps(index))
    workspace = Workspace(tmp_path / "w")
    made = fixtures_tiny.add_release(workspace, folder, generation=SMALL)
    engine = load(made, workspace.resolve(made.path), device="cpu")
    warm = engine.warm_up_request()
    drawn = {
        p: bits(engine, replace(warm, prompt=p))[0]
        for p in ("three", " Three ", "3", "nought", "0")
    }
    assert drawn["three"] == drawn[" Three "] == drawn["3"]
    assert drawn["nought"] == drawn["0"] != drawn["3"]
    for wrong in ("a cat", "1000", "-1", "", "9" * 5000):
        with pytest.raises(InvalidRequest, match=r"Three, nought, zero.*below 1000"):
            engine.check(replace(warm, prompt=wrong))
    with pytest.raises(InvalidRequest, match="negative_prompt"):
        engine.check(replace(warm, prompt="3", negative_prompt="0"))


def test_a_pipeline_without_a_prompt_takes_none(engines: Callable[[str], Engine]) -> None:
    engine = engines("ddpm")
    warm = engine.warm_up_request()
    for blank in ("", " ", "*"):
        engine.check(replace(warm, prompt=blank))
    with pytest.raises(InvalidRequest, match="takes none"):
        engine.check(replace(warm, prompt="a cat"))
    assert bits(engine, replace(warm, guidance_scale=9.0)) == bits(engine, warm)


def test_a_size_that_a_pipeline_does_not_make_is_refused(
    engines: Callable[[str], Engine], tmp_path: Path
) -> None:
    for name in ("dit", "ddpm"):
        with pytest.raises(InvalidRequest, match="16x16 only"):
            engines(name).check(replace(engines(name).warm_up_request(), width=32))
    with pytest.raises(ConfigError, match=r"generation: DDPMPipeline makes 16x16 only"):
        fixtures_tiny.engine(
            tmp_path, fixtures_tiny.build_ddpm(), generation={**SMALL, "width": 1024}
        )


def test_no_negative_prompt_is_not_an_empty_one_for_every_pipeline(
    engines: Callable[[str], Engine],
) -> None:
    """SDXL as published puts zeros there. In a batch with another's negative prompt that would
    silently become an encoding of ""."""
    engine = engines("sdxl")
    plain = replace(engine.warm_up_request(), seed=1)
    negative = replace(plain, seed=2, negative_prompt="a five")
    assert engine.batch_key(plain) != engine.batch_key(negative)
    with pytest.raises(ValueError, match="no batch"):
        engine.generate([plain, negative], 2)
    for name in ("sd", "sd3"):
        warm = replace(engines(name).warm_up_request(), seed=1)
        other = replace(warm, seed=2, negative_prompt="a five")
        assert engines(name).batch_key(warm) == engines(name).batch_key(other)
        assert bits(engines(name), warm, other) == [
            *bits(engines(name), warm),
            *bits(engines(name), other),
        ]


def test_a_distilled_pipeline_refuses_a_negative_prompt(
    engines: Callable[[str], Engine],
) -> None:
    """Flux has the argument and does nothing with it unless guided in another way."""
    warm = engines("flux").warm_up_request()
    with pytest.raises(InvalidRequest, match="negative_prompt: FluxPipeline takes none"):
        engines("flux").check(replace(warm, negative_prompt="x", guidance_scale=4.0))


def test_shown_pictures_are_worked_on_one_request_at_a_time(
    engines: Callable[[str], Engine],
) -> None:
    """A list of images is one request's references for such pipelines."""
    engine = engines("kontext")
    one = replace(engine.warm_up_request(), image=picture(seed=1), width=48)
    two = replace(one, seed=2, prompt="a one", image=picture(seed=2))
    seen: list[tuple[int, int, int]] = []
    together = bits(engine, one, two, size=4, watch=lambda d, s, p: seen.append((d, s, len(p()))))
    assert together == [*bits(engine, one, size=1), *bits(engine, two, size=1)]
    assert seen == [(1, 4, 0), (2, 4, 0), (3, 4, 0), (4, 4, 0)]
    assert engine.generate([one], 1).images[0].size == (48, 32)
    with pytest.raises(InvalidRequest, match="strength"):
        engine.check(replace(one, strength=0.5))


# ------------------------------------------------------------------------ by their classes alone


@pytest.mark.parametrize(
    ("name", "tasks"),
    [
        ("StableDiffusionPipeline", {"generate"}),
        ("StableDiffusionXLImg2ImgPipeline", {"edit"}),
        ("StableDiffusionInstructPix2PixPipeline", {"edit"}),
        ("FluxInpaintPipeline", {"inpaint"}),
        ("Flux2Pipeline", {"generate", "edit"}),
        ("QwenImagePipeline", {"generate"}),
        ("QwenImageEditPipeline", {"edit"}),
        ("ZImagePipeline", {"generate"}),
        ("PixArtSigmaPipeline", {"generate"}),
        ("SanaPipeline", {"generate"}),
        ("KandinskyV22CombinedPipeline", {"generate"}),
        ("LatentConsistencyModelPipeline", {"generate"}),
        ("DDIMPipeline", {"generate"}),
    ],
)
def test_classes_are_known_by_their_signature(name: str, tasks: set[str]) -> None:
    assert {str(t) for t in native_tasks(getattr(diffusers, name))} == tasks


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("StableDiffusionControlNetPipeline", "controlnet"),
        ("FluxControlPipeline", "control_image"),
        ("StableDiffusionAdapterPipeline", "adapter"),
        ("WanPipeline", "num_frames"),
        ("AudioLDM2Pipeline", "audio_length_in_s"),
        ("KandinskyV22Pipeline", "image_embeds"),
        ("StableDiffusionLatentUpscalePipeline", "."),
        ("MarigoldDepthPipeline", "neither prompt nor label"),
    ],
)
def test_what_makes_no_images_of_a_request_is_refused(name: str, why: str) -> None:
    cls = getattr(diffusers, name)
    if name == "StableDiffusionLatentUpscalePipeline":  # an edit, as far as its signature tells
        assert native_tasks(cls) == {Task.EDIT}
        return
    with pytest.raises(ConfigError, match=rf"{name} is not served: .*{why}"):
        native_tasks(cls)


def test_guidance_becomes_the_argument_that_a_class_has() -> None:
    def made(name: str, **change: Any) -> dict[str, Any]:
        can = ability(getattr(diffusers, name), Task.GENERATE)
        limits = Limits(
            name=name,
            abilities={Task.GENERATE: can},
            size_factor=8,
            native_size=None,
            max_steps=None,
            labels={},
            classes=0,
        )
        request = replace(
            GenerateRequest(
                request_id="r",
                prompt="p",
                seed=1,
                steps=2,
                guidance_scale=4.0,
                width=32,
                height=32,
            ),
            **change,
        )
        return arguments(can, limits, [request], output_type="pil")

    assert made("StableDiffusionPipeline")["guidance_scale"] == 4.0
    assert "negative_prompt" not in made("StableDiffusionPipeline")
    assert made("FluxPipeline")["guidance_scale"] == 4.0
    # Qwen-Image is guided only beside a negative prompt.
    qwen = made("QwenImagePipeline")
    assert (qwen["true_cfg_scale"], qwen["negative_prompt"]) == (4.0, [" "])
    assert "guidance_scale" not in qwen
    assert made("QwenImagePipeline", negative_prompt="n")["negative_prompt"] == ["n"]
    assert "negative_prompt" not in made("QwenImagePipeline", guidance_scale=1.0)
    assert ability(diffusers.QwenImagePipeline, Task.GENERATE).guidance is Guidance.TRUE
    assert ability(diffusers.ZImagePipeline, Task.GENERATE).guided_above == 0
    assert not ability(diffusers.KandinskyV22CombinedPipeline, Task.GENERATE).empty_is_none


def test_the_general_key_never_joins_what_a_pipelines_own_parts(
    engines: Callable[[str], Engine],
) -> None:
    for name in FAMILIES:
        warm = engines(name).warm_up_request()
        for other in (
            replace(warm, negative_prompt="x"),
            replace(warm, steps=3),
            replace(warm, guidance_scale=3.0),
        ):
            assert batch_key(warm) != batch_key(other)
