"""LoRA adapters: nothing of them is lost on loading, and the base is untouched without them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from tests import fixtures_tiny
from tests.fixtures_tiny import picture

from intonaco.errors import ConfigError, NotFound
from intonaco.evaluation.prompts import Prompt, Shot
from intonaco.evaluation.sampling import Sampler
from intonaco.folders import ADAPTER_FILE
from intonaco.lora import CONFIG
from intonaco.messages import GenerateRequest
from intonaco.serving.worker.core import InvalidRequest
from intonaco.serving.worker.engine import Engine, load
from intonaco.types import Release
from intonaco.workspace import Workspace

# The libraries' own deprecations, e.g. of scheduler settings.
pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning:diffusers"
)

# Attention, convolutions and feed-forward layers: what a loader that knows attention alone loses.
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "ff.net.0.proj", "ff.net.2"]
ASK = GenerateRequest(
    request_id="r", prompt="a two", seed=7, steps=2, guidance_scale=1.5, width=32, height=32
)


def save_adapter(
    folder: Path,
    *,
    seed: int = 1,
    rank: int = 4,
    alpha: float = 8,
    renamed: bool = False,
    metadata: bool = True,
    text: bool = False,
    **more: Any,
) -> Path:
    """A LoRA with random weights, as diffusers' own examples save it with ``renamed``."""
    pipeline = fixtures_tiny.build()
    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=TARGETS, init_lora_weights=False, **more
    )
    pipeline.unet.add_adapter(config, "new")
    layers = get_peft_model_state_dict(pipeline.unet, adapter_name="new")
    layers = {k: 0.1 * v for k, v in layers.items()}
    kept: dict[str, Any] = {}
    if metadata:
        kept["unet_lora_adapter_metadata"] = pipeline.unet.peft_config["new"].to_dict()
    if text:
        encoder = LoraConfig(
            r=2, lora_alpha=4, target_modules=["q_proj", "fc1"], init_lora_weights=False
        )
        pipeline.text_encoder.add_adapter(encoder, "new")
        kept["text_encoder_lora_layers"] = get_peft_model_state_dict(
            pipeline.text_encoder, adapter_name="new"
        )
        kept["text_encoder_lora_adapter_metadata"] = encoder.to_dict()
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=convert_state_dict_to_diffusers(layers) if renamed else layers,
        **kept,
    )
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixtures_tiny.save(tmp_path_factory.mktemp("base") / "p")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return fixtures_tiny.engine(tmp_path_factory.mktemp("shared"), fixtures_tiny.build())


@pytest.fixture
def engine(shared: Engine) -> Iterator[Engine]:
    yield shared
    for name in sorted(shared.adapters):
        shared.remove_adapter(name)


def released(root: Path, base: Path, *adapters: str, **options: Any) -> tuple[Release, Path]:
    """A release of the base with adapters that were saved under ``root / "adapters"``."""
    import shutil

    folder = root / "with"
    shutil.copytree(base, folder)
    shutil.copytree(root / "adapters", folder / "adapters")
    workspace = Workspace(root / "w")
    made = fixtures_tiny.add_release(workspace, folder, adapters=adapters, **options)
    return made, workspace.resolve(made.path)


def bits(engine: Engine, adapter: str | None = None, **change: Any) -> bytes:
    image = engine.generate([replace(ASK, **change)], 2, adapter=adapter).images[0]
    return np.asarray(image).tobytes()


# ------------------------------------------------------------------------------ verification


def test_an_adapter_saved_as_it_is_is_loaded_whole(engine: Engine, tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "a")
    assert len(load_file(folder / ADAPTER_FILE)) == 112
    engine.add_adapter("a", folder)
    assert engine.adapters == {"a"}
    assert bits(engine, "a") != bits(engine)


def test_an_adapter_with_renamed_keys_loses_tensors_and_is_refused(
    engine: Engine, tmp_path: Path
) -> None:
    """What diffusers' examples write: only attention's keys are renamed, and the loader goes by
    the first key."""
    before = bits(engine)
    folder = save_adapter(tmp_path / "a", renamed=True)
    with pytest.raises(ConfigError, match=r"64 of 112 tensors vanish .* and 61 more") as refused:
        engine.add_adapter("a", folder)
    assert "unet.down_blocks" in str(refused.value)
    assert "get_peft_model_state_dict" in str(refused.value.hint)
    assert engine.adapters == frozenset()
    assert bits(engine) == before


def test_an_alpha_that_nobody_wrote_down_is_refused(engine: Engine, tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "a", metadata=False)
    with pytest.raises(ConfigError, match="names no rank and alpha"):
        engine.add_adapter("a", folder)
    # diffusers does not read PEFT's own file: alpha 8 becomes 4, the rank.
    (folder / CONFIG).write_text(json.dumps({"r": 4, "lora_alpha": 8}))
    with pytest.raises(ConfigError, match=r"rank 4 and scale 1, .* rank 4 and alpha 8, .* 2"):
        engine.add_adapter("a", folder)
    (folder / CONFIG).write_text(json.dumps({"r": 2, "lora_alpha": 4}))
    with pytest.raises(ConfigError, match="rank 2"):
        engine.add_adapter("a", folder)
    (folder / CONFIG).write_text(json.dumps({"lora_alpha": 8}))
    with pytest.raises(ConfigError, match="no r and lora_alpha"):
        engine.add_adapter("a", folder)
    (folder / CONFIG).write_text(json.dumps({"r": 4, "lora_alpha": 4}))
    engine.add_adapter("a", folder)


def test_ranks_and_alphas_of_single_layers_are_checked(engine: Engine, tmp_path: Path) -> None:
    folder = save_adapter(
        tmp_path / "a",
        rank_pattern={"to_q": 2, "conv1": 8},
        alpha_pattern={"to_k": 16},
        use_rslora=True,
    )
    engine.add_adapter("a", folder)
    layers = dict(shared_layers(engine, "a"))
    assert {layer.r["a"] for path, layer in layers.items() if path.endswith("to_q")} == {2}
    keys = [layer for path, layer in layers.items() if path.endswith("to_k")]
    assert all(math.isclose(layer.scaling["a"], 16 / math.sqrt(4)) for layer in keys)


def shared_layers(engine: Engine, name: str) -> Iterator[tuple[str, Any]]:
    unet = next(iter(engine._stages.values())).pipeline.unet
    for path, module in unet.named_modules():
        if name in getattr(module, "scaling", {}):
            yield path, module


def test_a_text_encoders_adapter_counts_too(engine: Engine, tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "a", text=True)
    before = bits(engine)
    engine.add_adapter("a", folder)
    assert bits(engine, "a") != before
    assert bits(engine) == before


def spoilt(folder: Path, change: Any) -> Path:
    """The adapter with its tensors changed, its metadata kept."""
    from safetensors import safe_open

    with safe_open(folder / ADAPTER_FILE, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(folder / ADAPTER_FILE)
    change(tensors)
    save_file(tensors, folder / ADAPTER_FILE, metadata=metadata)
    return folder


def _rename(tensors: dict[str, Any]) -> None:
    for key in [k for k in tensors if ".conv1." in k]:
        tensors[key.replace(".conv1.", ".conv9.")] = tensors.pop(key)


def _other_component(tensors: dict[str, Any]) -> None:
    key = next(iter(tensors))
    tensors["vae.decoder.lora_A.weight"] = tensors[key].clone()


def _no_b(tensors: dict[str, Any]) -> None:
    for key in [k for k in tensors if "to_v.lora_B" in k]:
        del tensors[key]


def _wider(tensors: dict[str, Any]) -> None:
    key = next(k for k in tensors if "to_v.lora_A" in k)
    tensors[key] = torch.cat([tensors[key], tensors[key]], dim=1)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_rename, "cannot be loaded|vanish"),
        (_other_component, r"1 of 113 tensors vanish .*vae"),
        (_no_b, "in the model and not in the file"),
        (_wider, "cannot be loaded"),
    ],
)
def test_a_spoilt_adapter_is_refused_and_leaves_nothing(
    engine: Engine, tmp_path: Path, change: Any, told: str
) -> None:
    before = bits(engine)
    with pytest.raises(ConfigError, match=told):
        engine.add_adapter("a", spoilt(save_adapter(tmp_path / "a"), change))
    assert bits(engine) == before
    assert not list(shared_layers(engine, "a"))
    engine.add_adapter("a", save_adapter(tmp_path / "b"))


def test_what_is_no_adapter_is_refused(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        engine.add_adapter("a", tmp_path)
    (tmp_path / ADAPTER_FILE).write_bytes(b"not safetensors")
    with pytest.raises(ConfigError, match=ADAPTER_FILE):
        engine.add_adapter("a", tmp_path)
    (tmp_path / "pytorch_lora_weights.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match="pickle"):
        engine.add_adapter("a", tmp_path)


# ------------------------------------------------------------------------------ sharing a base


def test_the_base_is_bit_for_bit_what_it_was(engine: Engine, tmp_path: Path) -> None:
    before = bits(engine)
    engine.add_adapter("a", save_adapter(tmp_path / "a", seed=1))
    assert bits(engine) == before
    a = bits(engine, "a")
    engine.add_adapter("b", save_adapter(tmp_path / "b", seed=2), scale=0.5)
    b = bits(engine, "b")
    assert len({before, a, b}) == 3
    for adapter, expected in ((None, before), ("a", a), ("b", b), ("a", a), (None, before)):
        assert bits(engine, adapter) == expected
    # Edits run on the same networks.
    edits = [bits(engine, n, image=picture(seed=1)) for n in (None, "a", "b", None)]
    assert edits[0] == edits[3]
    assert len(set(edits)) == 3
    with pytest.raises(ConfigError, match="vanish"):
        engine.add_adapter("c", save_adapter(tmp_path / "c", renamed=True))
    assert bits(engine) == before
    engine.remove_adapter("b")
    assert engine.adapters == {"a"}
    assert bits(engine) == before
    assert bits(engine, "a") == a
    engine.remove_adapter("a")
    assert bits(engine) == before
    assert not list(shared_layers(engine, "a"))


def test_an_adapters_pictures_are_those_of_a_release_of_its_own(
    engine: Engine, base: Path, tmp_path: Path
) -> None:
    save_adapter(tmp_path / "adapters" / "a")
    made, folder = released(tmp_path, base, "a:0.5")
    alone = load(made, folder, device="cpu")
    engine.add_adapter("a", folder / "adapters" / "a", scale=0.5)
    assert bits(engine, "a") == bits(alone)
    with pytest.raises(ConfigError, match="unfused adapters of its own"):
        alone.add_adapter("b", folder / "adapters" / "a")


def test_names_are_known_and_not_taken_twice(engine: Engine, tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "a")
    for act in (lambda: bits(engine, "a"), lambda: engine.remove_adapter("a")):
        with pytest.raises(NotFound, match="'a' is not loaded"):
            act()
    engine.add_adapter("a", folder)
    with pytest.raises(ConfigError, match="loaded already"):
        engine.add_adapter("a", folder)
    with pytest.raises(ConfigError, match="adapters"):
        engine.add_adapter("../a", folder)


# ------------------------------------------------------------------------- adapters of a release


def test_a_releases_adapters_are_part_of_it(base: Path, tmp_path: Path) -> None:
    save_adapter(tmp_path / "adapters" / "a", seed=1)
    save_adapter(tmp_path / "adapters" / "b", seed=2)
    made, folder = released(tmp_path, base, "a", "b:0.5")
    both = load(made, folder, device="cpu")
    assert both.release_id == made.release_id
    assert both.spec.adapters == ("a", "b:0.5")
    drawn = bits(both)
    assert drawn == bits(both)
    # What is evaluated is what is served.
    sampler = Sampler.load(folder, made.serving.generation, dtype="float32", device="cpu")
    shot = Shot(prompt=Prompt(prompt_id="p", prompt=ASK.prompt, slice="s"), seed=ASK.seed)
    assert sampler([shot, shot])[0].tobytes() == drawn
    other = fixtures_tiny.add_release(Workspace(tmp_path / "w"), folder, adapters=("a", "b"))
    assert other.release_id != made.release_id
    assert bits(load(other, folder, device="cpu")) != drawn


def test_fusing_makes_the_same_pictures_without_the_adapter(base: Path, tmp_path: Path) -> None:
    save_adapter(tmp_path / "adapters" / "a", seed=1)
    save_adapter(tmp_path / "adapters" / "b", seed=2)
    made, folder = released(tmp_path, base, "a:0.5", "b")
    fused = fixtures_tiny.add_release(
        Workspace(tmp_path / "w"), folder, adapters=("a:0.5", "b"), fused=True
    )
    assert fused.release_id != made.release_id
    apart, together = load(made, folder, device="cpu"), load(fused, folder, device="cpu")
    assert len(list(shared_layers(apart, "a"))) == 56
    assert not list(shared_layers(together, "a"))
    difference = np.abs(apart.pixels([ASK], 2) - together.pixels([ASK], 2)).max()
    assert 0 < difference < 1e-4
    # Fused, it is a base like another.
    before = bits(together)
    together.add_adapter("b", folder / "adapters" / "b")
    assert bits(together, "b") != before
    assert bits(together) == before


def test_a_release_with_a_lossy_adapter_is_not_loaded(base: Path, tmp_path: Path) -> None:
    save_adapter(tmp_path / "adapters" / "a", renamed=True)
    made, folder = released(tmp_path, base, "a")
    with pytest.raises(ConfigError, match="64 of 112 tensors vanish"):
        load(made, folder, device="cpu")


def test_a_pipeline_that_takes_no_lora_says_so(tmp_path: Path) -> None:
    engine = fixtures_tiny.engine(
        tmp_path / "e",
        fixtures_tiny.build_ddpm(),
        generation={"steps": 2, "width": 16, "height": 16},
    )
    with pytest.raises(ConfigError, match="DDPMPipeline takes no LoRA"):
        engine.add_adapter("a", save_adapter(tmp_path / "a"))
    with pytest.raises(InvalidRequest, match="takes none"):
        engine.check(replace(ASK, width=16, height=16))
