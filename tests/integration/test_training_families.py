"""Each family takes a full step and a LoRA, and what comes out is what plain diffusers loads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from tests import fixtures_tiny
from tests.fixtures_training import run_job, write_pictures

from intonaco.config import Recipe
from intonaco.errors import ConfigError
from intonaco.folders import ADAPTER_FILE, ADAPTERS
from intonaco.training import export
from intonaco.training.cache import models_digest
from intonaco.training.families import family_of
from intonaco.training.lora import RELEASED

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning",
    "ignore::DeprecationWarning:diffusers",
    "ignore:__array__ implementation:DeprecationWarning",
)

FAMILIES = {
    "sd": (fixtures_tiny.build, ["to_q", "conv1", "ff.net.2"]),
    "sdxl": (fixtures_tiny.build_sdxl, ["to_q", "to_out.0", "conv1", "ff.net.2", "proj_in"]),
    "sd3": (fixtures_tiny.build_sd3, ["to_q", "add_k_proj", "ff.net.2", "proj_out"]),
    "flux": (
        fixtures_tiny.build_flux,
        ["to_q", "add_k_proj", "ff.net.2", "proj_mlp", "x_embedder"],
    ),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data") / "d")


@pytest.fixture(scope="module", params=[*FAMILIES])
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param) / "base"
    return request.param, fixtures_tiny.save_pipeline(FAMILIES[request.param][0](), folder)


def plain(folder: Path) -> Any:
    """By diffusers alone, which must be told of parts that are left out."""
    index = json.loads((folder / "model_index.json").read_text())
    absent = {name: None for name, value in index.items() if value == [None, None]}
    return DiffusionPipeline.from_pretrained(folder, **absent)


def picture(pipeline: Any, **more: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    said = pipeline(
        prompt="a two",
        num_inference_steps=2,
        guidance_scale=2.0,
        generator=generator,
        height=32,
        width=32,
        output_type="np",
        **more,
    )
    return said.images[0]


def capture(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Any]:
    """The pipeline in memory that a job saves, as it was then."""
    kept: list[Any] = []
    real = getattr(export, name)

    def save(family: Any, *rest: Any) -> None:
        kept.append(picture(family.pipeline))
        real(family, *rest)

    monkeypatch.setattr("intonaco.training.job." + name, save)
    return kept


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    files = [f for part in ("unet", "transformer") for f in (folder / part).glob("*.safetensors")]
    found: dict[str, torch.Tensor] = load_file(files[0])
    return found


def test_a_full_step(
    family: tuple[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, base = family
    kept = capture(monkeypatch, "save_whole")
    folder, result = run_job(tmp_path, data, base, {"method": "full", "resolution": 32})
    assert result["steps"] == 4
    before, after = tensors(base), tensors(folder)
    assert before.keys() == after.keys()
    moved = [n for n in before if not torch.equal(before[n], after[n])]
    assert len(moved) > 0.9 * len(before)
    drawn = picture(plain(folder))
    assert np.array_equal(drawn, kept[0]), "to the bit"
    assert not np.array_equal(drawn, picture(plain(base)))


def test_an_adapter_beside_its_base(
    family: tuple[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, base = family
    targets = FAMILIES[name][1]
    lora = {"rank": 4, "alpha": 16, "targets": targets, "fused": False}
    kept = capture(monkeypatch, "save_beside")
    folder, _ = run_job(tmp_path, data, base, {"lora": lora, "resolution": 32})
    file = folder / ADAPTERS / RELEASED / ADAPTER_FILE
    saved = load_file(file)
    # The same training makes the same bytes, and so the same release, also in another order.
    lora["targets"] = targets[::-1]
    again, _ = run_job(tmp_path / "again", data, base, {"lora": lora, "resolution": 32})
    assert (again / ADAPTERS / RELEASED / ADAPTER_FILE).read_bytes() == file.read_bytes()
    pipeline = plain(folder)
    untouched = picture(pipeline)
    pipeline.load_lora_weights(str(file.parent), weight_name=ADAPTER_FILE, adapter_name="x")
    component = "unet" if name.startswith("sd") and name != "sd3" else "transformer"
    model = getattr(pipeline, component)
    found = {
        f"{component}.{key.replace('.x.', '.')}": value
        for key, value in model.state_dict().items()
        if ".lora_" in key
    }
    assert found.keys() == saved.keys(), "none vanished, none made up"
    assert all(torch.equal(found[key], saved[key]) for key in saved)
    ends = {key.rsplit(".lora_", 1)[0] for key in saved}
    assert all(any(end.endswith(f".{t}") for end in ends) for t in targets)
    assert model.peft_config["x"].lora_alpha == 16
    drawn = picture(pipeline)
    assert np.array_equal(drawn, kept[0]), "to the bit"
    assert not np.array_equal(drawn, untouched)


def test_a_fused_adapter(
    family: tuple[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, base = family
    kept = capture(monkeypatch, "save_whole")
    lora = {"rank": 4, "alpha": 16, "targets": ["to_q"], "fused": True}
    folder, _ = run_job(tmp_path, data, base, {"lora": lora, "resolution": 32})
    before, after = tensors(base), tensors(folder)
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert moved
    assert moved == {n for n in before if n.endswith(".to_q.weight")}
    drawn = picture(plain(folder))
    # The picture in memory is from before the fusing, which rounds.
    assert np.abs(drawn - kept[0]).max() < 1e-4


def test_bfloat16_leaves_full_weights(family: tuple[str, Path], data: Path, tmp_path: Path) -> None:
    """The base comes out as it was, to the bit, although it was halved for training."""
    _, base = family
    lora = {"rank": 4, "targets": ["to_q"]}
    recipe = {"lora": lora, "resolution": 32, "precision": "bfloat16", "learning_rate": 1e-2}
    folder, result = run_job(tmp_path, data, base, {**recipe, "gradient_checkpointing": True})
    before, after = tensors(base), tensors(folder)
    assert after.keys() == before.keys()
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert moved == {n for n in before if n.endswith(".to_q.weight")}
    assert {t.dtype for t in after.values()} == {torch.float32}
    assert np.isfinite(result["loss_last"])


def test_classes(tmp_path: Path) -> None:
    base = fixtures_tiny.save_pipeline(fixtures_tiny.build_dit(), tmp_path / "base")
    data = write_pictures(tmp_path / "d", ["3", "7"], sizes=[(16, 16)])
    folder, _ = run_job(tmp_path / "j", data, base, {"method": "full"})
    before, after = tensors(base), tensors(folder)
    table = "transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"
    learnt = (before[table] != after[table]).any(dim=1)
    assert learnt[3]
    assert learnt[7]
    pipeline = plain(folder)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    said = pipeline(class_labels=[3], num_inference_steps=2, generator=generator, output_type="np")
    assert np.isfinite(said.images).all()

    with pytest.raises(ConfigError, match="no adapters for DiT"):
        run_job(tmp_path / "lora", data, base, {})
    wrong = write_pictures(tmp_path / "w", ["a two"], sizes=[(16, 16)])
    with pytest.raises(ConfigError, match="'a two' is no class"):
        run_job(tmp_path / "wrong", wrong, base, {"method": "full"})


def test_others_are_refused() -> None:
    with pytest.raises(ConfigError, match="DDPMPipeline cannot be trained"):
        family_of(fixtures_tiny.build_ddpm(), Recipe())
    with pytest.raises(ConfigError, match="FluxKontextPipeline cannot be trained"):
        family_of(fixtures_tiny.build_kontext(), Recipe())
    pipeline = fixtures_tiny.build()
    pipeline.unet.register_to_config(in_channels=9)
    with pytest.raises(ConfigError, match="takes 9 channels"):
        family_of(pipeline, Recipe())
    pipeline = fixtures_tiny.build()
    pipeline.unet.register_to_config(time_cond_proj_dim=32)
    with pytest.raises(ConfigError, match="distilled to few steps"):
        family_of(pipeline, Recipe())
    refiner = fixtures_tiny.build_sdxl()
    refiner.register_to_config(requires_aesthetics_score=True)
    with pytest.raises(ConfigError, match="it is a refiner"):
        family_of(refiner, Recipe())


def test_what_is_trained_is_what_service_asks(family: tuple[str, Path]) -> None:
    """The pipeline's own call of its denoiser, under guidance, and the family's: the same
    conditions, the same answer, to the bit."""
    name, base = family
    pipeline = plain(base)
    pipeline.set_progress_bar_config(disable=True)
    ours = family_of(pipeline, Recipe(guidance=3.5))
    calls: list[tuple[tuple[Any, ...], dict[str, Any], Any]] = []

    def see(module: Any, args: tuple[Any, ...], named: dict[str, Any], out: Any) -> None:
        calls.append((args, named, out[0]))

    handle = ours.denoiser.register_forward_hook(see, with_kwargs=True)
    pipeline(
        prompt="a two",
        num_inference_steps=2,
        guidance_scale=3.5,
        height=32,
        width=32,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
    )
    handle.remove()
    args, named, answer = calls[0]
    latents = args[0] if args else named["hidden_states"]
    time = args[1] if len(args) > 1 else named["timestep"]
    with torch.no_grad():
        condition = dict(ours.encode(["a two"]))
        if name == "flux":  # guided by a number, without a second answer
            assert float(named["guidance"]) == 3.5
            latents, answer = (
                pipeline._unpack_latents(x, 32, 32, ours.factor) for x in (latents, answer)
            )
            time = time * 1000
        else:
            empty = ours.empty()
            condition = {n: torch.cat([empty[n], said]) for n, said in condition.items()}
        assert torch.equal(condition["text"], named["encoder_hidden_states"])
        n = len(latents)
        frames = torch.tensor([[32, 32, 0, 0, 32, 32]] * n)
        said = ours.predict(ours.denoiser, latents, time.expand(n), condition, frames)
    assert torch.equal(said, answer)


@pytest.mark.parametrize("zeros", [True, False])
def test_no_text_of_sdxl_is_what_its_pipeline_says(tmp_path: Path, zeros: bool) -> None:
    pipeline = fixtures_tiny.build_sdxl()
    before = models_digest(family_of(pipeline, Recipe()))
    pipeline.register_to_config(force_zeros_for_empty_prompt=zeros)
    ours = family_of(pipeline, Recipe())
    assert bool((ours.empty()["text"] == 0).all()) is zeros  # the tokenizers were used here
    assert (models_digest(ours) == before) is zeros, "a cache of the other is not taken"


def test_the_shift_of_an_autoencoder_is_heeded_where_the_pipeline_does() -> None:
    mean = torch.ones(1, 4, 2, 2)
    for build, heeds in ((fixtures_tiny.build, False), (fixtures_tiny.build_flux, True)):
        pipeline = build()
        pipeline.vae.register_to_config(shift_factor=0.25, scaling_factor=2.0)
        scaled, deviation = family_of(pipeline, Recipe()).scaled(mean, mean)
        assert torch.equal(scaled, mean * (1.5 if heeds else 2.0))
        assert torch.equal(deviation, mean * 2.0)


def test_a_base_in_float16_is_trained_in_float32(data: Path, tmp_path: Path) -> None:
    """transformers would keep its text encoder in float16, and no sample could be drawn."""
    halved = fixtures_tiny.build().to(torch.float16)
    base = fixtures_tiny.save_pipeline(halved, tmp_path / "base")
    pipeline = export.load_folder(base)
    assert {p.dtype for p in (pipeline.unet, pipeline.vae, pipeline.text_encoder)} == {
        torch.float32
    }
    samples = {"prompts": ["a two"], "every": 4, "steps": 2}
    run_job(tmp_path / "j", data, base, {"method": "full", "samples": samples})
    assert (tmp_path / "j/samples/00000004.png").exists()


def test_a_resolution_that_does_not_fit(data: Path, tmp_path: Path) -> None:
    base = fixtures_tiny.save_pipeline(fixtures_tiny.build(), tmp_path / "base")
    with pytest.raises(ConfigError, match="resolution: 30"):
        run_job(tmp_path / "j", data, base, {"method": "full", "resolution": 30})
