"""Pictures that users send in."""

from __future__ import annotations

import base64
import io
import zlib

import pytest
from PIL import Image
from tests.fixtures_gateway import chunk, claim, opened, pixel, png

from intonaco.serving.gateway.picture_headers import Unreadable, read_header
from intonaco.serving.gateway.problems import Refused
from intonaco.serving.gateway.uploads import Upload, prepare

PIXELS = 10_000


def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, format=kind, **options)
    return out.getvalue()


def upload(image: bytes, mask: bytes | None = None, size: tuple[int, int] | None = None) -> Upload:
    return prepare(image, mask, size=size, area=64 * 64, pixels=PIXELS)


MODES = [(k, m) for k in ("PNG", "JPEG", "WEBP") for m in ("RGB", "L", "P")]


@pytest.mark.parametrize(("kind", "mode"), [m for m in MODES if m[1] != "P" or m[0] == "PNG"])
def test_formats_and_modes(kind: str, mode: str) -> None:
    picture = Image.new("RGB", (40, 40), (204, 204, 204)).convert(mode)
    made = opened(upload(saved(picture, kind)).image)
    assert (made.format, made.mode, made.size) == ("PNG", "RGB", (64, 64))
    assert all(abs(v - 204) <= 6 for v in pixel(made, 9, 9))


@pytest.mark.parametrize("mode", ["CMYK"])
def test_printers_colours(mode: str) -> None:
    assert opened(upload(saved(Image.new(mode, (40, 40)), "JPEG")).image).mode == "RGB"


def test_sixteen_bits_of_grey_are_scaled_not_clipped() -> None:
    picture = Image.new("I;16", (16, 16), 128 * 256)
    assert opened(upload(saved(picture, "PNG")).image).getpixel((5, 5)) == (128, 128, 128)


def test_what_lies_under_transparency_is_not_shown_to_the_model() -> None:
    secret = png((16, 16), (255, 0, 0, 0), "RGBA")
    assert opened(upload(secret).image).getpixel((5, 5)) == (255, 255, 255)


def test_upright_and_without_metadata() -> None:
    picture = Image.new("RGB", (80, 40), "blue")
    picture.paste((255, 0, 0), (0, 0, 40, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    exif[0x010E] = "at home"
    for kind in ("JPEG", "PNG", "WEBP"):
        made = upload(saved(picture, kind, exif=exif))
        turned = opened(made.image)
        assert turned.height > turned.width
        assert pixel(turned, 5, 5)[0] > 200
        assert pixel(turned, 5, turned.height - 5)[2] > 200
        assert b"at home" not in base64.b64decode(made.image)
        assert not turned.getexif()


def test_texts_of_a_png_are_never_inflated() -> None:
    """32 MiB of text in 32 KiB: left out before the decoder sees it."""
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**20), 9))
    profile = chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(2**20), 9))
    plain = png((16, 16))
    raw = plain[:33] + bomb * 32 + profile + plain[33:]
    assert read_header(raw).data == plain
    assert opened(upload(raw).image).size == (64, 64)


@pytest.mark.parametrize(
    ("picture", "size", "result"),
    [
        ((100, 50), None, (88, 48)),
        ((50, 100), None, (48, 88)),
        ((64, 64), None, (64, 64)),
        ((10, 10), (32, 128), (32, 128)),
    ],
)
def test_the_size_of_the_answer(
    picture: tuple[int, int], size: tuple[int, int] | None, result: tuple[int, int]
) -> None:
    made = upload(png(picture), size=size)
    assert (made.width, made.height) == opened(made.image).size == result


def test_a_mask_is_white_where_to_paint() -> None:
    cover = Image.new("RGBA", (32, 32), (9, 9, 9, 255))
    cover.paste((9, 9, 9, 0), (0, 0, 16, 32))
    cover.paste((9, 9, 9, 128), (16, 0, 32, 8))  # only fully transparent counts
    for kind in ("PNG", "WEBP"):
        options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
        made = opened(upload(png((32, 32)), saved(cover, kind, **options)).mask)
        assert made.mode == "L"
        assert [made.getpixel(p) for p in ((5, 5), (25, 5), (50, 5), (50, 50))] == [255, 255, 0, 0]
        assert set(made.get_flattened_data()) == {0, 255}


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (png((16, 16), (0, 0, 0, 0), "RGBA"), "must match"),
        (png((32, 32)), "no transparency"),
        (png((32, 32), (0, 0, 0, 1), "RGBA"), "nothing is to paint"),
        (b"GIF89a", "no PNG"),
    ],
)
def test_masks_that_are_none(mask: bytes, says: str) -> None:
    with pytest.raises(Refused) as caught:
        upload(png((32, 32)), mask)
    assert caught.value.error.param == "mask"
    assert says in caught.value.error.message


def test_a_mask_whose_hole_is_lost_in_scaling_is_refused() -> None:
    cover = Image.new("RGBA", (96, 96), (0, 0, 0, 255))
    cover.putpixel((70, 70), (0, 0, 0, 0))
    with pytest.raises(Refused, match="invalid_value") as caught:
        upload(png((96, 96)), saved(cover, "PNG"), size=(8, 8))
    assert caught.value.error.param == "mask"
    assert "too small to be seen at 8x8" in caught.value.error.message
    assert upload(png((96, 96)), saved(cover, "PNG"), size=(96, 96)).mask is not None


def animated(kind: str) -> bytes:
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:])


NOISE = Image.effect_noise((64, 64), 80)
BROKEN = {
    "nothing": b"",
    "text": b"hello",
    "gif": saved(NOISE, "GIF"),
    "bmp": saved(NOISE, "BMP"),
    "tiff": saved(NOISE, "TIFF"),
    "zip": b"PK\x03\x04" + bytes(60),
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "animated png": animated("PNG"),
    "animated webp": animated("WEBP"),
    "signature only": png((8, 8))[:8],
    "png cut": saved(NOISE, "PNG")[:-200],
    "png without pixels": png((8, 8))[:33] + chunk(b"IEND", b""),
    "png of wrong sums": png((8, 8)).replace(b"IDAT", b"IDAT", 1)[:-20] + bytes(20),
    "png of no size": png((8, 8)).replace((8).to_bytes(4) * 2, bytes(8)),
    "jpeg cut": saved(NOISE, "JPEG")[:-400],
    "jpeg head only": saved(NOISE, "JPEG")[:60],
    "jpeg of scans": saved(NOISE, "JPEG") + b"\xff\xda" * 100,
    "webp cut": saved(NOISE, "WEBP")[:-50],
    "webp head only": saved(NOISE, "WEBP")[:16],
    "webp of nonsense": b"RIFF\x20\0\0\0WEBPVP9 " + bytes(40),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_pictures(name: str) -> None:
    with pytest.raises(Refused) as caught:
        upload(BROKEN[name])
    assert (caught.value.error.code, caught.value.error.param) == ("invalid_image", "image")
    assert caught.value.status == 400


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_size_is_read_before_the_picture_is_opened(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("the decoder was asked")

    monkeypatch.setattr(Image, "open", never)
    for width, height in ((16_000, 16_000), (101, 100)):
        with pytest.raises(Refused) as caught:
            upload(claim(kind, width, height))
        assert caught.value.error.code == "image_too_large"
        assert f"{width}x{height}" in caught.value.error.message


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_header_that_lies_small_is_refused(kind: str) -> None:
    with pytest.raises(Refused):
        upload(claim(kind, 20, 20))


def test_long_strips_need_a_size() -> None:
    strip = png((900, 10))
    with pytest.raises(Refused, match="invalid_value"):
        upload(strip)
    assert opened(upload(strip, size=(64, 64)).image).size == (64, 64)


def test_every_prefix_of_a_picture_is_refused_and_nothing_else_is_raised() -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        whole = saved(NOISE.resize((16, 16)), kind)
        read_header(whole)
        for cut in range(len(whole) - 1):
            try:
                read_header(whole[:cut])
            except Unreadable:
                continue
            assert kind == "JPEG", "the others know their length"
            if cut < len(whole) - 40:  # a few missing bits at the end are no loss to JPEG
                with pytest.raises(Refused):
                    upload(whole[:cut])
