"""The real pipeline: what decides an image's bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import fixtures_tiny
from tests.fixtures_tiny import picture

from intonaco.messages import GenerateRequest
from intonaco.releases import release_id
from intonaco.serving.worker.core import Aborted, InvalidRequest, OutOfMemory, Preview
from intonaco.serving.worker.devices import Stopwatch, Times
from intonaco.serving.worker.drift import measure
from intonaco.serving.worker.engine import Engine, batch_key
from intonaco.workspace import Workspace

# The libraries' own deprecations, e.g. of scheduler settings.
pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning:diffusers"
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return fixtures_tiny.engine(tmp_path_factory.mktemp("engine"), fixtures_tiny.build())


def ask(seed: int, prompt: str = "a handwritten two", **more: Any) -> GenerateRequest:
    plain = GenerateRequest(
        request_id="r", prompt=prompt, seed=seed, steps=2, guidance_scale=1.5, width=32, height=32
    )
    return replace(plain, **more)


def bits(engine: Engine, *requests: GenerateRequest, size: int = 1, **more: Any) -> list[Any]:
    return [np.asarray(i) for i in engine.generate(requests, size, **more).images]


def same(one: Any, other: Any) -> bool:
    return bool(np.array_equal(one, other))


def test_the_engine_attests_what_it_loaded(engine: Engine) -> None:
    assert engine.release_id == release_id(engine.spec)
    assert engine.load_seconds > 0


def test_same_seed_and_size_give_the_same_bits_whatever_the_neighbours(engine: Engine) -> None:
    wanted = ask(7)
    alone = bits(engine, wanted, size=4)[0]
    for place in range(4):
        row = [ask(100 + i, f"a handwritten {w}") for i, w in enumerate(("one", "four", "zero"))]
        row.insert(place, wanted)
        images = bits(engine, *row, size=4)
        assert len(images) == 4
        assert same(images[place], alone)
    assert not same(bits(engine, ask(8), size=4)[0], alone)


def test_padding_is_not_answered(engine: Engine) -> None:
    assert len(bits(engine, ask(1), ask(2), ask(3), size=4)) == 3


def test_guidance_and_negative_prompt_reach_the_pipeline(engine: Engine) -> None:
    base = ask(5)
    other = [
        replace(base, guidance_scale=7.0),
        replace(base, negative_prompt="a handwritten five"),
        replace(base, steps=4),
        replace(base, width=64),
    ]
    images = [bits(engine, r)[0] for r in [base, *other]]
    assert images[4].shape == (32, 64, 3)
    for image in images[1:4]:
        assert not same(image, images[0])


def test_requests_with_and_without_a_negative_prompt_share_a_batch(engine: Engine) -> None:
    """diffusers puts "" in the place of none: the same bits, so one batch will do."""
    plain, negative = ask(5), ask(6, negative_prompt="a handwritten five")
    assert engine.batch_key(plain) == engine.batch_key(negative)
    assert batch_key(plain) != batch_key(negative)  # which knows no pipeline
    mixed = bits(engine, plain, negative, size=2)
    assert same(mixed[0], bits(engine, plain, size=2)[0])
    assert same(mixed[1], bits(engine, negative, size=2)[0])
    without = bits(engine, replace(negative, negative_prompt=""), size=2)[0]
    assert not same(mixed[1], without)


def test_a_batch_has_one_of_everything_that_a_call_has_one_of(engine: Engine) -> None:
    base = ask(1)
    others = [
        replace(base, steps=3),
        replace(base, guidance_scale=2.0),
        replace(base, width=40),
        replace(base, image=picture()),
        replace(base, image=picture(), strength=0.5),
        replace(base, image=picture(), mask=picture("L")),
    ]
    assert len({batch_key(r) for r in [base, *others]}) == 7
    assert len({engine.batch_key(r) for r in [base, *others]}) == 7
    assert batch_key(base) == batch_key(ask(2, "another", request_id="s", unit="u"))
    with pytest.raises(ValueError, match="no batch"):
        engine.generate([base, others[0]], 2)
    with pytest.raises(ValueError, match="no batch"):
        engine.generate([base, base], 1)


# ------------------------------------------------------------------------------------- check


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"width": 36}, "multiples of 8"),
        ({"height": 0}, "positive"),
        ({"steps": 0}, "steps"),
        ({"steps": 1001}, "1000 steps"),
        ({"mask": picture("L")}, "no image"),
        ({"strength": 0.5}, "strength"),
        ({"image": picture(), "strength": 0.0}, "strength"),
        ({"image": picture(), "strength": 1.5}, "strength"),
        ({"image": picture(), "strength": 0.4}, "leaves none"),
        ({"negative_prompt": "x", "guidance_scale": 1.0}, "guidance_scale above 1"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"guidance_scale": float("nan")}, "finite"),
        ({"guidance_scale": float("inf")}, "finite"),
    ],
)
def test_what_a_pipeline_cannot_do_is_invalid(
    engine: Engine, wrong: dict[str, Any], why: str
) -> None:
    with pytest.raises(InvalidRequest, match=why):
        engine.check(replace(ask(1), **wrong))


def test_what_it_can_do_passes(engine: Engine) -> None:
    for fine in (
        {},
        {"width": 64, "height": 24, "steps": 1000},
        {"negative_prompt": "x"},
        {"image": picture()},
        {"image": picture(), "strength": 1.0},
        {"image": picture(), "mask": picture("L")},
        {"guidance_scale": 0.0},
        {"seed": 2**63 - 1},
    ):
        engine.check(replace(ask(1), **fine))


def test_a_picture_that_is_none_is_invalid(engine: Engine) -> None:
    for broken in ("no base64", "bm8gcGljdHVyZQ=="):
        with pytest.raises(InvalidRequest, match="image: not a PNG"):
            engine.check(ask(1, image=broken))
        with pytest.raises(InvalidRequest, match="mask: not a PNG"):
            engine.check(ask(1, image=picture(), mask=broken))


# ------------------------------------------------------------------------------------ watching


def test_every_step_is_watched_and_can_be_looked_at(engine: Engine) -> None:
    requests = [ask(1, steps=3), ask(2, steps=3), ask(3, steps=3)]
    plain = bits(engine, *requests, size=4)
    seen: list[tuple[int, int, Sequence[Any]]] = []
    watched = bits(
        engine, *requests, size=4, watch=lambda d, s, preview: seen.append((d, s, preview()))
    )
    assert [(done, steps) for done, steps, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    assert [[i.size for i in images] for *_, images in seen] == [[(32, 32)] * 3] * 3
    # Looking changes nothing, and the last look is the picture.
    assert all(map(same, watched, plain))
    assert all(same(np.asarray(i), b) for i, b in zip(seen[-1][2], plain, strict=True))
    assert not same(np.asarray(seen[0][2][0]), plain[0])


def test_an_aborted_batch_leaves_the_engine_as_it_was(engine: Engine) -> None:
    requests = [ask(11, steps=4), ask(12, steps=4)]
    before = bits(engine, *requests, size=2)

    def stop(done: int, steps: int, preview: Preview) -> None:
        preview()
        if done == 2:
            raise Aborted

    for image, mask in ((None, None), (picture(), None), (picture(), picture("L"))):
        with pytest.raises(Aborted):
            engine.generate([replace(r, image=image, mask=mask) for r in requests], 2, stop)
    assert all(map(same, bits(engine, *requests, size=2), before))


def test_a_batch_too_large_says_so_and_the_next_one_runs(engine: Engine) -> None:
    before = bits(engine, ask(3))[0]

    def exhaust(done: int, steps: int, preview: Preview) -> None:
        torch.empty(2**50, dtype=torch.uint8)  # a petabyte: refused by any allocator

    with pytest.raises(OutOfMemory, match=r"a batch of 1: .*memory"):
        engine.generate([ask(3)], 1, exhaust)
    assert same(bits(engine, ask(3))[0], before)

    def other(done: int, steps: int, preview: Preview) -> None:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        engine.generate([ask(3)], 1, other)


def test_what_a_batch_took_is_told_in_three_parts(engine: Engine) -> None:
    images = engine.generate([ask(1)], 1)
    assert min(images.encode_seconds, images.denoise_seconds, images.decode_seconds) > 0
    assert images.gpu_seconds == 0
    assert engine.peak_memory_bytes() >= images.peak_memory_bytes > 0


def test_looking_at_a_picture_counts_as_denoising(engine: Engine) -> None:
    """The clock ticks once for each time it is asked: at the start, the first step, the last
    decoding and the end, whatever is decoded in between."""
    ticks = iter(range(100))
    watch = Stopwatch("cpu", now=lambda: float(next(ticks)))
    watch.decoding()  # before the first step: the preparation of an edit
    watch.denoising()
    watch.denoising()
    watch.decoding()
    watch.decoding()
    stopped = replace(watch.stop(), cpu=0.0)  # real processor time, whatever the clock says
    assert stopped == Times(encode=1, denoise=1, decode=1)
    assert replace(Stopwatch("cpu", now=lambda: 5.0).stop(), cpu=0.0) == Times()
    assert Times(encode=1, gpu=2) + Times(encode=1, decode=3) == Times(encode=2, gpu=2, decode=3)


# -------------------------------------------------------------------------------------- edits


def test_edits_run_on_the_same_networks_with_a_scheduler_of_their_own(engine: Engine) -> None:
    pipelines = [stage.pipeline for stage in engine._stages.values()]
    assert len(pipelines) == 3
    assert len({id(p.unet) for p in pipelines}) == 1
    assert len({id(p.vae) for p in pipelines}) == 1
    assert len({id(p.scheduler) for p in pipelines}) == 3


def test_an_edit_depends_on_its_image_its_mask_and_its_strength(engine: Engine) -> None:
    base = ask(4, steps=4, image=picture(seed=1))
    requests = [
        base,
        replace(base, image=picture(seed=2)),
        replace(base, strength=0.5),
        replace(base, mask=picture("L", half=True)),
        replace(base, mask=picture("L")),
        replace(base, seed=5),
        replace(base, image=None),
    ]
    images = [bits(engine, r)[0] for r in requests]
    assert all(i.shape == (32, 32, 3) for i in images)
    assert len({i.tobytes() for i in images}) == len(images)


def test_an_image_is_scaled_and_what_is_transparent_is_white(engine: Engine) -> None:
    base = ask(4, steps=4, image=picture(size=(32, 32), seed=1))
    large = replace(base, image=picture(size=(64, 96), seed=1))
    assert bits(engine, large)[0].shape == (32, 32, 3)
    clear = replace(base, image=picture("RGBA", alpha=0))
    white = replace(base, image=picture("RGB", level=255))
    assert same(bits(engine, clear)[0], bits(engine, white)[0])


def test_edits_do_not_depend_on_their_neighbours_and_leave_generation_alone(
    engine: Engine,
) -> None:
    drawn = bits(engine, ask(9), size=2)[0]
    for mask in (None, picture("L", half=True)):
        wanted = ask(7, image=picture(seed=1), mask=mask)
        neighbour = ask(8, "a one", image=picture(seed=2), mask=mask and picture("L"))
        alone = bits(engine, wanted, size=4)[0]
        assert same(bits(engine, neighbour, wanted, size=4)[1], alone)
        assert same(bits(engine, ask(9), size=2)[0], drawn)


# ---------------------------------------------------------------------------------- identity


def test_one_changed_byte_is_another_release(engine: Engine, tmp_path: Path) -> None:
    folder = fixtures_tiny.save(tmp_path / "p", seed=0)
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace('"flow_shift": 1.0', '"flow_shift": 2.0'))
    other = fixtures_tiny.add_release(Workspace(tmp_path / "w"), folder)
    assert other.release_id != engine.release_id


def test_how_far_an_image_moves_between_batch_sizes(engine: Engine) -> None:
    """The figures of docs/concepts/determinism.md are of 32 seeds and 10 steps."""
    requests = [ask(seed, steps=10) for seed in range(8)]
    for drift in measure(engine, requests, (1, 2, 4)):
        assert drift.images == 8
        assert drift.largest < 1e-4
        assert drift.identical >= 0.5
    assert [d.size for d in measure(engine, requests[:4], (4, 1, 2))] == [2, 4]
    apart = np.abs(engine.pixels(requests[:4], 4) - engine.pixels(requests[4:], 4)).max()
    assert apart > 1e-2  # other seeds are another matter
    assert np.array_equal(engine.pixels(requests[:4], 4), engine.pixels(requests[:4], 4))
