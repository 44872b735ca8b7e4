"""What a pipeline folder may hold: weights in safetensors, and no code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from intonaco.errors import ConfigError
from intonaco.folders import (
    ADAPTER_FILE,
    CODE,
    PICKLES,
    Adapter,
    check_adapters,
    check_folder,
    parse_adapter,
)

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "feature_extractor": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "unet": ["diffusers", "UNet2DConditionModel"],
}


def folder(root: Path, **index: Any) -> Path:
    (root / "unet").mkdir(parents=True)
    (root / "model_index.json").write_text(json.dumps(INDEX | index))
    (root / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"weights")
    return root


def test_a_plain_pipeline_is_taken(tmp_path: Path) -> None:
    made = folder(tmp_path / "p")
    shards = {"weight_map": {"a": "diffusion_pytorch_model.safetensors"}}
    name = "diffusion_pytorch_model.safetensors.index.json"
    (made / "unet" / name).write_text(json.dumps(shards))
    # A vocabulary may hold any word; its numbers are tokens.
    (made / "vocab.json").write_text(json.dumps({"auto_map": 17}))
    check_folder(made)


@pytest.mark.parametrize("ending", [*sorted(PICKLES), ".BIN"])
def test_a_pickle_is_refused_by_name(tmp_path: Path, ending: str) -> None:
    made = folder(tmp_path / "p")
    (made / "unet" / "deeper").mkdir()
    (made / "unet" / "deeper" / f"model{ending}").write_bytes(b"")
    with pytest.raises(ConfigError, match=rf"model\{ending} is a pickle"):
        check_folder(made)


@pytest.mark.parametrize("ending", sorted(CODE))
def test_code_in_the_folder_is_refused_by_name(tmp_path: Path, ending: str) -> None:
    made = folder(tmp_path / "p")
    (made / "unet" / f"my_unet{ending}").write_bytes(b"")
    with pytest.raises(ConfigError, match=rf"my_unet\{ending} is code"):
        check_folder(made)


def test_a_link_to_a_pickle_elsewhere_is_refused(tmp_path: Path) -> None:
    made = folder(tmp_path / "p")
    (made / "unet" / "model.ckpt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="pickle"):
        check_folder(made)


@pytest.mark.parametrize(
    ("index", "told"),
    [
        ({"unet": ["my_unet", "MyUNet"]}, "unet is .*my_unet"),
        ({"unet": ["os", "system"]}, "unet is .*os"),
        ({"unet": ["diffusers.utils", "x"]}, "unet is"),
        ({"unet": ["../evil", "x"]}, "unet is"),
        ({"unet": [["diffusers"], "x"]}, "unet is"),
        ({"_class_name": ["my_pipeline", "MyPipeline"]}, "_class_name"),
        ({"_class_name": None}, "_class_name"),
        ({"custom_pipeline": "somebody/else"}, "custom_pipeline"),
        ({"_custom_pipeline": "somebody/else"}, "custom_pipeline"),
    ],
)
def test_an_index_that_names_other_code_is_refused(
    tmp_path: Path, index: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        check_folder(folder(tmp_path / "p", **index))


@pytest.mark.parametrize(
    "config",
    [
        {"auto_map": {"AutoModel": "somebody/else--model.Model"}},
        {"text_config": {"auto_map": {"AutoModel": "model.Model"}}},
        {"parts": [{"trust_remote_code": True}]},
    ],
)
def test_a_configuration_that_asks_for_code_is_refused(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    made = folder(tmp_path / "p")
    (made / "text_encoder").mkdir()
    (made / "text_encoder" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"text_encoder/config.json: .* asks for code"):
        check_folder(made)


def _shards(value: Any) -> Callable[[Path], None]:
    def write(made: Path) -> None:
        (made / "unet" / "x.index.json").write_text(json.dumps(value))

    return write


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_shards({"weight_map": {"a": "model-1.bin"}}), r"model-1\.bin, a pickle"),
        (_shards({"weight_map": {"a": "../../other.safetensors"}}), "not beside it"),
        (_shards({"weight_map": {"a": "/other.safetensors"}}), "not beside it"),
        (_shards({"weight_map": {"a": "missing.safetensors"}}), "not beside it"),
        (_shards({"metadata": {}}), "weight_map"),
        (_shards([]), "weight_map"),
        (lambda made: (made / "unet" / "config.json").write_text("{"), "JSON"),
        (lambda made: (made / "model_index.json").write_text("[]"), "_class_name"),
    ],
)
def test_an_index_of_weights_points_to_safetensors_beside_it(
    tmp_path: Path, spoil: Callable[[Path], None], told: str
) -> None:
    made = folder(tmp_path / "p")
    spoil(made)
    with pytest.raises(ConfigError, match=told):
        check_folder(made)


def test_adapters_are_written_as_name_and_scale() -> None:
    assert parse_adapter("style") == Adapter(name="style", scale=1.0)
    assert parse_adapter("my-style_2:-0.5") == Adapter(name="my-style_2", scale=-0.5)
    for wrong in ("", ":1", "a:", "a:much", "a.b", "../a", "a/b:1", "a:nan", "a:inf", "a:1e9"):
        with pytest.raises(ConfigError, match="adapters"):
            parse_adapter(wrong)


def test_the_adapters_there_are_those_that_are_named(tmp_path: Path) -> None:
    made = folder(tmp_path / "p")
    check_adapters(made, [])
    with pytest.raises(ConfigError, match="'style' has no file"):
        check_adapters(made, ["style:0.5"])
    (made / "adapters" / "style").mkdir(parents=True)
    (made / "adapters" / "style" / ADAPTER_FILE).write_bytes(b"")
    check_adapters(made, ["style:0.5"])
    with pytest.raises(ConfigError, match="not named by the release"):
        check_adapters(made, [])
    with pytest.raises(ConfigError, match="twice"):
        check_adapters(made, ["style", "style:2"])
