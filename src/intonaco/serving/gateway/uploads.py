"""Pictures that users send in: checked, turned upright, stripped and brought to the size wanted.

A worker never sees a byte that a user sent: it gets a PNG that was encoded here. All of this is
work of milliseconds to a second and runs in threads.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import pybase64
from PIL import Image, ImageOps

from intonaco.serving.gateway.picture_headers import Unreadable, read_header
from intonaco.serving.gateway.problems import invalid

MULTIPLE = 8  # sides of an image
LONGEST = 8.0  # longer side over the shorter, where the picture decides the size


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """Base64 PNGs of ``width`` x ``height``: RGB, and white where to paint."""

    image: str
    mask: str | None
    width: int
    height: int


def prepare(
    image: bytes, mask: bytes | None, *, size: tuple[int, int] | None, area: int, pixels: int
) -> Upload:
    """``size``: what the client asked for; None: the picture's proportions with about ``area``
    pixels. ``pixels``: the most a picture may have. A mask's fully transparent pixels say where to
    paint. Raises Refused."""
    picture = _open(image, "image", pixels)
    cover = None if mask is None else _open(mask, "mask", pixels)
    if cover is not None and cover.size != picture.size:
        raise invalid(
            "mask",
            f"The mask is {cover.width}x{cover.height} and the image "
            f"{picture.width}x{picture.height}; they must match.",
        )
    width, height = size or _like(picture.width, picture.height, area)
    return Upload(
        image=_png(_flat(picture, (width, height))),
        mask=None if cover is None else _png(_where_to_paint(cover, (width, height))),
        width=width,
        height=height,
    )


def _open(data: bytes, param: str, pixels: int) -> Image.Image:
    """The decoded picture, upright, in RGB or RGBA. Raises Refused."""
    try:
        header = read_header(data)
    except Unreadable as error:
        raise invalid(param, f"The {param} {error}.", "invalid_image") from None
    if header.width * header.height > pixels:
        raise invalid(
            param,
            f"The {param} has {header.width}x{header.height} pixels; at most {pixels} are taken.",
            "image_too_large",
        )
    failed = invalid(param, f"The {param} cannot be decoded.", "invalid_image")
    try:
        with Image.open(io.BytesIO(header.data), formats=(header.kind,)) as opened:
            # The decoder must see the size that was just allowed.
            if opened.size != (header.width, header.height):
                raise failed
            opened.load()
            return _plain(ImageOps.exif_transpose(opened))
    except Exception:  # decoders of foreign bytes raise nearly anything
        raise failed from None


def _plain(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits of grey
        picture = picture.convert("I").point(lambda v: v * (1 / 256)).convert("L")
    clear = picture.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in picture.info
    return picture.convert("RGBA" if clear else "RGB")


def _like(width: int, height: int, area: int) -> tuple[int, int]:
    if max(width, height) > LONGEST * min(width, height):
        raise invalid(
            "size",
            f"The image is {width}x{height}, longer than {LONGEST:g} to 1: give a 'size', or crop.",
        )
    scale = math.sqrt(area / (width * height))
    wide, high = (max(1, round(side * scale / MULTIPLE)) * MULTIPLE for side in (width, height))
    return wide, high


def _flat(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Transparent parts become white: what lies hidden under them is nobody's business."""
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    if picture.mode != "RGBA":
        return picture
    paper = Image.new("RGBA", size, "white")
    paper.alpha_composite(picture)
    return paper.convert("RGB")


def _where_to_paint(cover: Image.Image, size: tuple[int, int]) -> Image.Image:
    if cover.mode != "RGBA":
        raise invalid(
            "mask", "The mask has no transparency; its fully transparent pixels say where to paint."
        )
    hole = cover.getchannel("A").point(lambda a: 255 if a == 0 else 0)
    if hole.getbbox() is None:
        raise invalid("mask", "The mask has no fully transparent pixel, so nothing is to paint.")
    scaled = hole.resize(size, Image.Resampling.BOX).point(lambda v: 255 if v >= 128 else 0)
    if scaled.getbbox() is None:
        raise invalid(
            "mask",
            f"The mask's transparent part is too small to be seen at {size[0]}x{size[1]}: make it"
            " larger, or ask for a larger 'size'.",
        )
    return scaled


def _png(picture: Image.Image) -> str:
    out = io.BytesIO()
    picture.save(out, format="PNG", compress_level=1)
    return pybase64.b64encode(out.getvalue()).decode()
