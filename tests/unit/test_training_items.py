"""Buckets, the frames of pictures, what a step draws, when a run is stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests import fixtures_tiny
from tests.fixtures_training import write_pictures

from intonaco.config import Recipe
from intonaco.training.batches import draw_batch, gather, parts_of
from intonaco.training.cache import Rows, cached
from intonaco.training.families import Family, family_of
from intonaco.training.items import (
    Shape,
    load_images,
    nearest,
    read_captioned,
    shapes_of,
    sort_into,
)
from intonaco.training.looks import Held
from intonaco.training.objective import objective_of
from intonaco.training.progress import (
    Ceiling,
    add_metrics,
    cut_metrics,
    read_metrics,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning:diffusers"
)


@pytest.fixture(scope="module")
def sdxl() -> Family:
    return family_of(fixtures_tiny.build_sdxl(), Recipe())


def test_buckets_have_about_as_many_pixels_and_fit_the_denoiser(sdxl: Family) -> None:
    shapes = shapes_of(sdxl, Recipe(resolution=64, max_aspect=2.0))
    assert Shape(64, 64) in shapes
    assert Shape(48, 84) in shapes
    for shape in shapes:
        assert 0.8 * 64 * 64 <= shape.width * shape.height <= 64 * 64
        assert shape.width % sdxl.multiple == shape.height % sdxl.multiple == 0
        assert max(shape.width / shape.height, shape.height / shape.width) <= 2.0
        assert Shape(shape.height, shape.width) in shapes
    assert shapes_of(sdxl, Recipe(resolution=64, max_aspect=1.0)) == [Shape(64, 64)]
    dit = family_of(fixtures_tiny.build_dit(), Recipe())
    assert shapes_of(dit, Recipe()) == [Shape(16, 16)], "it takes squares only"


@given(st.integers(10, 3000), st.integers(10, 3000))
@settings(max_examples=200, deadline=None)
def test_no_other_bucket_needs_less_cut_off(width: int, height: int) -> None:
    shapes = [Shape(64, 64), Shape(48, 84), Shape(84, 48), Shape(40, 100)]

    def kept(shape: Shape) -> float:
        ratio = (shape.width / shape.height) / (width / height)
        return min(ratio, 1 / ratio)

    assert kept(nearest(shapes, width, height)) == pytest.approx(max(map(kept, shapes)))


def test_pictures_are_cut_and_not_squeezed(tmp_path: Path) -> None:
    image = Image.new("RGB", (300, 100), (255, 0, 0))
    image.paste((0, 0, 255), (100, 0, 200, 100))  # a blue square in the middle
    image.save(tmp_path / "a.png")
    pixels, frames = load_images([tmp_path / "a.png"], Shape(50, 50))
    assert pixels.shape == (1, 3, 50, 50)
    inner = pixels[0, :, :, 2:48]
    assert inner[2].min() > 0.9, "the whole middle, and nothing else"
    assert inner[0].max() < -0.9
    assert frames.tolist() == [[100, 300, 0, 50, 50, 50]]
    pixels, frames = load_images([tmp_path / "a.png"], Shape(300, 100))
    assert frames.tolist() == [[100, 300, 0, 0, 100, 300]]


def test_a_picture_on_its_side_is_set_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (64, 32), (0, 0, 0))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "0.jpg", exif=exif)
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "0.jpg", "text": "x"}))
    items = read_captioned(tmp_path)
    assert list(sort_into([Shape(64, 32), Shape(32, 64)], items)) == [Shape(32, 64)]
    assert load_images([items[0].file], Shape(32, 64))[1].tolist() == [[64, 32, 0, 0, 64, 32]]


def test_a_batch_is_of_one_bucket_and_all_items_come_equally_often(
    sdxl: Family, tmp_path: Path
) -> None:
    data = write_pictures(tmp_path / "d", count=8, sizes=[(64, 64), (96, 48), (64, 64), (64, 64)])
    recipe = Recipe(resolution=64, batch_size=4, caption_dropout=0.25)
    cache = cached(tmp_path / "c", sdxl, read_captioned(data), recipe)
    assert [len(b) for b in cache.buckets] == [6, 2]
    objective = objective_of(sdxl.pipeline.scheduler, recipe)
    random = torch.Generator().manual_seed(0)
    seen = [torch.zeros(6), torch.zeros(2)]
    dropped = 0
    for _ in range(2000):
        draw = draw_batch(cache, objective, recipe, [1024, 1024], random)
        number = [b is draw.bucket for b in cache.buckets].index(True)
        seen[number] += torch.bincount(draw.items, minlength=len(seen[number]))
        dropped += int(draw.without.sum())
        assert draw.noise.shape == (4, *draw.bucket.means.parts[0].shape[1:])
    # 1000 of each are expected; in batches of four of a bucket the deviation is below 60.
    assert torch.cat(seen).sub(1000).abs().max() < 250
    assert dropped == pytest.approx(2000, rel=0.1)

    draw = draw_batch(cache, objective, recipe, [1024, 1024], random)
    batch = gather(cache, draw, slice(0, 4), torch.device("cpu"))
    assert set(batch.condition) == {"text", "pooled"}, "all encoders"
    for name, values in batch.condition.items():
        for row in range(4):
            expected = (
                cache.empty[name][0]
                if draw.without[row]
                else cache.texts[name].take(draw.texts[row : row + 1])[0]
            )
            assert torch.equal(values[row], expected)
    assert torch.equal(cache.empty["text"], torch.zeros_like(cache.empty["text"])), "as published"
    mean = draw.bucket.means.take(draw.items)
    assert draw.inside is not None
    assert torch.allclose(
        batch.latents, mean + draw.bucket.deviations.take(draw.items) * draw.inside
    )
    assert batch.frames[0, 4:].tolist() == [draw.bucket.shape.height, draw.bucket.shape.width]


def test_an_item_without_a_text_gets_nobody_elses(tmp_path: Path) -> None:
    lines = [{"file_name": "0.png", "text": "a two"}, {"file_name": "1.png", "text": []}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    assert [item.texts for item in read_captioned(tmp_path)] == [("a two",), ("",)]


def test_rows_of_several_files_are_one_tensor() -> None:
    whole = torch.arange(20.0).view(10, 2)
    rows = Rows([whole[:3], whole[3:4], whole[4:]])
    picked = torch.tensor([0, 9, 3, 2, 4, 3])
    assert torch.equal(rows.take(picked), whole[picked])
    assert len(rows) == 10


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))
def test_parts_cover_a_batch_once(count: int, accumulation: int, size: int) -> None:
    n = count * accumulation * size
    rows = [
        row
        for rank in range(count)
        for part in parts_of(n, rank, count, accumulation)
        for row in range(n)[part]
    ]
    assert rows == list(range(n))


def test_the_held_out_loss_is_always_the_same(sdxl: Family, tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "d", count=5, sizes=[(64, 64), (96, 48)])
    recipe = Recipe(resolution=64, batch_size=2)
    cache = cached(tmp_path / "c", sdxl, read_captioned(data), recipe)
    objective = objective_of(sdxl.pipeline.scheduler, recipe)
    held = Held.of(sdxl, cache, objective, recipe)
    times = torch.cat([objective.shares(d.times) for d in held.draws]).sort().values
    assert torch.allclose(times, torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]), atol=2e-3)
    torch.manual_seed(1)
    first = held.loss()
    torch.manual_seed(2)
    assert Held.of(sdxl, cache, objective, recipe).loss() == first > 0


def test_a_ceiling_leaves_time_to_save() -> None:
    assert Ceiling()(1e9) is None
    assert Ceiling(max_seconds=10_000.0).seconds == 9000.0
    assert Ceiling(max_seconds=300.0).seconds == 240.0
    assert Ceiling(max_seconds=20.0).seconds == 10.0
    assert Ceiling(max_money=5.0).seconds is None, "nothing costs anything"
    both = Ceiling(max_seconds=10_000.0, max_money=1.0, hourly_price=1.0)
    assert both.seconds == 3240.0
    assert both(3239.0) is None
    assert both(3240.0) == "its ceiling of 1 of money was near after 3240 s"


def test_metrics_after_a_step_are_cut_off(tmp_path: Path) -> None:
    cut_metrics(tmp_path, 0)
    assert not list(tmp_path.iterdir())
    for step in (10, 20, 30):
        add_metrics(tmp_path, {"step": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4')  # killed while it wrote
    cut_metrics(tmp_path, 20)
    add_metrics(tmp_path, {"step": 25})
    assert [x["step"] for x in read_metrics(tmp_path / "metrics.jsonl")] == [10, 20, 25]
