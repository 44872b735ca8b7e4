"""Fine detail and copies: what features may miss."""

from __future__ import annotations

import numpy as np
import pytest

from intonaco.evaluation.copies import Copies
from intonaco.evaluation.pixels import log_detail


def pictures(rng: np.random.Generator) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Discs on black [8, 32, 32, 3]."""
    y, x = np.mgrid[:32, :32]
    out = []
    for _ in range(8):
        centre, width = rng.uniform(10, 22, 2), rng.uniform(3, 5)
        out.append(255.0 * (np.hypot(x - centre[0], y - centre[1]) < 2 * width))
    return np.stack(out)[..., None].repeat(3, axis=3).astype(np.uint8)


def test_blur_takes_detail_away_and_noise_adds_it() -> None:
    rng = np.random.default_rng(0)
    sharp = pictures(rng)
    wide = sharp.astype(np.float64)
    down = (wide + np.roll(wide, 1, axis=1)) / 2
    blurred = (down + np.roll(down, 1, axis=2)) / 2
    noisy = np.clip(wide + rng.normal(0, 10, wide.shape), 0, 255)
    detail = log_detail(sharp)
    lost = detail - log_detail(np.rint(blurred).astype(np.uint8))
    assert (lost > 0).all()
    assert lost.mean() > 0.5
    assert (log_detail(noisy.astype(np.uint8)) > detail + 1).all()


def test_one_tone_has_the_least() -> None:
    flat = np.full((2, 4, 5, 3), 7, dtype=np.uint8)
    assert log_detail(flat) == pytest.approx(2 * np.log(2 / 255))
    with pytest.raises(ValueError, match=r"\[n, h, w, 3\]"):
        log_detail(np.zeros((2, 2, 2, 3), dtype=np.uint8))


def test_copies_are_told_from_new_images() -> None:
    rng = np.random.default_rng(1)
    training, held_out, fresh = (rng.normal(size=(n, 6)) for n in (200, 300, 400))
    is_copy = Copies(training, held_out)
    assert is_copy(training[:50]).all()
    assert is_copy(training[:50] + 0.01 * rng.normal(size=(50, 6))).all()
    # of honest images about as many as of held-out ones: at most 12 of 400 at 1 % (99.9 %)
    assert is_copy(fresh).sum() <= 12


@pytest.mark.parametrize("far", [1e4, 1e6])
def test_features_far_from_zero_are_no_copies_for_that(far: float) -> None:
    """Distances of rows are what counts, wherever they all lie."""
    rng = np.random.default_rng(1)
    training, held_out, fresh = (rng.normal(size=(n, 6)) for n in (200, 300, 400))
    near, moved = Copies(training, held_out), Copies(training + far, held_out + far)
    assert moved.limit == pytest.approx(near.limit, rel=1e-6)
    np.testing.assert_array_equal(moved(fresh + far), near(fresh))
    assert moved(training + far).all()


def test_the_same_training_image_twice_hides_no_copy() -> None:
    rng = np.random.default_rng(2)
    training = rng.normal(size=(50, 4))
    training = np.concatenate([training, training[:10]])
    is_copy = Copies(training, rng.normal(size=(100, 4)))
    assert is_copy(training[:10]).all()


def test_too_few_to_tell() -> None:
    few = np.zeros((2, 3))
    with pytest.raises(ValueError, match="at least 3"):
        Copies(few, np.eye(3))
