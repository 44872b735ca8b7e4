"""The training job on the demo's own pipeline, a few steps long."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from intonaco.codec import encode
from intonaco.config import LoraRecipe, Recipe
from intonaco.demo.data import write_demo_data
from intonaco.demo.model import build_pipeline
from intonaco.errors import BackendError, ConfigError
from intonaco.jobs import JobFolder
from intonaco.releases import check_folder
from intonaco.training import export
from intonaco.training import job as training_job
from intonaco.training.cache import cached
from intonaco.training.families import family_of
from intonaco.training.items import read_captioned
from intonaco.training.loop import Hooks, train_denoiser
from intonaco.training.lora import add_lora, fuse_lora
from intonaco.training.objective import objective_of
from intonaco.types import JobSpec

# diffusers' scheduler converts a tensor in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

LORA: dict[str, Any] = {"rank": 4, "alpha": 8, "targets": ["to_q", "to_out.0", "conv1", "ff.net.2"]}
SIZES = {"generator": 60, "extractor": 10, "judge": 10, "reference": 10}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def train_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo_data(tmp_path_factory.mktemp("data"), seed=0, sizes=SIZES).train


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, train_folder: Path) -> Path:
    return run(
        tmp_path_factory.mktemp("base"),
        train_folder,
        None,
        method="full",
        init="intonaco.demo.model:build_pipeline",
        vae={"steps": 4, "batch_size": 8},
    )[0]


def run(
    root: Path, dataset: Path, base: Path | None, **recipe: Any
) -> tuple[Path, Mapping[str, Any]]:
    """Run the job in this process; its pipeline folder and result."""
    settings = {"steps": 5, "batch_size": 8, "learning_rate": 3e-3, "warm_up_steps": 1} | recipe
    payload = {
        "recipe": Recipe.model_validate(settings).model_dump(mode="json"),
        "dataset": str(dataset),
        "base": str(base) if base else None,
        "seed": 1,
    }
    spec = JobSpec(key="k", entrypoint="intonaco.training.job", payload=payload)
    (root / "spec.json").write_text(encode(spec))
    result = training_job.run(JobFolder(root))
    return root / str(result["pipeline"]), result


def unet_of(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = load_file(
        folder / "unet" / "diffusion_pytorch_model.safetensors"
    )
    return tensors


def generate(folder: Path) -> Any:
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    images = pipeline("zero", num_inference_steps=2, generator=generator, height=32, width=32)
    return images.images[0]


def test_from_scratch_the_folder_loads_as_a_plain_pipeline(
    base: Path, train_folder: Path, tmp_path: Path
) -> None:
    check_folder(base)  # refuses pickles
    assert {p.suffix for p in base.rglob("*") if p.is_file()} <= {".json", ".safetensors", ".txt"}
    assert generate(base).size == (32, 32)
    progress = json.loads((base.parents[1] / "progress.json").read_text())
    assert (progress["phase"], progress["step"], progress["total"]) == ("train", 5, 5)
    assert {"images_per_second", "eta_s", "loss", "seconds"} <= set(progress)
    scale = json.loads((base / "vae" / "config.json").read_text())["scaling_factor"]
    pipeline = StableDiffusionPipeline.from_pretrained(base)
    recipe = Recipe()
    family = family_of(pipeline, recipe)
    cache = cached(tmp_path, family, read_captioned(train_folder), recipe)
    assert scale != 1.0
    latents = cache.buckets[0].means.take(torch.arange(len(cache)))
    assert latents.std().item() == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("recipe", [{"method": "full"}, {"method": "lora", "lora": LORA}])
def test_fine_tuning_changes_what_it_should(
    recipe: dict[str, Any], base: Path, train_folder: Path, tmp_path: Path
) -> None:
    folder, result = run(tmp_path, train_folder, base, **recipe)
    check_folder(folder)
    assert generate(folder).size == (32, 32)
    before, after = unet_of(base), unet_of(folder)
    assert set(before) == set(after)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    if recipe["method"] == "full":
        assert len(changed) > 0.9 * len(before)
    else:
        targets = tuple(f".{t}.weight" for t in LORA["targets"])
        assert changed == {name for name in before if name.endswith(targets)}
        assert not list(folder.rglob("*lora*"))
    assert set(result) == {
        "pipeline", "adapters", "steps", "seconds", "cpu_seconds", "images_per_second",
        "loss_first", "loss_last", "items", "steps_asked", "kept_step", "stopped",
        "validation_loss",
    }  # fmt: skip
    assert result["items"] == len(read_captioned(train_folder))


def test_training_is_reproducible(base: Path, train_folder: Path, tmp_path: Path) -> None:
    folders = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        folders.append(run(tmp_path / name, train_folder, base, method="full", steps=2)[0])
    one, two = map(unet_of, folders)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("prediction", ["flow", "epsilon"])
def test_training_lowers_the_loss(
    prediction: str, base: Path, train_folder: Path, tmp_path: Path
) -> None:
    start = base
    if prediction == "epsilon":
        pipeline = StableDiffusionPipeline.from_pretrained(base)
        pipeline.scheduler = type(pipeline.scheduler)(
            prediction_type="epsilon", steps_offset=1, use_flow_sigmas=False
        )
        start = tmp_path / "start"
        pipeline.save_pretrained(start)
    _, result = run(tmp_path, train_folder, start, method="full", steps=30)
    assert result["loss_last"] < 0.8 * result["loss_first"]


def test_fused_adapter_generates_what_the_adapter_did(
    base: Path, train_folder: Path, tmp_path: Path
) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(base)
    recipe = Recipe.model_validate(
        {"steps": 10, "batch_size": 8, "learning_rate": 1e-2, "lora": LORA, "warm_up_steps": 0}
    )
    assert recipe.lora is not None
    family = family_of(pipeline, recipe)
    cache = cached(tmp_path, family, read_captioned(train_folder), recipe)
    unet = pipeline.unet
    text = cache.texts["text"].take(torch.arange(2))
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([100.0, 900.0])
    with torch.no_grad():
        untouched = unet(x, t, text).sample
    assert add_lora(family, recipe.lora, seed=0) > 10
    hooks = Hooks(clock=lambda: 0.0)
    train_denoiser(family, cache, objective_of(pipeline.scheduler, recipe), recipe, hooks, seed=0)
    with torch.no_grad():
        adapted = unet(x, t, text).sample
    expected = fuse_lora(unet)
    with torch.no_grad():
        fused = unet(x, t, text).sample
    assert (adapted - untouched).abs().max() > 1e-2
    assert torch.allclose(adapted, fused, atol=1e-4)
    actual = unet.state_dict()
    assert set(expected) == set(actual)
    assert all(torch.allclose(expected[name], actual[name], atol=1e-5) for name in expected)


def test_a_loss_between_training_and_disk_is_noticed(base: Path, tmp_path: Path) -> None:
    trained = StableDiffusionPipeline.from_pretrained(base)
    folder = tmp_path / "pipeline"
    trained.save_pretrained(folder)
    expected = {"unet": trained.unet.state_dict()}
    export.verify_saved(folder, expected)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.weight"] = tensors["conv_in.weight"] + 0.01
    save_file(tensors, file)
    with pytest.raises(BackendError, match=r"unet\.conv_in\.weight"):
        export.verify_saved(folder, expected)


def test_a_target_that_matches_nothing_is_refused(
    base: Path, train_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="to_qq"):
        run(tmp_path, train_folder, base, lora={"targets": ["to_q", "to_qq"]})


@pytest.mark.parametrize(
    ("target", "kind"),
    [("attn1", "Attention"), ("norm1", "GroupNorm"), ("to_out", "ModuleList"), ("ff", "FeedForw")],
)
def test_a_target_that_is_no_layer_is_refused(target: str, kind: str) -> None:
    family = family_of(build_pipeline(), Recipe())
    with pytest.raises(ConfigError, match=f"'{target}' names .*, a {kind}") as caught:
        add_lora(family, LoraRecipe(targets=("to_q", target)), seed=0)
    assert "conv1" in str(caught.value.hint)
    with pytest.raises(ConfigError, match="no layer"):
        add_lora(family, LoraRecipe(targets=("",)), seed=0)
    with pytest.raises(ValueError, match="at least 1"):
        LoraRecipe(targets=())


def test_a_diverging_run_fails(base: Path, train_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="the loss is"):
        run(tmp_path, train_folder, base, method="full", steps=10, learning_rate=1e18)
    assert not (tmp_path / "out").exists()


def test_wrong_starts_are_refused(train_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        run(tmp_path, train_folder, tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="was given none"):
        run(tmp_path, train_folder, None)
    with pytest.raises(ConfigError, match="cannot be imported"):
        run(tmp_path, train_folder, None, init="intonaco.demo.model:nothing")


def test_items_without_consent_are_not_trained_on(tmp_path: Path) -> None:
    entries = [
        {"file_name": "a.png", "text": "x"},
        {"file_name": "b.png", "text": ["x", "y"], "consent": False},
    ]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))
    assert [item.file.name for item in read_captioned(tmp_path)] == ["a.png"]
    (tmp_path / "metadata.jsonl").write_text(json.dumps(entries[1]))
    with pytest.raises(ConfigError, match="no items"):
        read_captioned(tmp_path)


def test_building_the_pipeline_is_reproducible_and_leaves_randomness_alone() -> None:
    state = torch.random.get_rng_state()
    one, two, other = build_pipeline(), build_pipeline(), build_pipeline(seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    weight = one.unet.conv_in.weight
    assert torch.equal(weight, two.unet.conv_in.weight)
    assert not torch.equal(weight, other.unet.conv_in.weight)
    ids = one.tokenizer("please draw a seven").input_ids
    assert len(ids) == 6, "one token a word, and the two at the ends"
    words = one.tokenizer.convert_ids_to_tokens(ids)[1:-1]
    assert words == ["please</w>", "draw</w>", "a</w>", "seven</w>"]
