from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from intonaco.errors import ConfigError, NotFound
from intonaco.releases import (
    PICKLES,
    ReleaseStore,
    check_folder,
    environment_lock,
    read_serving_spec,
    release_id,
)
from intonaco.types import Provenance, ServingSpec
from intonaco.workspace import Workspace

GENERATION = {"steps": 10, "guidance_scale": 1.5, "width": 32, "height": 32}


def pipeline(folder: Path, weights: bytes = b"weights") -> Path:
    (folder / "unet").mkdir(parents=True)
    index = {
        "_class_name": "StableDiffusionPipeline",
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(weights)
    return folder


def spec_of(folder: Path) -> ServingSpec:
    return read_serving_spec(folder, generation=GENERATION)


def test_the_id_depends_on_every_serving_field_and_on_no_other(tmp_path: Path) -> None:
    spec = spec_of(pipeline(tmp_path / "a"))
    assert spec.scheduler == "DPMSolverMultistepScheduler"
    assert spec.environment == environment_lock()
    same = spec_of(pipeline(tmp_path / "b"))
    assert release_id(same) == release_id(spec)
    others = [
        spec_of(pipeline(tmp_path / "c", b"weightz")),
        replace(spec, generation={**GENERATION, "steps": 11}),
        replace(spec, fused=True),
        replace(spec, dtype="bfloat16"),
        replace(spec, compile=True),
        replace(spec, environment="another"),
        replace(spec, scheduler="DDIMScheduler"),
        replace(spec, safety_filter="nsfw"),
    ]
    assert len({release_id(s) for s in [spec, *others]}) == len(others) + 1


def test_a_configuration_file_is_part_of_the_id_too(tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "a")
    before = release_id(spec_of(folder))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    assert release_id(spec_of(folder)) != before


@pytest.mark.parametrize("ending", sorted(PICKLES))
def test_a_pickle_anywhere_in_the_folder_is_refused(tmp_path: Path, ending: str) -> None:
    folder = pipeline(tmp_path / "a")
    (folder / "unet" / f"model{ending}").write_bytes(b"\x80\x04.")
    with pytest.raises(ConfigError, match="pickle"):
        check_folder(folder)
    with pytest.raises(ConfigError, match="pickle"):
        spec_of(folder)


def test_what_is_no_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        check_folder(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="model_index"):
        check_folder(tmp_path)


def test_the_store_writes_a_release_once_and_finds_it(tmp_path: Path) -> None:
    store = ReleaseStore(Workspace(tmp_path / "w"), "digits")
    folder = pipeline(tmp_path / "a")
    spec = spec_of(folder)
    first = store.add(folder, spec, Provenance(created_at=1.0, note="first"))
    again = store.add(folder, spec, Provenance(created_at=2.0, note="second"))
    assert first == again
    assert first.release_id == release_id(spec)
    assert store.list() == [first]
    assert release_id(spec_of(store.folder(first))) == first.release_id
    assert not list((tmp_path / "w" / "releases").glob(".adding-*"))
    other = pipeline(tmp_path / "b", b"other")
    second = store.add(other, spec_of(other), Provenance(created_at=0.5))
    assert [r.release_id for r in store.list()] == [second.release_id, first.release_id]
    with pytest.raises(NotFound):
        store.get("0" * 64)
