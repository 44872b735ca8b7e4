"""Perceptual hashes and tones of pictures."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from intonaco.monitoring.pictures import bits_between, blank, facts, grey, perceptual_hash

FLAT = "0" * 16


def picture(seed: int, side: int = 64) -> Image.Image:
    """Smooth shapes, as photographs have: noise of eight waves a side, enlarged."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)


def test_the_hash_outlives_size_format_and_noise() -> None:
    random = np.random.default_rng(1)
    for seed in range(20):
        first = picture(seed)
        jpeg = io.BytesIO()
        first.save(jpeg, format="JPEG", quality=60)
        noisy = np.asarray(first, float) + random.normal(0, 6, (64, 64, 3))
        for other in (
            first.resize((96, 96), Image.Resampling.LANCZOS),
            Image.open(jpeg),
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)),
        ):
            assert bits_between(perceptual_hash(first), perceptual_hash(other)) <= 3


def test_different_pictures_have_different_hashes() -> None:
    """Of 400 real digits, all drawn alike, none is taken for another by three bits in more than
    one of a hundred cases."""
    digits = load_digits().images[:400]
    hashes = [
        int(perceptual_hash(Image.fromarray((d * 15.9).astype(np.uint8)).resize((32, 32))), 16)
        for d in digits
    ]
    nearest = [
        min((a ^ b).bit_count() for j, b in enumerate(hashes) if j != i)
        for i, a in enumerate(hashes)
    ]
    assert np.mean(np.array(nearest) <= 3) < 0.01
    photographs = [perceptual_hash(picture(seed)) for seed in range(60)]
    assert min(bits_between(a, b) for a in photographs for b in photographs if a != b) > 10


def test_pictures_of_one_tone_share_a_hash_and_no_other_has_it() -> None:
    faint = np.random.default_rng(0).integers(99, 102, (64, 64, 3)).astype(np.uint8)
    for flat in (
        Image.new("RGB", (8, 8), (0, 0, 0)),
        Image.new("RGB", (64, 32), (255, 255, 255)),
        Image.fromarray(faint),
    ):
        assert perceptual_hash(flat) == FLAT
        assert blank(facts(grey(flat)))
    dark = Image.new("RGB", (64, 64), (255, 255, 255))
    dark.paste((0, 0, 0), (32, 32, 64, 64))
    light = Image.new("RGB", (64, 64))
    light.paste((255, 255, 255), (32, 32, 64, 64))
    for shown in (dark, light, picture(1)):
        assert perceptual_hash(shown) != FLAT
        assert not blank(facts(grey(shown)))


def test_facts() -> None:
    half = Image.new("RGB", (10, 10))
    half.paste((255, 255, 255), (0, 0, 5, 10))
    assert facts(grey(half)) == {"contrast": 0.5, "black": 0.5, "white": 0.5}
    specks = Image.new("RGB", (100, 100))
    specks.paste((255, 255, 255), (0, 0, 5, 5))
    assert blank(facts(grey(specks)))  # 25 of 10,000 pixels
