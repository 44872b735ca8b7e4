"""Options of a release and of a worker: done, or refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import fixtures_tiny

from intonaco.errors import ConfigError
from intonaco.releases import read_serving_spec, release_id
from intonaco.serving.worker.devices import resolve_device
from intonaco.serving.worker.engine import load
from intonaco.serving.worker.loading import compile_denoiser, place
from intonaco.serving.worker.tasks import denoiser_of
from intonaco.types import Release
from intonaco.workspace import Workspace

# The libraries' own deprecations, e.g. of scheduler settings.
pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning:diffusers"
)
SMALL = {"steps": 2, "guidance_scale": 1.5, "width": 16, "height": 16}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("folders")
    return {
        "sd": fixtures_tiny.save(root / "sd"),
        "flux": fixtures_tiny.save_pipeline(fixtures_tiny.build_flux(), root / "flux"),
        "dit": fixtures_tiny.save_pipeline(fixtures_tiny.build_dit(), root / "dit"),
        "ddpm": fixtures_tiny.save_pipeline(fixtures_tiny.build_ddpm(), root / "ddpm"),
    }


@pytest.fixture(autouse=True)
def native_attention() -> Iterator[None]:
    """diffusers keeps the last backend that was set for the whole process."""
    yield
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)


def engine(
    root: Path, folder: Path, *, worker: dict[str, Any] | None = None, **options: Any
) -> Any:
    generation = SMALL if folder.name in ("dit", "ddpm") else fixtures_tiny.GENERATION
    workspace = Workspace(root)
    made = fixtures_tiny.add_release(workspace, folder, generation=generation, **options)
    return load(made, workspace.resolve(made.path), **{"device": "cpu", **(worker or {})})


def pixels(made: Any) -> Any:
    return made.pixels([made.warm_up_request()], 1)


def test_options_are_facts_of_the_release(folders: dict[str, Path]) -> None:
    def spec(**options: Any) -> str:
        return release_id(read_serving_spec(folders["sd"], generation={}, **options))

    made = [
        spec(),
        spec(dtype="bfloat16"),
        spec(attention="native"),
        spec(compile=True),
        spec(options=["channels_last"]),
        spec(options=["vae_slicing", "channels_last"]),
        spec(safety_filter="other"),
    ]
    assert len(set(made)) == len(made)
    assert spec(options=["channels_last", "vae_slicing"]) == made[5]  # in any order
    with pytest.raises(ConfigError, match="options: 'fast' is unknown"):
        spec(options=["fast"])


def test_options_are_done(folders: dict[str, Path], tmp_path: Path) -> None:
    plain = engine(tmp_path, folders["sd"])
    names = ("channels_last", "vae_slicing", "vae_tiling")
    made = engine(tmp_path, folders["sd"], options=names)
    assert made.spec.options == names
    pipeline = next(iter(made._stages.values())).pipeline
    assert pipeline.vae.use_slicing
    assert pipeline.vae.use_tiling
    weight = pipeline.unet.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    assert np.abs(pixels(made) - pixels(plain)).max() < 1e-4


def test_a_dtype_is_done(folders: dict[str, Path], tmp_path: Path) -> None:
    made = engine(tmp_path, folders["sd"], dtype="bfloat16")
    pipeline = next(iter(made._stages.values())).pipeline
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        assert part.dtype == torch.bfloat16
    # Pipelines made of it keep it; diffusers' other way of making them goes back to float32.
    assert all(s.pipeline.unet.dtype == torch.bfloat16 for s in made._stages.values())
    assert 0 < np.abs(pixels(made) - pixels(engine(tmp_path, folders["sd"]))).max() < 0.5


def test_attention_is_set_where_it_can_be(folders: dict[str, Path], tmp_path: Path) -> None:
    plain = pixels(engine(tmp_path, folders["flux"]))
    made = engine(tmp_path, folders["flux"], attention="_native_math")
    processors = denoiser_of(next(iter(made._stages.values())).pipeline).attn_processors
    assert {p._attention_backend.value for p in processors.values()} == {"_native_math"}
    assert np.abs(pixels(made) - plain).max() < 1e-4


@pytest.mark.parametrize(
    ("folder", "options", "told"),
    [
        ("sd", {"attention": "_native_math"}, "attention: '_native_math' .* would keep their own"),
        ("flux", {"attention": "magic"}, "attention: 'magic' cannot be used"),
        ("flux", {"attention": "flash_hub"}, "downloads code"),
        ("flux", {"attention": "_flash_3_hub"}, "downloads code"),
        ("flux", {"attention": "sage"}, "attention: 'sage' cannot be used"),
        ("ddpm", {"options": ["vae_slicing"]}, "options: vae_slicing .* DDPMPipeline"),
        ("ddpm", {"options": ["vae_tiling"]}, "options: vae_tiling .* DDPMPipeline"),
        ("sd", {"worker": {"offload": "model"}}, "offload: 'model' .* device is cpu"),
        ("sd", {"worker": {"offload": "sequential"}}, "offload: 'sequential' .* device is cpu"),
        ("sd", {"worker": {"offload": "disk"}}, "offload: 'disk' is unknown"),
        ("sd", {"worker": {"device": "tpu"}}, "device: 'tpu' is unknown"),
    ],
)
def test_an_option_that_cannot_be_had_is_refused_by_name(
    folders: dict[str, Path], tmp_path: Path, folder: str, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        engine(tmp_path, folders[folder], **options)


def test_channels_last_needs_convolutions() -> None:
    from intonaco.serving.worker.loading import apply_options

    class Bare:
        """A pixel transformer: no VAE, and linear layers alone."""

        vae = None
        transformer = fixtures_tiny.build_flux().transformer

    spec = read_serving_spec_of_options("channels_last")
    with pytest.raises(ConfigError, match=r"channels_last .* no 2-d convolutions"):
        apply_options(Bare(), spec)


def read_serving_spec_of_options(*options: str) -> Any:
    from intonaco.types import ServingSpec

    return ServingSpec(
        pipeline_class="Bare", weights={}, scheduler="none", generation={}, options=options
    )


def test_the_device_is_the_best_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def there(cuda: bool, mps: bool) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 if cuda else 0)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    there(True, True)
    assert [resolve_device(d) for d in ("auto", "cuda:1", "mps", "cpu")] == [
        *("cuda", "cuda:1", "mps", "cpu")
    ]
    there(False, True)
    assert resolve_device("auto") == "mps"
    there(False, False)
    assert resolve_device("auto") == "cpu"
    for missing in ("cuda", "cuda:0", "mps"):
        with pytest.raises(ConfigError, match=f"device: {missing} is not available"):
            resolve_device(missing)


def test_offloading_asks_the_pipeline_for_it() -> None:
    """No GPU here: that the right thing is asked of diffusers is all that is checked."""
    asked: list[tuple[str, str]] = []

    class Pipeline:
        def to(self, device: str) -> None:
            asked.append(("to", device))

        def enable_model_cpu_offload(self, device: str) -> None:
            asked.append(("model", device))

        def enable_sequential_cpu_offload(self, device: str) -> None:
            asked.append(("sequential", device))

    for offload in ("none", "model", "sequential"):
        place(Pipeline(), "cuda:0", offload)
    assert asked == [("to", "cuda:0"), ("model", "cuda:0"), ("sequential", "cuda:0")]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of torch's own import
def test_compiling_takes_the_blocks_that_are_repeated() -> None:
    """Marked for compilation only: it is the first picture that compiles, for minutes."""
    for build in (fixtures_tiny.build_flux, fixtures_tiny.build_ddpm):
        pipeline = build()
        network = denoiser_of(pipeline)
        compile_denoiser(pipeline)
        compiled = {
            type(m).__name__ for m in network.modules() if m._compiled_call_impl is not None
        }
        whole = {type(network).__name__}
        assert compiled == (set(network._repeated_blocks or ()) or whole)


def test_a_compiled_base_is_not_shared(folders: dict[str, Path], tmp_path: Path) -> None:
    made = engine(tmp_path, folders["sd"])
    made.spec = replace(made.spec, compile=True)
    with pytest.raises(ConfigError, match="every switch would compile again"):
        made.add_adapter("a", tmp_path)


def test_a_release_of_another_world_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """Not loadable for one reason or another: said in one line, by name."""
    workspace = Workspace(tmp_path / "w")

    def reload(made: Release) -> None:
        load(made, workspace.resolve(made.path), device="cpu")

    def spoilt(name: str, file: str, old: str, new: str) -> Release:
        folder = fixtures_tiny.save(tmp_path / name)
        path = folder / file
        path.write_text(path.read_text().replace(old, new))
        return fixtures_tiny.add_release(workspace, folder)

    with pytest.raises(ConfigError, match="no class NewPipeline"):
        reload(spoilt("a", "model_index.json", "StableDiffusionPipeline", "NewPipeline"))
    with pytest.raises(ConfigError, match="WanPipeline is not served"):
        reload(spoilt("b", "model_index.json", "StableDiffusionPipeline", "WanPipeline"))
    with pytest.raises(ConfigError, match="cannot be loaded"):
        reload(spoilt("c", "model_index.json", "UNet2DConditionModel", "NoSuchModel"))
    with pytest.raises(ConfigError, match="generation: width and height must be multiples of 8"):
        fixtures_tiny.engine(
            tmp_path / "e", fixtures_tiny.build(), generation={**SMALL, "width": 20}
        )
    broken = fixtures_tiny.save(tmp_path / "d")
    (broken / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        reload(fixtures_tiny.add_release(workspace, broken))
