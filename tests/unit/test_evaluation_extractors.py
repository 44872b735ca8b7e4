"""Extractors: against the models and the processors that they stand for, and what they refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from tests.golden.inception_weights import pictures as golden_pictures
from tests.golden.inception_weights import weights
from transformers import (
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    Dinov2Config,
    Dinov2Model,
)

from intonaco import app, config
from intonaco.errors import BackendError, ConfigError, StorageError
from intonaco.evaluation.extractors.dinov2 import Dinov2Extractor
from intonaco.evaluation.extractors.folder import located
from intonaco.evaluation.extractors.inception import InceptionExtractor
from intonaco.evaluation.extractors.inception_network import Inception
from intonaco.evaluation.extractors.preparation import ImagePreparation
from intonaco.evaluation.extractors.resizing import RESIZES
from intonaco.evaluation.extractors.torchscript import TorchScriptExtractor
from intonaco.evaluation.features import load_extractor, load_image_extractor
from intonaco.executor import evaluating
from intonaco.protocols import ImageExtractor
from intonaco.sources import file_digest
from intonaco.workspace import Workspace

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "inception.json").read_text())


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Wide, tall, small, grey and with transparency."""
    rng = np.random.default_rng(0)
    sizes = ((60, 90), (90, 60), (20, 20), (64, 64), (33, 47))
    out = [Image.fromarray(rng.integers(0, 256, (*s, 3), dtype=np.uint8)) for s in sizes]
    return [*out, out[0].convert("L"), out[1].convert("RGBA")]


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real DINOv2, small and untrained."""
    folder = tmp_path_factory.mktemp("models") / "dinov2"
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(**size, image_size=28, patch_size=14)).save_pretrained(folder)
    BitImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("models") / "inception.safetensors"
    save_file({k: torch.from_numpy(v) for k, v in weights(GOLDEN["shapes"]).items()}, file)
    return file


CLIP, BIT = CLIPImageProcessorPil, BitImageProcessorPil


def short(edge: int) -> dict[str, int]:
    return {"shortest_edge": edge}


def box(height: int, width: int) -> dict[str, int]:
    return {"height": height, "width": width}


class TestPreparation:
    """But for rounding what transformers' processors of the same settings do with PIL."""

    @pytest.mark.parametrize(
        "processor",
        [
            CLIP(size=short(24), crop_size=box(24, 24)),
            CLIP(size=short(24), crop_size=box(16, 20)),
            CLIP(size=short(20), crop_size=box(28, 28)),
            BIT(size=short(32), crop_size=box(28, 28)),
            BIT(size=box(30, 22), do_center_crop=False, resample=2),
            BIT(do_resize=False, do_normalize=False, crop_size=box(9, 9)),
        ],
    )
    def test_it_gives_what_the_processor_gives(
        self, processor: Any, pictures: list[Image.Image], tmp_path: Path
    ) -> None:
        processor.save_pretrained(tmp_path)
        prepare = ImagePreparation(tmp_path)
        for picture in pictures:
            expected = processor(picture.convert("RGB"), return_tensors="np")["pixel_values"]
            found = prepare([picture]).numpy()
            assert found.shape == expected.shape
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)

    def test_its_identity_is_its_settings(self, tmp_path: Path) -> None:
        seen = set()
        settings: list[dict[str, Any]] = [
            {},
            {"resample": 2},
            {"size": {"shortest_edge": 30}},
            {"size": {"height": 30, "width": 30}},
            {"crop_size": {"height": 30, "width": 31}},
            {"do_center_crop": False},
            {"do_normalize": False},
            {"rescale_factor": 1.0},
            {"image_mean": [0.5, 0.4, 0.3]},
        ]
        for changed in settings:
            CLIPImageProcessorPil(**changed).save_pretrained(tmp_path)
            seen.add(ImagePreparation(tmp_path).identity)
        assert len(seen) == len(settings)
        CLIPImageProcessorPil().save_pretrained(tmp_path)
        assert ImagePreparation(tmp_path).identity == (
            "rgb pil-bicubic-shortest_edge-224 crop-224x224 times 0.003921569 "
            "minus 0.4814547 0.4578275 0.4082107 over 0.2686296 0.2613026 0.2757771"
        )


class TestDinov2:
    def test_rows_are_what_transformers_gives(
        self, dinov2: Path, pictures: list[Image.Image]
    ) -> None:
        extractor = Dinov2Extractor(dinov2, batch_size=3)
        assert isinstance(extractor, ImageExtractor)
        processor = BitImageProcessorPil.from_pretrained(dinov2)
        model = Dinov2Model.from_pretrained(dinov2).eval()
        pixels = processor([p.convert("RGB") for p in pictures], return_tensors="pt")
        with torch.inference_mode():
            expected = model(**pixels).pooler_output.numpy()
        found = extractor.images(pictures)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert found.shape == (7, extractor.dimension)
        assert extractor.images([]).shape == (0, 32)
        assert extractor.name == "dinov2-32-2-14"
        assert "crop-28x28" in extractor.preprocessing

    def test_another_model_or_digest_is_refused(self, dinov2: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="is configured"):
            Dinov2Extractor(dinov2, "0" * 64)
        copy = shutil.copytree(dinov2, tmp_path / "copy")
        settings = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps({**settings, "model_type": "vit"}))
        with pytest.raises(ConfigError, match="type 'vit', no dinov2"):
            Dinov2Extractor(copy)
        (copy / "pytorch_model.bin").write_bytes(b"")
        with pytest.raises(ConfigError, match="pickle"):
            Dinov2Extractor(copy)
        (copy / "preprocessor_config.json").unlink()
        with pytest.raises(ConfigError, match=r"no preprocessor_config\.json"):
            Dinov2Extractor(copy)


def close(found: torch.Tensor, golden: Any, tolerance: float) -> None:
    flat = found.double().flatten()
    assert flat.sum().item() == pytest.approx(golden["sum"], rel=tolerance)
    assert (flat**2).sum().item() == pytest.approx(golden["squares"], rel=tolerance)
    some = flat[::97][:24].tolist()
    assert some == pytest.approx(golden["some"], rel=tolerance, abs=tolerance)


class TestInception:
    def test_its_tensors_are_those_of_the_published_file(self) -> None:
        with torch.device("meta"):
            found = {k: list(v.shape) for k, v in Inception().state_dict().items()}
        assert found == GOLDEN["shapes"]

    @pytest.mark.parametrize("way", ["clean", "tensorflow1"])
    def test_pictures_are_resized_as_the_packages_do(self, way: str) -> None:
        for picture, golden in zip(golden_pictures(), GOLDEN["pictures"], strict=True):
            close(RESIZES[way](picture, 299), golden[way], 1e-6)

    def test_features_and_logits_are_those_of_torch_fidelity(self, inception: Path) -> None:
        for output in ("features", "logits"):
            extractor = InceptionExtractor(inception, resize="tensorflow1", output=output)
            found = extractor.images(golden_pictures())
            assert found.shape == (2, extractor.dimension)
            for row, golden in zip(found, GOLDEN["pictures"], strict=True):
                close(torch.from_numpy(row), golden[output], 1e-4)

    def test_how_pictures_are_resized_is_part_of_who_it_is(self, inception: Path) -> None:
        made = [InceptionExtractor(inception, resize=way, batch_size=1) for way in RESIZES]
        assert len({e.preprocessing for e in made}) == len(RESIZES)
        assert len({e.digest for e in made}) == 1
        rows = [e.images(golden_pictures()[1:]) for e in made]
        assert np.abs(rows[0] - rows[1]).max() > 1e-3
        assert np.abs(rows[1] - rows[2]).max() > 1e-3

    def test_what_it_refuses(self, inception: Path, tmp_path: Path) -> None:
        for options, message in (
            ({"resize": "best"}, "known: clean"),
            ({"output": "pool"}, "known: features"),
            ({"digest": "0" * 64}, "is configured"),
        ):
            with pytest.raises(ConfigError, match=message):
                InceptionExtractor(inception, **options)  # type: ignore[arg-type]
        pickled = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
        pickled.write_bytes(b"")
        for file in (pickled, tmp_path / "nothing.safetensors"):
            with pytest.raises(ConfigError, match="no safetensors file"):
                InceptionExtractor(file)
        file = tmp_path / "other.safetensors"
        file.write_bytes(b"nothing")
        with pytest.raises(ConfigError, match="cannot be read"):
            InceptionExtractor(file)
        tensors: dict[str, torch.Tensor] = {}
        for name, tensor, message in (
            ("fc.bias", torch.zeros(1008), "lacks 471 tensors, such as Conv2d_1a_3x3.bn.bias"),
            ("fc.bias", torch.full((1008,), torch.nan), "not finite in 1 tensors, such as fc.bias"),
            ("fc.weight", torch.zeros(1000, 2048), "in another shape 1 tensors, such as fc.weight"),
            ("AuxLogits.fc.bias", torch.zeros(3), "also has 1 tensors, such as AuxLogits.fc.bias"),
        ):
            tensors[name] = tensor
            save_file(tensors, file)
            with pytest.raises(ConfigError, match=message):
                InceptionExtractor(file)


class Mean(torch.nn.Module):
    """Means of the channels, twice over if that is asked for."""

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        print("what a module prints is no answer")
        out = x.mean((2, 3))
        return torch.cat([out, out], 1) if return_features else out


class Writer(torch.nn.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, self.path)
        return x.mean((2, 3))


class Bare(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3), keepdim=True)


class Broken(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) / 0.0 * 0.0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit
class TestTorchScript:
    def saved(self, module: torch.nn.Module, folder: Path) -> tuple[Path, str]:
        file = folder / "module.pt"
        torch.jit.script(module).save(str(file))  # type: ignore[no-untyped-call]
        return file, file_digest(file)

    def test_it_answers_from_another_process(
        self, tmp_path: Path, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            torch.jit, "load", lambda *_, **__: pytest.fail("loaded in this process")
        )
        extractor = TorchScriptExtractor(*self.saved(Mean(), tmp_path), side=16, batch_size=3)
        assert isinstance(extractor, ImageExtractor)
        found = extractor.images(pictures)
        assert found.shape == (7, 6)
        expected = [
            RESIZES["clean"](np.asarray(p.convert("RGB")), 16).mean((1, 2)) for p in pictures
        ]
        np.testing.assert_allclose(found[:, :3], np.stack(expected), rtol=1e-5)
        assert extractor.preprocessing == "rgb clean-16x16"
        bare = TorchScriptExtractor(*self.saved(Bare(), tmp_path), side=16)
        np.testing.assert_allclose(bare.images(pictures), found[:, :3], rtol=1e-6)

    def test_the_child_gets_no_environment(
        self, tmp_path: Path, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        child = tmp_path / "child.py"
        child.write_text("import os, sys; sys.exit(' '.join(sorted(os.environ)))")
        monkeypatch.setattr("intonaco.evaluation.extractors.torchscript.CHILD", child)
        monkeypatch.setenv("HF_TOKEN", "secret")
        monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
        extractor = TorchScriptExtractor(*self.saved(Bare(), tmp_path), side=8)
        with pytest.raises(BackendError, match=r"ended with 1: HOME( LC_CTYPE)? OMP_NUM_THREADS$"):
            extractor.images(pictures[:1])

    def test_the_child_cannot_write(self, tmp_path: Path, pictures: list[Image.Image]) -> None:
        note = tmp_path / "note"
        module = Writer(str(note))
        torch.jit.script(module)(torch.ones(1, 3, 2, 2))
        assert note.stat().st_size > 0  # here it could
        note.unlink()
        TorchScriptExtractor(*self.saved(module, tmp_path), side=8).images(pictures[:1])
        assert not note.exists() or note.stat().st_size == 0

    def test_a_digest_is_required(self, tmp_path: Path) -> None:
        file, _ = self.saved(Bare(), tmp_path)
        with pytest.raises(ConfigError, match="required for TorchScript"):
            TorchScriptExtractor(file)
        with pytest.raises(ConfigError, match="is configured"):
            TorchScriptExtractor(file, "0" * 64)
        with pytest.raises(ConfigError, match="does not exist"):
            TorchScriptExtractor(tmp_path / "none.pt", "0" * 64)
        with pytest.raises(ValueError, match="no images"):
            TorchScriptExtractor(file, file_digest(file)).images([])

    def test_what_goes_wrong_there_is_told_here(
        self, tmp_path: Path, pictures: list[Image.Image]
    ) -> None:
        broken = TorchScriptExtractor(*self.saved(Broken(), tmp_path), side=8)
        with pytest.raises(BackendError, match="not finite"):
            broken.images(pictures[:1])
        file, digest = self.saved(Bare(), tmp_path)
        with pytest.raises(BackendError, match="longer than 0 s"):
            TorchScriptExtractor(file, digest, side=8, seconds=0.01).images(pictures[:1])
        file.write_bytes(b"no archive")
        garbage = TorchScriptExtractor(file, file_digest(file), side=8)
        with pytest.raises(BackendError, match="ended with"):
            garbage.images(pictures[:1])


class TestByName:
    def test_each_is_found(self, dinov2: Path, inception: Path) -> None:
        spec = config.Extractor(type="dinov2", path=dinov2.name)
        assert load_image_extractor(spec, dinov2.parent).name == "dinov2-32-2-14"
        spec = config.Extractor(
            type="inception", path=inception.name, options={"output": "logits", "resize": "pytorch"}
        )
        found = load_image_extractor(spec, inception.parent)
        assert (found.name, found.preprocessing.split()[1]) == (
            "inception-v3-logits",
            "pytorch-299x299",
        )

    def test_options_that_a_type_does_not_take(self, dinov2: Path) -> None:
        spec = config.Extractor(type="dinov2", path=str(dinov2), options={"layer": 3})
        with pytest.raises(ConfigError, match=r"extractor\.options: 'dinov2' does not take layer"):
            load_image_extractor(spec, Path("/"))

    def test_pictures_alone_are_not_enough_to_watch_prompts(self, dinov2: Path) -> None:
        with pytest.raises(ConfigError, match="nothing is called 'dinov2'"):
            load_extractor(config.Extractor(type="dinov2", path=str(dinov2)), Path("/"))
        spec = config.Extractor(type="builtins:slice", path=str(dinov2))
        with pytest.raises(ConfigError, match="is no extractor"):
            load_image_extractor(spec, Path("/"))


class TestHub:
    COMMIT = "0123456789" * 4

    def cached(self, model: Path, cache: Path) -> None:
        folder = cache / "models--acme--dino" / "snapshots" / self.COMMIT
        shutil.copytree(model, folder)

    def test_a_pinned_commit_comes_from_the_cache(
        self, dinov2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.cached(dinov2, tmp_path)
        found = located(f"hf://acme/dino@{self.COMMIT}", Path("/"), hub_cache=tmp_path)
        assert Dinov2Extractor(found).digest == Dinov2Extractor(dinov2).digest

    def test_a_branch_is_refused(self) -> None:
        for path in ("hf://acme/dino", "hf://acme/dino@main", "s3://acme/dino"):
            with pytest.raises(ConfigError, match="COMMIT"):
                located(path, Path("/"))

    def test_the_check_of_a_configuration(self, dinov2: Path, tmp_path: Path) -> None:
        def told(path: str) -> list[str]:
            found = app.check(
                config.parse(f"service: s\nextractor: {{path: '{path}'}}"), Workspace(tmp_path)
            )
            return [line for line in found if line.startswith("extractor.path")]

        assert told(f"hf://acme/dino@{self.COMMIT}") == []
        assert told("hf://acme/dino@main") == [
            "extractor.path: neither a folder nor hf://ORG/NAME@COMMIT"
        ]
        assert "does not exist" in told("models/none")[0]
        assert told(str(dinov2)) == []

    def test_a_job_gets_it_as_it_is(self, tmp_path: Path) -> None:
        parts: Any = SimpleNamespace(workspace=Workspace(tmp_path))
        for path, given in (("hf://acme/dino@1", "hf://acme/dino@1"), ("a", str(tmp_path / "a"))):
            assert evaluating._from_anywhere(parts, path) == given

    def test_what_is_not_there_is_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(StorageError, match="cannot be had from the hub"):
            located(f"hf://acme/dino@{self.COMMIT}", Path("/"), hub_cache=tmp_path)


def test_arrays_and_pictures_are_the_same(inception: Path) -> None:
    extractor = InceptionExtractor(inception)
    picture: NDArray[np.uint8] = golden_pictures()[0]
    rows = extractor.images([picture, Image.fromarray(picture)])
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-5)
